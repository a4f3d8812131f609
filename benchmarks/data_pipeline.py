"""Records a second of the input pipeline: JPEGs of 256 x 256 to normalised batches of 224 x 224.

  python -m benchmarks.data_pipeline
  python -m benchmarks.data_pipeline --only=mmjax,mmjax_linear --rounds=5 --workers=8

Each row reads the same pictures of about 20 KB, in a shuffled order, cuts them to 224 (a random part of
the picture, mirrored half of the time), normalises, and makes batches of 128. The rows take turns; of
each the best turn counts, in records a second by the clock. Worker processes are as many as there are
cores, but for the rows that say threads, and tf.data, which has threads of its own; it and webdataset are
rows where they are installed.

Then: how far mmjax's antialiased pictures are from Pillow's, the time to the first batch, to that of
step 1,000,000, and the memory that worker processes take.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import pathlib
import tarfile
import tempfile
import threading
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from array_record.python import array_record_module
import jax
import numpy as np
from PIL import Image

from mmjax.data import loader, stream
from mmjax.data import transforms as T
from mmjax.data.sources import examples

SIDE, SIZE, BATCH = 256, 224, 128
MEAN, STD = np.float32(0.5), np.float32(0.5)


def picture(seed):
  """A JPEG of smooth shapes with some noise, about 20 KB."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8))
  smooth = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float32)
  pixels = (smooth + rng.normal(0, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=85)
  return file.getvalue()


def write(folder, count):
  """The pictures as ArrayRecord, as a tar and one by one; bytes of one on average."""
  files = [picture(i) for i in range(count)]
  writer = array_record_module.ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1,uncompressed")
  for data in files:
    writer.write(examples.encode({"image": data}))
  writer.close()
  with tarfile.open(folder / "a.tar", "w") as archive:
    for i, data in enumerate(files):
      info = tarfile.TarInfo(f"{i:06}.jpg")
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return sum(map(len, files)) / count


def mmjax_stream(folder, filter_name):
  steps = (T.Decode(), T.RandomResizedCrop(SIZE, scale=(0.6, 1.0), filter=filter_name), T.Flip(),
           T.Normalise("half"), T.Keep(("image",)))
  return stream.Stream(examples.build(str(folder / "a.array_record")), steps)


@contextlib.contextmanager
def mmjax(folder, workers, filter_name="bilinear"):
  """Batches on the devices, as training gets them."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with loader.train_batches(mmjax_stream(folder, filter_name), BATCH, sharding, workers=workers) as batches:
    yield (batch["image"] for _, batch in batches)


def mmjax_linear(folder, workers):
  return mmjax(folder, workers, "linear")


def mmjax_threads(folder, workers):
  return mmjax(folder, 0)


def augmented(image, rng):
  """A random part of a Pillow image at the size asked for, mirrored half of the time, normalised."""
  side = round(SIDE * rng.uniform(0.6, 1.0) ** 0.5)
  left, top = rng.integers(SIDE - side + 1, size=2)
  image = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
  if rng.random() < 0.5:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return (np.asarray(image, np.float32) / 255 - MEAN) / STD


def load(record, rng):
  return augmented(Image.open(io.BytesIO(record["image"])).convert("RGB"), rng)


@contextlib.contextmanager
def grain_pil(folder, workers):
  """Grain with Pillow, as one would write it first."""
  import grain
  records = examples.build(str(folder / "a.array_record"))
  data = grain.MapDataset.source(records).shuffle(0).repeat().seed(0).random_map(load).batch(BATCH)
  threads = 1 if workers else 4
  batches = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
  if workers:
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  batches = iter(batches)
  yield batches
  batches.close()


def grain_pil_threads(folder, workers):
  return grain_pil(folder, 0)


@contextlib.contextmanager
def tf_data(folder, workers):
  """tf.data with its own decoder and no antialiasing; it reads the tar's files as they lie in memory."""
  import tensorflow as tf
  with tarfile.open(folder / "a.tar") as archive:
    files = [archive.extractfile(member).read() for member in archive]

  def load(data):
    image = tf.io.decode_jpeg(data, 3)
    side = tf.cast(SIDE * tf.sqrt(tf.random.uniform([], 0.6, 1.0)), tf.int32)
    image = tf.image.random_crop(image, (side, side, 3))
    image = tf.image.random_flip_left_right(tf.image.resize(image, (SIZE, SIZE)))
    return (image / 255 - MEAN) / STD
  data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
  data = data.map(load, tf.data.AUTOTUNE, deterministic=False).batch(BATCH).prefetch(2)
  yield data.as_numpy_iterator()


@contextlib.contextmanager
def webdataset(folder, workers):
  """webdataset with Pillow and torch's workers, in the order of its shuffle buffer."""
  import torch
  import webdataset as wds
  rng = np.random.default_rng(0)
  data = wds.WebDataset(str(folder / "a.tar"), shardshuffle=False, nodesplitter=None, workersplitter=None)
  data = data.repeat().shuffle(1000).decode("pil").to_tuple("jpg")
  data = data.map_tuple(lambda image: augmented(image, rng)).batched(BATCH)
  yield (batch[0] for batch in torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers))


ROWS = {"mmjax": (mmjax, "antialiased"), "mmjax_linear": (mmjax_linear, "filter=linear, not antialiased"),
        "mmjax_threads": (mmjax_threads, "antialiased, 4 threads"),
        "grain_pil": (grain_pil, "plain Grain with Pillow"),
        "grain_pil_threads": (grain_pil_threads, "the same, 4 threads"),
        "tf_data": (tf_data, "tf.data, not antialiased"), "webdataset": (webdataset, "webdataset with Pillow")}
NEEDS = {"tf_data": ("tensorflow",), "webdataset": ("webdataset", "torch")}


def turn(make, folder, workers, seconds):
  """Records a second of one turn, after the first batches: those that were read in advance."""
  with make(folder, workers) as batches:
    for _ in range(2 + 2 * workers):
      next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
      count += len(next(batches))
    return count / (time.perf_counter() - began)


def difference():
  """Largest and mean difference of a picture made smaller here and by Pillow, in levels of 255."""
  found = []
  for seed in range(20):
    image = T.Decode()({"image": picture(seed)}, None)["image"]
    ours = T.Resize(SIZE)({"image": image}, None)["image"]
    theirs = np.asarray(Image.open(io.BytesIO(picture(seed))).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    found.append(np.abs(ours.astype(int) - theirs))
  return np.max(found), np.mean(found)


def seconds_to_first(folder, step, workers=0):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  began = time.perf_counter()
  with loader.train_batches(mmjax_stream(folder, "bilinear"), BATCH, sharding, start_step=step,
                            workers=workers) as batches:
    next(batches)
    return time.perf_counter() - began


def worker_memory(folder):
  """Largest proportional memory (PSS) of a worker process while two read, in MiB."""
  sharding, found = jax.sharding.SingleDeviceSharding(jax.devices()[0]), [0.0]
  over = threading.Event()

  def watch():
    while not over.wait(0.2):
      for child in pathlib.Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in child.read_text().split():
          with contextlib.suppress(OSError):
            lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found.append(sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024)
  thread = threading.Thread(target=watch)
  thread.start()
  with loader.train_batches(mmjax_stream(folder, "bilinear"), BATCH, sharding, workers=2) as batches:
    for _ in range(20):
      next(batches)
  over.set()
  thread.join()
  return max(found)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
  parser.add_argument("--rounds", type=int, default=3, help="turns of each row")
  parser.add_argument("--count", type=int, default=2000, help="pictures")
  parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="worker processes")
  parser.add_argument("--only", default=",".join(ROWS), help="rows, by commas")
  args = parser.parse_args()
  rows = [name for name in args.only.split(",") if all(
      importlib.util.find_spec(needed) for needed in NEEDS.get(name, ()))]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    size = write(folder, args.count)
    print(f"{args.count} JPEGs of {SIDE} x {SIDE}, {size / 1000:.1f} kB on average; {len(os.sched_getaffinity(0))} "
          f"cores, {args.workers} worker processes; best of {args.rounds} turns of {args.seconds:g} s")
    best = dict.fromkeys(rows, 0.0)
    for _ in range(args.rounds):
      for row in rows:
        best[row] = max(best[row], turn(ROWS[row][0], folder, args.workers, args.seconds))
    print(f"{'':18}{'records/s':>10}")
    for row, speed in best.items():
      print(f"{row:18}{speed:>10,.0f}  {ROWS[row][1]}")
    print("difference from Pillow: {} of 255 at most, {:.3f} on average".format(*difference()))
    print(f"seconds to the first batch of {BATCH}: {seconds_to_first(folder, 0):.2f}, to that of step 1,000,000: "
          f"{seconds_to_first(folder, 1_000_000):.2f}, with a worker process {seconds_to_first(folder, 0, 1):.2f}")
    print(f"memory of a worker process: {worker_memory(folder):.0f} MiB")


if __name__ == "__main__":
  main()
