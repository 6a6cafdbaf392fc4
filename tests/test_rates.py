"""Rates of retraining: by hand, and behind the dense schedule in one optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import rates, rounds

pytestmark = pytest.mark.promotes  # optax does

DENSE = optax.piecewise_constant_schedule(0.4, {4: 0.5, 6: 0.5})


def read(schedule, steps):
    return [float(schedule(step)) for step in range(steps)]


def test_slr_by_hand():
    found = read(rates.slr(1.0, 0.2, 10, warmup=0.2), 10)
    np.testing.assert_allclose(found, [0.2, 0.6, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_clr_by_hand():
    found = read(rates.clr(1.0, 0.5, 5, warmup=0.2), 6)
    cosine = [0.75 + 0.25 * np.cos(np.pi * k / 4) for k in range(5)]
    np.testing.assert_allclose(found, [0.5, *cosine], rtol=1e-6)


def test_llr_by_hand():
    np.testing.assert_allclose(read(rates.llr(0.8, 4), 6), [0.8, 0.6, 0.4, 0.2, 0, 0], atol=1e-7)


def test_without_warmup_it_starts_at_the_highest_rate():
    assert read(rates.slr(1.0, 0.1, 4, warmup=0), 4) == pytest.approx([1, 1, 0.1, 0.01])
    assert read(rates.slr(1.0, 0.1, 1), 1) == [1.0]


def test_extended_holds_each_schedule_whole():
    own = {'slr': rates.slr(0.4, 0.1, 5), 'llr': rates.llr(0.4, 5)}
    schedule, starts = rates.extend(DENSE, 8, own, 5)
    assert starts == {'fine_tune': 8, 'slr': 13, 'llr': 18}
    assert read(schedule, 8) == read(DENSE, 8)
    assert {float(schedule(8 + k)) for k in range(5)} == {float(DENSE(7))}
    for name, alone in own.items():
        assert [float(schedule(starts[name] + k)) for k in range(5)] == read(alone, 5)


def test_a_round_trains_at_the_rates_of_its_technique():
    extended = rates.extend(DENSE, 8, {'llr': rates.llr(0.4, 4)}, 4)
    tx = jp.pruned(optax.sgd(extended.schedule))
    params = {'kernel': jnp.ones((4, 4))}
    step = jax.jit(tx.update)
    for name, expected in {'llr': [0.4, 0.3, 0.2, 0.1], 'fine_tune': [0.1] * 4}.items():
        point = jp.Point(params, tx.init(params))
        point = rounds.begin(point, 0.5, rounds.lr_rewind(extended.starts[name]))
        state, moved = point.opt_state, []
        for _ in range(4):
            updates, state = step(params, state, point.params)
            moved.append(-float(updates['kernel'][0, 0]))
        np.testing.assert_allclose(moved, expected, rtol=1e-6)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: rates.slr(0.1, 0.2, 10), 'rates must be 0 < lowest <= highest, got 0.2 and 0.1'),
        (lambda: rates.clr(0.1, 0.0, 10), 'rates must be 0 < lowest'),
        (lambda: rates.llr(float('inf'), 10), 'rates must be'),
        (lambda: rates.slr(0.2, 0.1, 0), 'steps must be a whole number from 1, got 0'),
        (lambda: rates.slr(0.2, 0.1, 5, warmup=1), r'share of the steps in \[0, 1\), got 1'),
        (lambda: rates.slr(0.2, 0.1, 5, factor=0), r'factor must be in \(0, 1\], got 0'),
        (lambda: rates.extend(DENSE, 8, {}, 2.5), 'retrain_steps must be a whole number'),
        (lambda: rates.extend(DENSE, 8, {'fine_tune': DENSE}, 2), "'fine_tune' is the dense"),
    ],
)
def test_bad_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
