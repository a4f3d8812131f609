"""What each masked and self-distilled recipe is about, seen in its own smoke variant at work.

A check per recipe, whose docstring is the recipe's mechanism. It looks at one training pass of the
objective that the shipped config makes, with random parameters and other ones of a teacher; so
it fails where a config loses its mask, its target, its teacher or a term of its loss. That the
objectives do what the papers say is tested in `tests/objectives`, on smaller networks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax.nn.patch import patchify
from mmjax.objectives.contract import Context
from tests.configs.one_pass import ROWS, SEED, look
from tests.configs.test_configs import variants

TOKENS = 64  # of a picture or a clip
CLOSE = dict(rtol=2e-4, atol=2e-5)  # float32 against float64


def masks(seen, share, how):
  """The masked places are not seen, all others are; `share` of them are masked in every row."""
  masked = seen.features["masked"]
  np.testing.assert_array_equal(masked.sum(1), TOKENS - np.floor(TOKENS * (1 - share) + 1e-6))
  assert len(np.unique(masked, axis=0)) == ROWS  # each row its own
  np.testing.assert_array_equal(seen.slope > 0, ~masked)
  stands_in = "mask_token" in seen.params["encoder"]
  assert stands_in == (how == "replaced")  # else dropped: the encoder has nothing to put there


def predicts(seen, where, target=None):
  """The loss is at the places `where`, "masked" or "seen", and of `target` [B, N, d]."""
  features, masked = seen.features, seen.features["masked"]
  places = [np.flatnonzero(row if where == "masked" else ~row) for row in masked]
  np.testing.assert_array_equal(features["places"], places)
  if target is not None:
    want = np.take_along_axis(target, np.array(places)[:, :, None], axis=1)
    np.testing.assert_allclose(features["target"], want, rtol=1e-3, atol=1e-4)


def loses(seen, cost):
  """The only term is the mean `cost` of prediction and target."""
  features = seen.features
  x = np.asarray(features["predictions"]["prediction"], np.float64)
  assert set(seen.terms) == {"prediction"} and seen.weights.get("prediction", 1) == 1
  np.testing.assert_allclose(seen.terms["prediction"], cost(x, features["target"]).mean(), **CLOSE)


def projects(seen):
  """Targets are the frozen teacher's tokens in the space where images meet texts, as they are."""
  projection = seen.state["target"]["teacher"]["projection"]["kernel"]
  assert seen.features["target"].shape[-1] == projection.shape[-1]
  assert seen.objective.target.project and not standard(seen.features["target"])


def l2(x, y):
  return np.square(x - y)


def l1(x, y):
  return np.abs(x - y)


def smooth_l1(x, y):
  size = np.abs(x - y)
  return np.where(size < 1, size ** 2 / 2, size - 0.5)


def cosine(x, y):
  length = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
  return 1 - (x * y).sum(-1) / length


def pixels(images, side=8):
  """[B, H, W, C] -> float64 [B, N, side * side * C]."""
  patches = np.asarray(patchify(images.astype(np.float64), (side, side)))
  return patches.reshape(*patches.shape[:2], -1).astype(np.float64)


def normalised(patches):
  return (patches - patches.mean(-1, keepdims=True)) / patches.std(-1, ddof=1, keepdims=True)


def standard(tokens):
  """Layer-normalised: mean 0 and variance 1 of each token."""
  return (np.abs(tokens.mean(-1)) < 1e-3).all() and (np.abs(tokens.var(-1) - 1) < 1e-2).all()


def mae(seen):
  """A random quarter of the patches is encoded; a decoder makes normalised pixels of the others."""
  masks(seen, 0.75, "dropped")
  assert "mask_token" in seen.params["decoder"]
  predicts(seen, "masked", normalised(pixels(seen.batch["image"])))
  loses(seen, l2)


def simmim(seen):
  """Mask tokens stand for squares of 2 x 2 patches; one linear layer makes their raw pixels; l1."""
  masks(seen, 40 / 64, "replaced")  # 10 of 16 squares: 0.6
  squares = seen.features["masked"].reshape(ROWS, 4, 2, 4, 2)
  np.testing.assert_array_equal(squares.any((2, 4)), squares.all((2, 4)))
  assert set(seen.params) == {"encoder", "head"}
  predicts(seen, "masked", pixels(seen.batch["image"]))
  loses(seen, l1)


def mae_st(seen):
  """A tenth of a clip's pairs of frames is encoded, at random in space and time; the first frame of
  each of the other pairs is predicted."""
  masks(seen, 0.9, "dropped")
  of_time = seen.features["masked"].reshape(ROWS, 4, 16)
  assert (of_time != of_time[:, :1]).any()  # no tubes
  first = seen.batch["video"][:, ::2].reshape(-1, 32, 32, 3)
  predicts(seen, "masked", normalised(pixels(first)).reshape(ROWS, TOKENS, -1))
  loses(seen, l2)


def spark(seen):
  """A CNN computes on the cells that are seen, and a UNet fills the holes at every scale."""
  masks(seen, 0.6, "dropped")
  tokens = {name for name in seen.params["decoder"] if name.startswith("mask_token")}
  assert len(tokens) == len(seen.objective.encoder.widths)
  predicts(seen, "masked", normalised(pixels(seen.batch["image"])))
  loses(seen, l2)


def maskdistill(seen):
  """Mask tokens stand for blocks, where a frozen teacher's normalised last tokens are predicted."""
  masks(seen, 0.4, "replaced")
  predicts(seen, "masked")
  assert standard(seen.features["target"]) and "teacher" in seen.state["target"]
  loses(seen, smooth_l1)


def eva02(seen):
  """The angle to CLIP's projected features in blocks that mask tokens stand for, by a ViT of SwiGLU
  and rotary positions."""
  masks(seen, 0.4, "replaced")
  assert seen.objective.encoder.position == "rotary"
  assert "gate" in seen.params["encoder"]["trunk"]["layers"]["mlp"]
  predicts(seen, "masked")
  projects(seen)
  loses(seen, cosine)


def text_guided(seen):
  """EVA-02 whose masked patches are those most like the caption, by the towers of one dual encoder."""
  eva02(seen)
  target, weights = seen.objective.target, seen.state["target"]
  patches = jax.jit(functools.partial(target.teacher.apply, want=("tokens",)))(
      {"params": weights["teacher"]}, seen.batch["image"])[1]["tokens"]
  patches = np.float64(patches @ weights["teacher"]["projection"]["kernel"])
  text, _ = jax.jit(target.text.apply)({"params": weights["text"]}, seen.batch["text"], seen.batch["text_mask"])
  similar = 1 - cosine(patches, np.float64(text)[:, None])
  masked = seen.features["masked"]
  assert (np.where(masked, similar, 2).min(1) > np.where(masked, -2, similar).max(1) - 1e-5).all()


def maskalign(seen):
  """Of the patches to which the teacher attends, mixtures of blocks are aligned with several of its
  normalised blocks; nothing is reconstructed."""
  masks(seen, 0.7, "dropped")
  assert seen.objective.mask.guided == "attention" and seen.objective.mask.drop == "low"
  predicts(seen, "seen")
  width, layers = seen.objective.target.teacher.width, len(seen.params["decoder"]["mixing"])
  assert layers > 1 and seen.features["target"].shape[-1] == layers * width
  assert standard(seen.features["target"].reshape(ROWS, -1, layers, width))
  loses(seen, smooth_l1)


def uta(seen):
  """The angle to CLIP's projected features where the student sees; blocks of half the picture are
  dropped and nothing is reconstructed."""
  masks(seen, 0.5, "dropped")
  assert set(seen.params) == {"encoder", "head"}
  predicts(seen, "seen")
  projects(seen)
  loses(seen, cosine)


def quantises(seen, *, commitment, unit=False):
  """The decoder gets the nearest codes, which no gradient moves: they become averages of what chose
  them, or vectors of the batch where nothing did. `unit`: codes and vectors are of length one."""
  codes, vectors = seen.state["tokenizer"]["codes"], seen.features["vectors"]
  assert "codes" not in seen.params["tokenizer"] and (seen.slope > 0).all()  # straight through
  distance = np.square(vectors[:, :, None] - codes).sum(-1)
  ids = distance.argmin(-1)
  np.testing.assert_allclose(seen.features["chosen"], codes[ids], **CLOSE)
  np.testing.assert_allclose(seen.terms["commitment"], l2(vectors, codes[ids]).mean(), **CLOSE)
  assert seen.weights["commitment"] == commitment
  new, used = seen.new_state["tokenizer"]["codes"], np.unique(ids)
  means = np.stack([vectors[ids == k].mean(0) for k in used])
  if unit:
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, **CLOSE)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
  followed = np.abs(new[used] - means).max(-1) < 1e-4
  assert followed.sum() > len(used) / 2  # the others are so rare that they begin anew
  count, chosen = seen.new_state["uses"]["count"][used], np.bincount(ids.ravel())[used]
  np.testing.assert_allclose(count[followed], 0.1 * chosen[followed], **CLOSE)
  idle = np.delete(new, used, 0)
  revived = np.abs(idle[:, None] - vectors.reshape(-1, vectors.shape[-1])).max(-1).min(1) < 1e-5
  assert revived.sum() + (~followed).sum() == ROWS  # one vector of each row


def vq(seen):
  """An image through codes and back; codes follow averages, and dead ones are revived."""
  quantises(seen, commitment=0.25)
  assert set(seen.terms) == {"l1", "commitment"} and seen.weights["l1"] == 1
  error = np.abs(seen.features["made"] - seen.batch["image"]).mean()
  np.testing.assert_allclose(seen.terms["l1"], error, **CLOSE)


def vq_kd(seen):
  """Codes of unit norm from which the angle to a frozen teacher's projected tokens is to be told."""
  quantises(seen, commitment=1.0, unit=True)
  teacher, weights = seen.objective.target.teacher, seen.state["target"]["teacher"]
  tokens = jax.jit(functools.partial(teacher.apply, want=("tokens",)))(
      {"params": weights}, seen.batch["image"])[1]["tokens"]
  tokens = tokens @ weights["projection"]["kernel"] + weights["projection"].get("bias", 0)
  assert set(seen.terms) == {"cosine", "commitment"} and seen.weights["cosine"] == 1
  angle = cosine(np.asarray(seen.features["made"], np.float64), np.asarray(tokens)).mean()
  np.testing.assert_allclose(seen.terms["cosine"], angle, **CLOSE)


def palette(image):
  """The ids of a palette of 6 x 6 x 6 colours, int [B, N]."""
  mean = pixels(image, 4).reshape(ROWS, TOKENS, 16, 3).mean(2)
  return np.rint((mean + 1) / 2 * 5).astype(int) @ (36, 6, 1)


def cross_entropy(logits, ids):
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  chosen = np.take_along_axis(logits, ids[..., None], -1)[..., 0]
  return np.log(np.exp(logits).sum(-1)) - chosen


def beit_v2(seen):
  """Ids of masked blocks, told by the last tokens and again by the class token with early ones."""
  masks(seen, 0.4, "replaced")
  predicts(seen, "masked")
  features, ids = seen.features, palette(seen.batch["image"])
  np.testing.assert_array_equal(features["target"], np.take_along_axis(ids, features["places"], 1))
  assert set(seen.terms) == {"prediction", "aggregated"} and not seen.weights
  assert seen.objective.decoder.layer < seen.objective.encoder.depth - 1
  for name, logits in features["predictions"].items():
    np.testing.assert_allclose(
        seen.terms[name], cross_entropy(logits, features["target"]).mean(), **CLOSE)


def mage(seen):
  """Ids of pictures: each row masks a share of its own, half or more; half is dropped."""
  masked = seen.features["masked"]
  share = masked.mean(1)
  assert share.min() >= 0.5 and len(np.unique(share)) > ROWS / 2
  context = Context(step=0, state={}, teachers={}, seed=SEED)
  mask = seen.objective.mask(context.keys("mask", seen.batch), (8, 8))
  assert mask.keep.shape == (ROWS, TOKENS // 2)
  assert set(seen.terms) == {"cross_entropy"} and seen.objective.smoothing == 0.1
  np.testing.assert_allclose(
      seen.terms["cross_entropy"], seen.features["loss"][masked].mean(), **CLOSE)
  assert 6 ** 3 in {size for leaf in jax.tree.leaves(seen.params) for size in leaf.shape}
  assert (seen.slope == 0).all()  # pixels are known by their ids alone


def multimae(seen):
  """A sixth of the patches of image, depth and segmentation together; all three are predicted."""
  masked = seen.features["masked"]
  np.testing.assert_array_equal((~masked).sum((1, 2)), 3 * TOKENS / 6)
  counts = (~masked).sum(2)
  assert len(np.unique(counts, axis=0)) == ROWS and counts.max() > 20 and counts.min() < 5
  np.testing.assert_array_equal(seen.slope > 0, ~masked[:, 0])
  assert set(seen.terms) == {"image", "depth", "semantic"} and not seen.weights
  error = np.square(seen.features["image/prediction"] - pixels(seen.batch["image"])).mean(-1)
  np.testing.assert_allclose(seen.terms["image"], error[masked[:, 0]].mean(), **CLOSE)


def fourm(seen):
  """48 tokens of five modalities tell 48 others of four; for half of the rows the input is all
  image, for the rest its share is drawn."""
  shown = (seen.slope > 0).sum(1)
  assert shown.max() == 48 and 0 < (shown < 48).sum() < ROWS
  told = ("image_tokens", "depth", "semantic", "text")
  assert seen.weights == {name: 1 / 4 for name in told} and set(seen.terms) == set(told)
  assert seen.features["there"].sum() == ROWS * 48
  kinds = [np.bincount(row, minlength=4) for row in seen.features["modality"]]
  assert len(np.unique(kinds, axis=0)) == ROWS and (np.sum(kinds, 0) > 0).all()


def averages(seen, *, start, parts, params):
  """The teacher begins as `params` and follows them more and more slowly, at last not at all."""
  teachers = seen.objective.teachers(seen.params)
  assert set(teachers) == {parts}
  assert jax.tree.structure(teachers[parts]) == jax.tree.structure(params)
  decay = [float(seen.objective.teacher_decay(jnp.int32(step))[parts]) for step in (0, 75, 10_000)]
  assert decay[0] == pytest.approx(start) and decay[0] < decay[1] < decay[2] == 1


def compares(seen, targets, views):
  """`targets` of the teacher and `views` of the student, its heads beside the encoder."""
  assert seen.features["class/teacher"].shape[1] == targets
  assert seen.features["class/student"].shape[1] == views
  averages(seen, start=0.98, parts="teacher", params=seen.params)


def masks_views(seen):
  """Half of the global views have a tenth to a half masked, of which the loss of patches is."""
  counts = seen.features["patch/used"].sum(-1)
  np.testing.assert_array_equal((seen.slope == 0).sum(-1), counts)
  hidden = counts[counts > 0]
  assert 0 < len(hidden) < counts.size and 6 <= hidden.min() < hidden.max() <= 32
  assert "mask_token" in seen.params["encoder"]


def ibot(seen):
  """An averaged teacher's centred prototypes, of other views and of masked patches, by one head."""
  compares(seen, 2, 6)
  masks_views(seen)
  assert seen.weights == {"class": 1, "patch": 1} and set(seen.terms) == {"class", "patch"}
  assert set(seen.params) == {"encoder", "class_head"}
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), seen.state, seen.new_state)["centre"]
  assert set(moved) == {"class", "patch"} and min(moved.values()) > 1e-3


def dinov2(seen):
  """iBOT with a head for patches, Sinkhorn in place of centres, and KoLeo for both global views."""
  compares(seen, 2, 6)
  masks_views(seen)
  assert seen.weights == {"class": 1, "patch": 1, "koleo": 0.2}
  assert set(seen.terms) == set(seen.weights)
  assert set(seen.params) == {"encoder", "class_head", "patch_head"}
  assert seen.objective.centring == "sinkhorn" and seen.state == {}
  x = np.asarray(seen.features["class/pooled"], np.float64).swapaxes(0, 1)
  x /= np.linalg.norm(x, axis=-1, keepdims=True)
  nearest = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1) + 9 * np.eye(ROWS)
  np.testing.assert_allclose(seen.terms["koleo"], -np.log(nearest.min(-1)).mean(), rtol=1e-3)


def msn(seen):
  """Of a view without 15% of its patches, and of local ones, the prototypes of another, whole view;
  Sinkhorn and the entropy of the mean prediction use all prototypes."""
  compares(seen, 1, 5)
  assert (seen.slope[:, 0] == 0).all()  # the teacher's alone
  np.testing.assert_array_equal((seen.slope[:, 1] == 0).sum(1), 10)
  assert set(seen.params) == {"encoder", "class_head"}
  assert "mask_token" not in seen.params["encoder"]
  assert seen.weights == {"class": 1, "mean_entropy": 1} and set(seen.terms) == set(seen.weights)
  assert seen.objective.centring == "sinkhorn" and seen.objective.teacher_prototypes == "student"


def ijepa(seen, regularise=()):
  """From a context block, an averaged teacher's normalised tokens in four others; no pixel."""
  features = seen.features
  np.testing.assert_array_equal((seen.slope > 0).sum(1), TOKENS // 4)
  assert features["prediction"].shape == features["target"].shape
  assert features["target"].shape[1] == 4 and standard(features["target"])
  averages(seen, start=0.98, parts="encoder", params=seen.params["encoder"])
  assert set(seen.terms) == {"prediction", *regularise}
  cost = smooth_l1(features["prediction"].astype(np.float64), features["target"]).mean()
  np.testing.assert_allclose(seen.terms["prediction"], cost, **CLOSE)
  assert seen.weights.keys() == set(regularise)


def cjepa(seen):
  """I-JEPA, of whose mean context and mean prediction VICReg's terms keep collapse away."""
  weights = {"invariance": 0.025, "variance": 0.025, "covariance": 0.001}
  ijepa(seen, weights)
  assert seen.weights == pytest.approx(weights)
  means = [seen.features[name].astype(np.float64) for name in ("context/mean", "prediction/mean")]
  hinge = sum(np.maximum(0, 1 - np.sqrt(x.var(axis=0, ddof=1) + 1e-4)).mean() for x in means)
  np.testing.assert_allclose(seen.terms["variance"], hinge, rtol=1e-3)
  apart = [np.square(np.cov(x, rowvar=False)) for x in means]
  apart = sum((x.sum() - np.trace(x)) / len(x) for x in apart)
  np.testing.assert_allclose(seen.terms["covariance"], apart, rtol=1e-3)


def vicreg(seen):
  """Two whole views agree; variance and covariance of the batch keep them apart, and no teacher."""
  assert (seen.slope > 0).all() and seen.slope.shape == (ROWS, 2, TOKENS)
  assert seen.objective.teachers(seen.params) == {}
  assert seen.weights == {"invariance": 25, "variance": 25, "covariance": 1}
  a, b = np.moveaxis(seen.features["image/expanded"].astype(np.float64), 1, 0)
  hinge = lambda x: np.maximum(0, 1 - np.sqrt(x.var(axis=0, ddof=1) + 1e-4)).mean()
  square = lambda x: np.square(np.cov(x, rowvar=False))
  apart = lambda x: (square(x).sum() - np.trace(square(x))) / x.shape[1]
  want = {"invariance": np.square(a - b).mean(), "variance": (hinge(a) + hinge(b)) / 2,
          "covariance": apart(a) + apart(b)}
  assert set(seen.terms) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(seen.terms[name], value, rtol=1e-3, err_msg=name)


MECHANISMS = {
    "masked/mae:smoke": mae,
    "masked/simmim:smoke": simmim,
    "masked/mae_st:smoke": mae_st,
    "masked/spark:smoke": spark,
    "masked/maskdistill:smoke": maskdistill,
    "masked/eva02:smoke": eva02,
    "masked/eva02:text_guided_smoke": text_guided,
    "masked/maskalign:smoke": maskalign,
    "masked/maskalign:uta_smoke": uta,
    "masked/vq:smoke": vq,
    "masked/vq_kd:smoke": vq_kd,
    "masked/beit_v2:smoke": beit_v2,
    "masked/mage:smoke": mage,
    "masked/multimae:smoke": multimae,
    "masked/fourm:smoke": fourm,
    "selfdistill/ibot:smoke": ibot,
    "selfdistill/dinov2:smoke": dinov2,
    "selfdistill/msn:smoke": msn,
    "selfdistill/ijepa:smoke": ijepa,
    "selfdistill/cjepa:smoke": cjepa,
    "selfdistill/vicreg:smoke": vicreg,
}


pytestmark = pytest.mark.usefixtures("quick_compilation")


# These two compile for long, and those in `tests/objectives` say nearly the same of them quickly.
LONG = ("masked/multimae:smoke", "masked/fourm:smoke")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in MECHANISMS])
def test_a_recipe_holds_its_mechanism(name):
  MECHANISMS[name](look(name))


# What of an objective no variant changes, and what within it goes by the size.
HELD = ("name", "mask", "target", "hide", "predict", "head", "loss", "losses", "commitment",
        "alpha", "regularise", "targets", "centring", "teacher_prototypes", "momentum")
OF_SIZE = ("least", "layers", "teacher", "text", "tokenizer", "start")


def held(node):
  """The same for all variants of a recipe."""
  encoder = node.get("encoder", {})
  return {**{key: without_sizes(node.get(key)) for key in HELD},
          "encoder": [encoder.get(key) for key in ("mask_token", "position", "pool")]}


def without_sizes(node):
  if not isinstance(node, dict):
    return node
  return {key: without_sizes(value) for key, value in node.items() if key not in OF_SIZE}


def method(variant):
  """Of a recipe that has another in it too, which one."""
  return next((name for name in ("uta", "text_guided") if variant.startswith(name)), None)


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_variant_holds_the_mechanism_of_the_smoke_variant(name):
  recipe, _, smoke = name.partition(":")
  want = held(config_lib.load(name)["objective"])
  for variant in variants(recipe):
    if variant == smoke or method(variant) != method(smoke):
      continue
    assert held(config_lib.load(f"{recipe}:{variant}")["objective"]) == want, variant


def test_every_shipped_recipe_has_its_mechanism_here():
  shipped = {name for name in config_lib.shipped() if name.startswith(("masked/", "selfdistill/"))}
  assert shipped == {name.partition(":")[0] for name in MECHANISMS}
