"""Data: TFDS data sets held in memory, and preprocessing that runs inside jit."""

import difflib
import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jax.typing import ArrayLike

from train import datasets

_INPUTS = (np.uint8, np.int32, np.float32)
_NAME = re.compile(r'(?P<root>\w+)(/[^/:=]+)?(:[\d.*]+)?')


class DatasetError(ValueError):
    """A data set that is unknown, not prepared, or not of fixed-shape inputs and classes."""


class Split(NamedTuple):
    """Examples in memory.

    Inputs (N, ...) are uint8, int32 or float32: images (N, H, W, C), signals (N, L, C), tokens
    (N, L). Labels are int32: (N,), or (N, L) where each position of a sequence has a class.
    """

    inputs: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """The three parts of a data set and its number of classes: for text, the vocabulary."""

    train: Split
    validation: Split
    test: Split
    num_classes: int


def load(
    name: str,
    *,
    directory: str | None,
    validation_examples: int,
    seed: int,
    test_split: str = 'test',
) -> Dataset:
    """Loads a data set of labelled examples into memory, without TensorFlow and without a network.

    Nothing is ever downloaded. The builders of `train.datasets` need no download and are prepared
    on first use; any other must have been prepared, in a format of random access.

    The supervised keys must name an input of fixed shape, uint8, int32 or float32, and its target:
    a class label, or a class a position for inputs (L, ...), as a sequence of L class labels or as
    a tensor (L,) of uint8 or int32 with the metadata `num_classes`.

    Args:
      name: TFDS name: `name`, `name/config`, either with `:version`.
      directory: where TFDS keeps prepared data; `None` is `TFDS_DATA_DIR` or else
        `~/tensorflow_datasets`.
      validation_examples: how many examples the validation part has, at least 1. They are picked
        from the TFDS split 'validation' where there is one, at most all of it; the others there
        are not used. Else they are held out of 'train', which has to have more.
      seed: of the permutation that picks them, in [0, 2**32).
      test_split: the TFDS split that is the test part: 'validation' where the labels of 'test'
        are not published. The validation part is then held out of 'train'.

    Returns:
      The data set. Training and validation examples keep their order; without a TFDS split
      'validation' they are together exactly the examples of 'train', with one the training part is
      all of 'train'.

    Raises:
      DatasetError: the name is unknown; the data are not prepared, with the command that does it;
        or they are not such inputs with visible targets, in splits 'train' and `test_split`.
      ValueError: `validation_examples` or `seed` is out of range.
    """
    builder = open_builder(name, directory)
    keys, num_classes = _input_and_label(name, builder.info)
    if isinstance(builder, datasets.OFFLINE):
        builder = _prepare(name, builder, directory)
    parts = {
        part: _read(name, source, keys, num_classes)
        for part, source in sources(name, builder, test_split).items()
    }
    if 'validation' in parts:
        validation = _pick(parts['validation'], validation_examples, seed=seed)
        return Dataset(parts['train'], validation, parts['test'], num_classes)
    train, validation = hold_out(parts['train'], validation_examples, seed=seed)
    return Dataset(train, validation, parts['test'], num_classes)


def open_builder(name: str, directory: str | None) -> tfds.core.DatasetBuilder:
    """Finds a builder by its code, or by its prepared files.

    Raises:
      DatasetError: the name is unknown, with close ones.
    """
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


def sources(
    name: str, builder: tfds.core.DatasetBuilder, test_split: str, **options: Any
) -> dict[str, Sequence[Any]]:
    """Opens the splits of prepared data, which are read when they are indexed.

    Args:
      name: for messages.
      builder: what `open_builder` found.
      test_split: the TFDS split that is the test part, not 'train'.
      **options: of `as_data_source`.

    Returns:
      Examples by index: of 'train', 'test', and 'validation' where a split of this name is left.

    Raises:
      DatasetError: the data are not prepared, with the command that does it, or lack a split.
    """
    if test_split == 'train' or not test_split.isidentifier():
        raise DatasetError(
            f'config.data.test_split is {test_split!r}: name a whole split that is not trained on'
        )
    names = {'train': 'train', 'test': test_split}
    if 'validation' in builder.info.splits and test_split != 'validation':
        names['validation'] = 'validation'
    # reading is tried first, so that mocked data need no files
    try:
        found = builder.as_data_source(split=list(names.values()), **options)
    except (KeyError, NotImplementedError, ValueError) as error:
        splits = list(builder.info.splits)
        if not splits:
            message = f'is not prepared in {builder.data_dir}'
            message = f'{message}: {_how_to_prepare(builder, str(builder.data_dir_root))}'
        elif not {'train', test_split} <= set(splits):
            message = f"needs the splits 'train' and {test_split!r}; it has {splits}"
        else:
            message = f'is prepared in {builder.data_dir} in a format without random access'
            message = f'{message}; use another directory: {_how_to_prepare(builder, "DIRECTORY")}'
        raise DatasetError(f'{name!r} {message}') from error
    return dict(zip(names, found, strict=True))


def fingerprint(split: Split) -> str:
    """Hashes a split, so that two runs can tell whether they have the same data.

    Args:
      split: its inputs and labels may lie on devices.

    Returns:
      SHA-256, in hexadecimal, over dtype, shape and bytes (little-endian, the last axis fastest)
      of the inputs and then of the labels.
    """
    digest = hashlib.sha256()
    for array in map(np.asarray, split):
        little = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
        digest.update(f'{array.dtype.name} {array.shape} '.encode())
        digest.update(little)
    return digest.hexdigest()


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
    held = chosen(n, examples, seed)
    return Split(*(x[~held] for x in split)), Split(*(x[held] for x in split))


def picked_of(n: int, examples: int, seed: int) -> np.ndarray:
    """Marks the examples that are used of a validation split of n, or raises `ValueError`."""
    if not 1 <= examples <= n:
        raise ValueError(
            f'validation_examples={examples} must be at least 1 and at most {n}, the examples of '
            "the data set's own split 'validation'"
        )
    return chosen(n, examples, seed)


def chosen(n: int, examples: int, seed: int) -> np.ndarray:
    """Marks as many of n examples as are wanted, by a permutation."""
    marks = np.zeros(n, bool)
    marks[np.random.RandomState(seed).permutation(n)[:examples]] = True
    return marks


def channel_moments(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measures mean and standard deviation of each channel: what `standardize` wants.

    Args:
      inputs: (N, ..., C), the training part: images, signals, or vectors of C features.

    Returns:
      Mean and standard deviation, each (C,) and float32, accumulated in float64.

    Raises:
      ValueError: a channel is constant, so that it cannot be standardised.
    """
    axes = tuple(range(inputs.ndim - 1))
    mean = inputs.mean(axis=axes, dtype=np.float64)
    std = inputs.std(axis=axes, dtype=np.float64)
    if not std.all():
        raise ValueError(f'channel {int(np.argmin(std))} is constant: it has no standard deviation')
    return mean.astype(np.float32), std.astype(np.float32)


def standardize(inputs: jax.Array, *, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Standardises inputs by given moments: (x - mean) / std.

    Args:
      inputs: (N, ..., C), any real dtype.
      mean: scalar, or one value a channel, (C,).
      std: like `mean`, positive.

    Returns:
      float32, the shape of `inputs`.
    """
    channels = (1,) * (inputs.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(channels) for x in (mean, std))
    return (inputs.astype(jnp.float32) - mean) / std


def standardize_each(inputs: jax.Array) -> jax.Array:
    """Standardises each example by itself: (x - mean) / max(std, 1 / sqrt(n)), n values in it.

    The floor leaves a constant example at 0 instead of dividing it by 0.

    Args:
      inputs: (N, ...), any real dtype.

    Returns:
      float32, the shape of `inputs`.

    Source: `tf.image.per_image_standardization`.
    """
    x = inputs.astype(jnp.float32)
    axes = tuple(range(1, x.ndim))
    mean, std = x.mean(axis=axes, keepdims=True), x.std(axis=axes, keepdims=True)
    return (x - mean) / jnp.maximum(std, inputs[0].size ** -0.5)


def crop_and_flip(key: jax.Array, images: jax.Array, *, padding: int = 4) -> jax.Array:
    """Pads each image with zeros, crops it back at random, and mirrors it every other time.

    Args:
      key: one key for the batch; the choices are independent between images.
      images: (N, H, W, C), any dtype.
      padding: pixels of zeros at each side; each crop starts at one of 2 * padding + 1 rows and
        as many columns, uniformly.

    Returns:
      The shape and dtype of `images`.

    Raises:
      ValueError: the inputs are not images.

    Source: He et al. 2015, arXiv:1512.03385, sec. 4.2.
    """
    if images.ndim != 4:
        raise ValueError(f'only images (N, H, W, C) are cropped and flipped, not {images.shape}')
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


def _input_and_label(name: str, info: tfds.core.DatasetInfo) -> tuple[tuple[str, str], int]:
    """Names the two features that are the input and its target, and counts the classes."""
    features, keys = info.features, info.supervised_keys
    match keys:
        case (str(given), str(target)) if given in features and target in features:
            shape, positions = features[given].shape, features[target].shape
            is_input = features[given].np_dtype in _INPUTS and len(shape) and None not in shape
            classes = _classes(features[target], info.metadata)
            if is_input and classes and positions in ((), shape[:1]):
                return (given, target), classes
    raise DatasetError(
        f'{name!r} needs supervised_keys that name an input of fixed shape, uint8, int32 or '
        'float32, and its target: a class label, or for inputs (L, ...) L class labels, or a '
        f"tensor (L,) of uint8 or int32 with the metadata 'num_classes'; it has "
        f'supervised_keys={keys} and the features {features}'
    )


def _classes(target: Any, metadata: Any) -> int | None:
    """Counts the classes of a target; `None` is a target that is not of classes."""
    if isinstance(target, tfds.features.Sequence):
        target = target.feature
    if isinstance(target, tfds.features.ClassLabel):
        return target.num_classes
    if type(target) is tfds.features.Tensor and target.np_dtype in (np.uint8, np.int32):
        return (metadata or {}).get('num_classes')
    return None


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
    return open_builder(name, directory)


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


def _read(name: str, source: Sequence[Any], keys: tuple[str, str], num_classes: int) -> Split:
    """Decodes every example of a data source."""
    given, target = keys
    examples = list(source)
    labels = np.array([example[target] for example in examples], np.int32)
    if (labels < 0).any():
        raise DatasetError(f'{name!r} hides labels: some are negative')
    if (labels >= num_classes).any():
        raise DatasetError(f'{name!r} has label {labels.max()} where num_classes={num_classes}')
    return Split(np.stack([example[given] for example in examples]), labels)


def _pick(split: Split, examples: int, *, seed: int) -> Split:
    """Takes examples of the data set's own validation split, in their order."""
    picked = picked_of(len(split.labels), examples, seed)
    return Split(*(x[picked] for x in split))
