"""What all masks are made of, and what each of them promises.

Statistics are over `ROWS` rows of fixed keys; their bounds are five standard deviations.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config, masking
from mmjax.masking.attentive import Attentive
from mmjax.masking.block import Block, NONE, cover
from mmjax.masking.hard_patch import HardPatch
from mmjax.masking.noise import COLOURS, Noise, blur
from mmjax.masking.random import Random
from mmjax.masking.text_guided import TextGuided
from mmjax.masking.tube import Tube
from mmjax.masking.variable import Variable

ROWS = 1024
QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than drawing
GRID, CLIP = (8, 8), (4, 4, 4)  # 64 tokens both
MASKS = {  # name: (mask, grid, tokens dropped, by hand)
    "random": (Random(0.75), GRID, 48), "random of a clip": (Random(0.9), CLIP, 58),
    "block": (Block(0.4), GRID, 26), "tube": (Tube(0.75), CLIP, 48),
    "attentive": (Attentive(0.7), GRID, 45),
    "attended": (Attentive(0.3, "high"), GRID, 20),
    "most attended": (Attentive(0.3, "high", sample=False), GRID, 20),
    "hard_patch": (HardPatch(0.5, final=0.25), GRID, 32),
    "harder": (HardPatch(0.5), GRID, 32),
    "text_guided": (TextGuided(0.5), GRID, 32),
    "not of the text": (TextGuided(0.5, "low"), GRID, 32),
    "variable": (Variable(), GRID, 32),
    **{colour: (Noise(colour, fine=0.5, coarse=1.5), GRID, 48) for colour in COLOURS}}


def keys(rows, seed=0):
  return jax.random.split(jax.random.key(seed), rows)


# Of each row 1 to 64 in its own order.
GUIDE = np.tile(np.arange(1, 65, dtype=np.float32), (ROWS, 1))
GUIDE = np.random.default_rng(0).permuted(GUIDE, axis=1)


@pytest.fixture(scope="module")
def draw():
  """Maps (keys, guide) to {name: mask}."""
  return jax.jit(lambda keys, guide: {
      name: mask(keys, grid, guide if mask.guided else None)
      for name, (mask, grid, _) in MASKS.items()}, compiler_options=QUICK)


@pytest.fixture(scope="module")
def drawn(draw):
  """{name: (mask of ROWS rows, bool [ROWS, *grid] where it masks)}."""
  masks = draw(keys(ROWS), GUIDE)
  return {name: jax.tree.map(np.asarray, (mask, mask.masked.reshape(-1, *MASKS[name][1])))
          for name, mask in masks.items()}


@pytest.mark.parametrize("size, ratio, count", [(196, 0.75, 147), (10, 0.3, 3), (64, 0.98, 63)])
def test_counts_are_those_of_mae(size, ratio, count):
  assert masking.dropped(size, ratio) == count


@pytest.mark.parametrize("name", MASKS)
def test_ratios_are_exact_and_every_token_is_kept_or_dropped(drawn, name):
  (mask, masked), count = drawn[name], MASKS[name][2]
  assert mask.keep.shape == (ROWS, 64 - count) and mask.drop.shape == (ROWS, count)
  assert mask.keep.dtype == mask.drop.dtype == np.int32
  both = np.concatenate([mask.keep, mask.drop], axis=1)
  np.testing.assert_array_equal(np.sort(both, 1), np.tile(np.arange(64), (ROWS, 1)))
  assert (np.diff(mask.keep) > 0).all() and (np.diff(mask.drop) > 0).all()
  if name != "variable":  # hides more than it drops
    places = np.argwhere(masked.reshape(ROWS, 64))[:, 1]
    np.testing.assert_array_equal(places.reshape(ROWS, count), mask.drop)


def test_a_row_has_its_mask_whatever_stands_beside_it(draw, drawn):
  order = np.random.default_rng(1).permutation(ROWS)
  order[ROWS // 2:] = 0  # half of the rows are others
  for name, mask in draw(keys(ROWS)[order], GUIDE[order]).items():
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), drawn[name][0], mask)


@pytest.mark.parametrize("name", MASKS)
def test_rows_have_masks_of_their_own(drawn, name):
  assert len(np.unique(drawn[name][0].drop, axis=0)) > ROWS / 2


def test_drop_and_restore_is_the_identity():
  x = jnp.arange(2 * 12 * 3, dtype=jnp.float32).reshape(2, 12, 3)
  mask = Random(0.5)(keys(2), (3, 4))
  take = lambda places: jnp.take_along_axis(x, places[:, :, None], axis=1)
  np.testing.assert_array_equal(masking.restore(mask, take(mask.keep), take(mask.drop)), x)
  filled = masking.restore(mask, take(mask.keep), -jnp.ones(3))
  np.testing.assert_array_equal(filled, np.where(mask.masked[..., None], -1, x))


def test_random_masks_are_uniform_over_tokens_and_over_pairs(drawn):
  masked = drawn["random"][1].reshape(ROWS, 64)
  share = masked.mean(axis=0)
  assert np.abs(share - 0.75).max() < 5 * math.sqrt(0.75 * 0.25 / ROWS)
  pairs = (masked[:, :, None] & masked[:, None, :]).mean(axis=0)[np.triu_indices(64, 1)]
  chance = 48 * 47 / (64 * 63)
  assert np.abs(pairs - chance).max() < 5 * math.sqrt(chance * (1 - chance) / ROWS)


def test_tubes_are_equal_over_frames_and_other_masks_of_a_clip_are_not(drawn):
  tube, free = drawn["tube"][1], drawn["random of a clip"][1]
  assert (tube == tube[:, :1]).all()
  assert (free != free[:, :1]).any(axis=(1, 2, 3)).all()


def test_block_masks_are_blocks_but_for_the_end_of_the_last():
  mask, grid, count = Block(0.4), (12, 14), 68
  orders, masked = jax.jit(lambda keys: (
      jax.vmap(lambda key: cover(key, grid, count, mask.least, mask.aspect))(keys),
      mask(keys, grid).masked), compiler_options=QUICK)(keys(32))
  orders, masked = np.asarray(orders), np.asarray(masked)
  for order, hidden in zip(orders, masked):
    covered = order.reshape(12, 14)
    last = np.max(order, where=order < NONE, initial=0)
    before = np.zeros((12, 14), bool)
    for number in range(last + 1):
      rows, columns = np.nonzero(covered == number)
      if not len(rows):  # fell on earlier ones
        continue
      block = np.s_[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
      new = np.zeros((12, 14), bool)
      new[block] = True
      assert (covered[new] <= number).all()  # a rectangle, on top of which the earlier ones lie
      before |= new
    np.testing.assert_array_equal(before, covered < NONE)
    assert (order < last).sum() < count <= (order < NONE).sum() and hidden.sum() == count
    of_last = np.flatnonzero(order == last)
    assert hidden[order < last].all() and not hidden[order == NONE].any()
    left = count - (order < last).sum()
    np.testing.assert_array_equal(np.flatnonzero(hidden & (order == last)), of_last[-left:])


def test_block_masks_hang_together(drawn):
  def neighbours(masked):
    return (masked[:, 1:] & masked[:, :-1]).mean() + (masked[:, :, 1:] & masked[:, :, :-1]).mean()
  assert neighbours(drawn["block"][1]) > 1.5 * 2 * 0.4 ** 2  # twice the chance of a pair


def test_colour_noise_has_its_spectrum(drawn):
  """Power of the masks at low, middle and high frequencies, over that of random masks."""
  def spectrum(name):
    masked = drawn[name][1].astype(float)
    power = np.abs(np.fft.fft2(masked - masked.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.fftfreq(8)[None])
    bands = [(0.01, 0.15), (0.15, 0.4), (0.4, 0.8)]
    return np.array([power.mean(0)[(frequency > a) & (frequency <= b)].mean() for a, b in bands])
  white = spectrum("random")
  low, middle, high = np.transpose([spectrum(colour) / white for colour in COLOURS])
  red, blue, green, purple = range(4)
  # Bounds are about half-way between what comes out and 1: a threshold brings in all frequencies.
  assert low[red] > 3 and middle[red] < 1.2 and high[red] < 0.6
  assert low[blue] < 0.8 and middle[blue] < 0.9 and high[blue] > 1.15
  assert low[green] < 0.95 and middle[green] > 1.06 and high[green] < 0.95
  assert low[purple] > 1.1 and middle[purple] < 0.9 and high[purple] > 1.08


def test_blur_is_scipys():
  from scipy import ndimage  # a dependency of jax
  x = np.random.default_rng(0).normal(size=(14, 15, 16)).astype(np.float32)
  reference = ndimage.gaussian_filter(x, 1.5, radius=6, mode="constant")[6:-6, 6:-6, 6:-6]
  found = blur(x, 1.5, 6)  # whose Gaussian ends at the array's edge, at least 4 deviations away
  assert found.shape == reference.shape == (2, 3, 4)
  np.testing.assert_allclose(found, reference, atol=2e-4)


def test_variable_masks_hide_what_a_truncated_normal_says(drawn):
  from scipy import stats  # a dependency of jax
  mask, masked = drawn["variable"]
  count = masked.sum(axis=(1, 2))
  np.testing.assert_array_equal(count, 32 + mask.hidden.sum(axis=1))
  assert count.min() >= 33 and count.max() <= 64
  reference = stats.truncnorm((0.5 - 0.55) / 0.25, (1 - 0.55) / 0.25, loc=0.55, scale=0.25)
  expected = np.diff(reference.cdf(np.arange(32, 65) / 64))
  found = np.bincount(count - 33, minlength=32) / ROWS
  assert np.abs(found - expected).max() < 5 * math.sqrt(expected.max() / ROWS)
  assert np.abs(mask.hidden.mean(axis=0) - mask.hidden.mean()).max() < 0.1  # in any place of `keep`


def test_attention_decides_what_is_kept(drawn):
  kept = ~drawn["attentive"][1].reshape(ROWS, 64)
  dropped = drawn["attended"][1].reshape(ROWS, 64)
  for chosen in kept, dropped:  # the upper half has three quarters of the attention
    share = (chosen & (GUIDE > 32)).sum() / chosen.sum()
    assert 0.65 < share < 0.75
  most = drawn["most attended"][1].reshape(ROWS, 64)
  np.testing.assert_array_equal(most, GUIDE > 64 - 20)


def test_the_first_kept_token_is_drawn_in_proportion_to_attention():
  attention = jnp.array([[0.5, 0.3, 0.2, 0.0]])
  mask = Attentive(0.75)(keys(ROWS), (2, 2), jnp.tile(attention, (ROWS, 1)))
  share = np.bincount(np.asarray(mask.keep)[:, 0], minlength=4) / ROWS
  np.testing.assert_allclose(share, attention[0], atol=5 * math.sqrt(0.25 / ROWS))
  assert share[3] == 0


def test_text_decides_what_is_masked(drawn):
  np.testing.assert_array_equal(drawn["text_guided"][1].reshape(ROWS, 64), GUIDE > 32)
  np.testing.assert_array_equal(drawn["not of the text"][1].reshape(ROWS, 64), GUIDE <= 32)


@pytest.mark.parametrize("name, hard", [("hard_patch", 8), ("harder", 16)])
def test_hard_patches_are_masked_and_as_many_others_at_random(drawn, name, hard):
  masked = drawn[name][1].reshape(ROWS, 64)
  others = masked & (GUIDE <= 64 - hard)
  assert masked[GUIDE > 64 - hard].all() and (others.sum(axis=1) == 32 - hard).all()
  share = np.bincount(np.int32(GUIDE[others]) - 1, minlength=64 - hard) / ROWS
  chance = (32 - hard) / (64 - hard)
  assert np.abs(share - chance).max() < 5 * math.sqrt(chance * (1 - chance) / ROWS)


def test_the_share_of_hard_patches_grows_with_the_steps():
  mask = HardPatch(0.5, start=0.1, final=0.5, ramp_steps=10)
  np.testing.assert_allclose(mask.share(np.array([0, 5, 10, 99])), [0.1, 0.3, 0.5, 0.5], rtol=1e-6)
  assert mask.share(None) == HardPatch().share(7) == 0.5
  at_step = jax.jit(lambda step: mask(keys(4), GRID, GUIDE[:4], step).drop)
  for step, share in (0, 0.1), (5, 0.3):
    fixed = HardPatch(0.5, final=share)(keys(4), GRID, GUIDE[:4])
    np.testing.assert_array_equal(at_step(step), fixed.drop)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99, -1.0])
def test_a_ratio_that_leaves_nothing_seen_or_masked_is_refused(ratio):
  with pytest.raises(ValueError, match=f"ratio={ratio}: masks .* of 16 tokens"):
    masking.dropped(16, ratio)


@pytest.mark.parametrize("node, grid, guide, message", [
    ({"name": "tube"}, GRID, None, "name='tube': needs a grid of frames, rows and columns"),
    ({"name": "tube", "ratio": 1.0}, CLIP, None, "ratio=1.0: masks 16 of 16"),
    ({"name": "block"}, CLIP, None, "name='block': needs a grid of rows and columns"),
    ({"name": "block"}, (4, 4), None, "least=16: a block has more tokens than the 7 of 16"),
    ({"name": "block", "least": 0}, GRID, None, "least=0: a block has at least one"),
    ({"name": "block", "aspect": 2.0}, GRID, None, "aspect=2.0: must be above 0 and at most 1"),
    ({"name": "attentive", "drop": "all"}, GRID, None, "drop='all': must be 'low' or 'high'"),
    ({"name": "attentive"}, GRID, None, "name='attentive': goes by attention, which nothing"),
    ({"name": "attentive"}, GRID, (1, 9), r"attention of shape \[1, 9\] for 64 tokens"),
    ({"name": "text_guided"}, GRID, None, "goes by similarity to the text, which nothing"),
    ({"name": "text_guided", "drop": "no"}, GRID, None, "drop='no': must be 'low' or 'high'"),
    ({"name": "hard_patch"}, GRID, None, "goes by predicted loss, which nothing"),
    ({"name": "hard_patch", "final": 1.5}, GRID, None, "final=1.5: a share is from 0 to 1"),
    ({"name": "hard_patch", "ramp_steps": -1}, GRID, None, "ramp_steps=-1: must be at least 0"),
    ({"name": "noise", "colour": "pink"}, GRID, None, "colour='pink': must be one of red, blue"),
    ({"name": "noise", "fine": 3.0}, GRID, None, "fine=3.0: must be above 0 and below coarse=2.0"),
    ({"name": "variable", "minimum": 1.0}, GRID, None, "minimum=1.0: must be above 0 and below"),
    ({"name": "variable", "minimum": 0.99}, (4, 4), None, "minimum=0.99: masks 16 of 16"),
    ({"name": "variable", "std": 0.0}, GRID, None, "std=0.0: must be above 0"),
    ({"name": "random", "share": 0.5}, GRID, None, "objective.mask.share: unknown key"),
])
def test_what_cannot_be_masked_is_one_line_that_names_the_key(node, grid, guide, message):
  with pytest.raises(ValueError, match=message) as error:
    mask = config.build("mmjax.masking", node, "objective.mask")
    mask(keys(1), grid, guide and jnp.zeros(guide))
  assert "\n" not in str(error.value)
