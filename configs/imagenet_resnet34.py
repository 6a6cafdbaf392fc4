"""ImageNet: ResNet-34, iterative magnitude pruning with the paper's hyper-parameters.

python -m train.main --config=configs/imagenet_resnet34.py --workdir=runs/imagenet_resnet34

Not yet run at full length. Needs imagenet2012 prepared by TFDS: the command says how if it is not.
Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, table 1. Deviations: those of
configs/imagenet_resnet50.py, and the paper prunes this network by filters only:
configs/imagenet_resnet34_filters.py.
"""

import ml_collections

from configs import imagenet_resnet50


def get_config() -> ml_collections.ConfigDict:
    c = imagenet_resnet50.get_config()
    c.model.name = 'resnet34'
    return c
