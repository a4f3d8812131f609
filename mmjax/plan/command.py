"""`mmjax plan`: compile a config's step for devices that are not here, and say what it takes."""

import json
import logging
from collections.abc import Mapping

from mmjax import config as config_lib
from mmjax import plan as plan_lib
from mmjax.plan import report, save as save_lib
from mmjax.plan import search as search_lib
from mmjax.plan import topology as topology_lib
from mmjax.plan.compile import CompileError
from mmjax.plan.estimate import Estimator
from mmjax.training.assemble import assemble

log = logging.getLogger("mmjax")


def plan(config: str, overrides: Mapping[str, str], topology: str, *, slices: int = 1,
         as_json: bool = False, search: bool = False, max_compiles: int = search_lib.MAX_COMPILES,
         shardings: bool = False, save: str | None = None) -> int:
  """Runs the command; the flags are those of the command line.

  Returns:
    The exit status: 0 if the step fits; 1 if not, if the compiler failed, or if it is not saved.

  Raises:
    ConfigError: the flags or the config.
  """
  node = config_lib.load(config, overrides)
  where = topology_lib.find(topology, slices)
  try:
    run = assemble(node, devices=where.devices, example_data=True)
    if search:
      return _search(node, where, run, config, overrides, max_compiles, as_json)
    found = plan_lib.plan_run(run, where)
  except CompileError as error:
    log.error("%s", error)
    return 1
  if as_json:
    print(json.dumps(found.to_json(), indent=1, default=str))
  else:
    report.show(found, config)
    if shardings:
      report.show_shardings(found)
  return _save(found, save) if save else int(not found.fits)


def _search(node, where, run, config, overrides, max_compiles, as_json):
  found = search_lib.search(node, where, estimator=Estimator(run, where.slices),
                            max_compiles=max_compiles, tell=log.info)
  command = " ".join([config, *(f"--config.{path}={text}" for path, text in overrides.items())])
  print(json.dumps(found.to_json(), indent=1, default=str) if as_json else
        search_lib.show(found, command))
  return int(not any(trial.fits for trial in found.trials))


def _save(found, directory):
  try:
    save_lib.save(found.compiled.executable, found.run, directory, topology=found.topology.name,
                  slices=found.topology.slices, platform=found.topology.platform)
  except save_lib.SaveError as error:
    log.error("%s", error)
    return 1
  log.info("the compiled step is in %s", directory)
  return 0
