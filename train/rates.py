"""The learning rate of a config, step by step, with those of retraining behind it."""

import ml_collections
import optax

import jaxprune as jp
from train import config as config_lib


def dense_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Makes the learning rate by step: linear warm-up, then a drop at each named share."""
    rate, warmup = config.optimizer.learning_rate, config.schedule.warmup_steps
    drops = {
        round(share * config.train.steps) - warmup: config.schedule.drop_factor
        for share in config.schedule.drops
    }
    constant = optax.piecewise_constant_schedule(rate, drops)
    if warmup == 0:
        return constant
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), constant], [warmup])


def rates(config: ml_collections.ConfigDict) -> jp.rates.Extended:
    """Makes the learning rate by step, with that of each technique behind the dense one."""
    dense, steps = dense_schedule(config), config_lib.retrain_steps(config)
    highest = config.optimizer.learning_rate
    lowest = min(float(dense(config.train.steps)), highest)  # of float32
    own = {
        'slr': jp.rates.slr(highest, lowest, steps),
        'clr': jp.rates.clr(highest, lowest, steps),
        'llr': jp.rates.llr(highest, steps),
    }
    if config.retrain.fine_tune_rate is not None:
        own['fine_tune'] = optax.constant_schedule(config.retrain.fine_tune_rate)
    return jp.rates.extend(dense, config.train.steps, own, steps)
