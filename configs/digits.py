"""Digits: LeNet-300-100, trained once and pruned to 1.2 % of its weights, twice.

python -m train.main --config=configs/digits.py --workdir=runs/digits

Two x86-64 cores, about 22 s. Test accuracy, seed 0: dense 98.06 %; at 1.15 % of the weights
lr_rewind 98.06 %, fine_tune 95.00 %; at 4.40 %, 98.61 % and 97.22 %. Three replicates: README.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of weights, data order and the validation part
    c.replicates = 1  # networks trained one after the other, each with its own random keys

    c.data = ml_collections.ConfigDict()
    c.data.name = 'digits'  # any TFDS name with an image and a label
    c.data.directory = ''  # where TFDS keeps prepared data; empty: where TFDS_DATA_DIR says
    c.data.validation_examples = 237  # held out of the train split, never of test
    c.data.normalize = 'dataset'  # by mean and deviation of the training part, or 'per_image'
    c.data.augment = False  # random crops (padding 4) and flips

    c.model = ml_collections.ConfigDict()
    c.model.name = 'lenet300'  # a name in train/models

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = 'sgd'  # 'sgd', 'adam' or 'adamw'
    c.optimizer.learning_rate = 0.1  # before the drops
    c.optimizer.momentum = 0.9  # of sgd
    c.optimizer.nesterov = False  # of sgd
    c.optimizer.weight_decay = 1e-4  # L2 on all trainables; decoupled with adamw

    c.schedule = ml_collections.ConfigDict()
    c.schedule.warmup_steps = 0  # of linear warm-up from 0
    c.schedule.drops = (0.5, 0.75)  # shares of train.steps at which the rate drops
    c.schedule.drop_factor = 0.1  # what it is multiplied by at each drop

    c.train = ml_collections.ConfigDict()
    c.train.steps = 900  # of the dense training
    c.train.batch_size = 64  # examples a step, over all devices
    c.train.steps_per_dispatch = 300  # steps that the device takes on its own, at most

    c.prune = ml_collections.ConfigDict()
    c.prune.rate = 0.8  # share of the weights left that each round keeps
    c.prune.levels = 20  # rounds; 0.8 ** 20 = 1.2 % of the weights
    c.prune.densities = ()  # any falling list of absolute densities instead of rate and levels
    c.prune.score = 'magnitude'  # or 'random', the control
    c.prune.allocation = 'global_top'  # or 'leaf_top': the same density in each layer

    c.retrain = ml_collections.ConfigDict()
    c.retrain.techniques = ('lr_rewind', 'fine_tune')  # 'weight_rewind', 'slr', 'clr', 'llr'
    c.retrain.share = 1.0  # of train.steps that a round takes: the last ones of the schedule

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every_steps = 3000  # steps between checkpoints inside a round
    return c.lock()
