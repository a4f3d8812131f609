"""Write a dataset's files with several processes.

The workers are programs of their own (`python -m mmjax.data.scenes.workers`), not children of
`multiprocessing`: those would import the caller's main module again, and a notebook, a script
without a main guard or a data loader's own worker could not build.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

import mmjax
from mmjax.data.scenes import layout


def write_shards(config, directory, processes=None):
  """Write every file of a dataset into an existing directory.

  Args:
    config: `layout.Config`.
    directory: where the files go.
    processes: number of worker processes; None for one a core.

  Returns:
    A dict for each file, in no order: `file`, `bytes`, `sha256` (of its records' bytes) and
    `num_objects` (a list, one number a record).

  Raises:
    RuntimeError: a worker failed; what it said stands above on stderr.
  """
  processes = min(processes or len(os.sched_getaffinity(0)), len(config.shards()))
  progress = _Progress(config)
  workers = [_start(config, directory, rank, processes) for rank in range(processes)]
  try:
    with concurrent.futures.ThreadPoolExecutor(processes) as threads:
      entries = sum(threads.map(lambda worker: _collect(worker, progress), workers), [])
  finally:
    for worker in workers:
      worker.kill()
  progress.done()
  return entries


def _start(config, directory, rank, processes):
  root = pathlib.Path(mmjax.__file__).parents[1]
  path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
  one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
  job = {"config": dataclasses.asdict(config), "directory": str(directory),
         "rank": rank, "processes": processes}
  return subprocess.Popen(
    [sys.executable, "-m", "mmjax.data.scenes.workers", json.dumps(job)],
    stdout=subprocess.PIPE, text=True, env={**os.environ, **one_thread, "PYTHONPATH": path})


def _collect(worker, progress):
  """The entries of a worker's files, as it finishes them."""
  entries = []
  for line in worker.stdout:
    entries.append(json.loads(line))
    progress.add(len(entries[-1]["num_objects"]))
  if worker.wait() != 0:
    raise RuntimeError(
      f"scenes: a worker process ended with status {worker.returncode}; its message is above")
  return entries


class _Progress:
  """A line on stderr: rewritten in place on a terminal, else printed at the start and the end."""

  def __init__(self, config):
    self.name, self.start, self.count = config.name, time.monotonic(), 0
    self.total = sum(end - first for *_, first, end in config.shards())
    self.live = sys.stderr.isatty()
    print(f"scenes {self.name}: building {self.total} records (once)", file=sys.stderr, flush=True)

  def add(self, count):
    self.count += count
    if self.live:
      print(f"\r{self._line()}", end="", file=sys.stderr, flush=True)

  def done(self):
    print(f"\r{self._line()}" if self.live else self._line(), file=sys.stderr, flush=True)

  def _line(self):
    seconds = max(time.monotonic() - self.start, 1e-9)
    return (f"scenes {self.name}: {self.count} of {self.total} records, {seconds:.0f} s, "
            f"{self.count / seconds:.0f} records/s")


def _work(config, directory, rank, processes):
  """Write files number `rank`, `rank + processes`, ...; report each as a line of JSON."""
  for split, shard, shards, first, end in config.shards()[rank::processes]:
    file = layout.shard_name(split, shard, shards)
    path, digest, num_objects = pathlib.Path(directory) / file, hashlib.sha256(), []
    # One record a group, so that a record is read without its neighbours; this is what Grain asks.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for index in range(first, end):
      fields = records.fields(config, split, index)
      data = records.serialise(fields)
      writer.write(data)
      digest.update(data)
      num_objects.append(fields["num_objects"])
    writer.close()
    entry = {"file": file, "bytes": path.stat().st_size, "sha256": digest.hexdigest(),
             "num_objects": num_objects}
    print(json.dumps(entry), flush=True)


if __name__ == "__main__":
  from array_record.python import array_record_module
  import cv2

  from mmjax.data.scenes import records

  cv2.setNumThreads(0)
  job = json.loads(sys.argv[1])
  _work(layout.Config(**job.pop("config")), **job)
