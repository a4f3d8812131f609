"""The writers of a run: from `writers` in its config to objects."""

from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.report.writers import read

PLACE = "mmjax.report.writers"
GIVEN = ("workdir", "step")  # what a writer is told beside the config's keys


def check(writers: Sequence[Any]) -> None:
  """Finds what is wrong with `writers` before anything is opened or computed.

  Args:
    writers: names of files in `mmjax/report/writers/` or dotted names of the user's own, or dicts
      {"name": ..., and the writer's arguments}.

  Raises:
    ConfigError: an unknown writer or key, one that stands twice, a package that is not installed.
  """
  seen = set()
  for path, node in _nodes(writers):
    if "name" not in node:
      raise ConfigError(f"{path}.name: is missing; it says which of {PLACE} to use")
    name = node.pop("name")
    try:
      target = config_lib.find(PLACE, name, path)
    except ModuleNotFoundError as error:
      raise ConfigError(f"{path}: {name} needs the package {error.name!r}, which is not installed: "
                        f"pip install {error.name}") from error
    if name in seen:
      raise ConfigError(f"{path}.name: {name!r} stands twice")
    seen.add(name)
    config_lib.arguments([target], node, path, GIVEN, ("name",))


def open_writers(writers: Sequence[Any], workdir: str, step: int) -> list:
  """The writers of the run in `workdir`, restored at `step`.

  Raises:
    ConfigError: what a writer says of its arguments.
  """
  return [config_lib.build(PLACE, node, path, workdir=workdir, step=step)
          for path, node in _nodes(writers)]


def recorded(workdir: epath.Path) -> list[dict[str, float]]:
  """What the run in `workdir` has measured so far: the records of its metrics.jsonl, if it has one."""
  path = workdir / "metrics.jsonl"
  return read(str(path)) if path.exists() else []


def _nodes(writers: Sequence[Any]) -> Iterator[tuple[str, config_lib.Node]]:
  """(path in the config, node of its own) of each writer."""
  for index, item in enumerate(writers):
    path = f"writers.{index}"
    yield path, {"name": item} if isinstance(item, str) else dict(
        config_lib.check(item, str | dict, path))
