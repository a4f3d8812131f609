"""Checks of values that come from a config, with errors that let the reader correct them."""

import contextlib
import difflib
import re

_KEY = re.compile(r"[a-z_]\w*(\.\w+|\[\d+\])*\s?[:=]")  # what begins with a key of the config


def below(path, message):
  """The message with the place in a config before it: "mask.ratio=1: ..." of "mask" and "ratio=1: ..."."""
  return f"{path}{'.' if _KEY.match(message) else ': '}{message}"


@contextlib.contextmanager
def within(path):
  """Where what is done belongs to a part of a config: a ValueError in it names the part first."""
  try:
    yield
  except ValueError as error:
    raise ValueError(below(path, str(error))) from error


def check_choice(what, value, valid):
  """Raises ValueError unless `value` is in `valid`; the message lists them and the nearest one.

  Args:
    what: the field, as the reader knows it ("ViT.pool").
    value: what was given.
    valid: the names that would do.
  """
  if value in valid:
    return
  near = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.5)
  hint = f" Did you mean {near[0]!r}?" if near else ""
  raise ValueError(f"{what} = {value!r} is not one of {', '.join(map(repr, valid))}.{hint}")


def check_heads(what, width, heads):
  """Raises ValueError unless `width` divides evenly into `heads`."""
  if heads < 1 or width % heads:
    raise ValueError(f"{what}: width {width} does not divide into {heads} heads.")


def pair(value):
  """(value, value) of an int, or the two ints of a sequence."""
  return (value, value) if isinstance(value, int) else tuple(value)
