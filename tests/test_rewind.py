import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

pytestmark = pytest.mark.promotes  # optax does

SCHEDULE = optax.piecewise_constant_schedule(1.0, {3: 0.1, 6: 0.1})


def take_steps(tx, params, state, steps):
    for _ in range(steps):
        updates, state = tx.update(jnp.ones_like(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state, updates


def rates_from(tx, state, steps):
    """Reads the rates of plain SGD from its updates under a gradient of one."""
    params, rates = jnp.zeros((2, 2)), []
    for _ in range(steps):
        updates, state = tx.update(jnp.ones((2, 2)), state, params)
        rates.append(-float(updates[0, 0]))
    return rates


def test_the_schedule_replays_by_hand():
    tx = jp.pruned(optax.sgd(SCHEDULE))
    _, state, _ = take_steps(tx, jnp.zeros((2, 2)), tx.init(jnp.zeros((2, 2))), 7)
    expected = [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(rates_from(tx, jp.rewind_schedule(state), 8), expected, rtol=1e-6)
    np.testing.assert_allclose(
        rates_from(tx, jp.rewind_schedule(state, 2), 6), expected[2:], rtol=1e-6
    )
    np.testing.assert_allclose(
        rates_from(tx, jp.rewind_schedule(state, 1000), 3), [0.01] * 3, rtol=1e-6
    )


def test_adam_keeps_its_bias_correction_and_moments():
    tx = jp.pruned(optax.adam(SCHEDULE))
    params = jnp.ones((2, 2))
    _, state, _ = take_steps(tx, params, tx.init(params), 5)
    adam, schedule = jp.rewind_schedule(state).inner_state
    before, _ = state.inner_state
    assert int(adam.count) == 5
    assert int(schedule.count) == 0
    np.testing.assert_array_equal(adam.mu, before.mu)


@pytest.mark.parametrize(
    'tx',
    [
        optax.chain(optax.clip(1.0), optax.adamw(SCHEDULE)),
        optax.MultiSteps(optax.sgd(SCHEDULE), 1),
        optax.inject_hyperparams(optax.sgd)(SCHEDULE),
        optax.chain(optax.add_decayed_weights(SCHEDULE), optax.sgd(0.1)),
        optax.masked(optax.sgd(SCHEDULE), True),
    ],
    ids=['chain', 'multi steps', 'inject', 'decay', 'masked'],
)
def test_a_rewound_schedule_is_that_of_a_new_optimizer(tx):
    tx = jp.pruned(tx)
    params = jnp.full((2, 2), 2.0)
    _, state, _ = take_steps(tx, params, tx.init(params), 8)
    rewound = jp.rewind_schedule(state)
    assert jax.tree.structure(rewound) == jax.tree.structure(state)
    old, new = jax.tree.leaves(state), jax.tree.leaves(rewound)
    assert [(x.shape, x.dtype) for x in old] == [(x.shape, x.dtype) for x in new]
    _, _, first = take_steps(tx, params, tx.init(params), 1)
    _, _, again = take_steps(tx, params, rewound, 1)
    np.testing.assert_allclose(
        again, first, rtol=0.2
    )  # the rates differ tenfold, Adam's moments less
    _, _, later = take_steps(tx, params, state, 1)
    assert abs(float(later[0, 0]) / float(first[0, 0])) < 0.8


def test_works_under_jit_with_a_traced_step():
    tx = jp.pruned(optax.sgd(SCHEDULE))
    state = tx.init(jnp.zeros((2, 2)))
    moved = jax.jit(jp.rewind_schedule)(state, 6)
    np.testing.assert_allclose(rates_from(tx, moved, 2), [0.01] * 2, rtol=1e-6)


@pytest.mark.parametrize('step', [-1, 2.5, float('nan'), 2**31, jnp.float32(2)])
def test_a_step_that_is_no_whole_number_from_0_is_an_error(step):
    tx = jp.pruned(optax.sgd(SCHEDULE))
    with pytest.raises(ValueError, match='cannot be moved to step'):
        jp.rewind_schedule(tx.init(jnp.zeros((2, 2))), step)
    with pytest.raises(ValueError, match='cannot be moved to step'):
        jp.rounds.lr_rewind(step)


def test_no_schedule_is_an_error():
    tx = jp.pruned(optax.adam(0.1))
    with pytest.raises(ValueError, match='there is no schedule'):
        jp.rewind_schedule(tx.init(jnp.zeros((2, 2))))


def test_weight_rewinding_returns_all_but_the_masks():
    tx = jp.pruned(optax.adam(SCHEDULE))
    start = jnp.array([[1.0, -2.0], [3.0, 0.5]])
    params, state, _ = take_steps(tx, start, tx.init(start), 2)
    stored = jp.Point(params, state, {'mean': jnp.ones(2)})
    masks = jnp.array([[True, False], [True, True]])
    ticket = jp.rewind.put_masks(stored, masks)
    np.testing.assert_array_equal(ticket.params, jnp.where(masks, params, 0))
    np.testing.assert_array_equal(jp.get_masks(ticket.opt_state), masks)
    jax.tree.map(
        np.testing.assert_array_equal, ticket.opt_state.inner_state, stored.opt_state.inner_state
    )
    assert ticket.extra is stored.extra
