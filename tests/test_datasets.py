"""The builders of data that need no download. (Digits: test_data.py, with the loading.)"""

import hashlib
import platform
import random
import socket

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train import data
from train.datasets import Mnist1d, StdlibText, mnist1d, stdlib_text


@pytest.fixture(scope='module', autouse=True)
def no_network():
    def connect(self, address):
        raise AssertionError(f'a connection to {address} was tried')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, 'connect', connect)
        yield


@pytest.fixture(scope='module')
def signals():
    return mnist1d.generate()


@pytest.fixture(scope='module')
def few_characters():
    """Prepares a fifth of the text, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib_text, '_CHARACTERS', 400_000)
        yield stdlib_text.choose(stdlib_text.standard_library(), 400_000)


@pytest.fixture(scope='module')
def text(few_characters, tmp_path_factory):
    directory = str(tmp_path_factory.mktemp('tfds'))
    return data.load('stdlib_text', directory=directory, validation_examples=50, seed=0)


# -- MNIST-1D


def test_mnist1d_is_what_the_package_makes(signals, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist1d, 'generate', lambda: signals)
    found = data.load('mnist1d', directory=str(tmp_path), validation_examples=100, seed=0)
    assert found.num_classes == 10
    for split, n in zip(found[:3], (3900, 100, 1000), strict=True):
        assert split.inputs.shape == (n, 40, 1) and split.inputs.dtype == np.float32
        assert split.labels.shape == (n,) and split.labels.dtype == np.int32
    np.testing.assert_array_equal(found.test.inputs[..., 0], signals['x_test'].astype(np.float32))
    np.testing.assert_array_equal(found.test.labels, signals['y_test'])
    held = np.random.RandomState(0).permutation(4000)[:100]
    np.testing.assert_array_equal(found.validation.labels, signals['y'][np.sort(held)])


def test_mnist1d_has_the_documented_statistics(signals):
    x = np.concatenate([signals['x'], signals['x_test']])
    labels = np.concatenate([signals['y'], signals['y_test']])
    assert np.bincount(labels).tolist() == [500] * 10
    assert abs(x.mean()) < 1e-12 and abs(x.std() - 1) < 1e-12
    assert labels[:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]  # seed 42, as it is everywhere
    np.testing.assert_allclose(x[0, :3], [-0.33200567, -0.47191037, -0.77869708], atol=1e-7)


def test_generating_mnist1d_touches_no_random_state(signals):
    before = random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    again = mnist1d.generate()
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert np.random.get_state()[2] == before[2]
    np.testing.assert_array_equal(again['x'], signals['x'])


def test_mnist1d_leaves_no_file(tmp_path, monkeypatch, signals):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mnist1d, 'generate', lambda: signals)
    builder = Mnist1d(data_dir=tmp_path / 'data', file_format='array_record')
    builder.download_and_prepare()
    assert [path.name for path in tmp_path.iterdir()] == ['data']
    assert not list(tmp_path.rglob('*.pkl'))


# -- the standard library's text


def test_text_has_tokens_and_the_tokens_that_follow(text):
    assert text.num_classes == 97 and len(text.validation.labels) == 50
    for split in text[:3]:
        assert split.inputs.dtype == np.uint8 and split.labels.dtype == np.int32
        assert split.inputs.shape == split.labels.shape and split.inputs.shape[1] == 64
        np.testing.assert_array_equal(split.inputs[:, 1:], split.labels[:, :-1])
        assert split.inputs.max() <= 96 and len(split.inputs) >= 50


def test_text_is_that_of_the_files_of_a_split(text, few_characters):
    chosen = [t for path, t in few_characters.items() if stdlib_text.split_of(path) == 'train']
    first = stdlib_text.encode(chosen[0])
    n = (len(first) - 1) // 64
    np.testing.assert_array_equal(text.train.inputs[:n].ravel(), first[: n * 64])
    np.testing.assert_array_equal(text.train.labels[:n].ravel(), first[1 : n * 64 + 1])
    assert len(text.train.inputs) == sum((len(t) - 1) // 64 for t in chosen if t)


def test_the_splits_share_no_file_and_have_their_shares():
    texts = stdlib_text.choose(stdlib_text.standard_library(), 2_000_000)
    sizes = dict.fromkeys(('train', 'validation', 'test'), 0)
    for path, content in texts.items():
        sizes[stdlib_text.split_of(path)] += len(content)
    total = sum(sizes.values())
    assert 2_000_000 <= total < 2_500_000
    for split, share in (('train', 0.8), ('validation', 0.1), ('test', 0.1)):
        assert abs(sizes[split] / total - share) < 0.06, sizes
    names = [f'{i}/{j}.py' for i in range(100) for j in range(100)]
    splits = list(map(stdlib_text.split_of, names))
    assert abs(splits.count('train') - 8000) < 200 and abs(splits.count('test') - 1000) < 150


def test_the_split_of_a_path_follows_from_its_hash():
    for path in ('os.py', 'json/decoder.py', 'ast.py', 'email/charset.py'):
        share = int(hashlib.sha256(path.encode()).hexdigest()[32:], 16) / 2**128
        expected = 'train' if share < 0.8 else 'validation' if share < 0.9 else 'test'
        assert stdlib_text.split_of(path) == expected


def test_files_that_nobody_wrote_are_left_out(tmp_path):
    kept = {'a.py', 'json/b.py'}
    left_out = {'test/c.py', 'json/tests/d.py', 'site-packages/e.py', '__pycache__/f.py'}
    left_out |= {'_sysconfigdata__linux.py', 'config-3.11/g.py', 'encodings/h.py', 'read.txt'}
    for name in kept | left_out:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text('x = 1\n')
    assert set(stdlib_text.choose(tmp_path, 10**6)) == kept


def test_the_limit_ends_the_reading_and_declared_encodings_count(tmp_path):
    (tmp_path / 'a.py').write_bytes('# coding: latin-1\n# é\n'.encode('latin-1'))
    (tmp_path / 'b.py').write_text('y = 2\r\n')
    texts = stdlib_text.choose(tmp_path, 10**6)
    assert texts == {'a.py': '# coding: latin-1\n# é\n', 'b.py': 'y = 2\n'}
    assert len(stdlib_text.choose(tmp_path, 1)) == 1 and not stdlib_text.choose(tmp_path, 0)


def test_characters_and_ids():
    assert stdlib_text.encode('\n ~a\té🙂').tolist() == [0, 1, 95, 66, 96, 96, 96]
    assert stdlib_text.encode('').shape == (0,)
    printable = ''.join(map(chr, range(32, 127))) + '\n'
    assert stdlib_text.decode(stdlib_text.encode(printable)) == printable
    assert sorted(stdlib_text.encode(printable)) == list(range(96))
    assert stdlib_text.decode(stdlib_text.encode('a\tb')) == 'a\ufffdb'


@pytest.mark.usefixtures('few_characters')
def test_chunks_of_128_are_a_configuration_of_their_own(tmp_path):
    name = f'stdlib_text/py{platform.python_version()}_128'
    found = data.load(name, directory=str(tmp_path), validation_examples=5, seed=0)
    assert found.train.inputs.shape[1:] == found.test.labels.shape[1:] == (128,)


def test_text_of_another_python_is_not_taken_for_ours(tmp_path):
    names = [config.name for config in StdlibText.BUILDER_CONFIGS]
    assert names == [f'py{platform.python_version()}_{length}' for length in (64, 128)]
    with pytest.raises(data.DatasetError, match=r'BuilderConfig py2\.7\.18_64 not found'):
        data.load('stdlib_text/py2.7.18_64', directory=str(tmp_path), validation_examples=1, seed=0)
    assert tfds.builder('stdlib_text', data_dir=tmp_path).builder_config.name == names[0]
