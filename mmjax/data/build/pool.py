"""Processes that work off a list of tasks, and end when the one that started them is gone."""

import concurrent.futures
import concurrent.futures.process
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mmjax.data import stream

_log = logging.getLogger("mmjax")
_state: dict[str, Any] = {}


def run(task: Callable, tasks: Iterable, shared: tuple, processes: int) -> Iterator:
  """Results of task(*shared, one) for each of `tasks`, as they are done.

  Args:
    task: a function of a module.
    shared: arguments that every process is sent once.
    processes: 0 works in this one.

  Raises:
    DataError: a process was killed.
  """
  tasks = list(tasks)
  if processes == 0 or len(tasks) < 2:
    yield from (task(*shared, one) for one in tasks)
    return
  context = multiprocessing.get_context("spawn")  # forking with threads about is not safe
  pool = concurrent.futures.ProcessPoolExecutor(
      min(processes, len(tasks)), context, _start, (task, shared, os.getpid()))
  try:
    waiting = [pool.submit(_call, one) for one in tasks]
    for done in concurrent.futures.as_completed(waiting):
      yield done.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise stream.DataError("a worker process was killed, perhaps for want of memory; the same command goes on "
                           "where it was, with fewer --processes if need be") from error
  finally:
    pool.shutdown(cancel_futures=True)


def _start(task, shared, parent):
  import cv2
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends its workers
  cv2.setNumThreads(0)  # each process has a core of its own
  _state.update(task=task, shared=shared)
  threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent):
  """A process whose parent was killed would wait for tasks for ever."""
  while os.getppid() == parent:
    time.sleep(0.5)
  os._exit(1)


def _call(one):
  return _state["task"](*_state["shared"], one)


class Progress:
  """A line on stderr: rewritten in place on a terminal, else one for each tenth."""

  def __init__(self, what: str, total: int, done: int = 0):
    self._what, self._total, self._done, self._before = what, total, done, done
    self._began, self._shown, self._live = time.monotonic(), -1, sys.stderr.isatty()
    self.add(0)

  def add(self, count: int) -> None:
    """Counts records that are done."""
    self._done += count
    tenth = 10 * self._done // max(1, self._total)
    if not self._live and tenth == self._shown:
      return
    self._shown = tenth
    seconds = max(1e-3, time.monotonic() - self._began)
    speed = (self._done - self._before) / seconds
    left = f", {(self._total - self._done) / speed:.0f} s left" if speed and self._done < self._total else ""
    line = (f"{self._what}: {self._done:,} of {self._total:,} ({100 * self._done // max(1, self._total)}%), "
            f"{speed:,.0f} a second{left}")
    print(f"\r\x1b[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

  def end(self) -> None:
    if self._live:
      print(file=sys.stderr, flush=True)
