"""What SigLIP takes on pods of 16 to 4,096 chips: makes docs/scaling.md.

  python -m benchmarks.scaling                          # all cells that are not in the cache yet
  python -m benchmarks.scaling --only=l16,v5e:16x16     # cells whose name has one of these in it
  python -m benchmarks.scaling --list                   # their names

Each cell is `mmjax.plan.plan`: the train step of `configs/contrastive/siglip_*.py` compiled for
absent chips, 32 pairs on each. Cells are kept by `mmjax/plan/cache.py`, so an interrupted run goes
on where it was, and after a change of the source they are compiled again. The page shows what there
is, and names what is missing.
"""

import argparse
import dataclasses
import pathlib
import time

import jax

from configs.contrastive import siglip
from mmjax import config as config_lib
from mmjax import plan as plan_lib
from mmjax.plan import cache

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
PAIRS = 32  # a chip
MODELS = {"b16": "B/16", "l16": "L/16", "so400m": "So400m/14", "g14": "g/14"}
REFERENCE = "L/16, the state split over the 256 chips of a slice"
HELD = "L/16, the same with 3% of the memory for XLA's scheduler"
FREE = "L/16 on v6e without the compiler option of its variants"
OPTION = next((f"compiler_options.{name}", value) for name, value in siglip.SCHEDULER.items())

# Chips: (topology, slices).
PODS = {
    16: (("v5e:4x4", 1), ("v5p:2x2x4", 1), ("v6e:4x4", 1), ("tpu7x:2x2x4", 1)),
    256: (("v5e:16x16", 1), ("v5p:4x8x8", 1), ("v6e:16x16", 1), ("tpu7x:4x8x8", 1)),
    4096: (("v5e:16x16", 16), ("v5p:16x16x16", 1), ("v6e:16x16", 16), ("tpu7x:16x16x16", 1)),
}
OTHERS = (("v5e:16x16", 1), ("v5e:16x16", 16), ("v5p:16x16x16", 1))  # for the models other than L/16

INTRODUCTION = """# What SigLIP takes on 16 to 4,096 chips

Made by `python -m benchmarks.scaling`. **Nothing here was run on these chips.** Each row is the train
step that `mmjax train` runs, compiled for absent chips by the TPU compiler and judged by `mmjax plan`
(docs/pods.md says how). {versions}.

The models are `configs/contrastive/siglip_{{b16,l16,so400m,g14}}.py`: 224 pixels, 64 tokens, bfloat16,
scanned layers, full rematerialisation, AdamW in float32, the state split over 8 chips. Every chip has
{pairs} pairs, and the sigmoid loss is that of the global batch. All figures are of one chip and one step:

- *peak* memory, against what the chip has; *model* and *hardware* TFLOPs, the latter with what is
  computed twice;
- GiB that it sends to chips of its slice (*ICI*) and to other slices (*DCN*);
- *bound*, *step* and *MFU*: what limits the step by published peak rates, how long it then takes at
  least, and the MFU at most. Real steps take longer;
- *chip-hours* of the published {examples} examples, at least;
- *compile*, seconds on the machine that made this page, whatever else that was doing.
"""


# What stands between a heading and its table.
NOTES = {HELD: f"""The first table with `--config.{OPTION[0]}={OPTION[1]}`.
By itself XLA's scheduler spends memory that is left on putting work beside what is sent to other slices,
and the peak grows. With the option it does not, but less work is put there, so a step may take longer,
and compiling does.
The variants for v6e have the option, others need it for this mesh only.
"""}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A row of the page.

  Attributes:
    title: the heading that it stands under.
    config: as after `--config=`.
    changes: (path in it, value) pairs.
    topology, slices: as in `mmjax plan`.
  """

  title: str
  config: str
  changes: tuple[tuple[str, int], ...]
  topology: str
  slices: int

  @property
  def pod(self) -> str:
    return f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology

  @property
  def name(self) -> str:
    """What `--only` looks at, such as "siglip_l16 v5e:16x16"."""
    case = {HELD: " held", FREE: " free"}.get(self.title, "")
    return f"{self.config.partition(':')[0].rpartition('/')[2]} {self.pod}{case}"

  def load(self) -> dict:
    return config_lib.load(self.config, {path: str(value) for path, value in self.changes})


def cells() -> list[Cell]:
  """All rows: the reference case, L/16 on all pods, the other models on three of the larger ones.

  The reference and L/16 on v6e are there with and without less memory for XLA's scheduler.
  """
  whole = lambda slices: (("batch_size", slices * 256 * PAIRS), ("mesh.data", slices), ("mesh.fsdp", -1))
  rows = [Cell(REFERENCE, "contrastive/siglip:l16", whole(n), "v5e:16x16", n) for n in (1, 16)]
  rows += [dataclasses.replace(cell, title=HELD, changes=(*cell.changes, OPTION)) for cell in rows]
  for model, title in MODELS.items():
    for chips, pods in PODS.items():
      rows += [Cell(title, f"contrastive/siglip_{model}:{variant(pod[0])}",
                    (("batch_size", chips * PAIRS),), *pod) for pod in pods
               if model == "l16" or pod in OTHERS]
  return rows + [Cell(FREE, "contrastive/siglip_l16:v5e_16x16", (("batch_size", chips * PAIRS),), *pod)
                 for chips in (256, 4096) for pod in PODS[chips] if pod[0] == "v6e:16x16"]


def variant(topology: str) -> str:
  """The one for chips of its kind: v6e has compiler options of its own."""
  return "v6e_16x16" if topology.startswith("v6e") else "v5e_16x16"


def find(cell: Cell) -> dict | None:
  """The cell's plan as JSON if it is in the cache."""
  return cache.get(cache.key(cell.load(), cell.topology, cell.slices))


def measure(cell: Cell) -> dict:
  """The cell's plan as JSON, compiled now and kept in the cache."""
  config = cell.load()
  key = cache.key(config, cell.topology, cell.slices)  # of the source as it is now
  result = plan_lib.plan(config, cell.topology, cell.slices).to_json()
  cache.put(key, result)
  return result


COLUMNS = ("pod", "chips", "mesh", "batch", "peak GiB", "of", "fits", "model TFLOPs",
           "hardware TFLOPs", "ICI GiB", "DCN GiB", "bound", "step s", "MFU", "chip-hours",
           "compile s")


def row(cell: Cell, plan: dict) -> str:
  """A line of the table, in the order of `COLUMNS`."""
  details = plan["details"]
  mesh = " ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
  sent = {network: count * details["devices_per_chip"] / 2**30
          for network, count in details["communication"]["by_network"].items()}
  values = (
      cell.pod, f"{plan['chips']:,}", mesh, f"{details['batch_size']:,}",
      _number(plan["peak_gib"], 2), f"{plan['hbm_gib']:.0f}", "yes" if plan["fits"] else "**no**",
      _number(plan["model_tflops_per_chip"], 2), _number(plan["hardware_tflops_per_chip"], 2),
      _number(sent.get("ici", 0.0), 2), _number(sent.get("dcn", 0.0), 2), plan["bound"],
      f"≥ {_number(plan['step_s_lower_bound'], 3)}", f"≤ {_number(plan['mfu_upper_bound'], 2)}",
      f"≥ {_number(plan['chip_hours_lower_bound'], 0)}", f"{plan['compile_s']:.0f}")
  return _line(values)


def _number(value, digits):
  """A figure, or a dash where the plan has none (of a program that does not fit)."""
  return "–" if value is None else f"{value:,.{digits}f}"


def _line(values):
  return f"| {' | '.join(values)} |"


GROWING = {"peak": "peak_gib", "model FLOPs": "model_tflops_per_chip",
           "hardware FLOPs": "hardware_tflops_per_chip"}


def growth(plans: dict[Cell, dict]) -> list[str]:
  """How much a chip's figures grow from 256 to 4,096 chips, a line for each model and kind of chip."""
  found = {}
  for cell, plan in plans.items():
    found[cell.title, cell.topology.partition(":")[0], plan["chips"]] = plan
  lines = []
  for title, kind, chips in found:
    few, many = found[title, kind, chips], found.get((title, kind, 4096))
    if chips == 256 and many:
      change = (f"{100 * (many[key] / few[key] - 1):+.2f}%" if few[key] and many[key] else "–"
                for key in GROWING.values())
      lines.append(_line((title, kind, *change)))
  return lines


def page(plans: dict[Cell, dict]) -> str:
  """The page of the cells that have been compiled; it names those that have not."""
  versions = ", ".join(f"{name} {version}" for name, version in cache.versions().items() if version)
  settings = cells()[0].load()
  parts = [INTRODUCTION.format(versions=f"Versions: {versions}", pairs=PAIRS,
                               examples=f"{settings['total_examples']:,}")]
  for title in dict.fromkeys(cell.title for cell in cells()):
    rows = [row(cell, plans[cell]) for cell in cells() if cell.title == title and cell in plans]
    if rows:
      note = [NOTES[title]] if title in NOTES else []
      parts.append("\n".join([f"## {title}\n", *note, *_head(COLUMNS), *rows, ""]))
  lines = growth(plans)
  if lines:
    parts.append("\n".join([
        "## From 256 to 4,096 chips\n",
        "What a chip holds and computes at the same batch a chip. The pairs of the loss grow with the "
        "global\nbatch, the rest does not.\n",
        *_head(("model", "chip", *GROWING)), *lines, ""]))
  missing = [cell.name for cell in cells() if cell not in plans]
  if missing:
    parts.append(f"Not compiled yet: {', '.join(missing)}.\n")
  return "\n".join(parts)


def _head(columns):
  return _line(columns), _line(["---"] * len(columns))


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default="",
                      help="compile only cells whose name has one of these, by commas")
  parser.add_argument("--list", action="store_true", help="print the names of all cells")
  parser.add_argument("--page", type=pathlib.Path, default=PAGE, help="the file that is written")
  args = parser.parse_args(argv)
  if args.list:
    return print("\n".join(cell.name for cell in cells()))
  jax.config.update("jax_platforms", "cpu")  # the chips are absent
  chosen = [cell for cell in cells() if any(part in cell.name for part in args.only.split(","))]
  if not chosen:
    parser.error(f"--only={args.only}: no cell has that in its name, see --list")
  plans = {cell: plan for cell in cells() if (plan := find(cell))}
  for i, cell in enumerate(chosen):
    if cell not in plans:
      start = time.monotonic()
      plans[cell] = measure(cell)
      print(f"{i + 1}/{len(chosen)} {cell.name}: {plans[cell]['peak_gib']:.2f} GiB a chip, "
            f"{time.monotonic() - start:.0f} s", flush=True)
      args.page.write_text(page(plans))
  args.page.write_text(page(plans))
  return None


if __name__ == "__main__":
  main()
