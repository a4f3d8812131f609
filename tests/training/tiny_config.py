"""`tiny.config` as a config file: --config=tests/training/tiny_config.py:PAIRS.npz."""

from tests.training import tiny


def get_config(arg):
  return tiny.config(arg)
