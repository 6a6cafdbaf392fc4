"""CIFAR-10: ResNet-110, iterative magnitude pruning with the paper's hyper-parameters.

python -m train.main --config=configs/cifar10_resnet110.py --workdir=runs/cifar10_resnet110

Not yet run at full length. Needs cifar10 prepared by TFDS: the command says how if it is not.
Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, table 1. Deviations: those of
configs/cifar10_resnet20.py, whose hyper-parameters are the same.
"""

import ml_collections

from configs import cifar10_resnet20


def get_config() -> ml_collections.ConfigDict:
    c = cifar10_resnet20.get_config()
    c.model.name = 'resnet110'
    return c
