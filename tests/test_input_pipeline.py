"""Runs on data that are streamed: the same promises as on data in memory."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import photographs
import pytest
import tensorflow_datasets as tfds
from photographs import SOURCE
from test_loop import rows_of, tiny

from train import config as config_lib
from train import input_pipeline, layout, loop, models, report, results, stream
from train import step as step_lib
from train.data import DatasetError
from train.errors import BadInput, Interrupted

pytestmark = pytest.mark.promotes  # optax and flax do

SIZE = 12


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tfds')
    photographs.prepare(folder)
    return folder


def streaming(folder, **fields):
    streamed = {
        'data__name': 'photographs',
        'data__streaming': True,
        'data__test_split': 'validation',
        'data__validation_examples': 5,
        'data__normalize': 'imagenet',
        'data__image_size': SIZE,
        'train__batch_size': 8,
        'prune__levels': 1,
        'retrain__techniques': ('lr_rewind', 'weight_rewind'),
    }
    return tiny(folder, **streamed | fields)


def divided(folder):
    """The training and validation examples, in the order in which TFDS wrote them."""
    source = tfds.builder('photographs', data_dir=folder).as_data_source(
        split='train', decoders={'image': tfds.decode.SkipDecoding()}
    )
    return stream.hold_out(source, 5, seed=0)


def opened(config):
    return input_pipeline.make(config, layout.make_mesh(config), 10)


@pytest.fixture(scope='module')
def finished(prepared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('streamed') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda *_: None)
        loop.run(streaming(prepared), workdir)
    return workdir


def test_it_trains_and_reports_what_the_saved_model_computes(finished, prepared):
    dense, *_ = rows_of(finished)
    variables, _, about = results.read_model(finished / 'models/replicate_0/dense.safetensors')
    pixels = stream.eval_batches(SOURCE, batch_size=22, image_size=SIZE)
    ((images, labels),) = pixels
    model = models.build('lenet300', num_classes=1000)
    logits = model.apply(variables, step_lib.preprocessing(about)(images), train=False)
    right = int((np.asarray(logits).argmax(-1) == labels).sum())
    assert float(dense['test_accuracy']) == pytest.approx(right / 22, abs=1e-6)
    nats = step_lib.cross_entropy(logits, labels).mean()
    assert float(dense['test_bits']) == pytest.approx(float(nats) / np.log(2), rel=1e-4)
    assert float(dense['val_accuracy']) * 5 == pytest.approx(
        round(float(dense['val_accuracy']) * 5), abs=1e-4
    )


def test_a_stopped_run_goes_on_to_the_same_bits(finished, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'write', lambda *_: None)
    calls = iter([None] * 2 + [15] + [None] * 4 + [15] + [None] * 99)
    workdir = tmp_path / 'run'
    for _ in range(2):
        with pytest.raises(Interrupted):
            loop.run(streaming(prepared), workdir, lambda: next(calls))
    loop.run(streaming(prepared), workdir)
    for name in ('results.csv', 'models/replicate_0/weight_rewind.safetensors'):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()


def test_dispatches_are_the_batches_of_the_stream(prepared):
    keys = jax.random.split(jax.random.key(3), 1)
    pipeline = opened(streaming(prepared))
    images, labels = next(pipeline.train(keys, 7))
    assert images.shape == (10, 8, SIZE, SIZE, 3) and labels.shape == (10, 8)
    assert len(images.addressable_shards[0].data[0]) == 1  # each device has its rows only
    kept, held = divided(prepared)
    expected = stream.train_batches(
        kept,
        batch_size=8,
        seed=int(jax.random.bits(keys[0])),
        start_step=7,
        image_size=SIZE,
    )
    for k, (pixels, classes) in zip(range(10), expected, strict=False):
        np.testing.assert_array_equal(images[k], pixels)
        np.testing.assert_array_equal(labels[k], classes)
    seen = [int(x) for part in pipeline.evaluate('validation') for x in part.labels if x >= 0]
    assert seen == [held[i]['label'] for i in range(5)]


def test_other_keys_are_another_order(prepared):
    pipeline = opened(streaming(prepared))
    first, second = (
        next(pipeline.train(jax.random.split(jax.random.key(seed), 1), 0)) for seed in (0, 1)
    )
    assert (np.asarray(first.labels) != np.asarray(second.labels)).any()


def test_a_validation_split_that_is_not_tested_on_is_picked_from(prepared):
    pipeline = opened(streaming(prepared, data__test_split='visible'))
    assert pipeline.examples == {'train': 22, 'validation': 5, 'test': 22}
    with pytest.raises(ValueError, match=r'validation_examples=23 must be .* at most 22'):
        opened(streaming(prepared, data__test_split='visible', data__validation_examples=23))


def test_scores_see_the_first_training_images(prepared):
    pipeline = opened(streaming(prepared, prune__score='taylor', prune__score_batches=2))
    images, _ = pipeline.sample()
    kept, _ = divided(prepared)
    expected, _ = next(stream.eval_batches(kept, batch_size=16, image_size=SIZE))
    np.testing.assert_array_equal(images, expected)


def test_fingerprints_tell_parts_and_splits_apart(prepared):
    one, again, other = (
        opened(streaming(prepared, data__split_seed=seed)).fingerprint() for seed in (0, 0, 1)
    )
    assert one == again
    assert len(set(one.values())) == 3
    assert one['train'] != other['train'] and one['test'] == other['test']


@pytest.mark.slow  # processes are started
def test_workers_read_the_same(prepared):
    keys = jax.random.split(jax.random.key(0), 1)
    apart, here = (
        next(opened(streaming(prepared, data__workers=n)).train(keys, 0)) for n in (1, 0)
    )
    jax.tree.map(np.testing.assert_array_equal, apart, here)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'replicates': 2}, 'replicates is 2, expected 1 where data.streaming'),
        ({'data__augment': True}, 'augment is True, expected False where data.streaming'),
        ({'data__normalize': 'dataset'}, "normalize is 'dataset', expected another"),
        ({'data__image_size': 0}, 'image_size is 0, expected at least 1'),
        ({'data__workers': -1}, 'workers is -1, expected at least 0'),
    ],
)
def test_what_a_stream_cannot_do(tmp_path, fields, message):
    with pytest.raises(BadInput, match=message):
        config_lib.check(streaming(tmp_path, **fields), 1)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'data__name': 'digits'}, "'digits' needs supervised_keys that name an RGB image"),
        ({'data__name': 'imagenet2012'}, "'imagenet2012' is not prepared"),
        (
            {'data__test_split': 'train'},
            "test_split is 'train': name a whole split",
        ),
        ({'data__test_split': 'test'}, "'photographs' hides the labels of the test part"),
        ({'data__test_split': 'visible[:50%]'}, 'name a whole split that is not trained on'),
        ({'data__test_split': 'half'}, "needs the splits 'train' and 'half'"),
        ({'train__batch_size': 24}, 'batch_size is 24, more than the 17 training examples'),
        (
            {'prune__score': 'taylor', 'prune__score_batches': 3},
            'score_batches is 3, of 8 examples each: more than the 17 training examples',
        ),
    ],
)
def test_data_that_cannot_be_streamed(prepared, fields, message):
    with pytest.raises(BadInput, match=message):
        loop.prepare(streaming(prepared, **fields))


@pytest.mark.parametrize('label', [-1, 1000])
def test_a_label_that_is_no_class_ends_the_run(prepared, monkeypatch, label):
    pipeline = opened(streaming(prepared))
    batches = lambda *_, **__: ((images, labels) for images, labels in [(np.zeros(8), spoilt)])
    spoilt = np.array([0, 1, 2, label, 4, 5, 6, 7])
    monkeypatch.setattr(stream, 'eval_batches', batches)
    with pytest.raises(DatasetError, match=r"'photographs' cannot be streamed: labels are not in"):
        list(pipeline.evaluate('test'))


@pytest.mark.slow  # processes are started
def test_ctrl_c_is_left_to_the_process_that_trains():
    """A terminal sends it to the workers too."""
    code = """
import os, signal
from photographs import SOURCE
from train import interrupt, stream
if __name__ == '__main__':
    with interrupt.requested() as interrupted:
        options = {'batch_size': 6, 'seed': 0, 'start_step': 0, 'image_size': 8, 'workers': 1}
        batches = stream.train_batches(SOURCE, **options)
        next(batches)
        os.killpg(0, signal.SIGINT)
        for _ in range(40):
            next(batches)
        batches.close()
        print('signal', interrupted())
"""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / 'script.py'
        script.write_text(code)
        tests = Path(__file__).parent
        done = subprocess.run(
            [sys.executable, script],
            env=os.environ | {'PYTHONPATH': f'{tests}{os.pathsep}{tests.parent}'},
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
    assert 'signal 2' in done.stdout, done.stderr
