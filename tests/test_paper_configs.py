"""The paper's configs train, prune and retrain for a few steps on mock data."""

import importlib

import jax
import photographs
import pytest
import tensorflow_datasets as tfds
from test_loop import rows_of

from train import loop, report

pytestmark = pytest.mark.promotes  # optax and flax do

DENSITIES = {
    'cifar10_resnet20': 0.8,
    'cifar10_resnet56': 0.8,
    'cifar10_resnet56_filters': 0.95,
    'cifar10_resnet110': 0.8,
    'cifar10_resnet110_filters': 0.98,
    'imagenet_resnet34': 0.8,
    'imagenet_resnet34_filters': 0.96,
    'imagenet_resnet50': 0.8,
}
IN_CI = {'cifar10_resnet20'}  # the others take minutes; streams have tests of their own


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow if name in IN_CI else pytest.mark.exhaustive)
        for name in DENSITIES
    ],
)
def test_it_runs_on_mock_data(name, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: 1)  # compiles in a fraction of the time
    monkeypatch.setattr(report, 'write', lambda *_: None)
    config = importlib.import_module(f'configs.{name}').get_config()
    config.update_from_flattened_dict(
        {
            'replicates': 1,
            'data.validation_examples': 4,
            'data.image_size': 32,
            'train.steps': 2,
            'train.batch_size': 2,
            'train.steps_per_dispatch': 1,
            'schedule.warmup_steps': 0,
            'schedule.drops': (0.5,),
            'prune.levels': 1,
            'retrain.techniques': ('lr_rewind',),
        }
    )
    if config.data.streaming:  # TFDS cannot mock encoded images without TensorFlow
        photographs.prepare(tmp_path)
        config.data.name, config.data.directory = 'photographs', str(tmp_path)
        loop.run(config, tmp_path / 'run')
    else:
        with tfds.testing.mock_data(num_examples=8):
            loop.run(config, tmp_path / 'run')
    dense, pruned = rows_of(tmp_path / 'run')
    assert dense['level'] == '0'
    assert float(pruned['density']) == pytest.approx(DENSITIES[name], abs=0.01)
