"""Reference parameters under their own names -> the parameter trees of `mmjax.models`.

Every mapping only renames, reshapes and transposes, so it maps gradients as well.
"""

import jax
import numpy as np


def under(par, prefix):
  """The entries of a flat dict that begin with `prefix`, without it."""
  return {name.removeprefix(prefix): x for name, x in par.items() if name.startswith(prefix)}


def _square(position):
  """[N, D] -> [rows, columns, D] of a square grid."""
  side = int(len(position) ** 0.5)
  return position.reshape(side, side, -1)


def _stack(layers):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def _torch_norm(par, name):
  return {"scale": par[f"{name}.weight"], "bias": par[f"{name}.bias"]}


def _torch_linear(par, name):
  linear = {"kernel": par[f"{name}.weight"].T}
  return linear | ({"bias": par[f"{name}.bias"]} if f"{name}.bias" in par else {})


def _torch_conv(par, name):
  conv = {"kernel": par[f"{name}.weight"].transpose(2, 3, 1, 0)}  # [D, C, h, w] -> [h, w, C, D]
  return conv | ({"bias": par[f"{name}.bias"]} if f"{name}.bias" in par else {})


def _split_heads(linear, heads):
  """[D, H * d] -> [D, H, d]."""
  return {name: x.reshape(*x.shape[:-1], heads, -1) for name, x in linear.items()}


def _torch_attention(par, name, heads, out="out_proj"):
  kernels = {ours: _split_heads(_torch_linear(par, f"{name}.{theirs}_proj"), heads)
             for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))}
  out = _torch_linear(par, f"{name}.{out}")
  kernel = out["kernel"].reshape(heads, -1, out["kernel"].shape[-1])
  return kernels | {"out": {"kernel": kernel, "bias": out["bias"]}}


def _torch_mlp(par, name):
  if f"{name}.fc1.weight" in par:
    return {"up": _torch_linear(par, f"{name}.fc1"), "down": _torch_linear(par, f"{name}.fc2")}
  return {ours: _torch_linear(par, f"{name}.{ours}_proj") for ours in ("gate", "up", "down")}


def _clip_trunk(par, prefix, depth, heads):
  """The encoder that CLIP and SigLIP share."""
  return {"layers": _stack([{
      "attention_norm": _torch_norm(par, f"{prefix}{i}.layer_norm1"),
      "attention": _torch_attention(par, f"{prefix}{i}.self_attn", heads),
      "mlp_norm": _torch_norm(par, f"{prefix}{i}.layer_norm2"),
      "mlp": _torch_mlp(par, f"{prefix}{i}.mlp"),
  } for i in range(depth)])}


def _torch_text(par, depth, heads):
  return {
      "embedding": par["embeddings.token_embedding.weight"],
      "position": par["embeddings.position_embedding.weight"],
      "trunk": _clip_trunk(par, "encoder.layers.", depth, heads),
      "final_norm": _torch_norm(par, "final_layer_norm"),
  }


def hf_clip(par, image, text):
  """`transformers.CLIPModel`; image, text: (depth, heads) of the towers."""
  vision = under(par, "vision_model.")
  position = vision["embeddings.position_embedding.weight"]
  return {
      "image": {
          "class_token": vision["embeddings.class_embedding"][None],
          "class_position": position[:1],
          "position": _square(position[1:]),
          "patch_embed": _torch_conv(vision, "embeddings.patch_embedding"),
          "pre_norm": _torch_norm(vision, "pre_layrnorm"),  # their spelling
          "trunk": _clip_trunk(vision, "encoder.layers.", *image),
          "final_norm": _torch_norm(vision, "post_layernorm"),
          "projection": _torch_linear(par, "visual_projection"),
      },
      "text": _torch_text(under(par, "text_model."), *text)
              | {"projection": _torch_linear(par, "text_projection")},
      "logit_scale": par["logit_scale"],
  }


def hf_siglip(par, image, text):
  """`transformers.SiglipModel`; image, text: (depth, heads) of the towers."""
  vision, words = under(par, "vision_model."), under(par, "text_model.")
  head = under(vision, "head.attention.")
  names = [f"{name}_proj.{part}" for part in ("weight", "bias") for name in "qkv"]
  packed = [*np.split(head["in_proj_weight"], 3), *np.split(head["in_proj_bias"], 3)]
  head |= dict(zip(names, packed))
  head = {f"attention.{name}": value for name, value in head.items()}
  return {
      "image": {
          "position": _square(vision["embeddings.position_embedding.weight"]),
          "patch_embed": _torch_conv(vision, "embeddings.patch_embedding"),
          "trunk": _clip_trunk(vision, "encoder.layers.", *image),
          "final_norm": _torch_norm(vision, "post_layernorm"),
          "pool": {
              "probe": vision["head.probe"][0],
              "attention": _torch_attention(head, "attention", image[1]),
              "norm": _torch_norm(vision, "head.layernorm"),
              "mlp": _torch_mlp(vision, "head.mlp"),
          },
      },
      "text": _torch_text(words, *text) | {"projection": _torch_linear(words, "head")},
      "logit_scale": par["logit_scale"].reshape(()),
      "logit_bias": par["logit_bias"].reshape(()),
  }


def hf_dinov2(par, depth, heads):
  """`transformers.Dinov2WithRegistersModel`, without its mask token."""
  position = par["embeddings.position_embeddings"][0]
  layer = "encoder.layer."
  return {
      "class_token": par["embeddings.cls_token"][0],
      "class_position": position[:1],
      "position": _square(position[1:]),
      "registers": par["embeddings.register_tokens"][0],
      "patch_embed": _torch_conv(par, "embeddings.patch_embeddings.projection"),
      "trunk": {"layers": _stack([{
          "attention_norm": _torch_norm(par, f"{layer}{i}.norm1"),
          "attention": _torch_attention(par, f"{layer}{i}.attention", heads, "o_proj"),
          "attention_scale": par[f"{layer}{i}.layer_scale1.lambda1"],
          "mlp_norm": _torch_norm(par, f"{layer}{i}.norm2"),
          "mlp": _torch_mlp(par, f"{layer}{i}.mlp"),
          "mlp_scale": par[f"{layer}{i}.layer_scale2.lambda1"],
      } for i in range(depth)])},
      "final_norm": _torch_norm(par, "layernorm"),
  }


def _flax(par, name):
  """A flat dict's subtree of one level: kernel and bias, or scale and bias."""
  return under(par, f"{name}/")


def _flax_attention(par, name):
  return {part: _flax(par, f"{name}/{part}") for part in ("query", "key", "value", "out")}


def _flax_mlp(par, name):
  return {"up": _flax(par, f"{name}/Dense_0"), "down": _flax(par, f"{name}/Dense_1")}


def _big_vision_trunk(par, depth):
  blocks = [under(par, f"encoderblock_{i}/") for i in range(depth)]
  return {"layers": _stack([{
      "attention_norm": _flax(block, "LayerNorm_0"),
      "attention": _flax_attention(block, "MultiHeadDotProductAttention_0"),
      "mlp_norm": _flax(block, "LayerNorm_1"),
      "mlp": _flax_mlp(block, "MlpBlock_0"),
  } for block in blocks])}


def big_vision_vit(par, depth):
  """big_vision's `models/vit.py`; its class token, attention-pooling head and classifier if any."""
  trunk = under(par, "Transformer/")
  tree = {
      "patch_embed": _flax(par, "embedding"),
      "trunk": _big_vision_trunk(trunk, depth),
      "final_norm": _flax(trunk, "encoder_norm"),
  }
  if "pos_embedding" in par:
    tree["position"] = _square(par["pos_embedding"][0])
  if "cls" in par:
    tree["class_token"] = par["cls"][0]
  if "MAPHead_0/probe" in par:
    head = under(par, "MAPHead_0/")
    tree["pool"] = {
        "probe": head["probe"][0],
        "attention": _flax_attention(head, "MultiHeadDotProductAttention_0"),
        "norm": _flax(head, "LayerNorm_0"),
        "mlp": _flax_mlp(head, "MlpBlock_0"),
    }
  if "pre_logits/kernel" in par:
    tree["rep"] = _flax(par, "pre_logits")
  if "head/kernel" in par:
    tree["classifier"] = _flax(par, "head")
  return tree


def big_vision_text(par, depth):
  """big_vision's `models/proj/image_text/text_transformer.py` with its head."""
  trunk = under(par, "Encoder_0/")
  return {
      "embedding": par["Embed_0/embedding"],
      "position": par["pos_embedding"][0],
      "trunk": _big_vision_trunk(trunk, depth),
      "final_norm": _flax(trunk, "encoder_norm"),
      "projection": _flax(par, "head"),
  }


def big_vision_two_towers(par, depth):
  """big_vision's `models/proj/image_text/two_towers.py`; `t` is the logarithm of the scale."""
  return {
      "image": big_vision_vit(under(par, "img/"), depth),
      "text": big_vision_text(under(par, "txt/"), depth),
      "logit_scale": par["t"].reshape(()),
      "logit_bias": par["b"].reshape(()),
  }


def hf_ijepa(par, depth, heads):
  """IJepaModel -> ViT, without its positions."""
  def layer(i):
    p = under(par, f"layers.{i}.")
    return {"attention_norm": _torch_norm(p, "layernorm_before"),
            "attention": _torch_attention(p, "attention", heads, "o_proj"),
            "mlp_norm": _torch_norm(p, "layernorm_after"), "mlp": _torch_mlp(p, "mlp")}

  return {"patch_embed": _torch_conv(par, "embeddings.patch_embeddings.projection"),
          "trunk": {"layers": _stack([layer(i) for i in range(depth)])},
          "final_norm": _torch_norm(par, "layernorm")}


def torch_predictor(par, depth, heads):
  """`Predictor` made of torch.nn.TransformerEncoderLayer, see `test_ijepa.py`."""
  def layer(i):
    p = under(par, f"trunk.{i}.")
    for place, name in enumerate(("q_proj", "k_proj", "v_proj")):
      for kind in ("weight", "bias"):
        p[f"self_attn.{name}.{kind}"] = np.split(p[f"self_attn.in_proj_{kind}"], 3)[place]
    p |= {f"mlp.fc{i}.{kind}": p[f"linear{i}.{kind}"] for i in (1, 2) for kind in ("weight", "bias")}
    return {"attention_norm": _torch_norm(p, "norm1"),
            "attention": _torch_attention(p, "self_attn", heads),
            "mlp_norm": _torch_norm(p, "norm2"), "mlp": _torch_mlp(p, "mlp")}

  return {"embed": _torch_linear(par, "embed"), "mask_token": par["mask_token"],
          "trunk": {"layers": _stack([layer(i) for i in range(depth)])},
          "final_norm": _torch_norm(par, "norm"), "projection": _torch_linear(par, "projection")}
