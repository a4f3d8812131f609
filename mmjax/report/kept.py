"""What evaluators keep, as markup: neighbours, confusion matrices, pictures.

`mmjax/evals/__init__.py` describes the arrays.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.report import charts, page

Arrays = Mapping[str, np.ndarray]
WORST = 15  # classes in the table of those with the lowest accuracy


def neighbours(arrays: Arrays) -> page.Html:
  """Queries with the best of what they found, both ways; frames say what is right and wrong."""
  parts = [page.paragraph("Numbers are cosines. A green frame is the query's own, an orange one "
                          "something else.", "soft")]
  if "t2i_query" in arrays:
    parts += [page.heading("Text to image"), *_text_queries(arrays)]
  if "i2t_query" in arrays:
    parts += [page.heading("Image to text"), *_image_queries(arrays)]
  return page.Html("".join(parts))


def classes(arrays: Arrays) -> page.Html:
  """The confusion matrix, and the classes with the lowest accuracy."""
  counts, top1 = arrays["class_count"], arrays["class_top1"]
  names = class_names(arrays)
  known = [int(index) for index in np.argsort(top1, kind="stable") if np.isfinite(top1[index])]
  rows = [(names[index], float(top1[index]), int(counts[index])) for index in known]
  head = ("class", "accuracy", "records")
  table = page.table(head, rows[:WORST])
  summary = "accuracy of each class"
  if len(rows) > WORST:
    summary = f"the {WORST} classes of {len(rows)} with the lowest accuracy"
  return page.Html(charts.matrix(arrays["confusion"], names) + page.details(summary, table))


def mistakes(arrays: Arrays, names: Sequence[str] | None) -> page.Html:
  """Pictures that were classified wrongly; `names` are the class names where they are known."""
  name = lambda index: names[index] if names and index < len(names) else str(index)
  return page.row(page.picture(picture, f"{name(label)}, taken for {name(guess)}")
                  for picture, label, guess in zip(
                      arrays["pictures"], arrays["label"].tolist(), arrays["guess"].tolist()))


def reconstructions(arrays: Arrays) -> page.Html:
  """Pictures beside what was seen of them and what the model made of that, one line a record."""
  names = {2: ("input", "reconstruction"), 3: ("input", "masked", "reconstruction")}
  captions = names[arrays["pictures"].shape[1]]
  return page.Html("".join(
      page.row(page.picture(picture, caption) for picture, caption in zip(record, captions))
      for record in arrays["pictures"]))


def strips(arrays: Arrays) -> page.Html:
  """Pictures with captions, and with a text above them where there are texts, one line a record."""
  records = arrays["pictures"]
  captions = np.broadcast_to(arrays["captions"], records.shape[:2]).tolist()
  texts = arrays["texts"].tolist() if "texts" in arrays else [""] * len(records)
  return page.Html("".join(
      (page.paragraph(text) if text else "")
      + page.row(page.picture(picture, caption) for picture, caption in zip(record, line))
      for record, line, text in zip(records, captions, texts)))


def class_names(arrays: Arrays) -> list[str]:
  """Names of the classes, or their numbers."""
  count = len(arrays["confusion"])
  names = arrays["classes"].tolist() if "classes" in arrays else []
  return names if len(names) == count else [str(index) for index in range(count)]


def _text_queries(arrays: Arrays) -> list[str]:
  pictures, parts = arrays["pictures"], []
  for query, found, score, right, answer, rank in _queries(arrays, "t2i"):
    parts.append(page.paragraph(_caption(arrays, query)))
    shown = [page.picture(pictures[index], f"{value:.3f}{', right' if ok else ''}",
                          "right-one" if ok else "wrong-one")
             for index, value, ok in zip(found, score, right)]
    if not any(right):
      shown.append(page.picture(pictures[answer], f"the query's own: rank {page.number(rank)}"))
    parts.append(page.row(shown))
  return parts


def _image_queries(arrays: Arrays) -> list[str]:
  parts = []
  for query, found, score, right, answer, rank in _queries(arrays, "i2t"):
    rows = [(f"{value:.3f}{', right' if ok else ''}", _caption(arrays, index))
            for index, value, ok in zip(found, score, right)]
    if not any(right):
      rows.append((f"its own: rank {page.number(rank)}", _caption(arrays, answer)))
    table = page.table(("", ""), rows, "ll")
    parts.append(page.beside(page.picture(arrays["pictures"][query]), table))
  return parts


def _queries(arrays: Arrays, way: str):
  """(query, found, score, right, answer, rank) of every query, as Python values."""
  names = ("query", "found", "score", "right", "answer", "rank")
  return zip(*(arrays[f"{way}_{name}"].tolist() for name in names))


def _caption(arrays: Arrays, index: int) -> str:
  if "captions" in arrays:
    return str(arrays["captions"][index])
  tokens = arrays["tokens"][index]
  return "tokens " + " ".join(map(str, tokens[tokens >= 0]))
