"""Makes the extra reference cases of `tests/data/conformance` with Hugging Face transformers.

  pip install torch==2.13.0 transformers==5.23.0 numpy && python tests/conformance/make_reference.py

Not run by the tests: their files are committed. Weights and inputs are random, every trainable
tensor too (so a missing bias shows); float32 on a CPU. Keys are those of the other cases: in/*,
par/*, out/*, grad/*, meta.
"""

import json
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "conformance"


def randomise(model, scale=0.2):
  """Fills every parameter: norms' and layer scales around 1, all others around 0."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, p in model.named_parameters():
      one = p.ndim == 1 and "norm" in name and name.endswith("weight") or "lambda" in name
      p.copy_(float(one) + scale * torch.randn(p.shape, generator=generator))
  return model.eval()


def save(name, model, inputs, outputs, loss, note):
  """Writes one case; `loss` is differentiated with respect to all parameters."""
  loss.backward()
  arrays = {f"in/{k}": v.numpy() for k, v in inputs.items()}
  arrays |= {f"out/{k}": v.detach().numpy() for k, v in outputs.items()}
  for key, p in model.named_parameters():
    arrays[f"par/{key}"] = p.detach().numpy()
    if p.grad is not None:
      arrays[f"grad/{key}"] = p.grad.numpy()
  versions = {"torch": torch.__version__, "transformers": transformers.__version__}
  meta = {"source": type(model).__name__, "note": note, "versions": versions,
          "config": model.config.to_dict()}
  np.savez_compressed(FOLDER / f"{name}.npz", meta=json.dumps(meta, default=str), **arrays)


def clip_quick_gelu():
  """CLIP as OpenAI made it: quick_gelu, end of text is the highest id; here with a padding mask."""
  text = dict(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
              num_attention_heads=2, max_position_embeddings=10, eos_token_id=2)
  vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                image_size=24, patch_size=8)
  config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
  model = randomise(transformers.CLIPModel(config))
  with torch.no_grad():
    model.logit_scale.fill_(1.2)
  generator = torch.Generator().manual_seed(1)
  ids = torch.randint(3, 50, (4, 10), generator=generator)
  length = torch.tensor([4, 10, 7, 9])
  ids[torch.arange(4), length - 1] = 59
  mask = (torch.arange(10) < length[:, None]).long()
  inputs = {"pixel_values": torch.randn(4, 3, 24, 24, generator=generator),
            "input_ids": torch.where(mask > 0, ids, 0), "attention_mask": mask}
  out = model(**inputs, return_loss=True)
  outputs = {"loss": out.loss, "logits_per_image": out.logits_per_image,
             "image_embeds": out.image_embeds, "text_embeds": out.text_embeds}
  save("hf_clip_quick_gelu", model, inputs, outputs, out.loss,
       "text pooled at its highest id; causal and padding mask; loss=(CE(text)+CE(image))/2")


def dinov2_swiglu():
  """DINOv2 with registers and the SwiGLU of its giant model."""
  config = transformers.Dinov2WithRegistersConfig(
      hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=24,
      patch_size=8, num_register_tokens=2, use_swiglu_ffn=True)
  model = randomise(transformers.Dinov2WithRegistersModel(config))
  generator = torch.Generator().manual_seed(1)
  inputs = {"pixel_values": torch.randn(2, 3, 24, 24, generator=generator)}
  out = model(**inputs)
  outputs = {"last_hidden_state": out.last_hidden_state, "pooler_output": out.pooler_output}
  save("hf_dinov2_swiglu", model, inputs, outputs, (out.last_hidden_state ** 2).mean(),
       "CLS, registers, patches; grad is of mean(last_hidden_state**2)")


if __name__ == "__main__":
  clip_quick_gelu()
  dinov2_swiglu()
