"""A stream's record depends on its row alone, and a bad record keeps its row."""

import dataclasses
import pickle
import re

import numpy as np
import pytest

from mmjax.data import mixture
from mmjax.data import order
from mmjax.data import stream
from mmjax.data import transforms as T
from tests.data import toys


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_record_depends_on_its_row_alone():
  one, other = toys.pictures(), pickle.loads(pickle.dumps(toys.pictures()))
  forward = [one.record(row) for row in range(20)]
  backward = [other.record(row) for row in reversed(range(20))][::-1]
  assert all(map(same, forward, backward))


def test_the_same_record_is_augmented_anew_in_the_next_epoch():
  toy = toys.pictures(length=4)
  first, second = ({int(r["id"]): r["image"] for r in map(toy.record, rows)}
                   for rows in (range(4), range(4, 8)))
  assert first.keys() == second.keys()
  assert not any(np.array_equal(first[i], second[i]) for i in first)


def test_a_transforms_draws_do_not_hang_on_the_other_transforms():
  def draw(record, rng):
    return {**record, "draw": rng.random()}

  def burn(record, rng):
    rng.random(100)
    return record

  def idle(record, rng):
    return record

  source = toys.Pictures()
  draws = [[float(stream.Stream(source, (first, draw, T.Keep(("draw",))), seed=s).record(r)["draw"])
            for r in range(50)] for first, s in ((burn, 0), (idle, 0), (idle, 1))]
  assert draws[0] == draws[1] and len(set(draws[1] + draws[2])) == 100


def test_two_transforms_of_one_row_draw_differently():
  def draw(key):
    return lambda record, rng: {**record, key: rng.random()}

  toy = stream.Stream(toys.Pictures(), (draw("a"), draw("b"), T.Keep(("a", "b"))))
  draws = np.array([[toy.record(row)[key] for key in "ab"] for row in range(200)])
  assert not np.any(draws[:, 0] == draws[:, 1])
  assert abs(np.corrcoef(draws.T)[0, 1]) < 0.3  # four standard errors, 1 / sqrt(200) each


@pytest.mark.parametrize("flaw, told", [
    ("damaged", r"transform 0 \(Decode\)"), ("unreadable", "read: OSError: disc failure"),
    ("misshapen", "'extra' is float32 \\[\\], expected missing")])
def test_a_bad_record_keeps_its_row_and_its_neighbours(flaw, told):
  transforms = toys.AUGMENT + (drop_texts,)
  good, bad = toys.pictures(transforms), toys.pictures(transforms, **{flaw: (7, 8)})
  for row in range(50):
    index = order.record_id(row, 50)
    record = bad.record(row)
    if index in (7, 8):
      assert not record["valid"] and {k: (v.shape, v.dtype) for k, v in record.items()
                                      if k in good.spec} == good.spec
      assert all(not np.any(record[key]) for key in good.spec)
      assert f"pictures record {index}" in str(record["error"])
      assert re.search(told, str(record["error"]))
    else:
      assert same(record, good.record(row)) and record["valid"] and not record["error"]


def drop_texts(record, rng):
  return {key: value for key, value in record.items() if key not in ("caption",)}


def test_the_spec_comes_from_the_first_good_record():
  start = [order.record_id(row, 50) for row in range(3)]
  spec = toys.pictures(damaged=start).spec
  assert spec == toys.pictures().spec
  assert spec["image"] == ((8, 8, 3), np.float32) and spec["id"] == ((), np.int32)


def test_a_stream_without_a_readable_record_says_why():
  with pytest.raises(stream.DataError, match="none of the first 16 rows, nor of .* spread over the others, can be read.*no 'picture'"):
    toys.pictures((T.Decode(key="picture"),)).spec
  with pytest.raises(stream.DataError, match="'caption' is not numeric.*Keep"):
    toys.pictures((T.Decode(),)).spec
  with pytest.raises(stream.DataError, match="no records"):
    toys.pictures(length=0)


@pytest.mark.parametrize("value, dtype", [
    (2, np.int32), (2.5, np.float32), (np.arange(3), np.int32), (True, bool),
    (np.float64(1), np.float32), (np.uint8(3), np.uint8)])
def test_numbers_get_a_dtype_that_devices_hold(value, dtype):
  toy = stream.Stream(toys.Pictures(), (lambda record, rng: {"x": value},))
  assert toy.record(0)["x"].dtype == dtype and toy.spec["x"].dtype == dtype


@pytest.mark.parametrize("value, told", [(2**40, "beyond 32 bits"), ("text", "not numeric"),
                                         ({"a": 1}, "not numeric"), (None, "not numeric")])
def test_what_a_device_cannot_hold_is_refused(value, told):
  toy = stream.Stream(toys.Pictures(), (lambda record, rng: {"x": value},))
  with pytest.raises(stream.DataError, match=told):
    toy.spec


@pytest.mark.parametrize("key", stream.RESERVED)
def test_the_loaders_own_keys_are_reserved(key):
  toy = stream.Stream(toys.Pictures(), (lambda record, rng: {key: 1},))
  with pytest.raises(stream.DataError, match="rename"):
    toy.spec


def test_a_mixture_reads_its_components_rows():
  streams = (toys.pictures(seed=1), toys.pictures(seed=2, length=10))
  mixed = mixture.Mixture(streams, (2, 1))
  for row in range(30):
    j, own_row = mixed.place(row)
    assert same(mixed.record(row), streams[j].record(own_row))
  ids = [int(mixed.record(row)["id"]) for row in range(30) if mixed.place(row)[0] == 1]
  assert sorted(ids) == list(range(10))  # a third of 30 rows: just one epoch of the smaller


def test_a_mixture_of_unlike_records_is_refused():
  streams = (toys.pictures(), toys.pictures((T.Keep(("id",)),)))
  with pytest.raises(ValueError, match="component 1"):
    mixture.Mixture(streams, (1, 1)).spec


def test_unshuffled_rows_are_the_stored_order():
  toy = dataclasses.replace(toys.pictures(), shuffle=False)
  assert [int(toy.record(row)["id"]) for row in (0, 1, 49, 50)] == [0, 1, 49, 0]


def encoded(count):
  return [{"image": np.full((9, 7, 3), 20 * i, np.uint8), "caption": f"the {i}th"} for i in range(count)]


class Source(list):
  digest = "source"


NORMALISE = T.Normalise("imagenet")


@pytest.mark.parametrize("behind, late", [
    ((T.Keep(("image",)),), (1,)),
    ((T.SampleCaption("first"), T.Rename({"caption": "text"}), T.Keep(("image",))), (1,)),
    ((T.Rename({"image": "picture"}), T.Keep(("picture",))), ()),   # of another name then
    ((T.CentreCrop(3), T.Keep(("image",))), ()),                      # reads what it makes
    ((lambda record, rng: {"image": record["image"] * 2},), ()),                       # nobody knows
])
def test_what_is_written_into_a_batch_is_the_record(behind, late):
  records = Source(encoded(4))
  records[2] = {"image": np.zeros((0, 7, 3), np.uint8), "caption": "nothing to be seen"}
  one = stream.Stream(records, (T.Resize(5), NORMALISE, *behind), shuffle=False)
  assert one.late == late
  for row in range(4):
    want = one.record(row)
    places = {key: np.full_like(value, 9) for key, value in want.items() if key != "error"}
    given = dict(places)
    error = one.write(row, places)
    assert error == want["error"].item() and bool(error) == (row == 2)
    for key, place in places.items():
      assert place is given[key]
      np.testing.assert_array_equal(place, want[key])


def test_normalise_writes_into_a_place_that_fits_and_into_no_other():
  image = np.arange(90, dtype=np.uint8).reshape(6, 5, 3)
  want = NORMALISE({"image": image}, None)["image"]
  for shape, dtype, fits in (((6, 5, 3), np.float32, True), ((5, 6, 3), np.float32, False), ((6, 5, 3), np.float16, False)):
    place = np.zeros(shape, dtype)
    for given in image, np.asfortranarray(image):
      got = NORMALISE.into({"image": given}, {"image": place})["image"]
      assert (got is place) == fits
      np.testing.assert_array_equal(got, want)
  assert NORMALISE.into({"label": 1}, {}) == {"label": 1}  # the image has not been kept
