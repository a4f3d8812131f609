"""A user's shards, broken records among them: two processes see together what one sees alone."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.data import formats

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import hashlib, json, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from mmjax import config
from mmjax.data import loader
from mmjax.training import user_data
from mmjax.training.streams import make_stream

if __name__ == "__main__":
  spec, process, processes, port = sys.argv[1], *map(int, sys.argv[2:])
  if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, process)
  given = {"data.train": spec, "data.max_bad_fraction": "0.5", "data.workers": "1"}
  node = user_data.resolve(config.load("contrastive/siglip:smoke", given))
  stream, loading = make_stream(node["data"], "data")
  sharding = NamedSharding(jax.make_mesh((2,), ("data",)), P("data"))
  seen = {}
  with loader.train_batches(stream, 8, sharding, workers=loading.workers) as batches:
    for _ in range(12):
      step, batch = next(batches)
      for shards in zip(*(batch[key].addressable_shards for key in ("row", "valid", "image", "text"))):
        for row, valid, image, text in zip(*(np.asarray(shard.data) for shard in shards)):
          assert int(row[1]) not in seen
          seen[int(row[1])] = bool(valid), hashlib.sha256(image.tobytes() + text.tobytes()).hexdigest()
  print("SEEN", json.dumps(seen))
"""


def seen(spec, tmp_path, processes):
  """[{row: (valid, digest)}] of each process; two devices in all."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  program = tmp_path / "program.py"
  program.write_text(PROGRAM)
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "MMJAX_DATA_DIR": str(tmp_path / "cache"),
                 "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // processes}"}
  children = [subprocess.Popen([sys.executable, str(program), spec, str(i), str(processes), str(port)], text=True,
                               env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
              for i in range(processes)]
  ended = [child.communicate(timeout=240) for child in children]
  assert [child.returncode for child in children] == [0] * processes, ended
  return [json.loads(out.partition("SEEN ")[2].splitlines()[0]) for out, _ in ended]


@pytest.mark.slow
def test_two_processes_see_the_same_records_as_one(tmp_path):
  folder = formats.write_tars(tmp_path / "shards", count=50, shards=3)
  shard = tmp_path / "shards" / "002.tar"
  shard.write_bytes(shard.read_bytes()[:-9000])  # truncated: one bad record stands for what is lost
  alone, = seen(folder, tmp_path, 1)
  first, second = seen(folder, tmp_path, 2)
  assert not first.keys() & second.keys() and first | second == alone
  assert sorted(map(int, alone)) == list(range(96))
  assert 0 < sum(not valid for valid, _ in alone.values()) < 12
