"""The folder of a job that may be interrupted and go on: what it is, and files that are whole or not there."""

import json
import pathlib
from typing import Any

from mmjax.data import places


def begin(folder: pathlib.Path, name: str, job: dict[str, Any]) -> None:
  """Makes the folder with the job's description in the file `name`, or checks that the same was begun there.

  Raises:
    ValueError: another job was begun there, or it holds something else.
  """
  job, file = json.loads(json.dumps(job)), folder / name
  if file.exists():
    before, now = _flat(json.loads(file.read_text())), _flat(job)
    other = [f"{key} = {before.get(key)!r}, now {value!r}" for key, value in now.items() if before.get(key) != value]
    if other:
      raise ValueError(f"--out={folder}: was begun as another {file.stem} ({'; '.join(other)}); give a new folder, "
                       "or the same settings to go on")
    return
  # The file comes first, so that a kill leaves no folder that nobody owns; what `save` had begun is `.NAME.PID`.
  if folder.exists() and any(not one.name.startswith(f".{name}.") for one in folder.iterdir()):
    raise ValueError(f"--out={folder}: is not empty, and holds no {file.stem}; give a new folder")
  save(file, job)


def _flat(job):
  """The job with its settings beside the rest."""
  return {**{key: value for key, value in job.items() if key != "settings"}, **job.get("settings", {})}


def save(file: pathlib.Path, value: Any) -> None:
  """Writes JSON whole or not at all, and the folder for it."""
  places.write(str(file), (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
