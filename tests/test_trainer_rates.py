"""The learning rate of a config, step by step."""

import numpy as np

from configs import digits
from train import rates


def test_the_schedule_of_a_config():
    config = digits.get_config()
    config.schedule.warmup_steps = 10
    rate = rates.dense_schedule(config)
    steps = [0, 5, 10, 449, 451, 674, 676, 5000]
    expected = [0, 0.05, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose([float(rate(step)) for step in steps], expected, rtol=1e-5)


def test_the_rates_of_techniques_lie_behind_the_dense_ones():
    config = digits.get_config()
    schedule, starts = rates.rates(config)
    assert starts == {'fine_tune': 900, 'slr': 1800, 'clr': 2700, 'llr': 3600}
    dense = rates.dense_schedule(config)
    assert [float(schedule(s)) for s in (0, 451, 899)] == [float(dense(s)) for s in (0, 451, 899)]
    found = {
        name: [float(schedule(start + s)) for s in (0, 90, 898)] for name, start in starts.items()
    }
    expected = {
        'fine_tune': [0.001, 0.001, 0.001],
        'slr': [0.001, 0.1, 0.001],
        'clr': [0.001, 0.1, 0.001 + 0.099 * (1 + np.cos(np.pi * 808 / 810)) / 2],
        'llr': [0.1, 0.09, 0.1 * 2 / 900],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3)


def test_fine_tuning_at_a_given_rate():
    config = digits.get_config()
    config.retrain.fine_tune_rate = 0.02
    schedule, starts = rates.rates(config)
    start = starts['fine_tune']
    np.testing.assert_allclose([float(schedule(start + s)) for s in (0, 899)], 0.02, rtol=1e-6)
