"""Images too many for memory: read at random, decoded, cropped and batched by Grain.

Batches are uint8 NumPy arrays; normalising them is left to the device.
"""

import dataclasses
import functools
import io
import math
import signal
from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeAlias

import grain
import numpy as np
from absl import flags
from PIL import Image

from train import data

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Of the red, green and blue of ImageNet's pixels in [0, 255], as the paper has them."""
IMAGENET_STD = (58.395, 57.12, 57.375)

Batch: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Images (B, S, S, 3), uint8, and labels (B,), int32; label -1 marks padding."""

_Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

_EPOCHS = 2**31  # more than anyone has time for; Grain cannot slice what has no end
_CHUNK = 16  # examples that travel together from where they are decoded
_AREAS = (0.08, 1.0)  # of random crops, as shares of the image
_LOG_ASPECTS = (math.log(3 / 4), math.log(4 / 3))
_ATTEMPTS = 10
_CENTRE = 224 / 256  # side of the crop in evaluation, of the shorter side


class Source(Protocol):
    """Examples by index, each a mapping with an image, encoded or (H, W, 3) uint8, and a label."""

    def __len__(self) -> int:
        """Counts the examples."""

    def __getitem__(self, i: int, /) -> Any:
        """Reads an example."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Some examples of a source, in the order of `indices`."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        """Counts the examples."""
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        """Reads an example of the source."""
        return self.source[int(self.indices[i])]


def hold_out(source: Source, examples: int, *, seed: int) -> tuple[Part, Part]:
    """Divides a source in two by the permutation of `train.data.hold_out`, which reads all of it.

    Args:
      source: N examples.
      examples: how many go to the second part, in [1, N).
      seed: of the permutation, in [0, 2**32).

    Returns:
      The N - `examples` that stay and the `examples` held out, both in their original order.

    Raises:
      ValueError: `examples` is not in [1, N).
    """
    n = len(source)
    if not 1 <= examples < n:
        raise ValueError(f'{examples} examples held out must be at least 1 and below {n}, all')
    held = data.chosen(n, examples, seed)
    return Part(source, np.flatnonzero(~held)), Part(source, np.flatnonzero(held))


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    image_size: int,
    shard_index: int = 0,
    shard_count: int = 1,
    workers: int = 0,
    keys: tuple[str, str] = ('image', 'label'),
) -> Generator[Batch]:
    """Makes batches without end, shuffled anew each epoch, of random crops, every other mirrored.

    Batch k is a function of the source, `seed` and k alone: neither where the iteration starts nor
    how many workers or shards there are changes it. An epoch is N // batch_size batches; the
    examples left over differ from epoch to epoch.

    Args:
      source: N examples.
      batch_size: examples of a batch over all shards, at most N.
      seed: of order and crops, at least 0; neighbouring seeds are as different as others.
      start_step: number of the first batch, from 0, to resume where a run was stopped.
      image_size: side S of the images, in pixels.
      shard_index: which share of each batch this process makes: rows i, i + count, ... of it.
      shard_count: number of such processes, which divides `batch_size`.
      workers: processes that decode; 0 decodes in threads of this process, and one a core is fast.
        They are started by spawning, so a script that uses them needs a main guard. Close the
        iterator, or drop it, to end them.
      keys: names of the image and the label in an example.

    Returns:
      A generator of `batch_size / shard_count` images and labels.

    Raises:
      ValueError: an argument is out of its range; while iterating, an image that is not RGB.
    Source: Szegedy et al. 2014, arXiv:1409.4842, section 6 (areas of 8 to 100 %, aspects of 3/4 to
      4/3), resized by bicubic interpolation as in the code of Renda, Frankle & Carbin 2020,
      arXiv:2003.02389.
    """
    rows = _rows(batch_size, shard_index, shard_count)
    _check_at_least(workers=(workers, 0), image_size=(image_size, 1))
    _check_at_least(seed=(seed, 0), start_step=(start_step, 0))
    if batch_size > len(source):
        raise ValueError(f'batch_size={batch_size} exceeds the {len(source)} examples there are')
    # Grain shuffles epoch e by seed + e, so that plain seeds 0 and 1 would share their orders.
    order, crops = (int(x) for x in np.random.SeedSequence(seed).generate_state(2))
    crop = functools.partial(_train_example, size=image_size, keys=keys)
    examples = grain.MapDataset.source(source).shuffle(seed=order).random_map(crop, seed=crops)
    whole = len(source) // batch_size * batch_size
    examples = examples[:whole][shard_index::shard_count].repeat(_EPOCHS)
    return _iterate(examples, rows, start_step, workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    shard_index: int = 0,
    shard_count: int = 1,
    workers: int = 0,
    keys: tuple[str, str] = ('image', 'label'),
) -> Generator[Batch]:
    """Makes batches of all examples once and in order, each cropped to its centre.

    Args:
      source: N examples, at least 1.
      batch_size: examples of a batch over all shards.
      image_size: side S of the images, in pixels.
      shard_index: which share of each batch this process makes.
      shard_count: number of such processes, which divides `batch_size`.
      workers: processes that decode, as in `train_batches`.
      keys: names of the image and the label in an example.

    Returns:
      A generator of images and labels; the last batch is filled up with black images of label -1.
      Of an image, the centre of 224 / 256 of the
      shorter side is resized, in one step.

    Raises:
      ValueError: an argument is out of its range; while iterating, an image that is not RGB.
    """
    rows = _rows(batch_size, shard_index, shard_count)
    _check_at_least(workers=(workers, 0), image_size=(image_size, 1))
    if not len(source):
        raise ValueError('there are no examples to evaluate')
    total = math.ceil(len(source) / batch_size) * batch_size
    read = functools.partial(_eval_example, source=source, size=image_size, keys=keys)
    examples = grain.MapDataset.range(total)[shard_index::shard_count].map(read)
    return _iterate(examples, rows, 0, workers)


def _rows(batch_size: int, index: int, count: int) -> int:
    """Checks the shard and counts the rows of a batch that it makes."""
    if batch_size < 1 or count < 1 or batch_size % count:
        raise ValueError(
            f'batch_size={batch_size} must be at least 1 and a multiple of shard_count={count}'
        )
    if not 0 <= index < count:
        raise ValueError(f'shard_index={index} must be in [0, shard_count={count})')
    return batch_size // count


def _check_at_least(**bounds: tuple[int, int]) -> None:
    for name, (value, least) in bounds.items():
        if value < least:
            raise ValueError(f'{name}={value} must be at least {least}')


def _iterate(examples: Any, rows: int, start: int, workers: int) -> Generator[Any]:
    """Reads ahead in threads or processes; chunks keep their order, whoever makes them."""
    chunk = math.gcd(rows, _CHUNK)
    chunks = examples.batch(chunk)[start * (rows // chunk) :]
    threads = 1 if workers else 4
    ahead = chunks.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's processes read flags that need no command line
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4),
            worker_init_fn=_leave_interrupts_alone,
        )
    return _closing(ahead.batch(rows // chunk, batch_fn=_join))


def _leave_interrupts_alone(index: int, count: int) -> None:
    """Lets Ctrl-C, which a terminal sends to workers too, stop the process that trains alone."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _closing(batches: Any) -> Generator[Any]:
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()


def _join(chunks: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*chunks, strict=True))


def _train_example(
    example: Any, rng: np.random.Generator, *, size: int, keys: tuple[str, str]
) -> tuple[np.ndarray, np.int32]:
    image = _open(example[keys[0]])
    image = _resized(image, _random_box(rng, *image.size), size)
    if rng.integers(2):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image), np.int32(example[keys[1]])


def _eval_example(
    i: int, *, source: Source, size: int, keys: tuple[str, str]
) -> tuple[np.ndarray, np.int32]:
    if i >= len(source):
        return np.zeros((size, size, 3), np.uint8), np.int32(-1)
    example = source[i]
    image = _open(example[keys[0]])
    image = _resized(image, _centre_box(*image.size), size)
    return np.asarray(image), np.int32(example[keys[1]])


def _open(image: bytes | np.ndarray) -> Image.Image:
    """Opens an image without decoding it, where it is encoded."""
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f'an image is {image.dtype} of shape {image.shape}, expected uint8 (H, W, 3)'
        )
    return Image.fromarray(image)


def _random_box(rng: np.random.Generator, width: int, height: int) -> _Box:
    """Draws a crop by its area and the logarithm of its aspect; the centre if none fits in ten."""
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*_AREAS) * width * height
        aspect = math.exp(rng.uniform(*_LOG_ASPECTS))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= w <= width and 1 <= h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return float(left), float(top), float(left + w), float(top + h)
    return _centre_box(width, height)


def _centre_box(width: int, height: int) -> _Box:
    side = _CENTRE * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _resized(image: Image.Image, box: _Box, size: int) -> Image.Image:
    """Resizes what is in a box; a JPEG much larger is decoded at a half, a quarter or an eighth."""
    width, height = image.size
    left, top, right, bottom = box
    image.draft(
        'RGB', (math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top)))
    )
    x, y = image.size[0] / width, image.size[1] / height
    box = left * x, top * y, min(right * x, image.size[0]), min(bottom * y, image.size[1])
    rgb = image.convert('RGB')
    return rgb.resize((size, size), Image.Resampling.BICUBIC, box=box)
