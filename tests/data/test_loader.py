"""Batches follow from the step alone: not from devices, processes, workers, threads or restarts."""

import dataclasses
import itertools
import logging
import time
import types

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from mmjax.data import batch_memory
from mmjax.data import loader
from mmjax.data import mixture
from mmjax.data import stream
from mmjax.data.batch_sizes import BatchSizes
from tests.data import toys

B = 16
PAUSE = 2.0  # seconds in which workers read what they are to read, and end


def sharding(devices=8):
  mesh = jax.make_mesh((devices // 2 or 1, min(devices, 2)), ("data", "fsdp"),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2,
                       devices=jax.devices()[:devices])
  return NamedSharding(mesh, P(("data", "fsdp")))


def take(batches, n=None):
  """The first n batches (all without n) as host arrays, after which the iterator is closed."""
  with batches:
    return [(step, {key: np.asarray(value) for key, value in batch.items()})
            for step, batch in itertools.islice(batches, n)]


def assert_equal(a, b):
  assert [step for step, _ in a] == [step for step, _ in b]
  jax.tree.map(np.testing.assert_array_equal, [x for _, x in a], [x for _, x in b])


def fake_process(*slices):
  """The sharding as one process sees it whose devices own these slices of the batch."""
  return types.SimpleNamespace(
      addressable_devices_indices_map=lambda shape: {i: (s,) for i, s in enumerate(slices)})


@pytest.fixture(scope="module")
def reference():
  return take(loader.train_batches(toys.pictures(), B, sharding()), 5)


def test_a_batch_holds_the_streams_keys_row_and_valid(reference):
  step, batch = reference[3]
  assert step == 3 and batch["valid"].all() and batch["valid"].dtype == bool
  assert batch["image"].shape == (B, 8, 8, 3) and batch["text"].shape == (B, 12)
  np.testing.assert_array_equal(batch["row"], [[0, 3 * B + p] for p in range(B)])
  assert batch["row"].dtype == np.uint32 and "error" not in batch


def test_a_batch_is_sharded_as_asked():
  with loader.train_batches(toys.pictures(), B, sharding()) as batches:
    _, batch = next(batches)
  for value in batch.values():
    assert value.sharding == sharding() and value.addressable_shards[0].data.shape[0] == B // 8


def test_rows_are_the_streams_own(reference):
  toy = toys.pictures()
  for step, batch in reference:
    for p in (0, 7, 15):
      record = toy.record(step * B + p)
      for key in toy.spec:
        np.testing.assert_array_equal(batch[key][p], record[key])


@pytest.mark.parametrize("devices", [1, 2])
def test_any_number_of_devices_gives_the_same_batches(reference, devices):
  assert_equal(take(loader.train_batches(toys.pictures(), B, sharding(devices)), 5), reference)


@pytest.mark.parametrize("threads, prefetch", [(0, 1), (1, 3), (7, 2)])
def test_threads_and_prefetch_change_nothing(reference, threads, prefetch):
  batches = loader.train_batches(toys.pictures(), B, sharding(), read_threads=threads,
                                 prefetch=prefetch)
  assert_equal(take(batches, 5), reference)


def test_a_restart_at_any_step_continues_the_run(reference):
  for start in (1, 4):
    batches = loader.train_batches(toys.pictures(), B, sharding(), start_step=start)
    assert_equal(take(batches, 5 - start), reference[start:])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(reference, workers):
  batches = loader.train_batches(toys.pictures(), B, sharding(), workers=workers)
  assert_equal(take(batches, 5), reference)


def test_a_row_beyond_32_bits_is_whole_in_its_two_words():
  start = 2**40 // B + 3
  (_, batch), = take(loader.train_batches(toys.pictures(), B, sharding(), start_step=start), 1)
  np.testing.assert_array_equal(batch["row"], [[2**8, 3 * B + p] for p in range(B)])


@pytest.mark.parametrize("processes", [
    [[slice(0, 16)]],
    [[slice(0, 4), slice(4, 8)], [slice(8, 12), slice(12, 16)]],
    [[slice(0, 4), slice(8, 12)], [slice(4, 8), slice(12, 16)]],         # not contiguous
    [[slice(0, 8), slice(0, 8)], [slice(0, 8)], [slice(8, 16)], [slice(8, 16)]],  # not exclusive
    [[slice(12, 16), slice(0, 4)], [slice(None)]],
])
def test_processes_read_exactly_what_their_devices_own(processes, reference):
  seen = set()
  for slices in processes:
    positions = loader.local_rows(fake_process(*slices), B)
    owned = sorted({p for s in slices for p in range(B)[s]})
    np.testing.assert_array_equal(positions, owned)
    batches = loader._LocalBatches(toys.pictures(), BatchSizes(B), positions, range(2, 5), None,
                                   batch_memory.Pool())
    batch, _ = batches[1]                        # this process's part of step 3, the second here
    assert all(np.array_equal(batch[key], value[positions]) for key, value in reference[3][1].items())
    seen.update(owned)
  assert seen == set(range(B))


RAMP = BatchSizes(B, ((2, B // 2), (3, 3 * B)))  # 8, 8, 48, and then 16 rows


@pytest.mark.parametrize("devices, start", [(8, 0), (2, 1), (8, 2), (1, 3), (8, 5)])
def test_batches_of_a_ramp_hold_the_rows_in_order_from_any_step_on(devices, start):
  stream = toys.pictures()
  batches = take(loader.train_batches(stream, RAMP, sharding(devices), start_step=start), 6 - start)
  assert [(step, len(batch["valid"])) for step, batch in batches] == [
      (0, 8), (1, 8), (2, 48), (3, 16), (4, 16), (5, 16)][start:]
  rows = np.concatenate([batch["row"][:, 1] for _, batch in batches])
  np.testing.assert_array_equal(rows, np.arange([0, 8, 16, 64, 80, 96][start], 112))
  ids = np.concatenate([batch["id"] for _, batch in batches])
  np.testing.assert_array_equal(ids, [stream.record(int(row))["id"] for row in rows])


@pytest.mark.slow
def test_worker_processes_change_nothing_under_a_ramp():
  here, workers = (take(loader.train_batches(toys.pictures(), RAMP, sharding(), workers=n), 5)
                   for n in (0, 2))
  assert_equal(workers, here)


@pytest.mark.slow
@pytest.mark.parametrize("finite", ("stage", "evaluation"))
def test_worker_is_there_until_a_slow_consumer_has_its_last_batch(finite):
  """The last batches of a worker lie ready long before they are asked for."""
  if finite == "stage":
    batches = loader.train_batches(toys.pictures(), BatchSizes(B, ((4, 8),)), sharding(), workers=2, prefetch=1)
  else:
    batches = loader.eval_batches(toys.pictures(length=4 * 8), 8, sharding(), workers=2, prefetch=1)
  with batches:
    for step in range(4):
      assert next(batches)[0] == step
      time.sleep(PAUSE)


def test_the_rows_of_a_mixture_do_not_depend_on_the_ramp():
  mixed = mixture.Mixture((toys.pictures(seed=1), toys.pictures(seed=2)), (3, 1))
  ids = [np.concatenate([batch["id"] for _, batch in take(
      loader.train_batches(mixed, sizes, sharding()), steps)]) for sizes, steps in ((RAMP, 4), (B, 5))]
  np.testing.assert_array_equal(*ids)


def test_a_ramp_that_is_left_early_closes_its_readers():
  batches = loader.train_batches(toys.pictures(), RAMP, sharding())
  next(batches)
  batches.close()
  with pytest.raises(ValueError, match="closed"):
    next(batches)


def test_processes_read_their_own_part_of_every_size():
  seen = {}
  for part in 0, 1:
    for piece in RAMP.pieces(range(5)):
      size = RAMP.at(piece.start)
      half = slice(part * size // 2, (part + 1) * size // 2)
      positions = loader.local_rows(fake_process(half), size)
      batches = loader._LocalBatches(toys.pictures(), RAMP, positions, piece, None, batch_memory.Pool())
      for batch, _ in map(batches.__getitem__, range(len(piece))):
        rows = batch["row"][:, 1].tolist()
        assert not seen.keys() & set(rows)
        seen |= zip(rows, batch["id"].tolist())
  assert sorted(seen) == list(range(96))
  assert all(seen[row] == toys.pictures().record(row)["id"] for row in seen)


def test_a_mixture_loads_like_a_stream():
  mixed = mixture.Mixture((toys.pictures(seed=1), toys.pictures(seed=2)), (3, 1))
  (_, batch), = take(loader.train_batches(mixed, B, sharding(), start_step=2), 1)
  for p in range(B):
    np.testing.assert_array_equal(batch["image"][p], mixed.record(2 * B + p)["image"])


# Evaluation


@pytest.mark.parametrize("length", [1, 16, 50])
def test_evaluation_sees_every_record_once_in_order_on_eight_devices(length):
  toy = toys.pictures(length=length, shuffle=False)
  batches = take(loader.eval_batches(toy, B, sharding()))
  assert len(batches) == -(-length // B)
  valid = np.concatenate([batch["valid"] for _, batch in batches])
  ids = np.concatenate([batch["id"] for _, batch in batches])
  np.testing.assert_array_equal(valid, np.arange(len(valid)) < length)
  np.testing.assert_array_equal(ids[valid], np.arange(length))
  assert not np.any(batches[-1][1]["image"][~batches[-1][1]["valid"]])


def test_evaluation_padding_is_no_bad_record(caplog):
  with caplog.at_level(logging.WARNING):
    take(loader.eval_batches(toys.pictures(length=3, max_bad=0), B, sharding()))
  assert not caplog.records


def test_a_mixture_cannot_be_evaluated():
  with pytest.raises(ValueError, match="mixture has no end"):
    loader.eval_batches(mixture.Mixture((toys.pictures(),), (1,)), B, sharding())


# Bad records and errors


def test_a_bad_record_is_zero_invalid_and_logged_and_moves_nothing(reference, caplog):
  with caplog.at_level(logging.WARNING):
    batches = take(loader.train_batches(toys.pictures(damaged=(7,)), B, sharding()), 5)
  bad_rows = 0
  for (_, batch), (_, good) in zip(batches, reference):
    is_bad = good["id"] == 7
    bad_rows += is_bad.sum()
    np.testing.assert_array_equal(batch["valid"], ~is_bad)
    for key in ("image", "text", "text_mask", "id"):
      np.testing.assert_array_equal(batch[key][~is_bad], good[key][~is_bad])
      assert not np.any(batch[key][is_bad])
    np.testing.assert_array_equal(batch["row"], good["row"])
  assert bad_rows >= 1 and "pictures record 7, transform 0 (Decode)" in caplog.text


@pytest.mark.parametrize("limit, told", [
    (dict(max_bad_fraction=0.05), "max_bad_fraction = 0.05 .* pictures record"),
    (dict(max_bad=3), "max_bad = 3 .* pictures record")])
def test_too_many_bad_records_end_the_run_naming_one(limit, told):
  toy = toys.pictures(unreadable=tuple(range(10)), **limit)
  batches = loader.train_batches(toy, B, sharding())
  with pytest.raises(stream.DataError, match=told):
    take(batches, 100)
  with pytest.raises(stream.DataError):  # and it stays ended
    next(batches)


def test_error_of_too_many_bad_records_names_the_limit_in_the_config():
  toy = dataclasses.replace(toys.pictures(damaged=range(50), max_bad=3), where="evals.retrieval.data")
  toy.__dict__["spec"] = toys.pictures().spec  # which cannot be had of a source without a good record
  with pytest.raises(stream.DataError, match=r"; --config.evals.retrieval.data.max_bad sets the limit$"):
    take(loader.train_batches(toy, B, sharding()), 5)


def test_few_bad_records_are_within_the_limit():
  toy = toys.pictures(unreadable=(7,), max_bad_fraction=0.03, max_bad=100)
  assert len(take(loader.train_batches(toy, B, sharding()), 20)) == 20


def test_an_error_of_the_reader_surfaces_in_the_loop(monkeypatch):
  toy = toys.pictures()

  def write(self, row, places):
    if row >= 2 * B:
      raise MemoryError("no memory for the record")
    return original(self, row, places)

  original = stream.Stream.write
  monkeypatch.setattr(stream.Stream, "write", write)
  batches = loader.train_batches(toy, B, sharding())
  assert [next(batches)[0], next(batches)[0]] == [0, 1]
  with pytest.raises(MemoryError, match="no memory for the record"):
    next(batches)


def test_a_wrong_stream_fails_before_the_first_batch():
  with pytest.raises(stream.DataError, match="not numeric"):
    loader.train_batches(toys.pictures(toys.AUGMENT), B, sharding())


def test_closed_batches_say_so_and_close_twice():
  batches = loader.train_batches(toys.pictures(), B, sharding())
  next(batches)
  batches.close()
  batches.close()
  with pytest.raises(ValueError, match="closed"):
    next(batches)


@pytest.mark.parametrize("argument", [dict(batch_size=0), dict(workers=-1), dict(prefetch=0),
                                      dict(start_step=-1), dict(read_threads=-1)])
def test_arguments_out_of_range_are_named(argument):
  arguments = dict(stream=toys.pictures(), batch_size=B, sharding=sharding()) | argument
  with pytest.raises(ValueError, match=f"{next(iter(argument))} must be"):
    loader.train_batches(**arguments)


def test_batches_lie_where_a_cpu_device_uses_them_without_a_copy():
  steps, memory = range(3), batch_memory.Pool()
  source = loader._LocalBatches(toys.pictures(), BatchSizes(7), np.arange(7), steps, None, memory)
  batch, errors = source[1]
  assert errors == [""] * 7
  placed = loader.assemble(batch, jax.sharding.SingleDeviceSharding(jax.devices()[0]), 7, np.arange(7))
  for key, array in batch.items():
    assert placed[key].unsafe_buffer_pointer() == array.ctypes.data
    np.testing.assert_array_equal(placed[key], array)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_stay_as_they_are_while_others_are_read(workers):
  toy = toys.pictures()
  with loader.train_batches(toy, B, sharding(1), workers=workers) as batches:
    kept = [next(batches) for _ in range(6)]
    for _ in range(40):  # these are dropped, and their memory is used again
      next(batches)
    for step, batch in kept:
      for p in (0, B - 1):
        np.testing.assert_array_equal(batch["image"][p], toy.record(step * B + p)["image"])
