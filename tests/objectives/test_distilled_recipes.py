"""iBOT, DINOv2 and MSN: the loss is that of the papers, in NumPy; and each mechanism is at work."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.masking.block_range import BlockRange
from mmjax.masking.multi_block import MultiBlock
from mmjax.masking.random import Random
from mmjax.masking.variable import Variable
from mmjax.models.vit import ViT
from mmjax.nn.prototypes import prototypes_of
from mmjax.objectives.contract import Context
from mmjax.objectives.self_distillation import SelfDistillation
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.gradients import loss_and_grad
from mmjax.training.state import TrainState
from mmjax.training.step import make_eval_step, make_features, make_train_step

ROWS, K, KP, STEP = 8, 12, 10, 3
BAD = 2  # a row that could not be read
CLOSE = dict(rtol=2e-4, atol=2e-5)  # float32 through two layers against NumPy in float64


def encoder(**changes):
  return ViT(**{**dict(patch=4, width=16, depth=1, heads=2, pool="cls", class_token=True,
                       class_position=True, position="learned", grid=(4, 4), resample="bilinear",
                       activation="gelu", attention_bias="qvo"), **changes})


RAMPS = dict(teacher_temperature={"start": 0.04, "final": 0.07, "ramp_steps": 6},
             momentum={"start": 0.9, "final": 1.0, "ramp_steps": 10})
HEAD = dict(prototypes=K, hidden=24, layers=2, bottleneck=8)
IBOT = SelfDistillation(
    encoder(mask_token=True), {"class": 1.0, "patch": 1.0}, mask=BlockRange(least=1),
    **HEAD, **RAMPS)
DINOV2 = SelfDistillation(
    encoder(mask_token=True, registers=2, layer_scale=0.5),
    {"class": 1.0, "patch": 0.5, "koleo": 0.2}, patch_prototypes=KP, centring="sinkhorn",
    freeze_steps=2, mask=BlockRange(least=1, probability=0.9), **HEAD, **RAMPS)
MSN = SelfDistillation(
    encoder(), {"class": 1.0, "mean_entropy": 2.0}, mask=Random(0.25), targets="first",
    centring="sinkhorn", teacher_prototypes="student", **HEAD, **RAMPS)
RECIPES = {"ibot": IBOT, "dinov2": DINOV2, "msn": MSN}


def make_batch(rows=ROWS):
  rng = np.random.default_rng(0)
  valid = np.arange(rows) != BAD
  clean = lambda x: (x * valid.reshape(-1, *[1] * (x.ndim - 1))).astype(np.float32)
  return {"global_views": clean(rng.normal(size=(rows, 2, 16, 16, 3))),
          "local_views": clean(rng.normal(size=(rows, 2, 8, 8, 3))),
          "row": np.stack([np.zeros(rows), np.arange(rows)], 1).astype(np.uint32), "valid": valid}


def beginning(objective, batch):
  """Parameters without zeros, a teacher that is another network, and centres off zero."""
  rng = np.random.default_rng(1)
  draw = lambda x: (rng.normal(size=x.shape) * 0.3).astype(np.float32)
  params, state = jax.eval_shape(lambda: mesh_lib.unbox(objective.init(jax.random.key(0), batch)))
  teachers = {"teacher": jax.tree.map(draw, params)}
  return jax.tree.map(draw, params), teachers, jax.tree.map(draw, state)


def context(teachers, state, step=STEP, **more):
  return Context(step=jnp.int32(step), state=state, teachers=teachers, seed=3, **more)


@functools.cache
def step_of(recipe, micro_batches=1, devices=1):
  """The jitted (params, teachers, state, batch, step) -> gradient, outcome, next state."""
  del devices  # what is traced on one device is not traced again on several
  def run(params, teachers, state, batch, step):
    ctx, objective = context(teachers, state, step), RECIPES[recipe]
    grads, outcome = loss_and_grad(objective, ctx, params, batch, micro_batches=micro_batches)
    return grads, outcome, objective.update(ctx, outcome.stats)

  return jax.jit(run)


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=RECIPES)
def case(request):
  """(recipe, (params, teachers, state), batch, what a step gives)."""
  batch = make_batch()
  start = beginning(RECIPES[request.param], batch)
  return request.param, start, batch, jax.device_get(step_of(request.param)(*start, batch, STEP))


def unit(x, axis=-1):
  return x / np.linalg.norm(x, axis=axis, keepdims=True)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


class Papers:
  """The loss as the papers have it, on the features of one batch: float64, all rows at once."""

  def __init__(self, objective, params, teachers, state, batch):
    forward = lambda *at: objective.forward(context(at[1], at[2]), at[0], batch)[0]
    features = jax.jit(forward)(params, teachers, state)
    good = batch["valid"]
    self.features = {name: np.asarray(x, np.float64)[good] for name, x in features.items()}
    self.objective, self.params, self.teacher = objective, params, teachers["teacher"]
    self.state = state
    self.temperature = 0.04 + (0.07 - 0.04) * STEP / 6

  def kernel(self, params, head):
    return unit(np.asarray(params[head]["prototypes"]["kernel"], np.float64), axis=0)

  def targets(self, part, head, weight):
    """What the teacher says of each of its rows [B, P, K], kept from collapsing."""
    owner = self.params if self.objective.teacher_prototypes == "student" else self.teacher
    logits = self.features[f"{part}/teacher"] @ self.kernel(owner, head)
    if self.objective.centring == "mean":
      centre = np.asarray(self.state["centre"][part], np.float64)
      return softmax((logits - centre) / self.temperature)
    q = np.exp(logits / self.temperature) * weight[..., None]
    for _ in range(3):
      q = q / q.sum((0, 1))
      q = q / np.where(weight > 0, q.sum(-1), 1)[..., None]
    return q

  def predictions(self, part, head):
    return softmax(self.features[f"{part}/student"] @ self.kernel(self.params, head) / 0.1)

  def class_loss(self):
    """DINO's eq. 3: all pairs of a teacher's global view with another view."""
    first = 1 if self.objective.targets == "first" else 0
    q = self.targets("class", "class_head", np.ones(self.features["class/teacher"].shape[:2]))
    p = self.predictions("class", "class_head")
    pairs = [-(q[:, i] * np.log(p[:, j])).sum(-1).mean()
             for i in range(q.shape[1]) for j in range(p.shape[1]) if i != j + first]
    return np.mean(pairs)

  def patch_loss(self):
    """iBOT's eq. 2: the mean over a view's masked patches, then over views and images."""
    head = "patch_head" if self.objective.patch_prototypes else "class_head"
    used = self.features["patch/used"]
    flat = used.reshape(len(used), -1)
    q, p = self.targets("patch", head, flat), self.predictions("patch", head)
    loss = (-(q * np.log(p)).sum(-1) * flat).reshape(used.shape).sum(-1)
    return (loss / np.maximum(used.sum(-1), 1)).mean()

  def koleo(self):
    values = []
    for x in np.swapaxes(unit(self.features["class/pooled"]), 0, 1):
      distance = np.linalg.norm(x[:, None] - x[None], axis=-1) + 9 * np.eye(len(x))
      values.append(-np.log(distance.min(1)).mean())
    return np.mean(values)

  def mean_entropy(self):
    """What MSN's eq. 2 maximises: the entropy of the mean prediction."""
    mean = self.predictions("class", "class_head").mean((0, 1))
    return np.log(K) + (mean * np.log(mean)).sum()


def test_loss_terms_are_those_of_the_papers(case):
  recipe, start, batch, (_, outcome, _) = case
  objective = RECIPES[recipe]
  papers = Papers(objective, *start, batch)
  methods = {"class": papers.class_loss, "patch": papers.patch_loss, "koleo": papers.koleo,
             "mean_entropy": papers.mean_entropy}
  want = {name: methods[name]() for name in objective.losses}
  assert set(outcome.terms) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(outcome.terms[name].mean, value, err_msg=name, **CLOSE)
  total = sum(weight * want[name] for name, weight in objective.losses.items())
  np.testing.assert_allclose(outcome.loss, total, **CLOSE)


def test_gradient_reaches_every_parameter(case):
  for path, g in jax.tree_util.tree_leaves_with_path(case[-1][0]):
    assert np.abs(g).max() > 1e-7, jax.tree_util.keystr(path)


def same(got, want):
  """To 2e-5 of each array's largest entry: float32 sums in another order."""
  def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(np.abs(b).max(), 1e-2))
  jax.tree.map(close, jax.device_get(got), jax.device_get(want))


def test_a_bad_row_changes_nothing(case):
  recipe, start, batch, whole = case
  fill = lambda x: np.where((np.arange(ROWS) == BAD).reshape(-1, *[1] * (x.ndim - 1)), 7, x)
  other = {name: fill(x) if name.endswith("views") else x for name, x in batch.items()}
  same(step_of(recipe)(*start, other, STEP), whole)


def on_devices(case, micro_batches, **axes):
  recipe, start, batch, whole = case
  mesh = mesh_lib.make_mesh(**axes)
  with mesh_lib.use(mesh):
    placed = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    same(step_of(recipe, micro_batches, devices=8)(*start, placed, STEP), whole)


@pytest.mark.slow  # tests/parallel/test_prototypes.py has a quick one of what couples rows
@pytest.mark.parametrize("micro_batches, mesh", [
    (1, dict(data=8)), (2, dict(data=2, fsdp=2, tensor=2)),
    (1, dict(data=2, sequence=2, tensor=2))])
def test_steps_on_eight_devices_are_one_step_on_one(micro_batches, mesh, case):
  on_devices(case, micro_batches, **mesh)


@pytest.mark.slow
def test_four_micro_batches_are_one_step(case):
  recipe, start, batch, whole = case
  same(step_of(recipe, 4)(*start, batch, STEP), whole)


def test_prototypes_wait_until_they_may_learn(case):
  recipe, start, batch, (grads, _, _) = case
  if recipe != "dinov2":
    return
  early = step_of(recipe)(*start, batch, DINOV2.freeze_steps - 1)[0]
  for head in ("class_head", "patch_head"):
    assert np.abs(early[head]["prototypes"]["kernel"]).max() == 0
    assert np.abs(early[head]["layer_0"]["kernel"]).max() > 1e-4
    assert np.abs(grads[head]["prototypes"]["kernel"]).max() > 1e-4  # in step 3


def test_teacher_and_centre_follow_over_several_steps():
  """Against the recursions in NumPy, of parameters and logits that each step had."""
  objective = dataclasses.replace(IBOT, mask=Random(0.25))
  batch = {name: x for name, x in make_batch().items() if name != "local_views"}
  params, teachers, state = beginning(objective, batch)
  optimizer = optax.sgd(0.5)
  now = TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params), state=state,
                   teachers=teachers, halted=jnp.bool_(False))
  train_step = make_train_step(objective, optimizer, seed=3)

  @jax.jit
  def step(now):
    ctx = context(now.teachers, now.state, now.step)
    return objective.forward(ctx, now.params, batch)[0], train_step(now, batch)

  teacher, centre = teachers["teacher"], state["centre"]
  for t in range(3):
    kernel = unit(np.asarray(teacher["class_head"]["prototypes"]["kernel"], np.float64), axis=0)
    features, (now, metrics) = step(now)
    for part in centre:
      logits = np.asarray(features[f"{part}/teacher"], np.float64) @ kernel
      mean = logits[batch["valid"]].mean((0, 1))
      centre = {**centre, part: 0.9 * centre[part] + 0.1 * mean}
    m = 1.0 - (1.0 - 0.9) * (1 + np.cos(np.pi * t / 10)) / 2
    follow = lambda a, b: m * a + (1 - m) * np.asarray(b, np.float64)
    teacher = jax.tree.map(follow, teacher, now.params)
    assert float(metrics["teacher_momentum"].mean) == pytest.approx(m)
  for got, want in ((now.teachers["teacher"], teacher), (now.state["centre"], centre)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *(t["teacher"] for t in
                                                           (teachers, now.teachers)))
  assert min(jax.tree.leaves(moved)) > 1e-6  # every parameter of the teacher


@pytest.mark.parametrize("objective", [IBOT, MSN], ids=["replaced", "dropped"])
def test_the_student_sees_nothing_of_a_masked_patch_and_the_teacher_does(objective):
  batch = make_batch()
  params, teachers, state = beginning(objective, batch)
  ctx, first = context(teachers, state), int(objective is MSN)  # its student sees the second view

  @jax.jit
  def forward(views):
    hidden, places, _ = objective._hide(ctx, batch, views[:, first:])
    masked = hidden.get("masked", jnp.zeros((len(places), 16), bool).at[
        jnp.arange(len(places))[:, None], places].set(True))
    features = objective.forward(ctx, params, {**batch, "global_views": views})[0]
    return features["class/student"], features["class/teacher"], masked.reshape(ROWS, -1, 16)

  views, good = batch["global_views"], batch["valid"]
  student, teacher, masked = jax.device_get(forward(views))
  assert masked[good].any(-1).any(-1).sum() > 2
  patches = np.repeat(np.repeat(masked.reshape(ROWS, -1, 4, 4), 4, 2), 4, 3)[..., None]
  noise = np.random.default_rng(5).normal(size=views.shape).astype(np.float32)
  other = views.copy()
  other[:, first:] = np.where(patches, noise[:, first:], views[:, first:])
  got, other_teacher, _ = jax.device_get(forward(other))
  np.testing.assert_array_equal(got, student)
  other[:, first:] = np.where(patches, views[:, first:], noise[:, first:])
  assert (np.abs(jax.device_get(forward(other))[0] - student)[good, 0] > 1e-3).any(-1).all()
  changed = (np.abs(other_teacher - teacher) > 1e-3).any(-1)
  if objective is MSN:
    assert not changed.any()  # its target is the other view
  else:
    np.testing.assert_array_equal(changed, masked.any(-1))


@pytest.mark.parametrize("recipe", RECIPES)
def test_collapse_is_below_the_thresholds_and_random_weights_are_above(recipe):
  """Features that are all the same; and a student that knows one prototype only, which Sinkhorn's targets hide."""
  objective, batch = RECIPES[recipe], make_batch()
  params, teachers, state = beginning(objective, batch)
  ctx, least = context(teachers, state, step=0), objective.collapsed_below(ROWS)
  forward = jax.jit(lambda params, batch: objective.forward(ctx, params, batch)[0])
  features = {name: x for name, x in forward(params, batch).items() if name in objective.couples}
  couple = jax.jit(lambda *args: objective.couple(ctx, *args))
  parts = [name.partition("/")[0] for name in features if name.endswith("/student")]
  features["class/pooled"] = jnp.asarray(np.random.default_rng(2).normal(size=features["class/pooled"].shape))

  def below(**changes):
    _, metrics = couple(params, {**features, **changes}, batch)
    assert least.keys() <= metrics.keys()
    return {name for name in least if metrics[name].mean < least[name]}

  assert below() == set()
  assert below(**{"class/pooled": jnp.ones_like(features["class/pooled"])}) == {"effective_rank", "feature_std"}
  for part in parts:
    one = prototypes_of(params[objective._head_name(part)])[:, 0]
    student = jnp.broadcast_to(30 * one, features[f"{part}/student"].shape)
    found = below(**{f"{part}/student": student})
    assert found == {"prototype_entropy" if part == "class" else "patch_prototype_entropy"}


@pytest.mark.parametrize("eval_with", ["teacher", "student"])
def test_images_are_evaluated_whole_with_the_encoder_that_is_asked_for(eval_with):
  objective, batch = dataclasses.replace(DINOV2, eval_with=eval_with), make_batch()
  params, teachers, state = beginning(objective, batch)
  images = {"image": batch["global_views"][:, 0], "row": batch["row"], "valid": batch["valid"]}
  encode = make_features(objective, seed=0, want=("image/tokens",))
  features = jax.jit(encode)(params, state, teachers, images)
  source = {"params": (params if eval_with == "student" else teachers["teacher"])["encoder"]}
  apply = jax.jit(lambda *at: objective.encoder.apply(*at, want=("tokens",)))
  pooled, extra = apply(source, images["image"])
  np.testing.assert_allclose(features["image/pooled"], pooled, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(features["image/tokens"], extra["tokens"], rtol=1e-5, atol=1e-6)
  assert make_eval_step(objective, seed=0)(params, state, teachers, images) == {}


@pytest.mark.parametrize("bad, message", [
    (dict(losses={"clas": 1.0}), "losses: .*'clas'.*valid names: class, patch"),
    (dict(mask=None), "mask: is missing; losses.patch"),
    (dict(encoder=encoder()), "encoder.mask_token: losses.patch needs True"),
    (dict(targets="first"), "targets: losses.patch needs 'all'"),
    (dict(centring="sinkhorm"), "centring = 'sinkhorm'.*Did you mean 'sinkhorn'"),
    (dict(teacher_temperature={"start": 0.04, "final": 0.07}), "teacher_temperature: needs start"),
    (dict(teacher_temperature={"start": 0.0}), "teacher_temperature.start: must be above 0"),
    (dict(momentum={"begin": 0.9}), "momentum.begin: unknown key"),
    (dict(prototypes=0), "prototypes: must be at least 1"),
    (dict(student_temperature=0.0), "student_temperature: must be above 0"),
    (dict(centre_momentum=1.0), "centre_momentum: .* below 1"),
    (dict(losses={"class": 1.0}, patch_prototypes=4), "patch_prototypes: are of no use"),
    (dict(encoder=encoder(pool="none", mask_token=True)), "encoder.pool: 'none'")])
def test_bad_values_are_named(bad, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(IBOT, **bad)


@pytest.mark.parametrize("objective, change, message", [
    (MSN, {"global_views": np.zeros((2, 1, 16, 16, 3), np.float32)}, "needs two global views"),
    (IBOT, {"local_views": np.zeros((2, 2, 6, 6, 3), np.float32)}, "^encoder.patch: an image of 6x6"),
    (dataclasses.replace(IBOT, encoder=encoder(mask_token=True, resample=None)), {}, "resample"),
    (dataclasses.replace(IBOT, mask=Random(0.99)), {}, "^mask.ratio=0.99: masks 16 of 16 tokens"),
    (dataclasses.replace(IBOT, mask=Variable()), {}, "^mask.name: gives VariableMask"),
    (dataclasses.replace(MSN, mask=MultiBlock()), {}, "^mask.name: gives Blocks"),
    (dataclasses.replace(MSN, mask=BlockRange(least=1)), {}, "mask: rows that mask different")])
def test_views_that_do_not_fit_are_an_error_before_the_first_step(objective, change, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: objective.init(jax.random.key(0), {**make_batch(2), **change}))
