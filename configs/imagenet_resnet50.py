"""ImageNet: ResNet-50, iterative magnitude pruning with the paper's hyper-parameters.

python -m train.main --config=configs/imagenet_resnet50.py --workdir=runs/imagenet_resnet50

Not yet run at full length. Needs imagenet2012 prepared by TFDS: the command says how if it is not.
Source: Renda, Frankle, Carbin 2020, arXiv:2003.02389, table 1. Deviations: the validation
part is held out of train, not of test, so that an epoch is 1,241 steps; the schedule keeps the
paper's 90 epochs of 1,251; random crops are drawn as in train/stream.py.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    c = digits.get_config()
    c.replicates = 1  # a stream trains one: a run for each seed, one report over them
    c.data.name = 'imagenet2012'
    c.data.test_split = 'validation'  # ImageNet's own test split has no labels
    c.data.validation_examples = 10_000
    c.data.normalize = 'imagenet'
    c.data.streaming = True  # crops of 8 to 100 % of the area, and flips
    c.data.image_size = 224
    c.model.name = 'resnet50'
    c.model.dtype = 'bfloat16'
    c.optimizer.learning_rate = 0.4
    c.optimizer.nesterov = True
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_norms = False
    c.schedule.warmup_steps = 6_255  # 5 epochs
    c.schedule.drops = (30 / 90, 60 / 90, 80 / 90)  # epochs of epochs
    c.train.steps = 112_590
    c.train.batch_size = 1024
    c.train.steps_per_dispatch = 9  # each of 154 MB of images
    c.prune.levels = 10  # 0.8 ** 10 = 10.7 % of the weights
    c.retrain.techniques = ('lr_rewind', 'weight_rewind', 'fine_tune')
    c.checkpoint.every_steps = 1_251
    return c
