"""Digits, a study: LeNet-300-100, three retraining techniques, five replicates, twelve levels.

python -m train.main --config=configs/study_digits.py --workdir=runs/study_digits

The results are in docs/results.md, with the time it took.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    c = digits.get_config()
    c.replicates = 5
    c.prune.rate = 0.69
    c.prune.levels = 12  # 0.69 ** 12 = 1.2 % of the weights
    c.retrain.techniques = ('lr_rewind', 'weight_rewind', 'fine_tune')
    return c
