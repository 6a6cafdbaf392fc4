"""Digits: a small convolutional network with BatchNorm, pruned by all three techniques.

python -m train.main --config=configs/digits_conv.py --workdir=runs/digits_conv

Two x86-64 cores, about two minutes. Test accuracy, seed 0: dense 98.89 %; at 6.25 % of the weights
lr_rewind 97.22 %, weight_rewind 97.78 %, fine_tune 95.00 %.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    c = digits.get_config()
    c.model.name = 'convnet'
    c.train.steps = 400
    c.train.steps_per_dispatch = 100
    c.prune.rate = 0.5
    c.prune.levels = 4  # 0.5 ** 4 = 6.3 % of the weights
    c.retrain.techniques = ('lr_rewind', 'weight_rewind', 'fine_tune')
    c.retrain.share = 0.75
    c.retrain.rewind_step = 100  # with its batch statistics, and as many steps to the end
    return c
