"""From what somebody types for their data to the source that reads it.

  pets/train                   what lies there decides: see `at`
  pairs.csv                    a table; .jsonl, .tsv, .parquet, .arrow
  shards/{000..099}.tar        several files; also "shards/*.tar" and gs://, s3://, https://
  tfds:mnist                   a name of tensorflow_datasets; its split is "train" unless "?split=test"
  tar:shards?caption=json.alt  a source by its name, and its arguments as in an address
  pets/train[:95%]             a part: 95% of the records, drawn once; [95%:] are the others
  pets/train[held_out]         5% of them, at most 5,000; [train] are the others
"""

import ast
import importlib
import inspect
import logging
import os
import pkgutil
import re
import urllib.parse
from typing import Any

from mmjax.data import columns as columns_lib
from mmjax.data import part as part_lib
from mmjax.data import places, sources
from mmjax.data.sources import arrow, examples, folder, lines, pictures

SOURCES = tuple(info.name for info in pkgutil.iter_modules(sources.__path__))
SPLITS = ("train", "val", "valid", "validation", "dev", "test")  # names of folders
METADATA = ("metadata", "captions", "labels", "annotations", "train")  # names of tables, in this order
OF_TABLES = ("root", "split", *columns_lib.USUAL)  # arguments that only tables have
TABLES = (*lines.ENDINGS, *arrow.ENDINGS)
_TRIED = 20  # records of a table that are looked at for pictures that are there
_PART = re.compile(r"\[([\d.%]*:[\d.%]*|train|held_out)\]$")
_log = logging.getLogger(__name__)

Node = dict[str, Any]


def parse(spec: str) -> Node:
  """The config node of a source, {"name": ..., its arguments, "part"}; see the module's docstring.

  Raises:
    ValueError: nothing is there, or nothing that can be read; says what was expected.
  """
  spec = spec.strip()
  part = _PART.search(spec)
  if part and not os.path.exists(spec):
    spec = spec[:part.start()]
  else:
    part = None
  path, question, query = spec.partition("?") if not os.path.exists(spec) else (spec, "", "")
  if question and (not re.match(r"\w+=", query) or _of_address(path, query)):  # a pattern's question mark, an address's
    path, query = spec, ""
  given = dict(_argument(pair) for pair in query.split("&")) if query else {}
  name, colon, rest = path.partition(":")
  if colon and name in SOURCES and not rest.startswith("//"):
    node = {"name": name, **_address(name, rest)}
  elif not path:
    raise ValueError("is empty; give a folder, a file, a pattern, or tfds:NAME")
  else:
    node = at(path, any(key in given for key in OF_TABLES))
  return {**node, **given, **({"part": part.group()} if part else {})}


def open_source(spec: str) -> Any:
  """The source that a text stands for.

  Raises:
    ValueError: as of `parse`, or the source does not know an argument, or cannot be opened.
  """
  node = parse(spec)
  name, text = node.pop("name"), node.pop("part", None)
  build = importlib.import_module(f"mmjax.data.sources.{name}").build
  known = inspect.signature(build).parameters
  for key in node:
    if key not in known:
      raise ValueError(f"{spec}: the source {name!r} has no {key!r} (it has {', '.join(known)})")
  try:
    source = build(**node)
  except TypeError as error:  # of a text where a number is wanted, or the other way round
    raise ValueError(f"{spec}: {error}") from error
  return part_lib.cut(source, text) if text else source


def _of_address(path, query):
  """Whether an address of the web has this query for itself: a key of it is no argument of the source."""
  if not places.is_web(path):
    return False
  known = inspect.signature(importlib.import_module(f"mmjax.data.sources.{_of_file(path)}").build).parameters
  return not set(urllib.parse.parse_qs(query)) <= set(known)


def _argument(pair):
  """A key and its value. A "+" is one, as in a path or in split=train+restval."""
  key, equals, text = pair.partition("=")
  if not equals:
    raise ValueError(f"{pair!r} after '?' has no '='; expected arguments such as ?split=test&root=pictures, with & "
                     "within a value as %26")
  key, value = urllib.parse.unquote(key), _value(urllib.parse.unquote(text))
  # To a source None is that nothing is said: no column at all is "".
  return key, "" if value is None and key in columns_lib.USUAL else value


def _value(text):
  """A number or a list where it reads as one, else the text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _address(name, rest):
  """What stands after "name:" as arguments."""
  if not rest and name != "scenes":
    raise ValueError("is empty; give a folder, a file, a pattern, or tfds:NAME")
  if name == "tfds":
    return {"dataset": rest, "split": "train"}
  if name == "scenes":
    return {"split": rest} if rest else {}
  if name in ("joined", "packed"):  # of another SPEC, quoted if it has arguments
    rest = urllib.parse.unquote(rest)
  return {"path": rest}


def at(path: str, asked: bool = False) -> Node:
  """The node of what lies at a path or pattern.

  Args:
    asked: arguments are given that only tables have, so that a table there is meant.

  A folder is, in this order: prepared by tensorflow_datasets, saved by Hugging Face `datasets`,
  shards (.tar, .array_record, .parquet, .arrow), pictures that a table beside them describes,
  pictures with text files beside them, class folders, or just pictures. Of the folders "train", "val",
  "test" it is "train" that is read.
  """
  found = places.expand(path)
  first = found[0]
  if not places.is_folder(first):
    return {"name": _of_file(first), "path": path}
  if len(found) > 1:
    kinds = {at(one, asked)["name"] for one in found}
    if len(kinds) > 1:
      raise ValueError(f"{path} stands for folders of several kinds: {', '.join(sorted(kinds))}")
    return {"name": kinds.pop(), "path": path}
  return _of_folder(os.path.expanduser(path) if not places.is_remote(path) else path, asked)


def _of_file(path):
  ending = places.ending(path)
  if examples.is_shard(places.name_of(path)):
    return "examples"
  if ending in lines.ENDINGS:
    return "lines"
  if ending in arrow.ENDINGS:
    return "arrow"
  if ending in (".tar", ".npz"):
    return {".tar": "tar", ".npz": "arrays"}[ending]
  if path.endswith((".tar.gz", ".tgz")):
    raise ValueError(f"{path} is compressed, so that nothing in it can be found without reading all "
                     "before; unpack it with gunzip")
  raise ValueError(f"{path} is no kind of data that is known; expected a folder, or *"
                   f"{', *'.join(('.tar', '.array_record', *TABLES, '.npz'))}")


def _of_folder(path, asked=False):
  names = places.names_in(path)
  if not names:
    raise ValueError(f"{path} is empty")
  if "features.json" in names and "dataset_info.json" in names:
    return {"name": "tfds", "dataset": path, "split": "train"}
  if "state.json" in names or "dataset_dict.json" in names:
    return {"name": "arrow", "path": path}
  packed = [name for name in names if name.endswith((".tar.gz", ".tgz"))]
  if any(name.endswith(".tar") for name in names):
    if packed:
      _log.warning("%s: %d compressed files are not read, the first is %s; unpack them with gunzip", path,
                   len(packed), packed[0])
    return {"name": "tar", "path": path}
  if any(map(examples.is_shard, names)):
    return {"name": "examples", "path": path}
  tables = [name for name in names if name.endswith(TABLES)]
  if tables and not places.is_remote(path):
    node = _described(path, tables, asked)
    if node:
      return node
  elif tables or "data" in names and any(
      name.endswith(arrow.ENDINGS) for name in places.names_in(places.join(path, "data"))):
    return {"name": "arrow", "path": path}
  folders = [name for name in names if places.is_folder(places.join(path, name))] if "train" in names else []
  if "train" in folders and set(folders) <= set(SPLITS):
    _log.warning("%s holds the folders %s: train is read; for another give its path", path, ", ".join(folders))
    return _of_folder(places.join(path, "train"), asked)
  if places.is_remote(path):
    raise ValueError(f"{path} holds no shards (*.tar, *.array_record, *.parquet); a folder of pictures "
                     "is read on this machine only")
  if packed and not pictures.listing(path):
    raise ValueError(f"{path} holds {packed[0]}, which is compressed, so that nothing in it can be found without "
                     "reading all before; unpack it with gunzip")
  if len(names) == 1 and places.is_folder(places.join(path, names[0])) and {
      "features.json", "dataset_info.json"} <= set(places.names_in(places.join(path, names[0]))):
    return {"name": "tfds", "dataset": places.join(path, names[0]), "split": "train"}  # of the version 1.0.0, say
  return _of_pictures(path)


def _described(path, tables, asked):
  """The node of the table that describes the pictures in a folder, or of Arrow files that are the data.

  None if there are pictures and no table names them, such as what a download has left beside them.
  """
  of_text = [name for name in tables if name.endswith(lines.ENDINGS)]
  # "train.parquet" is one of several splits that are the data.
  known = [name for stem in METADATA for name in tables if os.path.splitext(name)[0] == stem
           and not (stem == "train" and name.endswith(arrow.ENDINGS))]
  chosen = known or of_text
  named = [name for name in chosen or tables[:1] if asked or _names_pictures(path, name)]
  if not named and any(not pictures.is_text(name) for name in pictures.listing(path)):
    _log.warning("%s: tables that name none of the pictures there are not read: %s; to read one of them all the same "
                 "give ?image=COLUMN or ?root=FOLDER", path, ", ".join(tables[:3]))
    return None
  chosen = named or chosen
  if len(chosen) > 1 and not known:
    raise ValueError(f"{path} holds several tables ({', '.join(chosen)}); name one of them")
  if not chosen or chosen[0] not in (*known, *of_text):
    return {"name": "arrow", "path": path}
  kind = "lines" if chosen[0].endswith(lines.ENDINGS) else "arrow"
  return {"name": kind, "path": os.path.join(path, chosen[0]), "root": path}


def _names_pictures(path, table):
  """Whether one of the first records of a table holds a picture, or the path of one that is there."""
  file = os.path.join(path, table)
  try:
    rows = (lines if table.endswith(lines.ENDINGS) else arrow).first(file, _TRIED)
    column = columns_lib.find(dict.fromkeys(name for row in rows for name in row)).image
  except ValueError:
    return False
  for row in rows if column else ():
    value = row.get(column[0])
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(value, bytes) or isinstance(value, dict) and value.get("bytes") is not None:
      return True
    value = value.get("path") if isinstance(value, dict) else value
    if isinstance(value, str) and value and os.path.isfile(os.path.join(path, value)):
      return True
  return False


def _of_pictures(path):
  found = pictures.listing(path)
  files = [name for name in found if not pictures.is_text(name)]
  if not files:
    raise ValueError(f"{path} holds nothing that is known: no pictures (*{', *'.join(folder.ENDINGS)}), "
                     f"tables (*{', *'.join(TABLES)}) or shards (*.tar, *.array_record)")
  stems = {os.path.splitext(name)[0] for name in files}
  if any(pictures.is_text(name) and os.path.splitext(name)[0] in stems for name in found):
    return {"name": "pictures", "path": path}
  shallowest = min(name.count("/") for name in files)
  tops = {name.split("/")[0] for name in files}
  if shallowest == 1 and len(tops) > 1:
    return {"name": "folder", "path": path}
  folders = {name.split("/")[0] for name in files if "/" in name}
  if shallowest == 0 and len(folders) > 1:
    _log.warning("%s: %s lies beside the folders %s, so these are no classes; if they are, read folder:%s", path,
                 next(name for name in files if "/" not in name), ", ".join(sorted(folders)[:3]), path)
  if shallowest == 1:
    _log.warning("%s: all pictures lie in one folder, %s, so there are no classes", path, *tops)
  if shallowest == 2:  # first/cat/1.jpg
    _log.warning("%s: pictures lie two folders deep, so there are no classes; for class folders give one "
                 "of the folders in it, such as %s", path, os.path.join(path, min(tops)))
  return {"name": "pictures", "path": path}
