"""How fast the built-in dataset is made and read: `python benchmarks/scenes.py [--count N]`.

Prints records per second and CPU milliseconds a record of building on 1 and 2 processes, and of
reading the default keys. CPU time is what a busy machine changes least.
"""

import argparse
import contextlib
import os
import resource
import tempfile
import time

from mmjax.data.scenes import attributes, builder
from mmjax.data.sources import scenes


def cpu_seconds():
  """CPU time of this process and its finished children."""
  uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(use.ru_utime + use.ru_stime for use in uses)


@contextlib.contextmanager
def line(name, records):
  """Time the block and print a line of the table."""
  wall, cpu = time.perf_counter(), cpu_seconds()
  yield
  wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
  print(f"| {name:20} | {records:7} | {wall:7.1f} | {records / wall:9.0f} | "
        f"{1000 * cpu / records:9.2f} |")


def main():
  """Build and read in a temporary directory; print a Markdown table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--count", type=int, default=2000, help="records of train")
  parser.add_argument("--size", type=int, default=64, help="pixels a side")
  options = parser.parse_args()
  config = builder.Config(options.size, options.count)
  total = sum(config.records(split) for split in attributes.SPLITS)
  print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
  print("| what                 | records | seconds | records/s | CPU ms    |")
  print("|----------------------|---------|---------|-----------|-----------|")
  for processes in (1, 2):
    with tempfile.TemporaryDirectory() as data_dir:
      with line(f"build, {processes} process(es)", total):
        builder.prepare(config, data_dir, processes)
      if processes == 2:
        source = scenes.build(size=options.size, count=options.count, data_dir=data_dir)
        with line("read, default keys", len(source)):
          for i in range(len(source)):
            source[i]


if __name__ == "__main__":
  main()
