"""Input pipelines: a run's examples, held in the devices' memory or streamed from files."""

import contextlib
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from train import data, layout, processes, stream, techniques
from train.data import DatasetError, Split

PARTS = ('train', 'validation', 'test')


class InputPipeline(NamedTuple):
    """The examples of a run, in the form that the functions of a `Trainer` take."""

    num_classes: int
    examples: Mapping[str, int]
    """Count of each of `PARTS`."""
    label_shape: tuple[int, ...]
    """Of one example: () or, where each position has a label, (L,)."""
    like: np.ndarray
    """One raw input, with a leading axis of length 1."""
    normalization: Mapping[str, Any]
    """How inputs are normalised: what `step.preprocessing` takes."""
    fingerprint: Callable[[], dict[str, str]]
    """Hashes each part, so that two runs can tell whether they have the same data."""
    train: Callable[[jax.Array, int], Generator[Split]]
    """Yields what `Trainer.train` takes, dispatch after dispatch, without end: from the keys of
    the training and the steps that it has taken."""
    evaluate: Callable[[str], Generator[Split]]
    """Yields what `Trainer.measure` takes until a part is complete, from its name."""
    sample: Callable[[], Split]
    """Returns the training examples that scores which need gradients are computed on."""

    def predictions(self, part: str) -> int:
        """Counts the labels of a part."""
        return self.examples[part] * math.prod(self.label_shape)


def make(config: ml_collections.ConfigDict, mesh: Mesh, steps: int) -> InputPipeline:
    """Opens the data set of a config.

    Args:
      config: a checked config.
      mesh: of all devices, see `layout.make_mesh`.
      steps: of one dispatch.

    Returns:
      The pipeline.

    Raises:
      ValueError: the data cannot be used, or are too few.
    """
    try:
        pipeline = _streamed(config, mesh, steps) if config.data.streaming else _held(config, mesh)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f'the data set {config.data.name!r} cannot be prepared or read in '
            f'{config.data.directory or "the default folder of TFDS"}: {error}'
        ) from error
    found, batch = pipeline.examples['train'], config.train.batch_size
    if found < batch:
        raise ValueError(
            f'config.train.batch_size is {batch}, more than the {found} training examples'
        )
    if techniques.needs_data(config) and found < batch * config.prune.score_batches:
        raise ValueError(
            f'config.prune.score_batches is {config.prune.score_batches}, of {batch} examples '
            f'each: more than the {found} training examples'
        )
    return pipeline


def _held(config: ml_collections.ConfigDict, mesh: Mesh) -> InputPipeline:
    """Holds all examples on the devices, where the order of training is drawn."""
    load = functools.partial(
        data.load,
        config.data.name,
        directory=config.data.directory or None,
        validation_examples=config.data.validation_examples,
        seed=config.data.split_seed,
        test_split=config.data.test_split,
    )
    with processes.together():
        dataset = processes.one_first(load)  # it may prepare files
    parts = {name: getattr(dataset, name) for name in PARTS}
    fingerprint = functools.cache(
        lambda: {name: data.fingerprint(part) for name, part in parts.items()}
    )
    processes.check_same('data', fingerprint)
    on_devices = jax.device_put(parts, NamedSharding(mesh, P()))
    return InputPipeline(
        dataset.num_classes,
        {name: len(part.labels) for name, part in parts.items()},
        dataset.train.labels.shape[1:],
        dataset.train.inputs[:1],
        _normalization(config, dataset.train),
        fingerprint,
        lambda keys, first: (on_devices['train'] for _ in itertools.count()),
        lambda part: (on_devices[name] for name in [part]),
        lambda: on_devices['train'],
    )


def _streamed(config: ml_collections.ConfigDict, mesh: Mesh, steps: int) -> InputPipeline:
    """Reads and crops images while the devices train."""
    c, batch = config.data, config.train.batch_size
    builder = data.open_builder(c.name, c.directory or None)
    keys, num_classes = _image_and_label(c.name, builder.info)
    decoders = {keys[0]: tfds.decode.SkipDecoding()}
    sources = data.sources(c.name, builder, c.test_split, decoders=decoders)
    parts = _parts(sources, c.validation_examples, c.split_seed)
    fingerprint = lambda: {name: _fingerprint(builder.info, c, name, parts[name]) for name in PARTS}
    for name, part in parts.items():
        if part[0][keys[1]] < 0:
            raise DatasetError(
                f'{c.name!r} hides the labels of the {name} part: set config.data.test_split to a '
                'split that has them'
            )
    processes.check_same('data', fingerprint)
    options = {'batch_size': batch, 'image_size': c.image_size, 'workers': c.workers, 'keys': keys}
    share, shares = layout.feeding(mesh)
    own_rows: dict[str, Any] = {'shard_index': share, 'shard_count': shares}

    def place(columns: Any, *axes: Any) -> Split:
        sharding = NamedSharding(mesh, P(*axes))
        put = functools.partial(jax.make_array_from_process_local_data, sharding)
        return Split(*map(put, columns))

    def read(batches: Generator[stream.Batch], examples: float = math.inf) -> Generator[Any]:
        rows = range(own_rows['shard_index'], batch, own_rows['shard_count'])
        with contextlib.closing(batches):
            try:
                for images, labels in batches:
                    own = labels[: sum(row < examples for row in rows)]  # what follows is padding
                    if ((own < 0) | (own >= num_classes)).any():
                        raise ValueError(f'labels are not in [0, {num_classes}): {own.tolist()}')
                    examples -= batch
                    yield images, labels
            except (OSError, ValueError) as error:
                raise DatasetError(f'{c.name!r} cannot be streamed: {error}') from error

    def train(keys: jax.Array, first: int) -> Generator[Split]:
        seed = int(jax.random.bits(keys[0]))
        batches = stream.train_batches(
            parts['train'], seed=seed, start_step=first, **own_rows, **options
        )
        with contextlib.closing(read(batches)) as checked:
            while True:
                columns = zip(*itertools.islice(checked, steps), strict=True)
                yield place(map(np.stack, columns), None, layout.BATCH)

    def evaluate(part: str) -> Generator[Split]:
        batches = stream.eval_batches(parts[part], **own_rows, **options)
        for columns in read(batches, len(parts[part])):
            yield place(columns, layout.BATCH)

    @functools.cache
    def sample() -> Split:
        batches = stream.eval_batches(parts['train'], **options)
        with contextlib.closing(batches) as checked:  # all rows, in every process
            columns = zip(*itertools.islice(checked, config.prune.score_batches), strict=True)
            return place(map(np.concatenate, columns))

    return InputPipeline(
        num_classes,
        {name: len(part) for name, part in parts.items()},
        (),
        np.zeros((1, c.image_size, c.image_size, 3), np.uint8),
        _normalization(config, None),
        fingerprint,
        train,
        evaluate,
        sample,
    )


def _normalization(config: ml_collections.ConfigDict, part: Split | None) -> dict[str, Any]:
    """Says how inputs are normalised: by moments a channel, `per_image`, or not (`none`)."""
    match config.data.normalize:
        case 'dataset':
            mean, std = data.channel_moments(part.inputs)  # type: ignore[union-attr]  # in memory
            return {'normalize': 'dataset', 'mean': mean.tolist(), 'std': std.tolist()}
        case 'imagenet':
            if part is not None and (part.inputs.ndim != 4 or part.inputs.shape[-1] != 3):
                raise DatasetError(
                    f"config.data.normalize is 'imagenet', for RGB images; an input of "
                    f'{config.data.name!r} has the shape {part.inputs.shape[1:]}'
                )
            moments = {'mean': list(stream.IMAGENET_MEAN), 'std': list(stream.IMAGENET_STD)}
            return {'normalize': 'imagenet', **moments}
        case other:
            return {'normalize': other}


def _image_and_label(name: str, info: tfds.core.DatasetInfo) -> tuple[tuple[str, str], int]:
    """Names the two features that are the image and its class, and counts the classes."""
    match info.supervised_keys:
        case (str(image), str(label)) if {image, label} <= set(info.features):
            given, target = info.features[image], info.features[label]
            colours = isinstance(given, tfds.features.Image) and given.shape[-1] == 3
            if colours and isinstance(target, tfds.features.ClassLabel):
                return (image, label), target.num_classes
    raise DatasetError(
        f'config.data.streaming: {name!r} needs supervised_keys that name an RGB image and a class '
        f'label; it has supervised_keys={info.supervised_keys} and the features {info.features}'
    )


def _parts(
    sources: Mapping[str, stream.Source], examples: int, seed: int
) -> dict[str, stream.Part]:
    """Picks the validation examples as `data.load` does."""
    whole = {name: stream.Part(x, np.arange(len(x))) for name, x in sources.items()}
    if 'validation' not in sources:
        train, validation = stream.hold_out(sources['train'], examples, seed=seed)
        return whole | {'train': train, 'validation': validation}
    picked = np.flatnonzero(data.picked_of(len(sources['validation']), examples, seed))
    return whole | {'validation': stream.Part(sources['validation'], picked)}


def _fingerprint(
    info: tfds.core.DatasetInfo, config: ml_collections.ConfigDict, name: str, part: stream.Part
) -> str:
    """Hashes what names a part, not its pixels: data set, version, split sizes, indices."""
    digest = hashlib.sha256()
    sizes = {name: (split.num_examples, split.num_bytes) for name, split in info.splits.items()}
    digest.update(f'{info.full_name} {sizes} {config.test_split} {name} '.encode())
    digest.update(part.indices.astype('<i8').tobytes())
    return digest.hexdigest()
