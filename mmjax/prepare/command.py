"""`mmjax prepare`: a model goes over a source once, and what it makes of each record is kept.

The job is cut into shards, each written whole or not at all; the same command goes on where it was.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np

from mmjax import interop
from mmjax.data import loader, stored
from mmjax.data import transforms as T
from mmjax.data.build import job_folder
from mmjax.data.build.pool import Progress
from mmjax.data.processor import Processor, build_transform
from mmjax.data.stream import Stream
from mmjax.prepare import jobs

INPUTS = {"image": ("image", "image_mask", "image_grid"), "text": ("text", "text_mask")}
log = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class KeepInputs:
  """A transform: leaves what a model takes, of that which there is."""

  keys: tuple[str, ...]

  def __call__(self, record, rng):
    return {key: record[key] for key in self.keys if key in record}


def prepare(job: jobs.Job, source: Any, model: str, out: str, batch_size: int = 64, shard_records: int = 4096,
            step: int | None = None) -> dict[str, Any]:
  """Runs a job over a source.

  Args:
    model: what `mmjax.load` opens.
    out: folder of the columns, see `mmjax/data/stored.py`.
    shard_records: rounded up to a multiple of the batch size.
    step: of a workdir's checkpoint; default the newest.

  Returns:
    The manifest.

  Raises:
    ValueError: `out` holds something else, the model lacks what the job asks for, or takes no such input.
    CheckpointError: the model cannot be read.
  """
  folder = pathlib.Path(out).expanduser()
  read = interop.read_model(model, step)
  objective, params = interop.build(read)
  devices = jax.local_devices()
  batch_size = -(-batch_size // len(devices)) * len(devices)
  shard_records = -(-shard_records // batch_size) * batch_size
  job_folder.begin(folder, "prepare.json", {
      "source": source.name, "records": len(source), "source_digest": source.digest, "model": model,
      "parameters": _digest(params), "settings": {**dataclasses.asdict(job), "shard_records": shard_records}})
  if (folder / stored.MANIFEST).exists():
    log.info("%s: is complete", folder)
    return json.loads((folder / stored.MANIFEST).read_text())
  features = _features(objective, params)
  prompts = _prompts(job, read, features) if job.classes else None
  stream = _stream(job, source, read)
  _write(job, stream, folder, features, prompts, batch_size, shard_records, devices)
  return _finish(job, source, read, folder, shard_records)


def _features(objective, params):
  """`jobs.Features` of a model: what it does not always give is asked for."""
  always = {}

  def features(batch, want):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), dict(batch))
    if not always:
      always.update(jax.eval_shape(functools.partial(interop.features, objective, params), shapes))
    more = tuple(name for name in want if name not in always)
    try:
      return jax.device_get(interop.features(objective, params, batch, more))
    except ValueError as error:
      raise ValueError(f"the model gives no {' and '.join(more)} ({error})" if more else str(error)) from error
  return features


def _digest(params):
  """SHA-256 of the parameters, so that a job does not go on with another model."""
  digest = hashlib.sha256()
  for leaf in jax.tree_util.tree_leaves(params):
    digest.update(np.ascontiguousarray(leaf))
  return digest.hexdigest()


def _stream(job, source, read):
  """The source's records as the model takes them; one that cannot be read is no reason to stop."""
  nodes = {"image": read.image, "text": read.text}
  for name in job.reads:
    if not nodes[name]:
      raise ValueError(f"{job.name}: needs {name}s, but the model's checkpoint says nothing of its {name}s")
  steps = [build_transform(node) for node in read.image] if "image" in job.reads else []
  if "text" in job.reads:
    steps += [T.SampleCaption("first"), *(build_transform(node) for node in read.text)]
  keep = KeepInputs(tuple(key for name in job.reads for key in INPUTS[name]))
  return Stream(source, (*steps, keep), shuffle=False, max_bad_fraction=1.0)


def _prompts(job, read, features):
  """Unit-norm embeddings of the classes' prompts, float32 [C, D]."""
  texts = [job.template.replace("{}", name) for name in job.classes]
  batch = Processor((), read.text)(texts=texts)
  return np.asarray(features({key: batch[key] for key in INPUTS["text"]}, ())["text/embed"], np.float32)


def _write(job, stream, folder, features, prompts, batch_size, shard_records, devices):
  """Writes the shards that are not there yet."""
  mesh = jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  starts = range(0, len(stream), shard_records)
  left = [start for start in starts if not stored.path_of(folder, stored.VALID, start // shard_records).exists()]
  progress = Progress(job.name, len(stream), len(stream) - sum(min(shard_records, len(stream) - at) for at in left))
  for start in left:
    rows = range(start, min(start + shard_records, len(stream)))
    parts = []
    with loader.eval_batches(stream, batch_size, sharding, rows=rows) as batches:
      for _, batch in batches:
        made = jobs.columns(job, features, batch, prompts)
        parts.append({**made, stored.VALID: np.asarray(batch["valid"])})
        progress.add(min(batch_size, rows.stop - rows.start - sum(len(one[stored.VALID]) for one in parts[:-1])))
    _save_shard(folder, start // shard_records, parts, len(rows))
  progress.end()


def _save_shard(folder, shard, parts, count):
  """Writes the columns of a shard; `valid` last, for it says that the others are there."""
  names = [name for name in parts[0] if name != stored.VALID] + [stored.VALID]
  valid = np.concatenate([part[stored.VALID] for part in parts])[:count]
  for name in names:
    array = np.concatenate([part[name] for part in parts])[:count]
    array[~valid] = 0
    path = stored.path_of(folder, name, shard)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npy")
    np.save(temporary, array, allow_pickle=False)
    temporary.rename(path)


def _finish(job, source, read, folder, shard_records):
  """Writes the manifest."""
  names = ("score",) if job.name == "score" else ("label", "probability") if job.name == "labels" else job.want
  digest, columns = hashlib.sha256(), {}
  for name in names:
    first = np.load(stored.path_of(folder, name, 0), mmap_mode="r")
    columns[name] = {"dtype": first.dtype.name, "shape": list(first.shape[1:])}
  broken = 0
  for shard in range(-(-len(source) // shard_records)):
    for name in (*names, stored.VALID):
      array = np.load(stored.path_of(folder, name, shard), mmap_mode="r")
      digest.update(np.ascontiguousarray(array))
      broken += int((~array).sum()) if name == stored.VALID else 0
  classes = list(job.classes or read.labels or ()) if job.name == "labels" else []
  manifest = {"digest": digest.hexdigest(), "source": source.name, "source_digest": source.digest,
              "records": len(source), "broken": broken, "shard_records": shard_records, "columns": columns,
              **({"classes": classes} if classes else {})}
  job_folder.save(folder / stored.MANIFEST, manifest)
  log.info("%s: %s of %d records, %d of them broken", folder, ", ".join(names), len(source), broken)
  return json.loads((folder / stored.MANIFEST).read_text())
