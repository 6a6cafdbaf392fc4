"""Structured pruning: coupled channels found in a function's jaxpr, and removed for real."""

from jaxprune.structured.activations import activation
from jaxprune.structured.compaction import compact, dead
from jaxprune.structured.coupled import Group, Groups, Keep, Slice, groups
from jaxprune.structured.folding import fold
from jaxprune.structured.native import rebuilt, resized
from jaxprune.structured.ranking import Importance, geometric_median, importance, squared
from jaxprune.structured.removal import Shrunk, kept_by, masks_of, narrow, rewritten, shrink, widen
from jaxprune.structured.selection import parameters, stored, top, within

__all__ = [
    'Group',
    'Groups',
    'Importance',
    'Keep',
    'Shrunk',
    'Slice',
    'activation',
    'compact',
    'dead',
    'fold',
    'geometric_median',
    'groups',
    'importance',
    'kept_by',
    'masks_of',
    'narrow',
    'parameters',
    'rebuilt',
    'resized',
    'rewritten',
    'shrink',
    'squared',
    'stored',
    'top',
    'widen',
    'within',
]
