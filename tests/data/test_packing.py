"""Packs: every sequence once, full, at random, and isolated in attention."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data import packing, stream, tokenizers
from mmjax.data.sources import packed
from mmjax.nn.attention import attention

TYPICAL = {  # tokens of captions, of alt texts, of documents
    "captions": lambda rng: rng.normal(14, 5, 30_000).round().clip(3, 64),
    "alt texts": lambda rng: rng.lognormal(2.3, 0.8, 30_000).round().clip(1, 128),
    "documents": lambda rng: rng.lognormal(5.5, 1.0, 30_000).round().clip(1, 4096)}


@pytest.mark.parametrize("name, size", (("captions", 256), ("captions", 64), ("alt texts", 128), ("alt texts", 512),
                                        ("documents", 2048)))
def test_packs_of_typical_lengths_are_full_and_hold_each_sequence_once(name, size):
  lengths = TYPICAL[name](np.random.default_rng(0)).astype(int)
  packs = packing.plan(lengths, size)
  assert packs.fill >= 0.97
  assert np.array_equal(np.sort(packs.members), np.arange(len(lengths)))
  totals = np.add.reduceat(np.minimum(lengths, size)[packs.members], np.r_[0, packs.ends[:-1]])
  assert totals.max() <= size and packs.fill == pytest.approx(totals.sum() / (len(packs) * size))
  assert np.array_equal(packs[5], packs.members[packs.ends[4]:packs.ends[5]])


def test_a_plan_follows_from_lengths_and_seed_and_does_not_keep_neighbours_together():
  lengths = TYPICAL["captions"](np.random.default_rng(0)).astype(int)
  one, again, other = (packing.plan(lengths, 128, seed=seed) for seed in (0, 0, 1))
  assert np.array_equal(one.members, again.members) and not np.array_equal(one.members, other.members)
  distances = [np.abs(np.diff(np.sort(one[i]))).min() for i in range(0, len(one), 50) if len(one[i]) > 1]
  assert np.median(distances) > 100


@pytest.mark.parametrize("lengths, size, most, want", (
    ([5, 5, 5], 5, None, [[5], [5], [5]]), ([4, 3, 2, 1], 5, None, [[4, 1], [3, 2]]), ([9, 0, 2], 4, None, [[4], [2]]),
    ([1] * 7, 10, 3, [[1, 1, 1], [1, 1, 1], [1]]), ([2, 2, 2], 4, 1, [[2], [2], [2]]), ([1], 100, None, [[1]])))
def test_small_plans(lengths, size, most, want):
  packs = packing.plan(lengths, size, most)
  cut = np.minimum(lengths, size)
  assert sorted(sorted(cut[packs[i]].tolist(), reverse=True) for i in range(len(packs))) == sorted(want)


def test_plans_that_make_no_sense_are_refused():
  for lengths, size, most in (([1], 0, None), ([1], 4, 0)):
    with pytest.raises(ValueError, match="packs need at least a token"):
      packing.plan(lengths, size, most)
  with pytest.raises(ValueError, match="no sequence has a token"):
    packing.plan([0, 0], 4)


def test_sequences_of_a_pack_do_not_see_each_other():
  """Attention in a pack equals that of each sequence alone; one's gradient on another is zero."""
  rng = np.random.default_rng(0)
  sequences = [np.arange(1, n + 1) for n in (3, 5, 2)]
  row = packing.pack(sequences, 12)
  assert row["text"].tolist() == [1, 2, 3, 1, 2, 3, 4, 5, 1, 2, 0, 0]
  assert row["text_segments"].tolist() == [1] * 3 + [2] * 5 + [3] * 2 + [0] * 2
  assert row["text_positions"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 0, 0] and row["text_mask"].sum() == 10
  x = jnp.asarray(rng.normal(size=(3, 1, 12, 2, 4)), jnp.float32)
  whole = lambda x: attention(*x, causal=True, segments=jnp.asarray(row["text_segments"])[None], backend="xla")
  at = 0
  for tokens in sequences:
    part = slice(at, at + len(tokens))
    alone = attention(*x[:, :, part], causal=True, backend="xla")
    np.testing.assert_allclose(whole(x)[:, part], alone, atol=1e-6)
    at += len(tokens)
  seen = jax.grad(lambda x: whole(x)[:, 3:8].sum())(x)
  assert not seen[:, :, :3].any() and not seen[:, :, 8:].any() and seen[:, :, 3:8].any()


def test_packed_source_reads_packs_at_random_in_any_process(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  texts = ["a red cube " * (i % 5 + 1) for i in range(40)]
  lines = [json.dumps({"text": text}) for text in texts]
  (tmp_path / "a.jsonl").write_text("\n".join([*lines[:7], "{", *lines[7:]]))
  source = packed.build(str(tmp_path / "a.jsonl"), "bytes", 128)
  assert "1 of 41 records have no text that can be read, and are in no pack" in caplog.text
  assert source.packs.fill > 0.8
  again = pickle.loads(pickle.dumps(source))
  found = []
  for i in reversed(range(len(source))):
    record = again[i]
    assert all(np.array_equal(record[key], source[i][key]) for key in record)
    for segment in range(1, record["text_segments"].max() + 1):
      ids = record["text"][record["text_segments"] == segment]
      assert ids[-1] == tokenizers.Bytes.eos_id
      found.append(tokenizers.load("bytes").decode(ids))
  assert sorted(found) == sorted(texts)
  record = stream.Stream(source).record(3)
  assert record["valid"] and record["text"].shape == (128,)
  assert packed.build(str(tmp_path / "a.jsonl"), "bytes", 64).digest != source.digest
