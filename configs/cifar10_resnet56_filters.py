"""CIFAR-10: ResNet-56, filters of least L1 norm pruned in one shot, as ResNet-56-A.

ResNet-56-B: --config.prune.layer_densities=resnet56_b

python -m train.main --config=configs/cifar10_resnet56_filters.py --workdir=runs/resnet56_filters

Not yet run at full length. Needs cifar10 prepared by TFDS: the command says how if it is not.
Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, with the filters of
Li et al. 2017, arXiv:1608.08710, table 1. Deviations: those of configs/cifar10_resnet56.py, and of
train/l1_filters.py.
"""

import ml_collections

from configs import cifar10_resnet56


def get_config() -> ml_collections.ConfigDict:
    c = cifar10_resnet56.get_config()
    c.prune.mode = 'oneshot'
    c.prune.pattern = 'groups'  # removed for real
    c.replicates = 1  # networks differ in size: a run a seed, and one report over them
    c.prune.layer_densities = 'resnet56_a'  # or 'resnet56_b'
    c.prune.levels = 1
    return c
