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
