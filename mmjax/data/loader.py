"""From streams to batches of global arrays on the devices.

The record at position p of step s is the stream's row first_row(s) + p, which is s * batch_size + p
if all batches have one size (`mmjax/data/batch_sizes.py`). So the batches follow from the step alone
and there is no iterator to save. Each process reads the rows that its devices own, once each,
whichever they are.

Grain reads with threads, and with worker processes if asked. It starts workers by spawning a fresh
interpreter, so threads that JAX may have started by then do no harm; like every program that
spawns, the caller's main module must be importable (`if __name__ == "__main__":`).
"""

import contextlib
import functools
import logging
import queue
import threading
import weakref

from absl import flags
import grain
import jax
import numpy as np

from mmjax.data import batch_memory
from mmjax.data import stream as stream_lib
from mmjax.data.batch_sizes import BatchSizes

_log = logging.getLogger(__name__)
_MAX_STEPS = 2**40       # Grain wants a length; no run is this long
_FRACTION_FROM_ROWS = 100  # a share of bad records means little among fewer rows


def local_rows(sharding, batch_size):
  """The positions of the global batch that this process must read: int64 [n], ascending, no
  repeats.

  Args:
    sharding: of an array whose leading axis is the batch; only its
      `addressable_devices_indices_map` is used.
    batch_size: records in the global batch.
  """
  indices = sharding.addressable_devices_indices_map((batch_size,)).values()
  parts = [np.arange(batch_size)[index[0]] for index in indices]
  return np.unique(np.concatenate(parts))


def assemble(local, sharding, batch_size, positions):
  """Global arrays from this process's rows.

  Args:
    local: {key: array [n, ...]}, row i being the record at `positions[i]` of the batch.
    sharding, batch_size: as in local_rows, which gave `positions`.

  Returns:
    {key: jax.Array [batch_size, ...]}, sharded by `sharding` along the leading axis.
  """
  def one(array):
    def shard(index):
      places = np.searchsorted(positions, np.arange(batch_size)[index[0]])
      in_a_row = len(places) and places[-1] - places[0] + 1 == len(places)  # then no copy is needed
      return array[places[0]:places[-1] + 1] if in_a_row else array[places]
    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, shard)
  return {key: one(array) for key, array in local.items()}


def train_batches(stream, batch_size, sharding, *, start_step=0, workers=0, read_threads=None,
                  prefetch=2):
  """Batches from `start_step` on, without end.

  Args:
    stream: a Stream or Mixture.
    batch_size: records in the global batch, an int or BatchSizes.
    sharding: of the batch axis, e.g. NamedSharding(mesh, P(("data", "fsdp"))).
    start_step: the first step; a resumed run passes its state's step.
    workers: Grain worker processes; 0 reads in this process. One for each core is faster than threads,
      which wait for each other's Python (benchmarks/data_pipeline.py).
    read_threads: threads that read and transform, in each worker; 0 does it in line. None is 4, or 1 with
      workers.
    prefetch: batches kept ready on the devices.

  Returns:
    Batches: an iterator of (step, batch). A batch holds the stream's keys, `row` uint32 [B, 2] (high
      and low word of the global row) and `valid` bool [B]. Close it, or use it in a `with`.

  Raises:
    DataError: no record can be read; or, while iterating, too many are bad.
  """
  sizes = batch_size if isinstance(batch_size, BatchSizes) else BatchSizes(batch_size)
  return _batches(stream, sizes, sharding, range(start_step, start_step + _MAX_STEPS), None,
                  workers, read_threads, prefetch)


def eval_batches(stream, batch_size, sharding, *, rows=None, workers=0, read_threads=None, prefetch=2):
  """Every record of a stream once, in its order; arguments and result as in train_batches.

  The last batch is filled up with `valid` = False. Every process gets the same number of batches.

  Args:
    rows: only these, a range that begins at a multiple of `batch_size`; None for all.

  Raises:
    ValueError: the stream is a mixture, which has no end, or `rows` begins elsewhere.
  """
  if not hasattr(stream, "__len__"):
    raise ValueError("a mixture has no end; evaluate its streams one by one")
  rows = range(len(stream)) if rows is None else rows
  if rows.start % batch_size:
    raise ValueError(f"rows: {rows.start} is no multiple of the batch size {batch_size}")
  steps = range(rows.start // batch_size, -(-rows.stop // batch_size))
  return _batches(stream, BatchSizes(batch_size), sharding, steps, rows.stop, workers, read_threads, prefetch)


def _batches(stream, sizes, sharding, steps, end, workers, read_threads, prefetch):
  if read_threads is None:
    read_threads = 1 if workers else 4
  for name, value, least in (("start_step", steps.start, 0), ("workers", workers, 0),
                             ("read_threads", read_threads, 0), ("prefetch", prefetch, 1)):
    if value < least:
      raise ValueError(f"{name} must be >= {least}, got {value}")
  stream.spec  # read here and now, so that a wrong stream fails at the start and in this thread
  bad = _BadRecords(stream.max_bad_fraction, stream.max_bad, stream.where)
  pieces = [(piece, local_rows(sharding, sizes.at(piece.start))) for piece in sizes.pieces(steps)]

  def on_device():
    for piece, positions in pieces:  # Grain reads batches of one size; a new size is a new reader
      memory = batch_memory.Segments() if workers and batch_memory.CAN_SHARE else batch_memory.Pool()
      source = _LocalBatches(stream, sizes, positions, piece, end, memory)
      with contextlib.closing(_read(source, workers, read_threads)) as batches:
        for step, (handed, errors) in zip(piece, batches):  # the piece ends it
          bad.count(errors)
          yield step, assemble(memory.open(handed), sharding, sizes.at(step), positions)

  batches = on_device()
  return Batches(batches, batches.close, prefetch)


def _read(source, workers, read_threads):
  """Grain's iterator over the source's batches; it has `close()`."""
  options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=read_threads)
  batches = grain.MapDataset.source(source).to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which only absl's own main parses
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return iter(batches)


class _LocalBatches:
  """Grain's random-access source: this process's rows of one step after the other, and (None, []) beyond
  the last: Grain passes over what is None itself.

  A record is written to its place in the batch as soon as it is made, while it is in the CPU's cache.
  """

  def __init__(self, stream, sizes, positions, steps, end, memory):
    self._stream, self._sizes, self._positions = stream, sizes, positions
    self._steps, self._end, self._memory = steps, end, memory

  def __len__(self):
    # Grain ends a worker when it has read the worker's last batch, which may still have to be opened, and
    # that needs the worker. So who reads ends it.
    return _MAX_STEPS

  def __getitem__(self, i):
    """(the batch as `memory` hands it on, the errors of its rows: a list of str)."""
    if i >= len(self._steps):
      return None, []
    first = self._sizes.first_row(self._steps[int(i)])
    rows = [first + int(position) for position in self._positions]
    batch, handed = self._memory.take(self._layout)
    batch["row"][:] = [(row >> 32, row & 0xFFFFFFFF) for row in rows]
    keys = batch.keys() - {"row"}
    errors = [self._write(row, {key: batch[key][i, ...] for key in keys}) for i, row in enumerate(rows)]
    return handed, errors

  @functools.cached_property
  def _layout(self):
    specs = {**self._stream.spec, "valid": ((), np.dtype(bool)), "row": ((2,), np.dtype(np.uint32))}
    return batch_memory.Layout.of({key: ((len(self._positions), *shape), dtype)
                                   for key, (shape, dtype) in specs.items()})

  def _write(self, row, places):
    if self._end is None or row < self._end:
      return self._stream.write(row, places)
    for place in places.values():  # padding
      place[...] = 0
    return ""


class _BadRecords:
  """Counts and logs this process's bad records, and raises DataError beyond the stream's limit."""

  def __init__(self, max_fraction, max_bad, where):
    self._max_fraction, self._max_bad, self._where = max_fraction, max_bad, where
    self._rows = self._bad = 0

  def count(self, errors):
    """Adds a batch's errors, a str a row, empty where the record is good or mere padding."""
    self._rows += len(errors)
    messages = [error for error in errors if error]
    if not messages:
      return
    self._bad += len(messages)
    told = (f"{len(messages)} bad records in this batch, {self._bad} of {self._rows} rows so far; "
            f"the first: {messages[0]}")
    _log.warning(told)
    if self._max_bad is not None and self._bad > self._max_bad:
      raise stream_lib.DataError(f"more than max_bad = {self._max_bad} bad records: {told}{self._more('max_bad')}")
    if self._rows >= _FRACTION_FROM_ROWS and self._bad > self._max_fraction * self._rows:
      raise stream_lib.DataError(
          f"more than max_bad_fraction = {self._max_fraction} of the records are bad: {told}"
          + self._more("max_bad_fraction"))

  def _more(self, limit):
    return f"; --config.{self._where}.{limit} sets the limit" if self._where else ""


class Batches:
  """An iterator that a background thread fills ahead. An error there is raised here, in its
  turn."""

  def __init__(self, batches, close_source, prefetch):
    ready, stop = queue.Queue(maxsize=prefetch), threading.Event()
    thread = threading.Thread(target=_fill, args=(batches, ready, stop), daemon=True)
    self._ready, self._over = ready, None
    # Runs at close(), when this object is forgotten, or at exit: the thread must not outlive JAX.
    self._finish = weakref.finalize(self, _finish, thread, ready, stop, close_source)
    thread.start()

  def __iter__(self):
    return self

  def __next__(self):
    if self._over is None and not self._finish.alive:
      self._over = ValueError("the batches are closed")
    if self._over is None:
      item = self._ready.get()
      if not isinstance(item, BaseException):
        return item
      self._over = item
      self.close()
    raise self._over

  def close(self):
    """Stops reading ahead and ends the workers; safe to call twice."""
    self._finish()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _fill(batches, ready, stop):
  """The background thread: batches into the queue, the last item being the exception that ended
  it."""
  def put(item):
    while not stop.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:
        continue

  try:
    for item in batches:
      put(item)
      if stop.is_set():
        return
    put(StopIteration())
  except BaseException as error:  # whatever it is, the main thread must hear of it and not wait
    put(error)


def _finish(thread, ready, stop, close_source):
  stop.set()
  thread.join()
  close_source()
