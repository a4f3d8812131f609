"""Memory is used again, and never while something refers to it."""

import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmjax.data import batch_memory

LAYOUT = batch_memory.Layout.of({"image": ((4, 5, 3), np.dtype(np.float32)), "valid": ((4,), np.dtype(bool)),
                                 "text": ((4, 7), np.dtype(np.int32))})


def address(array):
  return array.__array_interface__["data"][0]


def test_arrays_are_aligned_apart_and_of_their_shape():
  arrays, handed = batch_memory.Pool().take(LAYOUT)
  assert handed is arrays
  for number, (key, array) in enumerate(arrays.items()):
    assert address(array) % 64 == 0 and array.shape == LAYOUT.places[key][1]
    array[...] = number % 2
  for number, array in enumerate(arrays.values()):
    assert (array == number % 2).all()


def test_pool_gives_memory_again_when_no_view_is_left():
  pool = batch_memory.Pool()
  arrays = pool.take(LAYOUT)[0]
  first, row = address(arrays["image"]), arrays["image"][2, 1:]
  del arrays
  others = [pool.take(LAYOUT)[0] for _ in range(3)]  # a view of the first is left
  assert first not in [address(one["image"]) for one in others]
  del row
  assert address(pool.take(LAYOUT)[0]["image"]) == first


def test_pool_waits_for_what_a_device_holds():
  pool = batch_memory.Pool()
  arrays = pool.take(LAYOUT)[0]
  arrays["image"][:] = 7
  held = jax.device_put(arrays["image"], jax.devices("cpu")[0])
  del arrays
  others = [pool.take(LAYOUT)[0] for _ in range(3)]
  for other in others:
    other["image"][:] = 1
  assert (np.asarray(held) == 7).all()


needs_memfd = pytest.mark.skipif(not batch_memory.CAN_SHARE, reason="the platform has no os.memfd_create (Linux)")


@needs_memfd
def test_segment_is_free_when_the_other_side_has_let_go():
  worker, reader = batch_memory.Segments(), batch_memory.Segments()
  arrays, handed = worker.take(LAYOUT)
  arrays["text"][:] = 5
  seen = reader.open(pickle.loads(pickle.dumps(handed)))
  assert (seen["text"] == 5).all()
  _, other = worker.take(LAYOUT)
  assert other.file != handed.file  # the first is in use
  view = seen["text"][1]
  del seen
  assert worker.take(LAYOUT)[1].file not in (handed.file, other.file)
  del view
  assert worker.take(LAYOUT)[1].file == handed.file


@needs_memfd
def test_segment_of_another_process_is_seen_and_outlives_it():
  code = ("import pickle, sys; from tests.data.test_batch_memory import *\n"
          "arrays, handed = batch_memory.Segments().take(LAYOUT); arrays['image'][:] = 3\n"
          "sys.stdout.buffer.write(pickle.dumps(handed)); sys.stdout.flush(); sys.stdin.read()")
  with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    seen = batch_memory.Segments().open(pickle.load(process.stdout))
    process.kill()
  assert (seen["image"] == 3).all()
