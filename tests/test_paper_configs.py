"""The paper's configs train, prune and retrain for a few steps on mock data."""

import importlib

import pytest
import tensorflow_datasets as tfds
from test_loop import rows_of

from train import loop, report

pytestmark = pytest.mark.promotes  # optax and flax do


@pytest.mark.parametrize(
    'name',
    [
        pytest.param('cifar10_resnet20', marks=pytest.mark.slow),
        pytest.param('cifar10_resnet56', marks=pytest.mark.exhaustive),
        pytest.param('cifar10_resnet56_filters', marks=pytest.mark.exhaustive),
        pytest.param('cifar10_resnet110', marks=pytest.mark.exhaustive),
        pytest.param('cifar10_resnet110_filters', marks=pytest.mark.exhaustive),
    ],
)
def test_it_runs_on_mock_data(name, tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'write', lambda *_: None)
    config = importlib.import_module(f'configs.{name}').get_config()
    config.update_from_flattened_dict(
        {
            'replicates': 1,
            'data.validation_examples': 16,
            'train.steps': 2,
            'train.batch_size': 8,
            'prune.levels': 1,
            'retrain.techniques': ('lr_rewind',),
        }
    )
    with tfds.testing.mock_data(num_examples=32):
        loop.run(config, tmp_path / 'run')
    dense, pruned = rows_of(tmp_path / 'run')
    assert dense['level'] == '0'
    expected = {'cifar10_resnet56_filters': 0.95, 'cifar10_resnet110_filters': 0.98}.get(name, 0.8)
    assert float(pruned['density']) == pytest.approx(expected, abs=0.01)
