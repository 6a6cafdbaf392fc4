"""Digits, the controls: what of a pruned network's accuracy its masks and weights are good for.

python -m train.main --config=configs/study_controls.py --workdir=runs/study_controls

The results are in docs/results.md, with the time it took.
"""

import ml_collections

from configs import study_digits


def get_config() -> ml_collections.ConfigDict:
    c = study_digits.get_config()
    c.prune.rate = 0.48
    c.prune.levels = 6  # 0.48 ** 6 = 1.2 % of the weights
    c.retrain.techniques = (
        'lr_rewind',
        'slr',
        'clr',
        'allr',
        'random_masks',
        'shuffled_masks',
        'reinit',
        'small_dense',
    )
    return c
