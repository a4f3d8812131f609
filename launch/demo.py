"""The demo's last page: what the model learned, beside chance and beside a baseline that sees colours only.

  python -m launch.demo runs/demo [picture.png]     after `mmjax train --config=contrastive/siglip:demo`
"""

import logging
import pathlib
import sys

import jax
import numpy as np
from PIL import Image, ImageDraw

from launch import colour_histogram
from mmjax import train
from mmjax.data import tokenizers
from mmjax.report import console
from mmjax.training import workdir as workdir_lib
from mmjax.training.assemble import Run, assemble
from mmjax.training.evaluate import Session

FIGURES = ("colour/top1", "shape/top1", "both/top1", "retrieval/i2t/R@1", "retrieval/t2i/R@1",
           "repeated/i2t/R@1", "repeated/t2i/R@1", "colour_unseen/top1", "shape_unseen/top1",
           "both_unseen/top1", "retrieval_unseen/i2t/R@1", "retrieval_unseen/t2i/R@1")
NAMES = {"colour": "zero-shot colour", "shape": "zero-shot shape", "both": "zero-shot colour and shape",
         "retrieval": "retrieval among 512 distinct captions", "repeated": "retrieval, captions may repeat"}
QUERIES, SHOWN = 4, 6  # captions in the picture, and pictures found for each


def main(workdir: str, picture: str | None = None) -> None:
  """Prints the table and draws what four captions find among the held-out scenes."""
  logging.getLogger("mmjax").setLevel(logging.WARNING)
  run = assemble(workdir_lib.read_config(workdir))
  state = restored(run, workdir)
  session = Session(run)
  model = train.evaluate(run, state, session)
  train_stream = getattr(run.stream, "streams", (run.stream,))[0]
  baseline = colour_histogram.evaluate(
      train_stream, {e.name: e.evaluator for e in run.evaluations if e.name != "loss"},
      default=run.eval_stream)
  rows = [(title(figure), percent(model, figure), percent(baseline, figure), percent(model, f"{figure}/chance"),
           percent(model, f"{figure}/ceiling")) for figure in FIGURES]
  console.show(console.table("Held-out results, in %", ("", "model", "colour histogram", "chance", "ceiling"),
                             rows))
  path = picture or str(pathlib.Path(workdir) / "demo.png")
  draw(run, session, path)
  print(f"what four captions find among the test scenes: {path}")


def restored(run: Run, workdir: str):
  """The newest state of the run."""
  checkpointer = run.checkpoint.open(str(pathlib.Path(workdir) / "checkpoints"), read_only=True)
  state, _ = checkpointer.restore(run.placed)
  checkpointer.close()
  return state


def title(figure: str) -> str:
  """`both_unseen/top1` in words."""
  name, *metric = figure.split("/")
  name, _, unseen = name.partition("_")
  way = {"i2t": ", R@1 image to text", "t2i": ", R@1 text to image"}.get(metric[0], "")
  return NAMES[name] + way + (", unseen pairs" if unseen else "")


def percent(results: dict[str, float], name: str) -> str:
  """A share as text; "" where there is none."""
  return f"{100 * results[name]:.1f}" if name in results else ""


def draw(run: Run, session: Session, path: str) -> None:
  """A PNG: each row a caption of the test split and the pictures whose embeddings lie nearest to its own."""
  stream = next(e.evaluator.data for e in run.evaluations if e.name == "retrieval")
  images, found, texts = [], [], []
  with run.use():
    for batch in session.batches(stream, 256):
      features = session.fetch(session.features(batch))
      host = session.fetch({name: batch[name] for name in ("image", "text", "text_mask", "valid")})
      images.append(host["image"][host["valid"]])
      found.append(features["image/embed"][host["valid"]])
      texts += [(t[m], e) for t, m, e, v in zip(host["text"], host["text_mask"], features["text/embed"],
                                                host["valid"]) if v]
  images, found = np.concatenate(images), np.concatenate(found)
  tokenizer = tokenizers.load("scenes")
  side = 2 * images.shape[1]
  sheet = Image.new("RGB", (SHOWN * side, QUERIES * (side + 22)), "white")
  pen = ImageDraw.Draw(sheet)
  for row, query in enumerate(np.linspace(0, len(texts) - 1, QUERIES + 2).astype(int)[1:-1]):
    tokens, embedding = texts[query]
    top = row * (side + 22)
    pen.text((4, top + 5), tokenizer.decode([int(t) for t in tokens]), fill="black")
    for column, hit in enumerate(np.argsort(-found @ embedding)[:SHOWN]):
      pixels = ((images[hit] + 1) * 127.5).clip(0, 255).astype(np.uint8)
      tile = Image.fromarray(pixels).resize((side, side), Image.BICUBIC)
      sheet.paste(tile, (column * side, top + 22))
      if hit == query:
        pen.rectangle((column * side, top + 22, column * side + side - 1, top + 21 + side), outline="lime",
                      width=4)
  sheet.save(path)


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  main(*sys.argv[1:])
