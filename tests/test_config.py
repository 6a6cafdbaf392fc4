import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from configs import digits
from train import config as config_lib
from train import rates, techniques
from train import trainer as trainer_lib
from train.errors import BadInput

CONFIGS = [path.stem for path in (Path(__file__).parents[1] / 'configs').glob('[a-z]*.py')]


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_passes_its_own_check(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    config_lib.check(config, devices=1)
    assert config.is_locked
    lengths = {training.steps for training in techniques.trainings(config)}
    assert trainer_lib.dispatch_steps(config, lengths | {config.train.steps}) > 1


def test_densities_by_rate_or_by_list():
    config = digits.get_config()
    config.prune.rate, config.prune.levels = 0.5, 2
    assert config_lib.density_plan(config) == (0.5, 0.25)
    config.prune.densities = (0.3, 0.2, 0.1)
    assert config_lib.density_plan(config) == (0.3, 0.2, 0.1)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('prune.score', 'size', "config.prune.score is 'size', expected one of magnitude, norm"),
        ('prune.rate', 1.2, r'config.prune: rate must be in \(0, 1\), got 1.2'),
        ('prune.densities', (0.5, 1.5), 'level 2 has density 1.5'),
        ('prune.densities', (0.5, 0.6), 'level 2 has density 0.6, not below the 0.5'),
        ('train.steps', 0, 'config.train.steps is 0, expected at least 1'),
        ('train.batch_size', 63, 'expected a multiple of 2 devices'),
        ('optimizer.name', 'lion', 'expected one of sgd, adam, adamw'),
        ('optimizer.learning_rate', float('nan'), 'learning_rate is nan, expected above 0'),
        ('optimizer.learning_rate', float('inf'), 'learning_rate is inf, expected above 0'),
        ('schedule.drops', ('a',), 'a value of another kind'),
        ('optimizer.momentum', 1.0, r'expected in \[0, 1\)'),
        ('optimizer.weight_decay', -1.0, 'expected at least 0'),
        ('schedule.warmup_steps', 900, 'warmup_steps is 900'),
        ('schedule.drops', (0.5, 1.5), r'drops is \(0.5, 1.5\), expected rising shares'),
        ('schedule.drops', (0.8, 0.4), 'expected rising shares'),
        ('schedule.drops', (0.5, 0.5), 'each at a step of its own'),
        ('schedule.drops', (0.5, 0.9999), 'each at a step of its own'),
        ('optimizer.weight_decay', float('inf'), 'expected at least 0, finite'),
        ('seed', 2**32, r'seed is 4294967296, expected in \[0, 2\*\*32\)'),
        ('prune.layer_densities', 'resnet56_a', "model.name is 'lenet300', expected resnet56"),
        ('schedule.drop_factor', 0.0, r'expected in \(0, 1\]'),
        ('retrain.techniques', (), 'expected some of lr_rewind'),
        ('retrain.techniques', ('lr_rewind', 'lr_rewind'), 'once each'),
        ('retrain.techniques', ('rewind',), 'expected some of lr_rewind'),
        ('retrain.techniques', ('reinit',), 'one of lr_rewind.* first, which the controls'),
        ('retrain.rewind_step', 900, r'expected in \[0, train.steps\)'),
        ('retrain.rewind_step', -1, r'rewind_step is -1'),
        ('retrain.fine_tune_rate', 0.0, 'fine_tune_rate is 0.0, expected above 0'),
        ('optimizer.clip_norm', -1.0, 'clip_norm is -1.0, expected above 0'),
        ('prune.floor', 1.0, r'floor is 1.0, expected in \[0, 1\)'),
        ('prune.n', 4, 'n is 4, expected at least 1, below prune.m, which is 4'),
        ('prune.mode', 'gradual', 'expected one of iterative, oneshot'),
        ('replicate_by', 'loop', 'expected one of vmap, map'),
        ('retrain.share', 1.1, r'expected in \(0, 1\]'),
        ('retrain.share', 1e-4, 'at least one of train.steps'),
    ],
)
def test_bad_values_are_refused(field, value, message):
    config = digits.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(BadInput, match=message):
        config_lib.check(config, devices=2)


def test_a_section_that_is_missing():
    config = digits.get_config()
    with config.unlocked():
        del config.mesh
    with pytest.raises(
        BadInput, match=r'configs/digits\.py has is missing from the config: .*mesh'
    ):
        config_lib.check(config, devices=2)


def test_a_floor_needs_the_global_allocation():
    config = digits.get_config()
    config.prune.floor, config.prune.allocation = 0.1, 'uniform'
    with pytest.raises(BadInput, match='expected 0, unless prune'):
        config_lib.check(config, devices=1)


def test_replicates_over_devices_need_no_even_batch():
    config = digits.get_config()
    config.replicates, config.train.batch_size = 4, 63
    config_lib.check(config, devices=2)


def test_the_difference_of_two_configs():
    old, new = digits.get_config(), digits.get_config()
    new.train.batch_size, new.prune.rate = 32, 0.5
    assert config_lib.difference(config_lib.to_json(old), config_lib.to_json(new)) == [
        'prune.rate: 0.8 there, 0.5 now',
        'train.batch_size: 64 there, 32 now',
    ]
    assert config_lib.difference(config_lib.to_json(old), config_lib.to_json(old)) == []


def test_json_holds_every_field():
    assert json.loads(config_lib.to_json(digits.get_config()))['retrain']['share'] == 1.0


@pytest.mark.parametrize(
    ('lengths', 'limit', 'expected'),
    [({900}, 300, 300), ({900, 600}, 450, 300), ({7}, 5, 1), ({10, 4}, 100, 2)],
)
def test_dispatches_divide_every_training(lengths, limit, expected):
    config = digits.get_config()
    config.train.steps_per_dispatch = limit
    assert trainer_lib.dispatch_steps(config, lengths) == expected


def test_layers_that_are_named_leave_no_other_rules():
    config = importlib.import_module('configs.cifar10_resnet56_filters').get_config()
    config.prune.floor = 0.1
    with pytest.raises(BadInput, match=r'floor is 0\.1, expected 0 where prune'):
        config_lib.check(config, devices=1)


@pytest.mark.parametrize('rate', [0.1, 0.4, 3e-3])
def test_a_constant_rate_is_one(rate):
    config = digits.get_config()
    config.optimizer.learning_rate, config.schedule.drops = rate, ()
    config.schedule.warmup_steps = 50
    schedule = rates.rates(config).schedule
    assert float(schedule(899)) == np.float32(rate)
