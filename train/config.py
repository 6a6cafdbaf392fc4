"""Configs: checked at the door, written beside the results, compared on resuming."""

import json
from collections.abc import Sequence
from typing import Any

import ml_collections

from jaxprune import rounds
from train import l1_filters
from train.errors import BadInput

RETRAINING = ('lr_rewind', 'weight_rewind', 'fine_tune', 'slr', 'clr', 'llr', 'allr')
CONTROLS = ('random_masks', 'shuffled_masks', 'reinit', 'small_dense')

_CHOICES: dict[str, Sequence[str]] = {
    'replicate_by': ('vmap', 'map'),
    'data.normalize': ('dataset', 'imagenet', 'per_image', 'none'),
    'model.dtype': ('float32', 'bfloat16'),
    'optimizer.name': ('sgd', 'adam', 'adamw'),
    'prune.mode': ('iterative', 'oneshot'),
    'prune.score': (
        'magnitude',
        'normalized_magnitude',
        'lamp',
        'random',
        'taylor',
        'snip',
        'fisher',
        'grasp',
    ),
    'prune.allocation': ('global_top', 'uniform', 'erdos_renyi'),
    'prune.pattern': ('unstructured', 'channels', 'blocks', 'n_of_m', 'groups'),
}
_AT_LEAST_ONE = (
    'replicates',
    'data.validation_examples',
    'data.image_size',
    'train.steps',
    'train.batch_size',
    'train.steps_per_dispatch',
    'mesh.fsdp',
    'mesh.tensor',
    'prune.score_batches',
    'prune.multiple',
    'checkpoint.every_steps',
)


def density_plan(config: ml_collections.ConfigDict) -> tuple[float, ...]:
    """Makes the densities of the rounds, level 1 first."""
    c = config.prune
    return rounds.check_plan(c.densities or rounds.geometric(c.rate, c.levels))


def retrain_steps(config: ml_collections.ConfigDict) -> int:
    """Counts the steps of a round, to the nearest."""
    return round(config.retrain.share * config.train.steps)


def check(config: ml_collections.ConfigDict, devices: int) -> None:
    """Raises `BadInput` at the first field with a value that cannot be used."""
    try:
        _check(config, devices)
    except TypeError as error:  # a tuple with something else than numbers, most often
        raise BadInput(f'a field of the config has a value of another kind: {error}') from error
    except (AttributeError, KeyError) as error:
        raise BadInput(
            f'a field that configs/digits.py has is missing from the config: {error}'
        ) from error


def _check(config: ml_collections.ConfigDict, devices: int) -> None:
    for name, choices in _CHOICES.items():
        if _field(config, name) not in choices:
            raise _bad(name, _field(config, name), f'one of {", ".join(choices)}')
    if not 0 <= config.seed < 2**32:
        raise _bad('seed', config.seed, 'in [0, 2**32)')
    for name in _AT_LEAST_ONE:
        if _field(config, name) < 1:
            raise _bad(name, _field(config, name), 'at least 1')
    _check_data(config)
    _check_prune(config)
    _check_training(config)
    _check_techniques(config)
    _check_mesh(config, devices)


def to_json(config: ml_collections.ConfigDict) -> str:
    """Writes a config as JSON, the same text for the same config."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def difference(before: str, after: str) -> list[str]:
    """Lists the fields in which two configs as JSON differ, old and new value each.

    The mesh may differ: a run goes on under another one.
    """
    old, new = _flat(json.loads(before)), _flat(json.loads(after))
    return [
        f'{name}: {old.get(name, "absent")} there, {new.get(name, "absent")} now'
        for name in sorted(old.keys() | new.keys())
        if old.get(name, 'absent') != new.get(name, 'absent') and not name.startswith('mesh.')
    ]


def _check_mesh(config: ml_collections.ConfigDict, devices: int) -> None:
    c = config.mesh
    parts = c.fsdp * c.tensor
    if devices % parts:
        expected = f'a divisor of {devices} devices, with mesh.tensor, which is {c.tensor}'
        raise _bad('mesh.fsdp', c.fsdp, expected)
    if parts > 1 and config.replicates > 1:
        raise _bad('replicates', config.replicates, '1 where mesh splits the weights of a network')
    if parts > 1 and config.prune.pattern == 'groups':
        raise _bad('prune.pattern', 'groups', 'another where mesh splits the weights of a network')
    shares = devices // c.tensor
    apart = parts == 1 and config.replicates % devices == 0
    if not apart and config.train.batch_size % shares:
        alone = ', unless replicates is a multiple of all devices' if parts == 1 else ''
        expected = f'a multiple of {shares} devices{alone}'
        raise _bad('train.batch_size', config.train.batch_size, expected)


def _check_data(config: ml_collections.ConfigDict) -> None:
    c = config.data
    if c.workers < 0:
        raise _bad('data.workers', c.workers, 'at least 0')
    if not c.streaming:
        return
    if config.replicates > 1:
        expected = '1 where data.streaming: a run for each seed, and one report over them'
        raise _bad('replicates', config.replicates, expected)
    if c.augment:
        raise _bad('data.augment', c.augment, 'False where data.streaming, which crops by itself')
    if c.normalize == 'dataset':
        expected = "another where data.streaming: 'imagenet' takes the moments of ImageNet"
        raise _bad('data.normalize', c.normalize, expected)


def _check_training(config: ml_collections.ConfigDict) -> None:
    c = config
    if not 0 < c.optimizer.learning_rate < float('inf'):
        raise _bad('optimizer.learning_rate', c.optimizer.learning_rate, 'above 0, finite')
    if not 0 <= c.optimizer.momentum < 1:
        raise _bad('optimizer.momentum', c.optimizer.momentum, 'in [0, 1)')
    if not 0 <= c.optimizer.weight_decay < float('inf'):
        raise _bad('optimizer.weight_decay', c.optimizer.weight_decay, 'at least 0, finite')
    if not 0 <= c.schedule.warmup_steps < c.train.steps:
        raise _bad('schedule.warmup_steps', c.schedule.warmup_steps, 'in [0, train.steps)')
    drops = [round(share * c.train.steps) for share in c.schedule.drops]
    within = all(c.schedule.warmup_steps < step < c.train.steps for step in drops)
    if not within or drops != sorted(set(drops)):
        expected = 'rising shares of train.steps after the warm-up, each at a step of its own'
        raise _bad('schedule.drops', c.schedule.drops, expected)
    if c.optimizer.clip_norm is not None and not 0 < c.optimizer.clip_norm < float('inf'):
        raise _bad('optimizer.clip_norm', c.optimizer.clip_norm, 'above 0, finite')
    if not 0 < c.schedule.drop_factor <= 1:
        raise _bad('schedule.drop_factor', c.schedule.drop_factor, 'in (0, 1]')


def _check_techniques(config: ml_collections.ConfigDict) -> None:
    c = config.retrain
    known = (*RETRAINING, *CONTROLS)
    unknown = [name for name in c.techniques if name not in known]
    if unknown or not c.techniques or len(set(c.techniques)) < len(c.techniques):
        raise _bad('retrain.techniques', c.techniques, f'some of {", ".join(known)}, once each')
    if c.techniques[0] in CONTROLS:
        expected = f'one of {", ".join(RETRAINING)} first, which the controls retrain like'
        raise _bad('retrain.techniques', c.techniques, expected)
    if not 0 < c.share <= 1 or retrain_steps(config) == 0:
        raise _bad('retrain.share', c.share, 'in (0, 1], and at least one of train.steps')
    if not 0 <= c.rewind_step < config.train.steps:
        raise _bad('retrain.rewind_step', c.rewind_step, 'in [0, train.steps)')
    if c.fine_tune_rate is not None and not 0 < c.fine_tune_rate < float('inf'):
        raise _bad('retrain.fine_tune_rate', c.fine_tune_rate, 'above 0, finite')


def _check_prune(config: ml_collections.ConfigDict) -> None:
    try:
        density_plan(config)
    except ValueError as error:
        raise BadInput(f'config.prune: {error}') from error
    c = config.prune
    if not 0 <= c.floor < 1:
        raise _bad('prune.floor', c.floor, 'in [0, 1)')
    if c.floor and c.allocation != 'global_top':
        raise _bad('prune.floor', c.floor, "0, unless prune.allocation is 'global_top'")
    if c.layer_densities:
        _check_layer_densities(config)
    if c.pattern == 'groups':
        _check_groups(config)
    if not 0 < c.n < c.m:
        raise _bad('prune.n', c.n, f'at least 1, below prune.m, which is {c.m}')


def _check_groups(config: ml_collections.ConfigDict) -> None:
    if config.replicates > 1:
        expected = "1 where prune.pattern is 'groups', whose networks differ in size: a run a seed"
        raise _bad('replicates', config.replicates, expected)
    if config.prune.allocation != 'global_top':
        expected = "'global_top' where prune.pattern is 'groups'"
        raise _bad('prune.allocation', config.prune.allocation, expected)
    if 'shuffled_masks' in config.retrain.techniques:
        expected = "no 'shuffled_masks' where prune.pattern is 'groups': they would hold no units"
        raise _bad('retrain.techniques', config.retrain.techniques, expected)


def _check_layer_densities(config: ml_collections.ConfigDict) -> None:
    c = config.prune
    if c.layer_densities not in l1_filters.VARIANTS:
        raise _bad(
            'prune.layer_densities', c.layer_densities, f'one of {", ".join(l1_filters.VARIANTS)}'
        )
    model = c.layer_densities.split('_')[0]
    if config.model.name != model:
        expected = f'{model}, whose layers prune.layer_densities name'
        raise _bad('model.name', config.model.name, expected)
    if c.pattern not in ('channels', 'groups'):
        expected = "'channels' or 'groups' where prune.layer_densities are given"
        raise _bad('prune.pattern', c.pattern, expected)
    needed = {'allocation': 'global_top', 'floor': 0, 'dense': ()}
    for name, value in needed.items():
        if c[name] != value:
            raise _bad(f'prune.{name}', c[name], f'{value!r} where prune.layer_densities are given')
    if len(density_plan(config)) > 1:
        raise _bad('prune.levels', c.levels, '1, where prune.layer_densities say how much stays')
    if 'small_dense' in config.retrain.techniques:
        expected = "no 'small_dense' where prune.layer_densities say how much stays"
        raise _bad('retrain.techniques', config.retrain.techniques, expected)


def _bad(name: str, value: Any, expected: str) -> BadInput:
    return BadInput(f'config.{name} is {value!r}, expected {expected}')


def _field(config: ml_collections.ConfigDict, name: str) -> Any:
    for part in name.split('.'):
        config = config[part]
    return config


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix('.'): tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f'{prefix}{name}.').items()}
