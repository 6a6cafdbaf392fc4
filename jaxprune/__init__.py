"""Pruning for JAX and Flax: train, prune the weakest connections, rewind, repeat."""

from jaxprune import (
    allocate,
    budgets,
    choose,
    cost,
    counting,
    gradual,
    masks,
    optimizer,
    packing,
    patterns,
    rates,
    report,
    rewind,
    rounds,
    scores,
    select,
    structured,
    tree,
)
from jaxprune.optimizer import PrunedState, get_masks, pruned, set_masks
from jaxprune.rewind import Point, rewind_schedule

__version__ = '0.1.0'

__all__ = [
    'Point',
    'PrunedState',
    'allocate',
    'budgets',
    'choose',
    'cost',
    'counting',
    'get_masks',
    'gradual',
    'masks',
    'optimizer',
    'packing',
    'patterns',
    'pruned',
    'rates',
    'report',
    'rewind',
    'rewind_schedule',
    'rounds',
    'scores',
    'select',
    'set_masks',
    'structured',
    'tree',
]
