"""The report of a run, of whole workdirs and of damaged ones."""

import json

import numpy as np
import pytest

from mmjax import cli, train
from mmjax.report import html, runs, writers
from tests.report import markup
from tests.training import tiny

EVIL = '<img src=x onerror="alert(1)">'


def write_metrics(workdir, steps):
  writer = writers.Jsonl(str(workdir / "metrics.jsonl"))
  for step in steps:
    loss = 5.0 - 0.1 * step
    writer.write(step, {"loss": loss, "sigmoid": loss, "lr": 1e-3})
  writer.close()


def write_workdir(workdir, **changes):
  """A workdir as a finished run of ten steps leaves it; the files in `changes` replace its own."""
  files = {
      "config.json": {"total_steps": 10, "batch_size": 4, "objective": {"name": "contrastive"},
                      "note": EVIL},
      "provenance.json": [start("2026-01-01T00:00:00+00:00")],
      "model.json": {"parameters": "kernel  12\n12 parameters: 12 trained, 0 frozen",
                     "trivial": {"sigmoid": 4.5}}, **changes}
  workdir.mkdir(parents=True, exist_ok=True)
  for name, value in files.items():
    (workdir / name).write_text(value if isinstance(value, str) else json.dumps(value))
  write_metrics(workdir, range(1, 11))
  return workdir


def start(when, commit="abcdef0123456789", **changes):
  return {"started": when, "command": ["mmjax", "train", "--config=contrastive/siglip:smoke"],
          "git": {"commit": commit, "changed": True}, "config": "0" * 64, "python": "3.11.7",
          "packages": {"jax": "0.10.2"},
          "data": [{"source": EVIL, "records": 7, "digest": "1" * 64}],
          "devices": {"kind": "cpu", "count": 8, "processes": 2, "mesh": {"data": 8}}, **changes}


def save_arrays(workdir, step, name, **arrays):
  (workdir / "evals" / str(step)).mkdir(parents=True, exist_ok=True)
  np.savez(workdir / "evals" / str(step) / f"{name}.npz", **arrays)


def neighbours(**changes):
  way = {"query": np.array([0]), "found": np.array([[1, 0]]), "score": np.array([[0.9, 0.8]]),
         "right": np.array([[False, True]]), "answer": np.array([0]), "rank": np.array([2.5])}
  return {"pictures": np.zeros((2, 8, 8, 3), np.uint8),
          "tokens": np.array([[3, 4, -1], [5, -1, -1]]),
          **{f"{side}_{name}": value for side in ("t2i", "i2t") for name, value in way.items()},
          **changes}


def render(workdir):
  """The parsed page; fails if it fetches anything or if EVIL became markup."""
  text = html.render(str(workdir))
  assert markup.external(text) == []
  read = markup.Page(text)
  assert not [attributes for _, attributes in read.tags if "onerror" in attributes]
  return read


def charts(read):
  """{title: attributes of the curves} of all charts."""
  return dict(zip([text for text in read.text("figcaption")], read.find("svg", class_="plot")))


@pytest.mark.slow
def test_a_tiny_training_ends_with_its_report(tmp_path):
  pairs = tiny.write_pairs(tmp_path / "pairs.npz")
  evals = {"retrieval": {"every_steps": 4}, "loss": {"every_steps": 4}}
  train.train(tiny.config(pairs, evals=evals), str(tmp_path / "run"))
  read = markup.Page((tmp_path / "run" / "report.html").read_text())
  assert [title for title in read.text("h2") if title != "Warnings"] == [
      "Summary", "Training", "Evaluation", "Retrieved neighbours", "Parameters", "Config",
      "Provenance"]
  assert "8 of 8: complete" in read.text("td") and "128" in read.text("td")
  drawn = charts(read)
  assert {"sigmoid", "lr", "grad_norm", "examples_per_s", "retrieval/i2t/R@k"} <= set(drawn)
  assert {"trivial", "chance", "ceiling", "evals.loss"} <= set(read.text("li"))
  assert "retrieval/i2t/R@1" in read.text("td") and "sigmoid (training)" in read.text("td")
  assert any("image/patch_embed/kernel" in text for text in read.text("pre"))
  assert markup.external((tmp_path / "run" / "report.html").read_text()) == []


def test_a_report_that_fails_only_warns(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(train.report, "render", lambda workdir: 1 / 0)
  with caplog.at_level("WARNING", logger="mmjax"):
    train._report(write_workdir(tmp_path / "run"))
  assert "no report could be written: ZeroDivisionError" in caplog.text
  assert not (tmp_path / "run" / "report.html").exists()


def test_facts_curves_and_tables_of_a_finished_run(tmp_path):
  read = render(write_workdir(tmp_path / "runs" / "siglip"))
  assert read.text("h1") == ["siglip: contrastive/siglip:smoke"]
  cells = read.text("td")
  for fact in ("10 of 10: complete", "40", "12 parameters: 12 trained, 0 frozen",
               "8 x cpu in 2 processes; mesh data 8", "abcdef012345 with changes", "4", "4.5"):
    assert fact in cells, fact
  assert EVIL in cells  # the name of a data source
  assert any(json.dumps(EVIL) in text for text in read.text("pre"))  # a value of the config
  assert set(charts(read)) == {"sigmoid", "lr"}  # the loss is its only term


def test_a_torn_line_a_value_that_is_no_number_and_nan_leave_the_rest(tmp_path):
  workdir = write_workdir(tmp_path / "run")
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 11, "time": 1.0, "loss": "NaN", "lr": "Infinity"}\n'
               '{"step": 12, "loss": "broken"}\n[1]\n{"step": 13, "lo')
  read = render(workdir)
  assert {"11 of 10: complete", "nan"} <= set(read.text("td"))
  loss, *_ = read.find("path", class_="curve")
  assert loss["data-y"].split()[-2:] == ["4", "nan"]


def test_of_a_step_that_is_there_twice_the_later_line_counts(tmp_path):
  """As after files were joined by hand; `Jsonl` itself drops what a resumed run repeats."""
  workdir = write_workdir(tmp_path / "run")
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 9, "time": 9.0, "loss": 70.0}\n{"step": 10, "time": 9.0, "loss": 80.0}\n'
               '{"step": 0, "time": 9.0, "loss": 90.0}\n')
  series = runs.read(str(workdir)).training["loss"]
  assert series[0].tolist() == list(range(11))
  assert series[1][[0, -2, -1]].tolist() == [90.0, 70.0, 80.0]


def test_an_interrupted_run_says_how_far_it_came(tmp_path):
  workdir = write_workdir(tmp_path / "run", **{"config.json": {"total_steps": 99, "batch_size": 4}})
  assert "10 of 99: not complete" in render(workdir).text("td")


def test_every_start_of_a_resumed_run_is_shown_and_its_time_is_summed(tmp_path):
  starts = [start("2026-01-01T00:00:00+00:00"), start("2026-01-02T00:00:00+00:00", commit="b" * 40),
            start("2026-01-03T00:00:00+00:00", python="3.12.1", init_from="models/clip")]
  workdir = write_workdir(tmp_path / "run", **{"provenance.json": starts})
  day, begin = 86400, 1767225600  # 2026-01-01 in Unix time
  (workdir / "metrics.jsonl").write_text("".join(
      json.dumps({"step": step, "time": when, "loss": 1.0}) + "\n" for step, when in (
          (1, begin + 60), (2, begin + 600), (3, begin + day + 30), (4, begin + 2 * day + 3600))))
  read = render(workdir)
  assert "1:10:30 in 3 starts" in read.text("td")
  assert [cell for cell in read.text("td") if "with changes" in cell] == [
      "abcdef012345 with changes", "b" * 12 + " with changes", "abcdef012345 with changes"]
  assert [text for text in read.text("summary") if text.startswith("command")] == [
      "command, packages and data", "command, packages and data (start 2)"]
  assert any("models/clip" in text for text in read.text("pre"))


def test_a_batch_ramp_counts_in_the_examples():
  ramp = [{"until_steps": 5, "batch_size": 2}, {"until_examples": 21, "batch_size": 4}]
  config = {"batch_size": 8, "batch_ramp": ramp}
  assert [runs.examples(config, steps) for steps in (3, 5, 8, 10)] == [6, 10, 22, 38]
  assert runs.examples({}, 10) is None


def test_warnings_of_the_log_are_shown_once_with_their_count(tmp_path):
  log = ("2026-01-01 00:00:00,000 I fine\n"
         + f"2026-01-01 00:00:01,000 W bad record {EVIL}\n" * 3 + "torn")
  read = render(write_workdir(tmp_path / "run", **{"log.txt": log}))
  assert f"bad record {EVIL} (3 times)" in read.text("p") and "fine" not in read.text("p")


def test_neighbours_are_pictures_with_captions(tmp_path):
  workdir = write_workdir(tmp_path / "run")
  save_arrays(workdir, 5, "retrieval-neighbours", **neighbours(captions=np.array(["old", "old"])))
  save_arrays(workdir, 10, "retrieval-neighbours", **neighbours(captions=np.array([EVIL, "a dog"])))
  save_arrays(workdir, 10, "other-set-neighbours", **neighbours())
  read = render(workdir)
  assert {"retrieval, at step 10", "other-set, at step 10"} <= set(read.text("h3"))
  assert EVIL in read.text("p") and "a dog" in read.text("td") and "old" not in read.text("p")
  assert "tokens 3 4" in read.text("p")  # where the captions are not known
  kinds = [found["class"].split()[1:] for found in read.find("figure")
           if found["class"].startswith("picture")]
  assert kinds == [["wrong-one"], ["right-one"], []] * 2


def test_an_answer_that_was_not_found_stands_beside_with_its_rank(tmp_path):
  workdir = write_workdir(tmp_path / "run")
  arrays = neighbours(t2i_right=np.array([[False, False]]), i2t_right=np.array([[False, False]]))
  save_arrays(workdir, 10, "retrieval-neighbours", **arrays)
  read = render(workdir)
  assert "the query's own: rank 2.5" in read.text("figcaption")
  assert "its own: rank 2.5" in read.text("td")


def test_confusion_and_mistakes_bear_class_names(tmp_path):
  workdir = write_workdir(tmp_path / "run")
  counts = np.array([[3, 1], [0, 0]])
  arrays = {"confusion": counts, "class_count": counts.sum(1),
            "class_top1": np.array([0.75, np.nan])}
  wrong = {"pictures": np.zeros((1, 8, 8, 3), np.uint8), "label": np.array([0]),
           "guess": np.array([1])}
  save_arrays(workdir, 10, "colour-classes", **arrays, classes=np.array([EVIL, "blue"]))
  save_arrays(workdir, 10, "colour-mistakes", **wrong)
  save_arrays(workdir, 10, "shape-classes", **arrays)
  read = render(workdir)
  assert {f"{EVIL} as blue: 1 (25%)", "0 as 1: 1 (25%)"} <= set(read.text("title"))
  assert f"{EVIL}, taken for blue" in read.text("figcaption")
  assert "accuracy of each class" in read.text("summary")


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
  torn = {"config.json": '{"total_st', "provenance.json": "{}"}
  workdir = write_workdir(tmp_path / "run", **torn)
  save_arrays(workdir, 10, "colour-classes", confusion=np.eye(2))
  save_arrays(workdir, 10, "retrieval-neighbours", **neighbours(t2i_found=np.array([[7, 8]])))
  (workdir / "evals" / "10" / "shape-classes.npz").write_bytes(b"PK no archive")
  problems = " ".join(render(workdir).text("p"))
  for name in ("config.json is damaged", "provenance.json is not", "10/colour-classes.npz",
               "10/retrieval-neighbours.npz", "10/shape-classes.npz is damaged"):
    assert name in problems, name


def test_a_workdir_with_an_evaluation_only_has_a_page(tmp_path):
  save_arrays(tmp_path, 10, "retrieval-neighbours", **neighbours())
  read = render(tmp_path)
  assert "Retrieved neighbours" in read.text("h2")
  assert "There are no metrics of training steps." in read.text("p")


def test_metrics_alone_have_a_page(tmp_path):
  write_metrics(tmp_path, range(3))
  assert {"loss", "sigmoid", "lr"} <= set(charts(render(tmp_path)))


def test_the_command_writes_where_it_is_told_and_refuses_what_is_no_run(tmp_path, capsys):
  workdir = write_workdir(tmp_path / "run")
  assert cli.main(["report", f"--workdir={workdir}"]) == 0
  own, chosen = workdir / "report.html", tmp_path / "new" / "my.html"
  assert cli.main(["report", f"--workdir={workdir}", f"--out={chosen}"]) == 0
  assert own.read_text() == chosen.read_text()
  assert capsys.readouterr().out.splitlines() == [str(own), str(chosen)]
  for empty in (tmp_path / "new", tmp_path / "absent"):
    assert cli.main(["report", f"--workdir={empty}"]) == 2
    assert f"--workdir={empty}: holds no run" in capsys.readouterr().err
