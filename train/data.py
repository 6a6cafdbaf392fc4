"""Data: TFDS data sets held in memory, and preprocessing that runs inside jit."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jax.typing import ArrayLike

from train import datasets

_NAME = re.compile(r'(?P<root>\w+)(/[^/:=]+)?(:[\d.*]+)?')


class DatasetError(ValueError):
    """A data set that is unknown, not prepared, or not of images and class labels."""


class Split(NamedTuple):
    """Examples in memory: images (N, H, W, C), uint8 or float32, and labels (N,), int32."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """The three parts of a data set and its number of classes."""

    train: Split
    validation: Split
    test: Split
    num_classes: int


def load(name: str, *, directory: str | None, validation_examples: int, seed: int) -> Dataset:
    """Loads a data set of labelled images into memory, without TensorFlow and without a network.

    Nothing is ever downloaded. The builders of `train.datasets` need no download and are prepared
    on first use; any other must have been prepared, in a format of random access.

    Args:
      name: TFDS name: `name`, `name/config`, either with `:version`.
      directory: where TFDS keeps prepared data; `None` is `TFDS_DATA_DIR` or else
        `~/tensorflow_datasets`.
      validation_examples: how many examples of the TFDS split 'train' are held out of training;
        at least 1 and fewer than there are.
      seed: of the permutation that picks them, in [0, 2**32).

    Returns:
      The data set. Training and validation examples keep the order of 'train' and are together
      exactly its examples; the test part is the TFDS split 'test'.

    Raises:
      DatasetError: the name is unknown; the data are not prepared, with the command that does it;
        or they are not fixed-size images with visible class labels and splits 'train' and 'test'.
      ValueError: `validation_examples` or `seed` is out of range.
    """
    builder = _open(name, directory)
    keys = _image_and_label(name, builder.info)
    if isinstance(builder, datasets.OFFLINE):
        builder = _prepare(name, builder, directory)
    train, test = (_read(name, source, keys) for source in _sources(name, builder))
    train, validation = hold_out(train, validation_examples, seed=seed)
    return Dataset(train, validation, test, builder.info.features[keys[1]].num_classes)


def hold_out(split: Split, examples: int, *, seed: int) -> tuple[Split, Split]:
    """Divides a split in two by a permutation, both parts in their original order.

    Args:
      split: N examples.
      examples: how many go to the second part, in [1, N).
      seed: of `np.random.RandomState`, whose stream NumPy has frozen; in [0, 2**32).

    Returns:
      The N - `examples` that stay and the `examples` held out.

    Raises:
      ValueError: `examples` is not in [1, N).
    """
    n = len(split.labels)
    if not 1 <= examples < n:
        raise ValueError(
            f'validation_examples={examples} must be at least 1 and below {n}, '
            'the number of training examples they are held out of'
        )
    held = np.zeros(n, bool)
    held[np.random.RandomState(seed).permutation(n)[:examples]] = True
    return Split(*(x[~held] for x in split)), Split(*(x[held] for x in split))


def channel_moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measures mean and standard deviation of each channel: what `standardize` wants.

    Args:
      images: (N, H, W, C), the training part.

    Returns:
      Mean and standard deviation, each (C,) and float32, accumulated in float64.

    Raises:
      ValueError: a channel is constant, so that it cannot be standardised.
    """
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
    std = images.std(axis=(0, 1, 2), dtype=np.float64)
    if not std.all():
        raise ValueError(f'channel {int(np.argmin(std))} is constant: it has no standard deviation')
    return mean.astype(np.float32), std.astype(np.float32)


def standardize(images: jax.Array, *, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Standardises images by given moments: (x - mean) / std.

    Args:
      images: (N, H, W, C), any real dtype.
      mean: scalar, or one value a channel, (C,).
      std: like `mean`, positive.

    Returns:
      float32, the shape of `images`.
    """
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
    return (images.astype(jnp.float32) - mean) / std


def standardize_each(images: jax.Array) -> jax.Array:
    """Standardises each image by itself: (x - mean) / max(std, 1 / sqrt(n)), n values an image.

    The floor leaves a constant image at 0 instead of dividing it by 0.

    Args:
      images: (N, H, W, C), any real dtype.

    Returns:
      float32, the shape of `images`.

    Source: `tf.image.per_image_standardization`.
    """
    x_NxHxWxC = images.astype(jnp.float32)
    mean = x_NxHxWxC.mean(axis=(1, 2, 3), keepdims=True)
    std = x_NxHxWxC.std(axis=(1, 2, 3), keepdims=True)
    return (x_NxHxWxC - mean) / jnp.maximum(std, images[0].size ** -0.5)


def crop_and_flip(key: jax.Array, images: jax.Array, *, padding: int = 4) -> jax.Array:
    """Pads each image with zeros, crops it back at random, and mirrors it every other time.

    Args:
      key: one key for the batch; the choices are independent between images.
      images: (N, H, W, C), any dtype.
      padding: pixels of zeros at each side; each crop starts at one of 2 * padding + 1 rows and
        as many columns, uniformly.

    Returns:
      The shape and dtype of `images`.

    Source: He et al. 2015, arXiv:1512.03385, sec. 4.2.
    """
    n = len(images)
    crop_key, flip_key = jax.random.split(key)
    corners_Nx2 = jax.random.randint(crop_key, (n, 2), 0, 2 * padding + 1)
    flips_N = jax.random.bernoulli(flip_key, shape=(n,))
    return _crop_and_flip(images, corners_Nx2, flips_N, padding)


def _crop_and_flip(
    images: jax.Array, corners_Nx2: jax.Array, flips_N: jax.Array, padding: int
) -> jax.Array:
    """Takes the window at each corner of the padded images, mirrored where `flips_N`."""

    def one(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], jnp.zeros_like(corner[0]))
        window = jax.lax.dynamic_slice(image, start, images.shape[1:])
        return jnp.where(flip, window[:, ::-1], window)

    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return jax.vmap(one)(padded, corners_Nx2, flips_N)


def _open(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
    """Finds the builder: by its code, or by its prepared files."""
    if not (parts := _NAME.fullmatch(name)):
        raise DatasetError(f'{name!r} is no TFDS name: write name, name/config or name:version')
    try:
        return tfds.builder(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError:
        # The community catalogue is left out because TFDS looks for it on the network.
        names = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(parts['root'].lower(), names, n=5)
        close_names = ', '.join(close) or 'none; tfds.list_builders() lists all'
        raise DatasetError(f'no dataset is named {name!r}; close names: {close_names}') from None
    except (AssertionError, ImportError, ValueError) as error:
        raise DatasetError(f'{name!r} cannot be opened: {error}') from error


def _image_and_label(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Names the two features that are the image and its class."""
    features, keys = info.features, info.supervised_keys
    match keys:
        case (str(image), str(label)) if image in features and label in features:
            shape = features[image].shape
            is_image = features[image].np_dtype in (np.uint8, np.float32)
            is_image = is_image and len(shape) == 3 and None not in shape
            if is_image and isinstance(features[label], tfds.features.ClassLabel):
                return image, label
    raise DatasetError(
        f'{name!r} needs supervised_keys that name an image of fixed (H, W, C), uint8 or float32, '
        f'and a class label; it has supervised_keys={keys} and the features {features}'
    )


def _prepare(
    name: str, builder: tfds.core.DatasetBuilder, directory: str | None
) -> tfds.core.DatasetBuilder:
    """Prepares what needs no download; a killed run leaves only a directory nobody reads."""
    tfds.disable_progress_bar()
    try:
        builder.download_and_prepare(file_format='array_record')
    except OSError:
        if not builder.data_path.exists():
            raise
        # Another process finished first; its files are the same.
    return _open(name, directory)


def _sources(name: str, builder: tfds.core.DatasetBuilder) -> list[Sequence[Any]]:
    """Opens 'train' and 'test'; reading is tried first, so that mocked data need no files."""
    try:
        return builder.as_data_source(split=['train', 'test'])
    except (KeyError, NotImplementedError, ValueError) as error:
        splits = list(builder.info.splits)
        if not splits:
            message = f'is not prepared in {builder.data_dir}'
            message = f'{message}: {_how_to_prepare(builder, str(builder.data_dir_root))}'
        elif not {'train', 'test'} <= set(splits):
            message = f"needs the splits 'train' and 'test'; it has {splits}"
        else:
            message = f'is prepared in {builder.data_dir} in a format without random access'
            message = f'{message}; use another directory: {_how_to_prepare(builder, "DIRECTORY")}'
        raise DatasetError(f'{name!r} {message}') from error


def _how_to_prepare(builder: tfds.core.DatasetBuilder, directory: str) -> str:
    """Writes the command; `tfds build` would ask for Apache Beam as well."""
    variant = '/'.join(filter(None, (builder.name, builder.builder_config_name)))
    prepare = f'tfds.builder({variant!r}, data_dir={directory!r})'
    prepare = f"{prepare}.download_and_prepare(file_format='array_record')"
    return (
        'nothing is downloaded here. Where there is a network, run\n'
        '  pip install tensorflow tensorflow-datasets importlib-resources\n'
        f'  python -c "import tensorflow_datasets as tfds; {prepare}"'
    )


def _read(name: str, source: Sequence[Any], keys: tuple[str, str]) -> Split:
    """Decodes every example of a data source."""
    image, label = keys
    examples = list(source)
    labels = np.array([example[label] for example in examples], np.int32)
    if (labels < 0).any():
        raise DatasetError(f'{name!r} hides labels: some are negative')
    return Split(np.stack([example[image] for example in examples]), labels)
