"""What a run prints: a progress bar, or plain lines where nobody watches, and tables."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import rich.box
import rich.console
import rich.progress
import rich.table

LINE_PERIOD = 10.0  # seconds between progress lines where there is no terminal
PLAIN_WIDTH = 160   # columns of a table that goes to a file or a pipe
BESIDE = ("chance", "majority", "mean", "ceiling")  # a metric's companions, named `metric/companion`


class Console:
  """Progress of a run, with `write(step, scalars)` and `close()` as the other writers have.

  On a terminal a bar shows step, loss, examples/s and time left; elsewhere (a pipe, a log) it is a
  line every LINE_PERIOD seconds, the first and the last step always. Scalars without a loss are an
  evaluation and get a line of their own. Says nothing on processes other than the lead.

  Args:
    total: the step at which the run ends.
    start: the step it starts from (not 0 after a resume).
    lead: whether this process speaks.
    loss: name of the loss among the scalars.
    rate: name of the examples per second among the scalars.
    file: where to print; standard output by default.
  """

  def __init__(self, total: int, *, start: int = 0, lead: bool = True, loss: str = "loss",
               rate: str = "examples_per_s", file: TextIO | None = None):
    self._total, self._start, self._loss, self._rate = total, start, loss, rate
    self._console = _console(file, quiet=not lead)
    self._began = time.monotonic()
    self._last_line = None
    self._bar = self._task = None
    if lead and self._console.is_terminal:
      self._bar = rich.progress.Progress(
          rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
          rich.progress.BarColumn(), rich.progress.TextColumn("{task.fields[status]}"),
          rich.progress.TextColumn("eta {task.fields[left]}"), console=self._console)
      self._task = self._bar.add_task("train", total=total, completed=start, status="", left="-")
      self._bar.start()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Shows progress at `step` out of scalars that have a loss; prints all of any others."""
    if self._loss not in scalars:
      values = "  ".join(f"{name} {_number(value)}" for name, value in scalars.items())
      self.print(f"step {step}  {values}")
      return
    status = f"loss {scalars[self._loss]:.4f}"
    if self._rate in scalars:
      status += f"  {scalars[self._rate]:,.0f} examples/s"
    left = _duration(self._seconds_left(step))
    if self._bar:
      self._bar.update(self._task, completed=step, status=status, left=left)
      return
    now = time.monotonic()
    if self._last_line is None or now - self._last_line >= LINE_PERIOD or step >= self._total:
      self.print(f"step {step}/{self._total}  {status}  eta {left}")
      self._last_line = now

  def print(self, what: Any) -> None:
    """Prints text or a `table` above the bar."""
    self._console.print(what, soft_wrap=isinstance(what, str))

  def close(self) -> None:
    """Leaves the bar as it stands. A second call does nothing."""
    if self._bar:
      self._bar.stop()

  def _seconds_left(self, step: int) -> float | None:
    done = step - self._start
    return (time.monotonic() - self._began) / done * (self._total - step) if done > 0 else None


def show(what: Any, *, lead: bool = True, file: TextIO | None = None) -> None:
  """Prints text or a `table` where no run is in progress."""
  console = _console(file, quiet=not lead)
  console.print(what, soft_wrap=isinstance(what, str))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> rich.table.Table:
  """A table to print; numbers are aligned right and shortened, None is left blank."""
  rows = [list(row) for row in rows]
  made = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE)
  for index, column in enumerate(columns):
    numeric = all(isinstance(row[index], (int, float, type(None))) for row in rows)
    made.add_column(column, justify="right" if numeric else "left", overflow="fold")
  for row in rows:
    made.add_row(*("" if cell is None else _number(cell) if isinstance(cell, (int, float))
                   else str(cell) for cell in row))
  return made


def evaluation_table(title: str, scalars: Mapping[str, float],
                     baseline: Mapping[str, float] | None = None) -> rich.table.Table:
  """Metrics beside what they are held against: chance, majority, mean, ceiling and baseline.

  Args:
    title: printed above.
    scalars: metrics under their full names; `retrieval/i2t/R@1/chance` is shown in the row of
      `retrieval/i2t/R@1`.
    baseline: the same metrics of another model. A column that would be empty is left out.
  """
  baseline = baseline or {}
  beside = {f"{name}/{companion}" for name in scalars for companion in BESIDE}
  rows = [[name, value, *(scalars.get(f"{name}/{companion}") for companion in BESIDE),
           baseline.get(name)] for name, value in scalars.items() if name not in beside]
  columns = ["metric", "value", *BESIDE, "baseline"]
  used = [index for index in range(len(columns))
          if index < 2 or any(row[index] is not None for row in rows)]
  return table(title, [columns[index] for index in used],
               [[row[index] for index in used] for row in rows])


def _console(file: TextIO | None, quiet: bool) -> rich.console.Console:
  file = file or sys.stdout
  width = None if file.isatty() else PLAIN_WIDTH
  return rich.console.Console(file=file, width=width, quiet=quiet, markup=False, highlight=False)


def _number(value: float) -> str:
  """Counts in full, measurements to four digits."""
  if float(value).is_integer() and abs(value) < 1e15:
    return f"{int(value):,}"
  return f"{value:.4g}"


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return "-"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}"
