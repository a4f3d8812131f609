"""Targets and guides of a CLIP that transformers saved, read by `from`, against its own results."""

import jax
import numpy as np
import pytest

from configs.masked import maskdistill
from mmjax import config as config_lib
from mmjax.checkpoint import paths
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import frozen

torch = pytest.importorskip("torch", reason="the reference is a model of torch")
transformers = pytest.importorskip("transformers", reason="the reference is its CLIP")

# Float32 through two layers, summed in another order.
CLOSE = dict(rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  """A folder with a small CLIP of random weights, and the model."""
  torch.manual_seed(0)
  shape = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
  model = transformers.CLIPModel(transformers.CLIPConfig(
      # This id says that the highest id ends a text, as in OpenAI's vocabulary.
      text_config=dict(**shape, vocab_size=20, max_position_embeddings=8, eos_token_id=2),
      vision_config=dict(**shape, image_size=32, patch_size=8), projection_dim=12)).eval()
  for x in model.parameters():  # away from what is zero or one at the beginning
    x.data += 0.05 * torch.randn_like(x)
  folder = tmp_path_factory.mktemp("clip") / "clip"
  model.save_pretrained(folder)
  return str(folder), transformers.CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def theirs(clip):
  pixels = torch.from_numpy(image().transpose(0, 3, 1, 2))
  with torch.no_grad():
    found = clip[1].vision_model(pixels, output_hidden_states=True, output_attentions=True)
    last = clip[1].vision_model.post_layernorm(found.last_hidden_state)
    texts = clip[1].text_projection(clip[1].text_model(torch.from_numpy(TEXT).long()).pooler_output)
    patches = clip[1].visual_projection(last)[:, 1:]
    return {"similar": torch.cosine_similarity(patches, texts[:, None], dim=-1).numpy(),
            "projected": patches.numpy(), "last": last[:, 1:].numpy(),
            "first": found.hidden_states[1][:, 1:].numpy(), "second": found.hidden_states[2][:, 1:].numpy(),
            "guide": found.attentions[-1].mean(1)[:, 0, 1:].numpy()}


TEXT = np.array([[18, 3, 4, 19, 0, 0], [18, 7, 2, 9, 11, 19]], np.int32)


def image():
  return np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def run(clip, guide="attention", **fields):
  """The target with the recipe's teacher, as small as this CLIP; and the guide."""
  if guide == "text":
    fields["text"] = {**maskdistill.text_tower("b16"), "vocab": 20, "length": 8, "width": 32,
                      "depth": 2, "heads": 4, "out_dim": 12, "dtype": "float32"}
  teacher = {**maskdistill.teacher("b16"), "from": clip[0], "patch": 8, "grid": [4, 4], "width": 32,
             "depth": 2, "heads": 4, "out_dim": 12, "dtype": "float32"}
  node, sources = frozen.split({"target": {"name": "features", "teacher": teacher, **fields}})
  target = config_lib.build("mmjax.targets", node["target"], "objective.target")
  batch = {"image": image(), "text": TEXT}
  shapes = {"target": mesh_lib.unbox(jax.eval_shape(target.init, jax.random.key(0), batch))}
  tensors, _ = frozen.initial(sources, shapes)
  state = paths.unflatten(tensors, like=shapes)["target"]
  return jax.device_get(jax.jit(lambda state: target(state, batch, (4, 4), guide))(state))


def standardised(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_normalised_tokens_and_guide_are_those_of_transformers(clip, theirs):
  target, guide = run(clip)
  np.testing.assert_allclose(target, standardised(theirs["last"]), **CLOSE)
  np.testing.assert_allclose(guide, theirs["guide"], **CLOSE)


def test_projected_tokens_are_those_of_transformers(clip, theirs):
  target, _ = run(clip, project=True, normalise=False)
  np.testing.assert_allclose(target, theirs["projected"], **CLOSE)


def test_the_guide_by_a_text_is_the_cosine_that_transformers_has(clip, theirs):
  """The text tower comes from the same folder, by `beside`."""
  _, guide = run(clip, "text")
  np.testing.assert_allclose(guide, theirs["similar"], **CLOSE)


def test_blocks_are_those_of_transformers(clip, theirs):
  target, _ = run(clip, layers=[0, 1], normalise=False)
  np.testing.assert_allclose(target, np.concatenate([theirs["first"], theirs["second"]], -1), **CLOSE)
