"""A build as an Apache Beam pipeline, for data that outgrow a machine; the steps and the result are those of
`command.build`.

Blocks of records are scanned wherever the runner likes; what was seen of all records, 12 bytes of each, comes
together in one place, where the plan is made; shards are written wherever the runner likes, straight to
`out`, which may be a bucket. What is done twice, because the runner tries again, has the same bytes.
Going on after an interruption is the runner's business: a pipeline that is started again begins anew.
"""

import functools
import json
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mmjax.data import places
from mmjax.data import spec as spec_lib
from mmjax.data.build import captions, command, plan, shards
from mmjax.data.build.settings import Settings
from mmjax.data.sources import examples


def build(spec: str, out: str, settings: Settings, options: Iterable[str] = ()) -> dict[str, Any]:
  """Writes the records of `spec`, filtered and without duplicates, to ArrayRecord files in `out`.

  Args:
    spec: as `spec.open_source` takes it; every worker opens it.
    out: a folder, or the URL of one, which has no manifest yet.
    options: flags of Beam, such as "--runner=DataflowRunner". The pipeline's end is waited for.

  Returns:
    The manifest.

  Raises:
    ValueError: Beam is not installed, `out` holds something else, nothing is kept, or no record has one of
      `settings.captions`.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise ValueError("beam: needs the package apache-beam (pip install 'mmjax[beam]')") from error
  if settings.languages:
    captions.language("")  # so that what is missing is told now, not of each record
  if places.is_there(places.join(out, examples.MANIFEST)):
    raise ValueError(f"--out={out}: holds a {examples.MANIFEST}; give a new folder")
  starts = list(range(0, len(_opened(spec, settings)), command.BLOCK))
  with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
    seen = (pipeline | "blocks" >> beam.Create(starts) | beam.Reshuffle()
            | "scan" >> beam.Map(_scan_block, spec, settings))
    planned = (pipeline | "once" >> beam.Create([None])
               | "plan" >> beam.FlatMap(_plan, beam.pvalue.AsIter(seen), settings).with_outputs("counts", main="shards"))
    lines = (planned.shards | "spread" >> beam.Reshuffle()
             | "write" >> beam.Map(_write_shard, spec, out, settings))
    _ = planned.counts | "finish" >> beam.Map(
        _finish, beam.pvalue.AsIter(lines), beam.pvalue.AsIter(seen), spec, out, settings)
  return json.loads(places.read(places.join(out, examples.MANIFEST)))


@functools.lru_cache(maxsize=1)  # of a worker's process
def _opened(spec, settings):
  return captions.under_own_names(spec_lib.open_source(spec), settings)


def _scan_block(start: int, spec: str, settings: Settings) -> tuple[int, plan.Table, list]:
  """(first record, what was seen of a block, the errors of its broken records)."""
  return start, *command.scan_block(_opened(spec, settings), settings, start)


def _plan(_, seen: Iterable, settings: Settings) -> Iterator[Any]:
  """The shards, as (name, records); tagged "counts", how many records were kept or why not."""
  from apache_beam import pvalue
  blocks = sorted(seen, key=lambda block: block[0])
  broken = [error for _, _, errors in blocks for error in errors]
  reason, kept = command.planned(plan.Table.joined([table for _, table, _ in blocks]), settings, broken)
  yield pvalue.TaggedOutput("counts", plan.counts(reason))
  yield from command.parts_of(kept, settings)


def _write_shard(task: tuple[str, np.ndarray], spec: str, out: str, settings: Settings) -> dict[str, Any]:
  """Writes a shard here, then puts it to its place; its line of the manifest."""
  name, records = task
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / name
    line = shards.write(_opened(spec, settings), records, file, settings)
    places.put(str(file), places.join(out, name))
  return line


def _finish(counts: dict, lines: Iterable[dict], seen: Iterable, spec: str, out: str, settings: Settings) -> None:
  """Writes broken.jsonl and, last, the manifest."""
  broken = [error for _, _, errors in sorted(seen, key=lambda block: block[0]) for error in errors]
  told = command.manifest(_opened(spec, settings), settings, counts, sorted(lines, key=lambda line: line["file"]))
  places.write(places.join(out, "broken.jsonl"), command.told_broken(broken).encode())
  places.write(places.join(out, examples.MANIFEST), json.dumps(told, indent=1, ensure_ascii=False).encode())
