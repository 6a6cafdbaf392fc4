import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from train import data
from train.datasets import Digits


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp('tfds'))
    _load(directory=directory)
    return directory


@pytest.fixture(scope='module')
def digits(prepared):
    return _load(directory=prepared)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(self, address):
        raise AssertionError(f'a connection to {address} was tried')

    monkeypatch.setattr(socket.socket, 'connect', connect)


def _load(name='digits', *, directory, validation_examples=137, seed=0):
    return data.load(name, directory=directory, validation_examples=validation_examples, seed=seed)


def _images(shape=(6, 5, 4, 3), seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


# -- digits


def test_digits_has_the_documented_parts(digits):
    assert digits.num_classes == 10
    for split, n in zip(digits[:3], (1300, 137, 360), strict=True):
        assert split.inputs.shape == (n, 8, 8, 1) and split.inputs.dtype == np.uint8
        assert split.labels.shape == (n,) and split.labels.dtype == np.int32
        assert split.inputs.max() == 16 and set(split.labels) == set(range(10))


def test_digits_follows_the_documented_permutation(digits):
    images, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(1797)
    np.testing.assert_array_equal(digits.test.inputs.reshape(360, 64), images[order[1437:]])
    np.testing.assert_array_equal(digits.test.labels, labels[order[1437:]])
    rows = np.concatenate([digits.train.inputs, digits.validation.inputs]).reshape(1437, 64)
    expected = images[order[:1437]].astype(np.uint8)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, expected))


def test_loading_again_gives_the_same_and_another_seed_does_not(prepared, digits):
    again = _load(directory=prepared)
    jax.tree.map(np.testing.assert_array_equal, again, digits)
    other = _load(directory=prepared, seed=1)
    assert (other.validation.inputs != digits.validation.inputs).any()
    np.testing.assert_array_equal(other.test.inputs, digits.test.inputs)


def test_the_version_may_be_written_out(prepared, digits):
    again = _load('digits:1.0.0', directory=prepared)
    jax.tree.map(np.testing.assert_array_equal, again, digits)


def test_a_killed_preparation_does_not_break_the_next_run(tmp_path):
    program = """
import os, signal, sys
from train import data, datasets
whole = datasets.Digits._generate_examples
def killed(self, images, labels):
    yield from whole(self, images[:9], labels[:9])
    os.kill(os.getpid(), signal.SIGKILL)
datasets.Digits._generate_examples = killed
data.load('digits', directory=sys.argv[1], validation_examples=1, seed=0)
"""
    run = subprocess.run(
        [sys.executable, '-c', program, tmp_path], capture_output=True, check=False
    )
    assert run.returncode == -9, run.stderr
    left = [path.name for path in tmp_path.glob('digits/*')]
    assert left and '1.0.0' not in left
    assert len(_load(directory=str(tmp_path)).train.labels) == 1300


def test_preparing_while_another_process_finishes_first(tmp_path, monkeypatch):
    ours, directory = Digits._split_generators, str(tmp_path)

    def overtaken(self, dl_manager):
        monkeypatch.setattr(Digits, '_split_generators', ours)
        _load(directory=directory)
        return ours(self, dl_manager)

    monkeypatch.setattr(Digits, '_split_generators', overtaken)
    assert len(_load(directory=directory).train.labels) == 1300
    assert [path.name for path in tmp_path.glob('digits/*')] == ['1.0.0']


def test_a_failure_to_prepare_is_not_hidden(tmp_path, monkeypatch):
    def full(self, dl_manager):
        raise OSError('disk full')

    monkeypatch.setattr(Digits, '_split_generators', full)
    with pytest.raises(OSError, match='disk full'):
        _load(directory=str(tmp_path))


# -- other data sets


def test_mocked_data_needs_no_files():
    with tfds.testing.mock_data(num_examples=20):
        cifar = _load('cifar10', directory=None, validation_examples=4)
        assert _load(directory=None, validation_examples=4).train.inputs.shape == (16, 8, 8, 1)
    assert cifar.train.inputs.shape == (16, 32, 32, 3) and cifar.num_classes == 10
    assert len(cifar.validation.labels) == 4 and len(cifar.test.labels) == 20


def test_what_is_not_prepared_says_so_at_once(tmp_path):
    start = time.perf_counter()
    with pytest.raises(data.DatasetError, match=r'not prepared in .*/cifar10/3\.0\.2') as error:
        _load('cifar10', directory=str(tmp_path))
    assert time.perf_counter() - start < 2
    for part in ('pip install tensorflow', "tfds.builder('cifar10'", f"data_dir='{tmp_path}'"):
        assert part in str(error.value)
    assert not any(tmp_path.iterdir())


def test_the_command_names_the_configuration(tmp_path):
    with pytest.raises(data.DatasetError, match=r"tfds.builder\('emnist/byclass', data_dir="):
        _load('emnist', directory=str(tmp_path))


def test_a_format_without_random_access(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (info,) = tmp_path.glob('digits/1.0.0/dataset_info.json')
    info.write_text(json.dumps(json.loads(info.read_text()) | {'fileFormat': 'tfrecord'}))
    with pytest.raises(data.DatasetError, match=r"(?s)random access.*data_dir='DIRECTORY'"):
        _load(directory=str(tmp_path))


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('cifar11', "no dataset is named 'cifar11'; close names: cifar10"),
        ('digitz', 'close names: digits'),
        ('zzzzzzzz', 'close names: none; '),
        ('huggingface:mnist', 'is no TFDS name'),
        ('', 'is no TFDS name'),
        ('mnist:9.9.9', 'cannot be opened: .*3.0.1'),
        ('emnist/none', 'cannot be opened: .*BuilderConfig none not found'),
        ('wider_face', r"supervised_keys=None and the features FeaturesDict\(.*'faces'"),
        ('imagenet2012', r'input of fixed shape.*shape=\(None, None, 3\)'),
    ],
)
def test_names_that_do_not_fit(name, message, tmp_path):
    with pytest.raises(data.DatasetError, match=f'(?s){message}'):
        _load(name, directory=str(tmp_path))


class Odd(tfds.core.GeneratorBasedBuilder):
    """Two examples of what a test puts here, in the splits that it names."""

    VERSION = tfds.core.Version('1.0.0')
    SPLITS: ClassVar = {'train': 2, 'test': 2}
    INPUT = tfds.features.Tensor(shape=(2, 2, 1), dtype=np.float32)
    TARGET = tfds.features.ClassLabel(num_classes=3)
    METADATA = None
    LABEL = 1

    def _info(self):
        metadata = self.METADATA and tfds.core.MetadataDict(self.METADATA)
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({'given': self.INPUT, 'kind': self.TARGET}),
            supervised_keys=('given', 'kind'),
            metadata=metadata,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(n) for split, n in self.SPLITS.items()}

    def _generate_examples(self, n):
        for i in range(n):
            given = np.full(self.INPUT.shape, i, self.INPUT.np_dtype)
            yield i, {'given': given, 'kind': self.LABEL}


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Loads `Odd` with some of its attributes replaced."""

    def load(validation_examples=1, **attributes):
        for name, value in attributes.items():
            monkeypatch.setattr(Odd, name, value)
        tfds.builder('odd', data_dir=tmp_path).download_and_prepare(file_format='array_record')
        return _load('odd', directory=str(tmp_path), validation_examples=validation_examples)

    return load


def _tensor(shape, dtype):
    return tfds.features.Tensor(shape=shape, dtype=dtype)


LABELS_4 = tfds.features.Sequence(tfds.features.ClassLabel(num_classes=5), length=4)
IDS = {'TARGET': _tensor((4,), np.uint8), 'METADATA': {'num_classes': 5}}
A_CLASS_A_POSITION = {
    'labels': {'TARGET': LABELS_4},
    'ids': IDS,
    'int32 ids': IDS | {'TARGET': _tensor((4,), np.int32)},
}


@pytest.mark.parametrize('given', [(6,), (6, 1), (2, 3, 4, 1)], ids=str)
@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.float32])
def test_inputs_of_any_fixed_shape(odd, given, dtype):
    found = odd(INPUT=_tensor(given, dtype))
    assert found.num_classes == 3
    for split, n in zip(found[:3], (1, 1, 2), strict=True):
        assert split.inputs.shape == (n, *given) and split.inputs.dtype == dtype
        assert split.labels.tolist() == [1] * n


@pytest.mark.parametrize('target', A_CLASS_A_POSITION.values(), ids=A_CLASS_A_POSITION)
@pytest.mark.parametrize('given', [(4,), (4, 2)], ids=str)
def test_a_class_a_position(odd, given, target):
    label = np.array([4, 0, 1, 2], target['TARGET'].np_dtype)
    found = odd(INPUT=_tensor(given, np.uint8), LABEL=label, **target)
    assert found.num_classes == 5
    assert found.test.inputs.shape == (2, *given) and found.test.labels.dtype == np.int32
    assert found.test.labels.tolist() == [[4, 0, 1, 2]] * 2


@pytest.mark.parametrize(
    'attributes',
    [
        {'INPUT': _tensor((4,), np.int64)},
        {'INPUT': _tensor((), np.float32)},
        {'INPUT': _tensor((None, 2), np.float32)},
        {'INPUT': tfds.features.Text()},
        {'TARGET': _tensor((), np.float32)},
        {'TARGET': LABELS_4},  # of inputs with 2 positions
        {'TARGET': tfds.features.Sequence(tfds.features.ClassLabel(num_classes=5))},
        {'TARGET': _tensor((2,), np.int32)},  # without the metadata
        {'TARGET': _tensor((2,), np.float32), 'METADATA': {'num_classes': 5}},
    ],
    ids=str,
)
def test_features_that_do_not_fit(tmp_path, monkeypatch, attributes):
    for name, value in attributes.items():
        monkeypatch.setattr(Odd, name, value)
    with pytest.raises(data.DatasetError, match=r"'odd' needs .*supervised_keys=\('given', 'kind"):
        _load('odd', directory=str(tmp_path))


def test_hidden_labels_are_refused(odd):
    with pytest.raises(data.DatasetError, match="'odd' hides labels"):
        odd(LABEL=-1)


def test_ids_beyond_the_vocabulary_are_refused(odd):
    with pytest.raises(data.DatasetError, match="'odd' has label 5 where num_classes=5"):
        odd(INPUT=_tensor((4,), np.uint8), LABEL=np.array([0, 5, 1, 1], np.uint8), **IDS)


def test_a_missing_split_is_named(odd):
    with pytest.raises(data.DatasetError, match=r"it has \['train', 'dev'\]"):
        odd(SPLITS={'train': 2, 'dev': 2})


@pytest.mark.parametrize('examples', [1, 7, 20])
def test_a_validation_split_of_its_own_is_picked_from(odd, examples):
    found = odd(examples, SPLITS={'train': 3, 'validation': 20, 'test': 2})
    assert found.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2]
    expected = np.random.RandomState(0).permutation(20)[:examples]
    assert found.validation.inputs[:, 0, 0, 0].tolist() == sorted(expected)
    assert len(found.validation.labels) == examples and len(found.test.labels) == 2


@pytest.mark.parametrize('examples', [0, 6])
def test_no_more_is_picked_than_there_is(odd, examples):
    message = f"validation_examples={examples} must be at least 1 and at most 5, .* 'validation'"
    with pytest.raises(ValueError, match=message):
        odd(examples, SPLITS={'train': 30, 'validation': 5, 'test': 2})


# -- fingerprints


def test_a_fingerprint_is_the_hash_of_dtype_shape_and_bytes():
    split = data.Split(np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([1, 0, 2], np.int32))
    labels = b'\x01\0\0\0\0\0\0\0\x02\0\0\0'
    expected = hashlib.sha256(b'uint8 (3, 2) \0\1\2\3\4\5int32 (3,) ' + labels).hexdigest()
    assert data.fingerprint(split) == expected
    assert data.fingerprint(jax.tree.map(jnp.asarray, split)) == expected
    big_endian = split._replace(labels=split.labels.astype('>i4'))
    columns_first = split._replace(inputs=np.asfortranarray(split.inputs))
    assert data.fingerprint(big_endian) == data.fingerprint(columns_first) == expected


def test_a_fingerprint_tells_splits_apart(digits):
    split = digits.test
    changed = split.inputs.copy()
    changed[-1, -1, -1, 0] += 1
    others = [
        digits.validation,
        split._replace(inputs=changed),
        split._replace(inputs=split.inputs[..., 0]),
        split._replace(inputs=split.inputs.view(np.int8)),
        split._replace(labels=split.labels[::-1]),
        data.Split(split.inputs[::-1], split.labels[::-1]),
    ]
    assert len({data.fingerprint(other) for other in (split, *others)}) == 7


# -- holding out


@pytest.mark.parametrize('seed', range(5))
def test_hold_out_divides_in_order(seed):
    split = data.Split(np.arange(20).reshape(20, 1, 1, 1), np.arange(20, dtype=np.int32))
    kept, held = data.hold_out(split, 7, seed=seed)
    for part in (kept, held):
        np.testing.assert_array_equal(part.inputs.ravel(), part.labels)
        assert (np.diff(part.labels) > 0).all()
    expected = np.random.RandomState(seed).permutation(20)
    assert set(held.labels) == set(expected[:7]) and set(kept.labels) == set(expected[7:])


@pytest.mark.parametrize('examples', [-1, 0, 1437, 2000])
def test_hold_out_keeps_some_of_each(examples, prepared):
    with pytest.raises(ValueError, match=f'validation_examples={examples} .* below 1437'):
        _load(directory=prepared, validation_examples=examples)


# -- preprocessing


def test_channel_moments_and_standardize():
    images = _images()
    mean, std = data.channel_moments(images)
    assert mean.shape == std.shape == (3,) and mean.dtype == std.dtype == np.float32
    x = jax.jit(data.standardize)(images, mean=mean, std=std)
    assert x.dtype == jnp.float32 and x.shape == images.shape
    for c in range(3):
        values = images[..., c].astype(float)
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(x[..., c], expected, atol=1e-5)
    np.testing.assert_allclose(
        data.standardize(jnp.asarray(images), mean=1.0, std=2.0), (images - 1.0) / 2, rtol=1e-6
    )


def test_signals_and_vectors_are_standardised_a_channel():
    for shape in ((50, 9, 2), (50, 3)):
        inputs = np.random.RandomState(0).randn(*shape).astype(np.float32) * 3 + 5
        mean, std = data.channel_moments(inputs)
        assert mean.shape == std.shape == shape[-1:]
        x = np.asarray(data.standardize(jnp.asarray(inputs), mean=mean, std=std), np.float64)
        columns = x.reshape(-1, shape[-1])
        np.testing.assert_allclose(columns.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(columns.std(0), 1, atol=1e-6)
        each = np.asarray(data.standardize_each(jnp.asarray(inputs)), np.float64).reshape(50, -1)
        np.testing.assert_allclose(each.mean(1), 0, atol=1e-6)
        assert each.std(1).max() < 1 + 1e-6


def test_only_images_are_cropped():
    with pytest.raises(ValueError, match=r'only images .* not \(8, 40, 1\)'):
        data.crop_and_flip(jax.random.key(0), jnp.zeros((8, 40, 1)))


def test_channel_moments_refuse_a_constant_channel():
    images = _images()
    images[..., 1] = 3
    with pytest.raises(ValueError, match='channel 1 is constant'):
        data.channel_moments(images)


def test_standardize_each_against_a_loop():
    images = _images()
    images[1], images[2] = 7, 7
    images[2, 0, 0, 0] = 8
    x = jax.jit(data.standardize_each)(images)
    assert x.dtype == jnp.float32
    for row, image in zip(x, images.astype(float), strict=True):
        expected = (image - image.mean()) / max(image.std(), 1 / np.sqrt(image.size))
        np.testing.assert_allclose(row, expected, atol=2e-5)
    assert jnp.abs(x[1]).max() < 1e-4


def test_standardize_each_has_the_floor_of_one_over_root_n():
    images = np.full((1, 4, 4, 1), 0.5, np.float32)
    images[0, 0, 0, 0] = 0.6
    expected = (images - images.mean()) * 4
    np.testing.assert_allclose(data.standardize_each(jnp.asarray(images)), expected, atol=1e-6)


@pytest.mark.parametrize('padding', [0, 1, 4])
def test_crop_and_flip_against_a_loop(padding):
    images, rng = _images((12, 5, 6, 2)), np.random.RandomState(padding)
    corners, flips = rng.randint(0, 2 * padding + 1, (12, 2)), rng.rand(12) < 0.5
    x = data._crop_and_flip(jnp.asarray(images), jnp.asarray(corners), jnp.asarray(flips), padding)
    expected = np.zeros_like(images)
    for n, r, c in np.ndindex(12, 5, 6):
        row = r + corners[n, 0] - padding
        column = (5 - c if flips[n] else c) + corners[n, 1] - padding
        if 0 <= row < 5 and 0 <= column < 6:
            expected[n, r, c] = images[n, row, column]
    np.testing.assert_array_equal(x, expected)
    assert x.dtype == images.dtype


def test_crop_and_flip_makes_every_choice_equally_often():
    one = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    images = jnp.asarray(np.repeat(one, 3600, axis=0))
    x = jax.jit(data.crop_and_flip, static_argnames='padding')(jax.random.key(0), images, padding=1)
    _, counts = np.unique(x.reshape(3600, 9), axis=0, return_counts=True)
    assert len(counts) == 18  # 3 rows, 3 columns, 2 flips, about 200 times each
    assert counts.min() > 130 and counts.max() < 270


def test_crop_and_flip_depends_on_the_key_and_not_on_jit():
    images = jnp.asarray(_images((8, 8, 8, 1)))
    x, y = (data.crop_and_flip(jax.random.key(seed), images) for seed in (0, 1))
    assert (x != y).any()
    np.testing.assert_array_equal(jax.jit(data.crop_and_flip)(jax.random.key(0), images), x)
