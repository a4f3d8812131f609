"""A build on this machine: in parallel, and going on where it was, whatever ended it.

  OUT/build.json              what is being built; another job may not go on here
  OUT/scan/000012.npz         what was seen of a block of records (plan.Table), written whole or not at all
  OUT/scan/000012.json        the errors of those that are broken
  OUT/train.array_record-*    the shards, with .json lines of the manifest in OUT/shards/
  OUT/broken.jsonl            {"record", "error"} of every record that cannot be read or stored
  OUT/manifest.json           counts and digests; there only when all is done

The manifest's digest follows from source and settings alone: not from the number of processes, nor
from how often the job was killed.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from mmjax.data.build import captions, job_folder, plan, pool, scan, shards
from mmjax.data.build.settings import Settings
from mmjax.data.sources import examples

BLOCK = 500  # records of a unit of scanning: what a kill can cost each process
FORM = 2  # of what lies in `scan`, and of what is kept: a build that was begun in another does not go on
_log = logging.getLogger("mmjax")


def build(source: Any, out: str, settings: Settings, processes: int | None = None) -> dict[str, Any]:
  """Writes a source's records, filtered and without duplicates, to ArrayRecord files in `out`.

  Args:
    source: of `mmjax/data/sources/`.
    processes: at a time; None for one a core, 0 for none but this one.

  Returns:
    The manifest.

  Raises:
    ValueError: `out` holds something else, nothing is kept, or no record has one of `settings.captions`.
  """
  source = captions.under_own_names(source, settings)
  folder = pathlib.Path(out).expanduser()
  processes = len(os.sched_getaffinity(0)) if processes is None else processes
  if settings.languages:
    captions.language("")  # so that what is missing is told now, not of each record
  _begin(source, folder, settings)
  if (folder / examples.MANIFEST).exists():
    _log.info("%s: is complete", folder)
    return json.loads((folder / examples.MANIFEST).read_text())
  reason, kept = planned(_scanned(source, folder, settings, processes), settings, _broken(folder))
  lines = _written(source, folder, settings, kept, processes)
  return _finish(source, folder, settings, plan.counts(reason), lines)


def _begin(source, folder, settings):
  """Makes the folder, or checks that the same job was begun there."""
  job = {"form": FORM, "source": source.name, "records": len(source), "source_digest": source.digest,
         "settings": dataclasses.asdict(settings)}
  job_folder.begin(folder, examples.BEGUN, job)


def _scanned(source, folder, settings, processes):
  """What was seen of all records, of which blocks that are there are not looked at again."""
  starts = range(0, len(source), BLOCK)
  file = lambda start: folder / "scan" / f"{start // BLOCK:06}.npz"
  left = [start for start in starts if not file(start).exists()]
  progress = pool.Progress("scan", len(source), len(source) - sum(
      min(BLOCK, len(source) - start) for start in left))
  for count in pool.run(_scan_block, left, (source, folder, settings), processes):
    progress.add(count)
  progress.end()
  def load(start):
    with np.load(file(start)) as arrays:
      return plan.Table(**arrays)
  return plan.Table.joined([load(start) for start in starts])


def _scan_block(source, folder, settings, start):
  """Looks at a block; the number of its records."""
  table, broken = scan_block(source, settings, start)
  name = folder / "scan" / f"{start // BLOCK:06}"
  job_folder.save(name.with_suffix(".json"), broken)
  temporary = name.with_name(f".{name.name}.{os.getpid()}.npz")
  np.savez(temporary, **vars(table))
  temporary.rename(name.with_suffix(".npz"))  # last: the block is done when this is there
  return len(table.reason)


def scan_block(source: Any, settings: Settings, start: int) -> tuple[plan.Table, list[dict[str, Any]]]:
  """What is seen of the records from `start` on, `BLOCK` of them, and {"record", "error"} of the broken."""
  records = range(start, min(start + BLOCK, len(source)))
  seen = [scan.scan(source, record, settings) for record in records]
  return plan.Table.of(seen), [{"record": record, "error": one.error} for record, one in zip(records, seen)
                               if one.error]


def planned(table: plan.Table, settings: Settings, broken: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
  """`plan.keep`, if that can be.

  Raises:
    ValueError: no record has one of the columns of captions, or no record is kept; gives the counts.
  """
  captions.require_all(int(np.bitwise_or.reduce(table.captions, initial=0)), settings)
  reason, kept = plan.keep(table, settings)
  if not len(kept):
    first = f"; the first that is broken is record {broken[0]['record']}, {broken[0]['error']}" if broken else ""
    raise ValueError(f"none of the {len(reason):,} records is kept: {_told(plan.counts(reason))}{first}")
  return reason, kept


def parts_of(kept: np.ndarray, settings: Settings) -> list[tuple[str, np.ndarray]]:
  """The shards: (name of the file, its records)."""
  parts = np.array_split(kept, -(-len(kept) // settings.shard_records))
  return [(f"train.array_record-{i:05}-of-{len(parts):05}", part) for i, part in enumerate(parts)]


def _written(source, folder, settings, kept, processes):
  """Lines of the manifest of all shards, of which those that are there are not written again."""
  parts = parts_of(kept, settings)
  line = lambda name: folder / "shards" / f"{name}.json"
  for stale in folder.glob(".train.array_record-*"):  # of a process that was killed
    stale.unlink()
  left = [(name, part) for name, part in parts if not line(name).exists()]
  progress = pool.Progress("write", len(kept), len(kept) - sum(len(part) for _, part in left))
  for count in pool.run(_write_shard, left, (source, folder, settings), processes):
    progress.add(count)
  progress.end()
  return [json.loads(line(name).read_text()) for name, _ in parts]


def _write_shard(source, folder, settings, task):
  name, records = task
  told = shards.write(source, records, folder / name, settings)
  job_folder.save(folder / "shards" / f"{name}.json", told)
  return len(records)


def _finish(source, folder, settings, counts, lines):
  """Writes broken.jsonl and the manifest; then what only the way there needed is deleted."""
  (folder / "broken.jsonl").write_text(told_broken(_broken(folder)), encoding="utf-8")
  job_folder.save(folder / examples.MANIFEST, manifest(source, settings, counts, lines))
  for part in ("scan", "shards"):
    shutil.rmtree(folder / part, ignore_errors=True)
  _log.info("%s: %s", folder, _told(counts))
  return json.loads((folder / examples.MANIFEST).read_text())


def _broken(folder):
  """{"record", "error"} of all that were found broken."""
  return [one for file in sorted((folder / "scan").glob("*.json")) for one in json.loads(file.read_text())]


def told_broken(broken: list[dict[str, Any]]) -> str:
  """The text of broken.jsonl."""
  return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in broken)


def manifest(source: Any, settings: Settings, counts: dict[str, int], lines: list[dict[str, Any]]
             ) -> dict[str, Any]:
  """What the result is: `lines` are of its shards, in order."""
  names = getattr(source, "class_names", lambda key: None)("label")
  digest = hashlib.sha256(json.dumps([[line["sha256"] for line in lines], names]).encode()).hexdigest()
  return {"digest": digest, "source": source.name, "source_digest": source.digest,
          "settings": dataclasses.asdict(settings), "counts": counts,
          **({"classes": list(names)} if names else {}), "shards": lines}


def _told(counts):
  return ", ".join(f"{number:,} {name}" for name, number in counts.items() if number or name == "kept")
