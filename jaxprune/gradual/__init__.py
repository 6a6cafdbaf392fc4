"""Pruning during training: optax wrappers that change the masks inside the jitted step."""

from jaxprune.gradual.dense_to_sparse import ac_dc, prune, straight_through
from jaxprune.gradual.schedules import Schedule, alternating, cubic, one_shot, periodic
from jaxprune.gradual.sparse_to_sparse import rigl, sparse_evolution, static
from jaxprune.gradual.wrapper import GradualState, Method, change_masks, start

__all__ = [
    'GradualState',
    'Method',
    'Schedule',
    'ac_dc',
    'alternating',
    'change_masks',
    'cubic',
    'one_shot',
    'periodic',
    'prune',
    'rigl',
    'sparse_evolution',
    'start',
    'static',
    'straight_through',
]
