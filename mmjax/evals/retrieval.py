"""Image-text retrieval: recall and rank of the right caption and of the right image."""

import dataclasses
from typing import Any

import numpy as np

from mmjax.evals import neighbours, ranking

RECALL_AT = (1, 5, 10)  # the field's usual columns


def search(queries: np.ndarray, gallery: np.ndarray, query_owner: np.ndarray,
           gallery_owner: np.ndarray, chunk: int = 1024) -> ranking.Places:
  """Ranks a gallery [G, D] for each query [Q, D]: right is what has the query's owner.

  Owners are int [Q] and [G]. Never holds more than [chunk, G] scores.
  """
  found = []
  for start in range(0, len(queries), chunk):
    part = slice(start, start + chunk)
    scores = queries[part] @ gallery.T
    found.append(ranking.places(scores, query_owner[part, None] == gallery_owner))
  return ranking.Places(*(np.concatenate(column) for column in zip(*found)))


def recall(place: ranking.Places) -> dict[str, float]:
  """`R@k`, `mean_rank`, `median_rank`; 1 is first, the median of an even count is rounded down."""
  ranks = ranking.expected_ranks(place)
  recalls = {f"R@{k}": float(ranking.expected_hits(place, k).mean()) for k in RECALL_AT}
  return recalls | {"mean_rank": float(ranks.mean()),
                    "median_rank": float(np.floor(np.median(ranks - 1)) + 1)}


def ceilings(owner: np.ndarray, caption: np.ndarray) -> tuple[float, float]:
  """The R@1 (image to text, text to image) of an ideal model, given that identical captions tie.

  Args:
    owner: int [N], the image each caption belongs to.
    caption: int [N], equal for captions that are equal token by token.

  To an image the best of its captions can be nearest, one draw among all copies of that caption;
  for a caption one image can be nearest, at best the one that owns most copies.
  """
  pairs, own = np.unique(np.stack([owner, caption]), axis=1, return_counts=True)     # [2, P], [P]
  copies = np.bincount(caption)                                                     # [captions]
  image_best = np.zeros(owner.max() + 1)
  np.maximum.at(image_best, pairs[0], own / copies[pairs[1]])
  text_best = np.zeros(len(copies))
  np.maximum.at(text_best, pairs[1], own)
  return float(image_best[np.unique(owner)].mean()), float(text_best.sum() / len(caption))


def score(image: np.ndarray, text: np.ndarray, owner: np.ndarray, caption: np.ndarray,
          chunk: int = 1024) -> dict[str, float]:
  """All retrieval metrics of embedded records; R@1 both ways beside its chance and its ceiling.

  Args:
    image: unit-norm embeddings [M, D].
    text: unit-norm embeddings [N, D] of all captions of these images.
    owner: int [N], the row of `image` each caption belongs to. Every image has a caption.
    caption: int [N], equal for captions that are equal token by token.
    chunk: how many queries are scored at once.

  An image is a hit if any of its captions is among the first k; each caption is a query of its own.
  """
  ids = np.arange(len(image))
  to_text = recall(search(image, text, ids, owner, chunk))
  to_image = recall(search(text, image, owner, ids, chunk))
  ceiling = ceilings(owner, caption)
  return ({f"i2t/{name}": value for name, value in to_text.items()}
          | {f"t2i/{name}": value for name, value in to_image.items()}
          # An image guesses right with (own captions) / N, on average 1 / M; so does a caption.
          | {"i2t/R@1/chance": 1 / len(image), "t2i/R@1/chance": 1 / len(image),
             "i2t/R@1/ceiling": ceiling[0], "t2i/R@1/ceiling": ceiling[1],
             "images": float(len(image)), "captions": float(len(text))})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
  """Retrieval among the records of a stream, by the dot product of unit-norm embeddings.

  A batch holds one caption a record (`text` [B, L], `text_mask` [B, L]) or up to K (`[B, K, L]`).
  Of K, the first `text_count` [B] count where the batch has that key; otherwise those with any
  token. A record without a caption is left out.

  Attributes:
    data: the stream, or None for the run's own evaluation stream.
    batch_size: global batch size.
    max_records: use the first so many records; None uses all.
    distinct: pass over a record of which a caption has been seen before, token by token.
    chunk: how many queries are scored against the whole gallery at once.
  """

  data: Any = None
  batch_size: int = 256
  max_records: int | None = None
  distinct: bool = False
  chunk: int = 1024

  def run(self, session) -> dict[str, float]:
    """Metrics of `score`: `i2t/R@1`, `t2i/median_rank`, ...; keeps some queries' neighbours."""
    images, texts, owners, captions = [], [], [], []
    image_rows, places, seen = [], [], 0                    # places in the stream
    ids: dict[bytes, int] = {}                              # tokens of a caption -> its number
    for batch in session.batches(self.data, self.batch_size):
      tokens, present = captions_of(session, batch)
      room = len(tokens) if self.max_records is None else self.max_records - len(images)
      rows = self._choose(tokens, present, ids, room)
      if rows:
        image, text = embed(session, batch, tokens.shape[1])
      for row in rows:
        for column in np.flatnonzero(present[row]):
          owners.append(len(images))
          captions.append(ids[tokens[row, column].tobytes()])
          texts.append(text[row, column])
          places.append((seen + row, column))
        images.append(image[row])
        image_rows.append(seen + row)
      seen += len(tokens)
      if len(images) == self.max_records:
        break
    if not images:
      raise ValueError("no record with a caption: the evaluation stream is empty or invalid")
    images, texts, owners = np.stack(images), np.stack(texts), np.array(owners)
    neighbours.keep(session, self.data, images, texts, owners, np.array(image_rows),
                    np.array(places))
    return score(images, texts, owners, np.array(captions), self.chunk)

  def _choose(self, tokens, present, ids, room) -> list[int]:
    """At most `room` rows that take part, in order; numbers their captions in `ids`."""
    rows = []
    for row in np.flatnonzero(present.any(axis=1)):
      if len(rows) == room:
        break
      own = [tokens[row, column].tobytes() for column in np.flatnonzero(present[row])]
      if self.distinct and any(caption in ids for caption in own):
        continue
      for caption in own:
        ids.setdefault(caption, len(ids))
      rows.append(int(row))
    return rows


def captions_of(session, batch) -> tuple[np.ndarray, np.ndarray]:
  """(tokens int32 [B, K, L] with -1 for padding, present bool [B, K]) of a batch."""
  names = [name for name in ("text", "text_mask", "text_count", "valid") if name in batch]
  host = session.fetch({name: batch[name] for name in names})
  text, mask = host["text"], host["text_mask"]
  if text.ndim == 2:
    text, mask = text[:, None], mask[:, None]
  present = mask.any(axis=-1)
  if "text_count" in host:
    present &= np.arange(text.shape[1]) < host["text_count"][:, None]
  return np.where(mask, text, -1), present & host["valid"][:, None]


def embed(session, batch, columns: int) -> tuple[np.ndarray, np.ndarray]:
  """(image float32 [B, D], text float32 [B, K, D]); each image is embedded once, whatever K."""
  one = lambda array, column: array if array.ndim == 2 else array[:, column]
  image, texts = None, []
  for column in range(columns):
    part = dict(batch, text=one(batch["text"], column), text_mask=one(batch["text_mask"], column))
    part.pop("text_count", None)
    if column:
      part.pop("image")
    features = session.features(part)
    texts.append(features["text/embed"])
    image = features["image/embed"] if image is None else image
  image, texts = session.fetch((image, texts))
  return image.astype(np.float32), np.stack(texts, axis=1).astype(np.float32)


build = Retrieval
