"""Multi-block masks: the released collator's geometry, and the promises of the static version."""

import json
import pathlib

import jax
import numpy as np
import pytest

from mmjax.masking import inside
from mmjax.masking.multi_block import MultiBlock, block_size

REFERENCE = pathlib.Path(__file__).parent.parent / "data" / "conformance" / "ijepa_masks.npz"
# torch.rand(1) of torch.Generator().manual_seed(step): of the targets' size, of the context's.
UNIFORM = [(0.49625658988952637, 0.7682217955589294), (0.7576315999031067, 0.2793108820915222),
           (0.6146950721740723, 0.38101285696029663), (0.004263520240783691, 0.10556936264038086),
           (0.5596386194229126, 0.5590924024581909), (0.8302518725395203, 0.12611091136932373)]
GRIDS = [((16, 16), 64, 35), ((8, 8), 16, 9)]  # tokens of the context and of a target, by hand
ROWS = 512


def jit(mask, grid):
  options = {"xla_backend_optimization_level": 0}  # compiling takes longer than drawing
  return jax.jit(lambda keys: mask(keys, grid), compiler_options=options)


@pytest.fixture(scope="module", params=GRIDS, ids=str)
def drawn(request):
  grid, context, target = request.param
  draw, keys = jit(MultiBlock(), grid), jax.random.split(jax.random.key(0), ROWS)
  blocks = jax.tree.map(np.asarray, draw(keys))
  order = np.r_[5:ROWS, 5, 5, 5, 5, 5]
  for whole, other in zip(blocks, draw(keys[order])):  # a row's blocks, whatever stands beside it
    np.testing.assert_array_equal(whole[order], other)
  return grid, context, target, blocks


@pytest.mark.parametrize("step", range(6))
def test_geometry_is_that_of_ijepas_collator(step):
  """facebookresearch/ijepa, multiblock.py; each draw is replayed. Sets: no mismatch."""
  with np.load(REFERENCE) as data:
    case = {name.split("/", 2)[2]: data[name] for name in data.files if f"/step{step}/" in name}
    config = json.loads(str(data["meta"]))["config"]
  grid = config["height"], config["width"]
  size, context_size = (
      block_size(u, config[scale], aspect, grid) for u, scale, aspect in zip(
          UNIFORM[step], ("pred_mask_scale", "enc_mask_scale"), (config["aspect"], (1.0, 1.0))))
  assert size == tuple(case["p_size"]) and context_size == tuple(case["e_size"])
  highs, corners = case["draws"].reshape(8, 5, 2, 2).transpose(3, 0, 1, 2)  # [row, block, side]
  assert (highs[:, :4] == np.subtract(grid, size)).all()  # exclusive, as `_draw` has it
  assert (highs[:, 4] == np.subtract(grid, context_size)).all()
  targets = [[inside(corner, size, grid) for corner in row[:4]] for row in corners]
  contexts = [inside(row[4], context_size, grid) & ~np.any(target, axis=0)
              for row, target in zip(corners, targets)]
  shortest = min(context.sum() for context in contexts)
  np.testing.assert_array_equal([np.flatnonzero(c)[:shortest] for c in contexts], case["enc"])
  np.testing.assert_array_equal([[np.flatnonzero(t) for t in row] for row in targets],
                                case["pred"].transpose(1, 0, 2))


def test_counts_are_static_and_context_and_targets_never_meet(drawn):
  grid, context, target, blocks = drawn
  assert blocks.context.shape == (ROWS, context) and blocks.targets.shape == (ROWS, 4, target)
  for row, targets in zip(*blocks):
    assert (np.diff(row) > 0).all() and (np.diff(targets) > 0).all()
    assert not np.isin(row, targets).any()


def test_targets_are_blocks_cut_after_the_fixed_count(drawn):
  grid, _, count, blocks = drawn
  allowed = {block_size(u, (0.15, 0.2), (0.75, 1.5), grid) for u in np.arange(0, 1, 1e-3)}
  for targets in blocks.targets:
    sizes = set()
    for row, column in (np.divmod(target, grid[1]) for target in targets):
      wide = np.ptp(column) + 1
      np.testing.assert_array_equal(row - row[0], np.arange(count) // wide)
      np.testing.assert_array_equal(column - column[0], np.arange(count) % wide)
      sizes.add(wide)
    assert len(sizes) == 1 and sizes <= {wide for _, wide in allowed}


def test_blocks_fall_everywhere_but_on_the_last_row_and_column(drawn):
  grid, _, _, blocks = drawn
  seen = np.bincount(blocks.targets.ravel(), minlength=np.prod(grid)).reshape(grid)
  assert (seen[:-1, :-1] > 0).sum() > 0.9 * seen[:-1, :-1].size
  assert not seen[-1].any() and not seen[:, -1].any()


def test_rows_have_blocks_of_their_own(drawn):
  assert len(np.unique(drawn[3].targets.reshape(ROWS, -1), axis=0)) > 0.99 * ROWS


def test_a_context_without_room_takes_tokens_of_targets_last():
  mask = MultiBlock(6, target_scale=(0.4, 0.4), target_aspect=(1.0, 1.0), context=0.9)
  blocks = jit(mask, (8, 8))(jax.random.split(jax.random.key(0), 4))
  blocks = jax.tree.map(np.asarray, blocks)
  for row, targets in zip(*blocks):
    assert len(np.unique(row)) == 57
    assert np.isin(np.setdiff1d(np.arange(64), row), targets).all()


@pytest.mark.parametrize("settings, grid, message", [
    ({"targets": 0}, (8, 8), "targets=0: there must be at least one"),
    ({"target_scale": (0.3, 0.2)}, (8, 8), r"target_scale=\(0.3, 0.2\): must be \(least, great"),
    ({"context_scale": (0.5, 1.5)}, (8, 8), r"context_scale=\(0.5, 1.5\): .* at most 1"),
    ({"target_aspect": (0.0, 1.5)}, (8, 8), "target_aspect=.*above 0$"),
    ({"context": 1.0}, (8, 8), "context=1.0: must be a share"),
    ({"context": 0.01}, (8, 8), "context=0.01: leaves none of 8x8 tokens to see"),
    ({}, (2, 2), r"target_scale=\(0.15, 0.2\): a block may have no token on a grid of 2x2"),
    ({}, (4, 8, 8), "name='multi_block': needs a grid of rows and columns"),
])
def test_what_cannot_be_masked_is_one_line_that_names_the_key(settings, grid, message):
  with pytest.raises(ValueError, match=message) as error:
    MultiBlock(**settings)(jax.random.split(jax.random.key(0), 1), grid)
  assert "\n" not in str(error.value)
