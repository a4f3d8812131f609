"""What the makers publish of their accelerators, **per jax device**, in bytes, FLOP/s and bytes/s.

A chip is one jax device, except that JAX sees TPU7x's two chiplets as two. Rates are peaks, so a
time computed from them is a lower bound. GB and Gb are powers of ten, GiB are powers of two.
Looked up in 2025-2026; a line that says "derived" or "from memory" is less certain than the rest.
"""

import dataclasses

GB, GIB, GBIT = 10**9, 2**30, 10**9 / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One kind of accelerator; every quantity is of one jax device unless it says "chip".

  Attributes:
    name: as in a topology's name, "v5e".
    device_kind: `jax.Device.device_kind`.
    devices: jax devices of one chip.
    hbm_bytes: capacity; what XLA lets a program use is a little less.
    hbm_bytes_per_s: of its memory.
    flops: bfloat16 FLOP/s, dense.
    torus_axes: dimensions of the torus in which chips are wired; 0 for a switch (NVLink).
    link_bytes_per_s: one link of the *chip*, one way. A torus has two links an axis, a switch one.
    dcn_bytes_per_s: to another slice (TPU) or node (GPU), one way.
    source: where each figure is published.
    aliases: other values of `device_kind` of the same peak.
  """

  name: str
  device_kind: str
  devices: int = 1
  hbm_bytes: int
  hbm_bytes_per_s: float
  flops: float
  torus_axes: int
  link_bytes_per_s: float
  dcn_bytes_per_s: float
  source: str
  aliases: tuple[str, ...] = ()

  @property
  def ici_bytes_per_s(self) -> float:
    """What a device can send inside its slice (or node) over all its chip's links at once."""
    return max(2 * self.torus_axes, 1) * self.link_bytes_per_s / self.devices


# One-way link rates of the TPUs are the "bidirectional interchip interconnect bandwidth per chip"
# of the pages divided by twice the number of links. Achieved rates are about a tenth lower: the
# JAX scaling book (jax-ml.github.io/scaling-book/tpus) has 45 and 90 GB/s for 50 and 100 GB/s.
_CHIPS = (
    Chip(name="v4", device_kind="TPU v4", flops=275e12,
         hbm_bytes=32 * GIB, hbm_bytes_per_s=1200 * GB,
         torus_axes=3, link_bytes_per_s=50 * GB, dcn_bytes_per_s=6.25 * GB,
         source="cloud.google.com/tpu/docs/v4: FLOP/s, HBM. Links: 6 of 50 GB/s, TPU v4 paper "
                "(arXiv:2304.01433, from memory). DCN: scaling book."),
    Chip(name="v5e", device_kind="TPU v5 lite", aliases=("TPU v5e",), flops=197e12,
         hbm_bytes=16 * GIB, hbm_bytes_per_s=819 * GB,
         torus_axes=2, link_bytes_per_s=1600 * GBIT / 4, dcn_bytes_per_s=6400 * GBIT / 256,
         source="cloud.google.com/tpu/docs/v5e: FLOP/s, HBM, interconnect 1600 Gbps a chip over 4 "
                "links, DCN 6.4 Tbps a pod of 256."),
    Chip(name="v5p", device_kind="TPU v5", aliases=("TPU v5p",), flops=459e12,
         hbm_bytes=95 * GIB, hbm_bytes_per_s=2765 * GB,
         torus_axes=3, link_bytes_per_s=1200 * GB / 12, dcn_bytes_per_s=50 * GBIT,
         source="cloud.google.com/tpu/docs/v5p: FLOP/s, HBM, interconnect 1200 GB/s a chip both "
                "ways over 6 links, DCN 50 Gbps a chip."),
    Chip(name="v6e", device_kind="TPU v6 lite", aliases=("TPU v6e",), flops=918e12,
         hbm_bytes=32 * GIB, hbm_bytes_per_s=1638 * GB,
         torus_axes=2, link_bytes_per_s=800 * GB / 8, dcn_bytes_per_s=100 * GBIT,
         source="cloud.google.com/tpu/docs/{v6e,tpu7x}: FLOP/s, HBM, interconnect 800 GB/s a chip "
                "both ways over 4 links, DCN 100 Gbps a chip."),
    Chip(name="tpu7x", device_kind="TPU7x", devices=2, flops=2307e12 / 2,
         hbm_bytes=192 * GIB // 2, hbm_bytes_per_s=7380 * GB / 2,
         torus_axes=3, link_bytes_per_s=1200 * GB / 12, dcn_bytes_per_s=100 * GBIT / 2,
         source="cloud.google.com/tpu/docs/tpu7x: FLOP/s, HBM, interconnect 1200 GB/s a chip both "
                "ways over 6 links, DCN 100 Gbps a chip; halved (two devices a chip)."),
    Chip(name="a100", device_kind="NVIDIA A100-SXM4-80GB", aliases=("NVIDIA A100-SXM4-40GB",),
         flops=312e12, hbm_bytes=80 * GB, hbm_bytes_per_s=2039 * GB,
         torus_axes=0, link_bytes_per_s=300 * GB, dcn_bytes_per_s=200 * GBIT,
         source="NVIDIA A100 data sheet (80 GB SXM): FLOP/s, HBM, NVLink 600 GB/s both ways. DCN: "
                "DGX A100, one 200 Gb/s adapter a GPU (from memory)."),
    Chip(name="h100", device_kind="NVIDIA H100 80GB HBM3", flops=989e12,
         hbm_bytes=80 * GB, hbm_bytes_per_s=3350 * GB,
         torus_axes=0, link_bytes_per_s=450 * GB, dcn_bytes_per_s=400 * GBIT,
         source="NVIDIA H100 data sheet (SXM): FLOP/s without sparsity, HBM, NVLink 900 GB/s both "
                "ways. DCN: DGX H100, one 400 Gb/s adapter a GPU."),
    Chip(name="h200", device_kind="NVIDIA H200", flops=989e12,
         hbm_bytes=141 * GB, hbm_bytes_per_s=4800 * GB,
         torus_axes=0, link_bytes_per_s=450 * GB, dcn_bytes_per_s=400 * GBIT,
         source="NVIDIA H200 data sheet (SXM): FLOP/s without sparsity, HBM, NVLink 900 GB/s both "
                "ways. DCN: DGX H200, one 400 Gb/s adapter a GPU."),
    # The memory is sold as 180 to 192 GB; 180 is what HGX and DGX B200 offer a GPU.
    Chip(name="b200", device_kind="NVIDIA B200", flops=2250e12,
         hbm_bytes=180 * GB, hbm_bytes_per_s=8000 * GB,
         torus_axes=0, link_bytes_per_s=900 * GB, dcn_bytes_per_s=400 * GBIT,
         source="NVIDIA HGX/DGX B200 data sheets: FLOP/s without sparsity, HBM 8 TB/s, NVLink 1800 "
                "GB/s both ways, one 400 Gb/s adapter a GPU."),
)
CHIPS = {chip.name: chip for chip in _CHIPS}
_KINDS = {kind: chip for chip in _CHIPS for kind in (chip.device_kind, *chip.aliases)}


def of_kind(device_kind: str) -> Chip | None:
  """The chip of a `jax.Device.device_kind`; None if it is not in the table."""
  return _KINDS.get(device_kind)
