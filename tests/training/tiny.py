"""A tiny image-text run on random arrays, as a config: the loop without the cost of a real dataset."""

import numpy as np


def write_pairs(path, count=64, seed=0):
  """An .npz of `count` pairs in which the text says how bright the picture is."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 4, count).astype(np.int32)
  image = rng.normal(size=(count, 16, 16, 3)).astype(np.float32) * 0.3 + label[:, None, None, None] - 1.5
  text = np.stack([label, label + 4, rng.integers(8, 12, count)], 1).astype(np.int32)
  np.savez(path, image=image.astype(np.float32), text=text, text_mask=np.ones((count, 3), bool), label=label)
  return str(path)


def config(pairs, **changes):
  """Contrastive pretraining of two width-32 towers; `changes` are top-level keys."""
  tower = dict(width=32, depth=2, heads=2, out_dim=16)
  return {
      "seed": 1, "batch_size": 16, "total_steps": 8, "log_every_steps": 2,
      "objective": {"name": "contrastive", "losses": {"sigmoid": 1.0}, "bias_init": -10.0,
                    "image": {"name": "vit", "patch": 8, "grid": [2, 2], **tower},
                    "text": {"name": "text", "vocab": 12, "length": 3, **tower}},
      "data": {"source": {"name": "arrays", "path": pairs}},
      "eval_data": {"source": {"name": "arrays", "path": pairs}, "shuffle": False},
      "optim": {"lr": 3e-3, "weight_decay": 0.01, "clip_norm": 1.0, "ema_decay": 0.9},
      "checkpoint": {"every_steps": 4},
      **changes,
  }
