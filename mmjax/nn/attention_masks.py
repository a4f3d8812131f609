"""Which keys a query sees, in the two forms that attention's backends want."""

import jax.numpy as jnp

UNSEEN = jnp.iinfo(jnp.int32).min  # id of a key that nobody sees


def visibility_ids(padding, segments, rows, queries, keys):
  """Padding and segments as one id for each token: a query sees the keys that have its own id.

  Args:
    padding: bool [B, K], False for keys that nobody sees; or None.
    segments: int32 [B, L] with L = Q = K; or None for one segment.
    rows, queries, keys: B, Q and K.

  Returns:
    (int32 [B, Q], int32 [B, K]), or None where every query sees all.

  Raises:
    ValueError: shapes that do not fit.
  """
  if padding is not None and padding.shape != (rows, keys):
    raise ValueError(f"attention: padding {padding.shape} is not [rows, keys] = {(rows, keys)}.")
  if segments is not None and not segments.shape == (rows, queries) == (rows, keys):
    raise ValueError(f"attention: segments {segments.shape} are not [rows, length] of "
                     f"self-attention: {rows} rows of {queries} queries and {keys} keys.")
  if padding is None and segments is None:
    return None
  if segments is None:
    of_queries, of_keys = jnp.zeros((rows, queries), jnp.int32), jnp.zeros((rows, keys), jnp.int32)
  else:
    of_queries = of_keys = segments.astype(jnp.int32)
  return of_queries, of_keys if padding is None else jnp.where(padding, of_keys, UNSEEN)


def visible(ids, causal, queries, keys):
  """Which keys each query sees: bool [1 or B, 1, Q, K], or None for all.

  Args:
    ids: from `visibility_ids`.
    causal: query i sees the keys j <= i only.
    queries, keys: Q and K.
  """
  mask = None if ids is None else (ids[0][:, :, None] == ids[1][:, None, :])[:, None]
  if causal:
    earlier = jnp.tri(queries, keys, dtype=bool)[None, None]
    mask = earlier if mask is None else mask & earlier
  return mask


def zero_where_nothing_is_seen(out, ids, causal, keys):
  """[B, Q, H, d], zero for queries that see none of K keys. Their gradient is zero, too."""
  if ids is None:
    return out
  seen = jnp.any(visible(ids, causal, out.shape[1], keys), axis=-1)  # [B, 1, Q]
  return jnp.where(seen[:, 0, :, None, None], out, 0)
