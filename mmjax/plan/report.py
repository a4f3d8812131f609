"""A plan for people, per chip: a page of text, and the table of all parameters."""

from collections.abc import Iterator
from typing import Any, TextIO

from mmjax.plan import advice
from mmjax.report import console

GIB, MIB, TERA = 2**30, 2**20, 1e12
NAME_WIDTH = 70  # of a tensor's path or place, in columns
ROWS = 8         # collectives and kernels shown; the rest are added up
DAY = 24         # hours


def show(plan: Any, config: str = "", file: TextIO | None = None) -> None:
  """Prints a `plan.Plan`.

  Args:
    config: what `--config` held.
    file: default standard output.
  """
  chip = plan.topology.chip
  console.show(f"{plan.topology.title}: {plan.topology.chips} chips, "
               f"{_size(chip.hbm_bytes * chip.devices)} HBM and {_tera(plan, chip.flops)} bf16 "
               f"TFLOP/s each{'   ' + config if config else ''}", file=file)
  for name, text in _lines(plan):
    console.show(f"{name:15} {text}", file=file)
  for made in (_tensor_table(plan), _communication_table(plan)):
    console.show(made, file=file)
  for title, lines in (("what to change", plan.advice()), ("notes", plan.warnings)):
    if lines:
      console.show(title, file=file)
    for line in lines:
      console.show(f"  {line}", file=file)


def _lines(plan: Any) -> Iterator[tuple[str, str]]:
  """(name, text) of what is a line of its own."""
  mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.shape.items() if size > 1)
  yield "mesh", mesh or "one device"
  if plan.run:
    batch, micro = plan.run.settings.batch_size, plan.run.settings.micro_batches
    parts = f", in {micro} micro-batches" if micro > 1 else ""
    yield "batch", (f"{batch:,} rows, {batch / plan.topology.chips:g} a chip{parts}; "
                    f"{plan.steps:,} steps")
  memory, each = plan.memory, plan.topology.chip.devices
  yield "fits", (f"{'yes' if plan.fits else 'NO'}: peak {_size(memory.peak * each)} of the "
                 f"{_size(memory.limit * each)} that the compiler grants "
                 f"({memory.peak / memory.limit:.0%})")
  held = [f"arguments {_size(memory.args * each)}"]
  if memory.temp is not None:
    held.append(f"temporaries {_size(memory.temp * each)}")
  if memory.output is not None:
    held.append(f"results {_size(memory.output * each)}, of which {_size(memory.alias * each)} in "
                "the place of arguments")
  yield "memory", ", ".join(held)
  yield "", memory.source
  sizes = advice.shares(plan)
  whole = max(sum(sizes.values()), 1)
  yield "", ", ".join(f"{name} {size / whole:.0%}" for name, size in sizes.items())
  yield from _flops_lines(plan)
  yield from _roofline_lines(plan)
  yield "time taken", (f"lowering {plan.compiled.lower_s:.1f} s, compiling "
                       f"{plan.compiled.compile_s:.1f} s")


def _flops_lines(plan):
  flops = plan.flops
  model = "unknown" if flops.model is None else _tera(plan, flops.model)
  least = " at least" if flops.at_least else ""
  yield "TFLOPs a step", f"model {model}, hardware{least} {_tera(plan, flops.hardware)} a chip"
  if flops.imbalance and flops.imbalance > 1.01:
    yield "", (f"the partitioned program does {flops.imbalance:.2f} times the hardware FLOPs: the "
               "mesh does not divide all products")
  for kernel in flops.kernels[:ROWS]:
    count = "unknown" if kernel.flops is None else f"{_tera(plan, kernel.flops)} TFLOPs"
    yield "  kernel", f"{kernel.name}: {kernel.calls:g} calls, {count} ({kernel.how})"
  if not flops.kernels:
    yield "  kernels", "none: every product is seen"


def _roofline_lines(plan):
  roofline = plan.roofline
  times = {"compute": roofline.compute_s, "memory": roofline.memory_s, "ici": roofline.ici_s,
           "dcn": roofline.dcn_s}
  yield "lower bounds", ", ".join(f"{name} {_seconds(time)}" for name, time in times.items())
  mfu = "" if roofline.mfu is None else f"; MFU at most {roofline.mfu:.1%}"
  yield "", f"memory: {plan.traffic.source}"
  yield "step", f"at least {_seconds(roofline.step_s)}, bound by {roofline.bound}{mfu}"
  hours = roofline.step_s * plan.steps / 3600
  run = f"{hours / DAY:.1f} days" if hours >= DAY else f"{hours:.3g} hours"
  yield "run", f"at least {run}, {roofline.chip_hours:,.4g} chip-hours"


def _tensor_table(plan):
  rows = [[tensor.kind, _cut(tensor.name), _shape(tensor), tensor.spec,
           "" if tensor.ways is None else str(tensor.ways), tensor.bytes / MIB]
          for tensor in plan.largest()]
  return console.table("largest tensors (MiB a device)",
                       ["", "name", "shape", "on the mesh", "ways", "MiB"], rows)


def _communication_table(plan):
  communication, each = plan.communication, plan.topology.chip.devices
  rows = [[row.op, "+".join(row.axes), row.network, row.count, row.bytes * each / MIB]
          for row in communication.rows]
  rest = rows[ROWS:]
  if rest:
    rows = rows[:ROWS] + [[f"{len(rest)} others", "", "", sum(row[3] for row in rest),
                           sum(row[4] for row in rest)]]
  rows.append(["all", "", "", sum(row.count for row in communication.rows),
               communication.bytes * each / MIB])
  return console.table(f"communication a step, from: {communication.source}",
                       ["operation", "mesh axes", "network", "count", "MiB sent by a chip"], rows)


def show_shardings(plan: Any, file: TextIO | None = None) -> None:
  """Prints how each parameter lies: shape, logical axes, spec, bytes a device."""
  params = [tensor for tensor in plan.run.findings.tensors if tensor.path.startswith("params/")]
  rows = [[tensor.path.removeprefix("params/"), str(list(tensor.shape)),
           ", ".join(str(name) for name in tensor.names), tensor.spec, tensor.copies,
           tensor.held / MIB] for tensor in params]
  rows.append(["all parameters", "", "", "", None, sum(t.held for t in params) / MIB])
  console.show(console.table("parameters", ["path", "shape", "logical axes", "on the mesh",
                                            "copies", "MiB a device"], rows), file=file)


def _shape(tensor: Any) -> str:
  return f"{tensor.dtype}{list(tensor.shape)}" if tensor.dtype else ""


def _cut(name: str) -> str:
  return name if len(name) <= NAME_WIDTH else f"...{name[3 - NAME_WIDTH:]}"


def _size(count: float) -> str:
  return f"{count / GIB:.3g} GiB" if count >= GIB / 10 else f"{count / MIB:.3g} MiB"


def _tera(plan: Any, count: float) -> str:
  """Of a chip, from a count of a device."""
  return f"{count * plan.topology.chip.devices / TERA:.4g}"


def _seconds(time: float) -> str:
  if time >= 1:
    return f"{time:.3g} s"
  return f"{time * 1e3:.3g} ms" if time >= 1e-3 or not time else f"{time * 1e6:.3g} us"
