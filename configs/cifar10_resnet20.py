"""CIFAR-10: ResNet-20, iterative magnitude pruning with the paper's hyper-parameters.

python -m train.main --config=configs/cifar10_resnet20.py --workdir=runs/cifar10_resnet20

Not yet run at full length. Needs cifar10 prepared by TFDS: the command says how if it is not.
Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, table 1. Deviations: the validation part is
held out of train, not of test; 71,100 steps rather than 71,108, so that dispatches divide them.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    c = digits.get_config()
    c.replicates = 3
    c.data.name = 'cifar10'
    c.data.validation_examples = 5000
    c.data.normalize = 'per_image'
    c.data.augment = True
    c.model.name = 'resnet20'
    c.optimizer.weight_decay = 2e-4
    c.schedule.drops = (91 / 182, 136 / 182)  # epochs of epochs
    c.train.steps = 71_100
    c.train.batch_size = 128
    c.train.steps_per_dispatch = 450
    c.prune.levels = 10  # 0.8 ** 10 = 10.7 % of the weights
    c.retrain.techniques = ('lr_rewind', 'weight_rewind', 'fine_tune')
    c.checkpoint.every_steps = 9_000
    return c
