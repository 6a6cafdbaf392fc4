"""Digits: channels of a small BatchNorm network removed for real, round by round.

python -m train.main --config=configs/units_digits.py --workdir=runs/units_digits

Two x86-64 cores, about a minute. What it measured, with its latency: docs/structured.md.
"""

import ml_collections

from configs import digits_conv


def get_config() -> ml_collections.ConfigDict:
    c = digits_conv.get_config()
    c.prune.pattern = 'groups'
    c.prune.rate = 0.6
    c.prune.levels = 6  # at most 0.6 ** 6 = 4.7 % of the weights
    c.retrain.techniques = ('lr_rewind',)
    c.retrain.share = 1.0
    return c
