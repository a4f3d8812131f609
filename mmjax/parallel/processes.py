"""Start-up and survival of the processes of a run: one a host (or a GPU), all with the same code.

What must not happen on a pod: a process waits for ever for one that died, two processes train from
different configs, or one stops at another step than the rest.
"""

import faulthandler
import hashlib
import os
import signal
import sys
import traceback

import jax
from jax.experimental import multihost_utils
import numpy as np

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(coordinator=None, count=None, index=None, *, connect_seconds=300, heartbeat_seconds=100,
          shutdown_seconds=300):
  """Joins the other processes, if there are any; call it before anything touches a device.

  Args:
    coordinator: "host:port" of process 0; "auto" to ask the cluster (Cloud TPU, Slurm, Open MPI,
      Kubernetes); None reads `ENVIRONMENT`, and without it this is the only process. A pod needs
      one of them: without, the processes neither notice a dead one nor stop together.
    count, index: number of processes and which one this is; None reads `ENVIRONMENT`, else the
      cluster.
    connect_seconds: how long to wait for the others at the start.
    heartbeat_seconds: silence after which a process counts as dead; the others then end too.
    shutdown_seconds: how long a process that is done waits for the others.

  A second call does nothing. From here on an uncaught exception ends the process at once: the
  ordinary exit would wait for the others, which wait for this one.

  Raises:
    ValueError: a coordinator without a count or index, or the reverse.
    RuntimeError: no connection, or a device was used before.
  """
  if jax.distributed.is_initialized():
    return
  address, count, index = _who(coordinator, count, index)
  if address is None:
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")  # read by the CPU backend only
  jax.distributed.initialize(
      None if address == "auto" else address, count, index,
      initialization_timeout=connect_seconds, heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=shutdown_seconds)
  sys.excepthook = _end_at_once


def _who(coordinator, count, index):
  """Arguments completed from the environment: (address | "auto" | None, count, index)."""
  address, env_count, env_index = (os.environ.get(name) for name in ENVIRONMENT)
  address = coordinator or address
  if address == "auto":
    return address, count, index
  count = int(env_count) if count is None and env_count else count
  index = int(env_index) if index is None and env_index else index
  if (address is None) != (count is None) or (address is None) != (index is None):
    raise ValueError(f"processes: coordinator={address}, count={count}, index={index}; give all "
                     f"three (or set {', '.join(ENVIRONMENT)}), or coordinator='auto', or none")
  return address, count, index


def _end_at_once(kind, error, trace):
  traceback.print_exception(kind, error, trace)
  abort(1)


def abort(status):
  """Ends this process without waiting for the others, which then notice that it is gone."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def is_lead():
  """Whether this is the process that writes logs and reports."""
  return jax.process_index() == 0


def barrier(name):
  """Waits until every process has reached the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(value, what="config"):
  """Checks that all processes hold the same `value`.

  Args:
    value: str or bytes, such as the resolved config as JSON.
    what: what it is, for the error.

  Raises:
    ValueError: on every process, naming those whose value is not that of process 0.
  """
  if jax.process_count() == 1:
    return
  value = value.encode() if isinstance(value, str) else value
  digest = np.frombuffer(hashlib.sha256(value).digest(), np.uint8)
  digests = multihost_utils.process_allgather(digest)                     # [processes, 32]
  different = np.flatnonzero(np.any(digests != digests[0], axis=1))
  if different.size:
    raise ValueError(f"the {what} of process(es) {', '.join(map(str, different))} differs from "
                     "that of process 0; start every process with the same code and flags")


def fetch(tree):
  """The whole of every (possibly sharded) array as numpy, on every process. All must call it."""
  return jax.tree.map(_fetch, tree)


def _fetch(x):
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return np.asarray(x)
  if x.is_fully_replicated:
    return np.asarray(x.addressable_data(0))
  return multihost_utils.process_allgather(x, tiled=True)


class StopRequest:
  """Turns SIGTERM (preemption) and Ctrl-C into a stop after a step, the same step on all processes.

    with StopRequest() as stop:
      for step in ...:
        ...
        if stop.after(step):
          break

  A second Ctrl-C interrupts at once. With several processes JAX's preemption service receives
  SIGTERM and agrees with the others on a step that none of them has passed.
  """

  def __enter__(self):
    self.requested = False
    self._many = jax.process_count() > 1
    self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt)}
    if not self._many:
      self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_terminate)
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _on_interrupt(self, number, frame):
    if self.requested:
      raise KeyboardInterrupt
    self.requested = True
    if self._many:
      os.kill(os.getpid(), signal.SIGTERM)  # to the preemption service

  def _on_terminate(self, number, frame):
    self.requested = True

  def after(self, step):
    """Whether to stop now. Every process calls it after every step, with ascending steps."""
    if self._many:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.requested


class Watchdog:
  """Ends the process, with the stacks of all its threads, when nothing was marked for a while.

  For hangs that no time-out ends, such as a lost collective. The timer is the interpreter's own and
  fires also while compiled code holds the interpreter.

  Args:
    seconds: longest time between two marks; None never fires. It runs from the first mark, so a
      long first compilation is not counted.
  """

  def __init__(self, seconds=None):
    if seconds is not None and seconds <= 0:
      raise ValueError(f"watchdog: seconds={seconds} must be positive, or None for no watchdog")
    self.seconds = seconds

  def mark(self):
    """Tells that the run has made progress."""
    if self.seconds is not None:
      faulthandler.dump_traceback_later(self.seconds, exit=True)

  def close(self):
    """Stops watching."""
    if self.seconds is not None:
      faulthandler.cancel_dump_traceback_later()
