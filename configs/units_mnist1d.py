"""MNIST-1D: hidden units of a perceptron removed for real, round by round.

python -m train.main --config=configs/units_mnist1d.py --workdir=runs/units_mnist1d

Two x86-64 cores, about a minute. What it measured, with its latency: docs/structured.md.
"""

import ml_collections

from configs import study_mnist1d


def get_config() -> ml_collections.ConfigDict:
    c = study_mnist1d.get_config()
    c.replicates = 1
    c.prune.pattern = 'groups'
    c.prune.densities = ()
    c.prune.rate = 0.6
    c.prune.levels = 6  # at most 0.6 ** 6 = 4.7 % of the weights
    c.retrain.techniques = ('lr_rewind',)
    return c
