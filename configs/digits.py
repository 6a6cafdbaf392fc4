"""Digits: LeNet-300-100, trained once and pruned to 1.2 % of its weights, twice.

python -m train.main --config=configs/digits.py --workdir=runs/digits

Two x86-64 cores, 18 to 47 s. Test accuracy, seed 0, at 1.15 % of the weights: lr_rewind 98.33 %,
fine_tune 95.00 %. Three replicates: README.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of weights and data order
    c.replicates = 1  # networks trained together, each with its own random keys
    c.replicate_by = 'vmap'  # how a device trains several: side by side, or in turn with 'map'

    c.data = ml_collections.ConfigDict()
    c.data.name = 'digits'  # any TFDS name with an image and a label
    c.data.directory = ''  # where TFDS keeps prepared data; empty: where TFDS_DATA_DIR says
    c.data.validation_examples = 237  # held out of the train split, never of test
    c.data.split_seed = 0  # of what is held out, the same for seeds that are to be compared
    c.data.test_split = 'test'  # the TFDS split that is tested on, 'validation' of ImageNet
    c.data.normalize = 'dataset'  # by its moments or 'imagenet', 'per_image' or 'none'
    c.data.augment = False  # random crops (padding 4) and flips
    c.data.streaming = False  # read, cropped and flipped while training, not held in memory
    c.data.image_size = 224  # of a stream's crops
    c.data.workers = 0  # processes that decode a stream; 0: threads

    c.model = ml_collections.ConfigDict()
    c.model.name = 'lenet300'  # a name in train/models
    c.model.dtype = 'float32'  # of the computation, or 'bfloat16'

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.name = 'sgd'  # 'sgd', 'adam' or 'adamw'
    c.optimizer.learning_rate = 0.1  # before the drops
    c.optimizer.momentum = 0.9  # of sgd
    c.optimizer.nesterov = False  # of sgd
    c.optimizer.weight_decay = 1e-4  # L2 on all trainables; decoupled with adamw
    c.optimizer.decay_norms = True  # whether normalisation's scales and offsets decay too
    c.optimizer.clip_norm = config_dict.placeholder(float)  # global norm gradients are clipped to

    c.schedule = ml_collections.ConfigDict()
    c.schedule.warmup_steps = 0  # of linear warm-up from 0
    c.schedule.drops = (0.5, 0.75)  # shares of train.steps at which the rate drops
    c.schedule.drop_factor = 0.1  # what it is multiplied by at each drop

    c.train = ml_collections.ConfigDict()
    c.train.steps = 900  # of the dense training
    c.train.batch_size = 64  # examples a step, over all devices
    c.train.steps_per_dispatch = 300  # steps that the device takes on its own, at most

    c.mesh = ml_collections.ConfigDict()
    c.mesh.fsdp = 1  # devices that each hold a part of the weights, and of each batch
    c.mesh.tensor = 1  # devices that each compute a part of the units; the others split batches

    c.prune, c.retrain = _prune(), _retrain()

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every_steps = 3000  # steps between checkpoints inside a round
    return c.lock()


def _prune() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.rate = 0.8  # share of the weights left that each round keeps
    c.levels = 20  # rounds; 0.8 ** 20 = 1.2 % of the weights
    c.densities = ()  # any falling list of absolute densities instead of rate and levels
    c.mode = 'iterative'  # or 'oneshot': each level prunes the dense network
    c.score = 'magnitude'  # a name in train/techniques
    c.score_batches = 4  # batches of training data for scores that need gradients
    c.allocation = 'global_top'  # 'uniform' or 'erdos_renyi' over the layers
    c.layer_densities = ''  # a name in train/l1_filters, instead of rate and allocation
    c.floor = 0.0  # share of each layer that global_top keeps at least
    c.dense = ()  # paths, or patterns of paths, of layers that stay dense
    c.pattern = 'unstructured'  # 'channels', 'blocks', 'n_of_m', or 'groups', which are removed
    c.block = (1, 4)  # sides of a block over the last axes of a kernel
    c.multiple = 1  # a layer keeps a multiple of this many of its units, of 'groups'
    c.normalize = True  # whether scores are divided by their mean in each of the 'groups'
    c.n, c.m = 2, 4  # n of each m along the contraction axis; more above density n / m
    return c


def _retrain() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.techniques = ('lr_rewind', 'fine_tune')  # names in train/config; controls last
    c.share = 1.0  # of train.steps that a round takes: the last ones of the schedule
    c.rewind_step = 0  # step whose weights weight_rewind returns to; it trains the rest
    c.fine_tune_rate = config_dict.placeholder(float)  # None: the schedule's last rate
    c.reset_moments = False  # whether moments begin afresh where weights go on
    c.reshuffle = True  # whether each round orders the data anew, not as the dense one
    return c
