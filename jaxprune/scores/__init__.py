"""Scores: how much each weight matters; higher stays, `None` where a leaf is not prunable.

All are pure functions of trees. Those of weights alone are cheap; those of gradients take averages
that `mean_gradient` and `mean_squared_gradient` make, or take them themselves from a loss.
"""

from jaxprune.scores.averages import mean_gradient, mean_squared_gradient
from jaxprune.scores.gradients import fisher, grasp, movement, snip, synflow, taylor
from jaxprune.scores.weights import lamp, magnitude, normalized_magnitude, random

__all__ = [
    'fisher',
    'grasp',
    'lamp',
    'magnitude',
    'mean_gradient',
    'mean_squared_gradient',
    'movement',
    'normalized_magnitude',
    'random',
    'snip',
    'synflow',
    'taylor',
]
