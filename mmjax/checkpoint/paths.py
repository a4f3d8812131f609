"""A pytree as a flat dict of named tensors, and the difference between two such dicts.

Every tensor of a checkpoint has a name like `params/encoder/kernel` or `opt_state/0/mu/bias`: the
keys on its way from the root, joined by `/`. A checkpoint stores plain nested dicts under these
names, so it can be read without the model, the optimizer or the state class that wrote it.
"""

import jax

SHOWN = 40  # lines of a difference that are printed; a renamed trunk would give thousands


def flatten(tree):
  """The tensors of a pytree by name: {`a/b/c`: leaf}, sorted. Empty nodes leave no trace.

  Raises:
    ValueError: two leaves have one name (a dict key that contains `/`).
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  flat = {}
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name in flat:
      raise ValueError(f"Two tensors are named {name!r}; no key may contain '/'.")
    flat[name] = leaf
  return dict(sorted(flat.items()))


def unflatten(flat, like):
  """The pytree with the structure of `like` and the tensors of `flat`: the inverse of `flatten`."""
  paths, treedef = jax.tree_util.tree_flatten_with_path(like)
  names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
  return treedef.unflatten([flat[name] for name in names])


def nest(flat):
  """{`a/b`: x} as {"a": {"b": x}}."""
  tree = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


def specs(flat):
  """What each tensor is, in JSON's types: {name: [dtype name, [shape]]}."""
  return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in flat.items()}


def difference(have, want):
  """The lines of a +/- table between two `specs`, empty if they are equal.

  Args:
    have: the specs in the checkpoint.
    want: the specs of the state to be filled.

  Returns:
    One line a tensor: `-` only in the checkpoint, `+` only in the state, `!` in both, not alike.
  """
  lines = []
  for name in sorted(have.keys() | want.keys()):
    old, new = have.get(name), want.get(name)
    if old != new:
      sign = "+" if old is None else "-" if new is None else "!"
      lines.append(f"  {sign} {name}   have {_show(old)}, want {_show(new)}")
  if len(lines) > SHOWN:
    lines[SHOWN:] = [f"  ... and {len(lines) - SHOWN} more"]
  return lines


def _show(spec):
  return "nothing" if spec is None else f"{spec[0]}{spec[1]}"
