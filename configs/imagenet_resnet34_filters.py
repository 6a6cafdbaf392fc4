"""ImageNet: ResNet-34, filters of least L1 norm pruned in one shot, as ResNet-34-A.

ResNet-34-B: --config.prune.layer_densities=resnet34_b

python -m train.main --config=configs/imagenet_resnet34_filters.py --workdir=runs/resnet34_filters

Not yet run at full length. Needs imagenet2012 prepared by TFDS: the command says how if it is not.
Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, with the filters of
Li et al. 2017, arXiv:1608.08710, table 1. Deviations: those of configs/imagenet_resnet34.py, and of
train/l1_filters.py.
"""

import ml_collections

from configs import imagenet_resnet34


def get_config() -> ml_collections.ConfigDict:
    c = imagenet_resnet34.get_config()
    c.prune.mode = 'oneshot'
    c.prune.pattern = 'groups'  # removed for real
    c.replicates = 1  # networks differ in size: a run a seed, and one report over them
    c.prune.layer_densities = 'resnet34_a'  # or 'resnet34_b'
    c.prune.levels = 1
    return c
