"""VQGAN, an image tokenizer (arXiv:2012.09841); without its critic VQ-VAE (arXiv:1711.00937).

  mmjax train --config=masked/vq:smoke --workdir=runs/vq              # 2 CPU cores, about a minute
  mmjax train --config=masked/vq --workdir=runs/vqvae --config.objective.critic=None

masked/mage predicts its ids with --config.objective.encoder.tokenizer.from=runs/vq. Where a run has
another tokenizer (those of smoke variants):
--config.objective.encoder.tokenizer='{"name": "pretrained", "from": "runs/vq", "tower": "tokenizer"}'.

Variants: f16 (256 pixels, 16384 codes), smoke (32 pixels).
Published: f16 on ImageNet, Fréchet distance of the reconstructions 4.98 (validation).
Differs here: the built-in data unless `data` is replaced; codes follow moving averages and dead
ones are revived; no perceptual loss, no attention, a fixed weight of the adversarial loss; the
critic has group norm in place of batch norm.
"""

from configs import common

F16 = dict(width=128, multipliers=(1, 1, 2, 2, 4))  # app. table 7


def get_config(arg=None):
  arg = common.variant(arg, "f16", "smoke")
  smoke = arg == "smoke"
  c = common.base(batch_size=256, total_steps=500_000)
  count, pixels, blocks = (2_000, 32, 1) if smoke else (20_000, 256, 2)
  dtype = "float32" if smoke else "bfloat16"
  shape = dict(width=16, multipliers=(1, 2, 2)) if smoke else F16
  c.objective = {
      "name": "tokenizer", "losses": {"l1": 1.0}, "commitment": 0.25, "decay": 0.99,
      "tokenizer": {
          "name": "vq", "codes": 64 if smoke else 16_384, "dim": 8 if smoke else 256,
          "encoder": {"name": "conv_encoder", "blocks": blocks, "dtype": dtype, **shape},
          "decoder": {"name": "conv_decoder", "blocks": blocks + 1, "dtype": dtype, **shape}},
      # The critic begins when there is something to judge, as in the released code.
      "critic": {"name": "patch_critic", "dtype": dtype}, "adversarial": 0.1,
      "adversarial_from_percent": 50}
  picture = dict(count=count, size=pixels)
  c.data = common.images("train", crop=(0.8, 1.0), **picture)
  c.eval_data = common.images("validation", **picture)
  c.evals = {"loss": {"every_percent": 25}, "codebook": {"every_percent": 25, "max_records": 512},
             "reconstruction": {}}
  c.optim.update(lr=2e-4, b1=0.5, b2=0.9, weight_decay=0.0)
  c.optim.schedule = {"name": "constant"}
  if smoke:
    small(c)
    # Quick averages for few steps; the critic would need more of them than there are.
    c.objective.critic, c.objective.decay = None, 0.9
  return c


def small(c):
  """For a CPU: few steps, and probes of the encoder."""
  c.batch_size, c.total_steps = 32, 250
  c.checkpoint.every_steps, c.log_every_steps = 250, 25
  c.optim.update(lr=3e-3, b1=0.9)
  c.optim.schedule = {"name": "cosine", "warmup_percent": 10}
  c.evals.update(common.linear_probes(count=2_000, size=32, records=500))
