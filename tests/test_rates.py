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
    ],
)
def test_bad_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_factor_scales_what_is_chained_before_it():
    params = {'w': jnp.ones((2, 2))}
    tx = jp.pruned(optax.chain(optax.sgd(0.5), rates.scale_by_factor()))
    state = rates.set_factor(tx.init(params), 0.25)
    updates, state = jax.jit(tx.update)({'w': jnp.full((2, 2), 2.0)}, state, params)
    np.testing.assert_array_equal(updates['w'], jnp.full((2, 2), -0.25))
    assert state.inner_state[1].factor == 0.25


def test_a_factor_needs_its_place():
    params = {'w': jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r'chain rates.scale_by_factor\(\) last'):
        rates.set_factor(jp.pruned(optax.sgd(0.5)).init(params), 0.5)
    state = rates.scale_by_factor().init(params)
    for factor in (-1.0, float('nan'), float('inf')):
        with pytest.raises(ValueError, match='factor must be finite and at least 0'):
            rates.set_factor(state, factor)


def allr_point(kernel, masks):
    params = {'kernel': jnp.asarray(kernel, jnp.float32), 'bias': jnp.full(2, 9.0)}
    extended = rates.extend(DENSE, 8, {'llr': rates.llr(0.4, 2)}, 2)
    tx = jp.pruned(optax.chain(optax.sgd(extended.schedule), rates.scale_by_factor()))
    state = jp.set_masks(tx.init(params), {'kernel': jnp.asarray(masks), 'bias': None})
    return jp.Point(params, state), extended.starts


def test_allr_by_hand():
    # 9 + 16 of 3, 4, 12, 0 is lost of 169, and 2 of the 3 weights that were left
    point, starts = allr_point([[3, 4], [12, 0]], [[True, True], [True, False]])
    masks = {'kernel': jnp.array([[False, False], [True, False]]), 'bias': None}
    expected = np.sqrt(25 / 169) / np.sqrt(2 / 3)
    assert float(rounds.damage(point, masks)) == pytest.approx(expected, rel=1e-6)
    for share, factor in ((0.25, expected), (0.75, 0.75)):
        started = rounds.allr(starts['llr'], share)(point, masks)
        inner = started.opt_state.inner_state
        assert float(inner[1].factor) == pytest.approx(factor, rel=1e-6)
        assert int(inner[0][1].count) == starts['llr']


def test_damage_is_1_where_all_weights_are_alike_and_0_where_none_is_lost():
    point, _ = allr_point(np.full((2, 2), -3.0), np.ones((2, 2), bool))
    half = {'kernel': jnp.array([[True, False], [False, True]]), 'bias': None}
    assert float(rounds.damage(point, half)) == pytest.approx(1.0)
    assert float(rounds.damage(point, jp.get_masks(point.opt_state))) == 0
    zeros, _ = allr_point([[3, 0], [0, 4]], np.ones((2, 2), bool))
    assert float(rounds.damage(zeros, half)) == 0


def test_allr_needs_a_share_of_the_time():
    with pytest.raises(ValueError, match=r'share must be in \(0, 1\], got 0'):
        rounds.allr(3, 0)


def test_fine_tuning_at_rates_of_its_own():
    schedule, starts = rates.extend(DENSE, 8, {'fine_tune': optax.constant_schedule(0.03)}, 2)
    assert starts == {'fine_tune': 10}
    assert float(schedule(starts['fine_tune'])) == pytest.approx(0.03)
