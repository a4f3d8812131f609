"""`mmjax prepare`: columns of every record, resumed, joined again, and used as a filter."""

import json

import jax
import numpy as np
import pytest

from mmjax import cli
from mmjax import config as config_lib
from mmjax.data import spec, stored, stream
from mmjax.data import transforms as T
from mmjax.prepare import command, jobs
from tests.data import formats


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)


class Model:
  """What a checkpoint says of its inputs."""

  image = ({"name": "Decode"}, {"name": "Resize", "size": 8}, {"name": "Normalise", "preset": "half"})
  text = ({"name": "Tokenise", "tokenizer": "bytes", "length": 12},)
  labels = ("x", "y", "z")


def features(batch, want):
  """The mean of a picture and its first letters as embeddings."""
  found = {"logit_scale": np.float32(10)}
  if "image" in batch:
    flat = np.asarray(batch["image"]).reshape(len(batch["image"]), -1)
    found["image/embed"] = np.stack([np.cos(flat.mean(1)), np.sin(flat.mean(1))], 1)
    found["logits"] = flat[:, :3]
    found["image/ids"] = (100 * np.abs(flat[:, :4])).astype(np.int64)
  if "text" in batch:
    angle = np.asarray(batch["text"])[:, :3].sum(1) / 100
    found["text/embed"] = np.stack([np.cos(angle), np.sin(angle)], 1)
  return found


def run(job, source, out, batch_size=4, shard_records=8, features=features):
  """`command.prepare` with a model that needs no checkpoint."""
  folder = command.pathlib.Path(out)
  folder.mkdir(exist_ok=True)
  records = command._stream(job, source, Model)
  prompts = command._prompts(job, Model, features) if job.classes else None
  command._write(job, records, folder, features, prompts, batch_size, shard_records, jax.local_devices()[:1])
  return command._finish(job, source, Model, folder, shard_records)


@pytest.fixture(name="source")
def _source(tmp_path):
  path = formats.write_jsonl(tmp_path / "data", count=20)
  (tmp_path / "data" / "images" / "006.jpg").write_bytes(b"broken")
  return path


def test_columns_are_what_the_model_makes_of_each_record(source, tmp_path):
  data = spec.open_source(source)
  manifest = run(jobs.Job("features", ("image/embed", "image/ids")), data, tmp_path / "out")
  assert manifest["records"] == 20 and manifest["broken"] == 1 and manifest["shard_records"] == 8
  assert manifest["columns"] == {"image/embed": {"dtype": "float16", "shape": [2]},
                                 "image/ids": {"dtype": "int32", "shape": [4]}}
  columns = stored.open_columns("out")
  reads = stream.Stream(data, (T.Decode(), T.Resize(8), T.Normalise("half"), T.Keep(("image",))), shuffle=False)
  for i in (0, 7, 8, 19):
    want = features({"image": reads.record(i)["image"][None]}, ())
    assert columns[i]["image/embed"].tolist() == want["image/embed"][0].astype(np.float16).tolist()
    assert columns[i]["image/ids"].tolist() == want["image/ids"][0].tolist()
  assert columns.column("image/embed").shape == (20, 2) and not columns.column("image/embed")[6].any()
  with pytest.raises(ValueError, match="has nothing of record 6"):
    columns[6]
  with pytest.raises(ValueError, match="has no column 'x' .it has image/embed, image/ids"):
    columns.column("x")


def test_scores_filter_the_data_they_were_made_of(source, tmp_path):
  data = spec.open_source(source)
  run(jobs.Job("score"), data, tmp_path / "out")
  scores = stored.open_columns("out").column("score")
  good = [i for i in range(20) if i != 6]
  joined = spec.open_source(f"joined:{source}?columns=out")
  assert len(joined) == 20 and joined[3]["score"] == scores[3] and joined[3]["caption"] == data[3]["caption"]
  assert joined.where(3) == data.where(3)
  with pytest.raises(ValueError, match="nothing of record 6"):
    joined[6]
  best = spec.open_source(f"joined:{source}?columns=out&share=0.3")
  order = sorted(good, key=lambda i: -scores[i])[:6]
  assert [best[k]["image"] for k in range(6)] == [data[i]["image"] for i in sorted(order)]
  assert [best.where(k) for k in range(6)] == [data.where(i) for i in sorted(order)]
  above = spec.open_source(f"joined:{source}?columns=out&least={float(np.median(scores[good]))}")
  assert len(above) == 10 and above.digest != best.digest != joined.digest


def test_labels_of_a_classifier_and_by_prompts(source, tmp_path):
  data = spec.open_source(source)
  manifest = run(jobs.Job("labels"), data, tmp_path / "own")
  assert manifest["classes"] == ["x", "y", "z"] and set(manifest["columns"]) == {"label", "probability"}
  joined = spec.open_source(f"joined:{source}?columns=own")
  assert joined.class_names("label") == ("x", "y", "z") and 1 / 3 < joined[0]["probability"] <= 1
  run(jobs.Job("labels", classes=("cat", "dog"), template="a {}"), data, tmp_path / "prompts")
  prompted = spec.open_source(f"joined:{source}?columns=prompts")
  assert prompted.class_names("label") == ("cat", "dog")
  text = np.stack([features({"text": T.Tokenise("bytes", 12)({"caption": f"a {name}"}, None)["text"][None]}, ())[
      "text/embed"][0] for name in ("cat", "dog")])
  image = stream.Stream(data, (T.Decode(), T.Resize(8), T.Normalise("half"), T.Keep(("image",))), shuffle=False)
  for i in (0, 5, 11):
    logits = 10 * features({"image": image.record(i)["image"][None]}, ())["image/embed"][0] @ text.T
    assert prompted[i]["label"] == logits.argmax()
    np.testing.assert_allclose(prompted[i]["probability"], 1 / (1 + np.exp(-abs(logits[0] - logits[1]))), rtol=1e-5)


def test_an_interrupted_job_goes_on_where_it_was(source, tmp_path):
  data, job = spec.open_source(source), jobs.Job("tokens")
  whole = run(job, data, tmp_path / "whole")
  seen = []

  def failing(batch, want):
    seen.append(len(batch["image"]))
    if len(seen) == 3:  # in the second shard
      raise KeyboardInterrupt
    return features(batch, want)
  with pytest.raises(KeyboardInterrupt):
    run(job, data, tmp_path / "out", features=failing)
  with pytest.raises(ValueError, match="holds no columns.json"):
    stored.open_columns("out")
  assert run(job, data, tmp_path / "out", features=failing) == whole
  assert len(seen) == 6  # five batches, of which one was begun twice
  assert run(job, data, tmp_path / "other", batch_size=8)["digest"] == whole["digest"]


@pytest.mark.parametrize("job, why", (
    (dict(name="scores"), "there is no job 'scores'"), (dict(name="features", features=()), "features: none is named"),
    (dict(name="labels", classes=("a",), template="a"), "template: 'a' must have one {}")))
def test_jobs_that_make_no_sense_are_refused(job, why):
  with pytest.raises(ValueError, match=why):
    jobs.Job(**job)


def test_what_a_model_lacks_is_told(source, tmp_path):
  data = spec.open_source(source)
  with pytest.raises(ValueError, match="features: the model gives no 'image/pooled' .it gives image/embed, image/ids"):
    run(jobs.Job("features", ("image/pooled",)), data, tmp_path / "out")
  blind = type("Blind", (Model,), {"text": ()})
  with pytest.raises(ValueError, match="score: needs texts, but the model's checkpoint says nothing of its texts"):
    command._stream(jobs.Job("score"), data, blind)


def test_columns_of_other_data_and_wrong_filters_are_refused(source, tmp_path):
  run(jobs.Job("tokens"), spec.open_source(source), tmp_path / "out")
  other = formats.write_tars(tmp_path / "tars")
  for text, why in ((f"joined:{other}?columns=out", "was made of other data"),
                    (f"joined:{source}?columns=none", "none holds no columns.json"),
                    (f"joined:{source}?columns=out&share=0.5", "has no column 'score'"),
                    (f"joined:{source}?columns=out&share=0.5&by=image/ids", r"has \[4\] numbers a record, not one"),
                    (f"joined:{source}?columns=out&share=0.5&least=1", "both say what to keep")):
    with pytest.raises(ValueError, match=why):
      spec.open_source(text)


@pytest.mark.slow
def test_a_trained_model_scores_and_embeds_by_the_command_line(tmp_path, capsys):
  from mmjax import train
  path = formats.write_tars(tmp_path / "tars", count=24)
  settings = {"data.train": path, "total_steps": "2", "batch_size": "8", "evals": "None"}
  train.train(config_lib.load("contrastive/siglip:smoke", settings), str(tmp_path / "run"))
  assert cli.main(["prepare", "score", path, "--model=run", "--out=scores", "--batch_size=16"]) == 0
  assert cli.main(["prepare", "features", path, "--model=run", "--out=embeds",
                   "--features=image/embed,text/embed"]) == 0
  embeds, scores = stored.open_columns("embeds"), stored.open_columns("scores").column("score")
  image, text = (embeds.column(name).astype(np.float32) for name in ("image/embed", "text/embed"))
  np.testing.assert_allclose(scores, (image * text).sum(1), atol=2e-3)  # embeddings were kept in float16
  assert cli.main(["prepare", "score", path, "--model=run", "--out=scores", "--batch_size=16"]) == 0  # complete
  assert cli.main(["data", "build", f"joined:{path}?columns=scores&share=0.5", "--out=best", "--processes=0"]) == 0
  assert json.loads((tmp_path / "best" / "manifest.json").read_text())["counts"]["kept"] == 12
  capsys.readouterr()
  assert cli.main(["prepare", "tokens", path, "--model=run", "--out=tokens"]) == 2
  assert "image/ids" in capsys.readouterr().err
