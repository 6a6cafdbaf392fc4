"""Structured pruning: coupled channels found in a function's jaxpr, and removed for real."""

from jaxprune.structured.coupled import Group, Groups, Keep, Slice, groups
from jaxprune.structured.shrink import Shrunk, narrow, rewritten, shrink

__all__ = ['Group', 'Groups', 'Keep', 'Shrunk', 'Slice', 'groups', 'narrow', 'rewritten', 'shrink']
