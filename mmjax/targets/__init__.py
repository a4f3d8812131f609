"""What a masked part is to be predicted as: a name in a config is a file here.

A target is a frozen dataclass of numbers and modules. `Masked` (`mmjax/objectives/masked.py`) calls
it before anything is masked, since it may also say what a guided mask goes by.
"""

from typing import Any, Protocol

import jax


class Target(Protocol):
  """What stands behind `target` in the config of an objective.

  It may also have
    pixels(prediction, batch, grid) -> float32 [B, H, W, C] or [B, T, H, W, C]
      the picture that predictions [B, N, d] of all tokens make, in the units of the batch's; the
      evaluator `reconstruction` shows it;
    trivial(loss) -> float | None
      the loss of that name for a model that has learned nothing, see `Objective.trivial`;
    text
      the text tower behind the guide "text", None for none;
    vocabularies
      {path in the target's config: number of token ids}, which no tokenizer of the data may exceed.
  """

  def init(self, rng: jax.Array, batch: dict) -> Any:
    """Its state: weights of a frozen teacher or tokenizer, which checkpoints hold; {} for none."""
    ...

  def size(self, batch: dict, grid: tuple) -> int:
    """How many numbers are predicted for a token: d, or the vocabulary where targets are ids."""
    ...

  def __call__(self, state: Any, batch: dict, grid: tuple,
               guide: str | None = None) -> tuple[jax.Array, jax.Array | None]:
    """The targets of all tokens, seen or not, and what a guided mask goes by.

    Args:
      state: what `init` gave.
      grid: of the encoder's tokens, (rows, columns) or (frames, rows, columns); N is its product.
      guide: what the mask asks for: "attention", "text" or None; see `mmjax/masking`.

    Returns:
      float32 [B, N, d], or ids int32 [B, N]; and the guide float32 [B, N], None if none was asked.

    Raises:
      ValueError: it cannot give such a guide, or the batch does not fit.
    """
    ...
