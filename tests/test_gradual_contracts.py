"""Each method x each way it is called gives the bits of a plain jitted loop."""

import functools

import gradual_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import hasty
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune import gradual, masks, scores

pytestmark = pytest.mark.promotes  # optax does

DEVICES, STEPS = 8, 8
SCHEDULE, KEY = gradual.cubic(0, 6, 2), jax.random.key(0)
METHODS = {
    'prune': lambda **o: gradual.prune(cases.INNER, 0.2, SCHEDULE, **o),
    'movement': lambda **o: gradual.prune(
        cases.INNER, 0.2, SCHEDULE, score=scores.movement, running=True, **o
    ),
    'ac_dc': lambda **o: gradual.ac_dc(cases.INNER, 0.2, begin=1, end=5, every=2, **o),
    'straight_through': lambda **o: gradual.straight_through(
        cases.INNER, 0.2, SCHEDULE, choose=masks.leaf_top, **o
    ),
    'static': lambda **o: gradual.static(cases.INNER, 0.4, KEY, **o),
    'set': lambda **o: gradual.sparse_evolution(
        cases.INNER, 0.4, KEY, schedule=gradual.periodic(2), **o
    ),
    'rigl': lambda **o: gradual.rigl(cases.INNER, 0.4, KEY, every=2, end=7, **o),
}
GRADS = cases.gradients(STEPS)


@functools.cache
def jitted(name):
    """One step of a method, which donates what it is given, and a list of its traces."""
    tx, traces = METHODS[name](), []

    def step(*arguments):
        traces.append(1)
        return cases.stepper(tx)(*arguments)

    return tx, hasty(step, donate_argnums=(0, 1)), traces


def begin(tx, seed=0):
    return gradual.start(tx, jax.tree.map(jnp.array, cases.dyadic(seed)))


def here(*trees):
    return jax.tree.map(np.array, trees)  # copies, that no donation takes


def plain(name, seed=0):
    """Parameters and masks after each step of a loop."""
    tx, step, _ = jitted(name)
    params, state = begin(tx, seed)
    history = []
    for g in GRADS:
        params, state = step(params, state, g)
        history.append(here(params, jp.get_masks(state)))
    return history, here(params, state)


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('name', METHODS)
def test_one_trace_and_donated_arguments(name):
    _, _, traces = jitted(name)
    first, second = plain(name), plain(name)
    assert len(traces) == 1
    same(first, second)
    (_, early), (_, late) = first[0][0], first[0][-1]
    assert any((early[k] != late[k]).any() for k in 'ab') == (name != 'static')


@pytest.mark.exhaustive
@pytest.mark.parametrize('name', METHODS)
def test_resumed_training_has_the_same_bits(name):
    tx, step, traces = jitted(name)
    params, state = begin(tx)
    for g in GRADS[:3]:
        params, state = step(params, state, g)
    params, state = jax.tree.map(jnp.asarray, here(params, state))
    for g in GRADS[3:]:
        params, state = step(params, state, g)
    same(here(params, state), plain(name)[1])
    assert len(traces) == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize('name', METHODS)
def test_packed_in_a_scan(name):
    tx = METHODS[name](packed=True)

    def step(carry, g):
        params, state = cases.stepper(tx)(*carry, g)
        return (params, state), (params, jp.get_masks(state))

    stacked = jax.tree.map(lambda *g: jnp.stack(g), *GRADS)
    (_, state), found = hasty(functools.partial(jax.lax.scan, step))(begin(tx), stacked)
    assert jp.packing.is_packed(state.pruned.masks)
    for i, expected in enumerate(plain(name)[0]):
        same(tuple(jax.tree.map(lambda x, i=i: np.asarray(x[i]), found)), tuple(expected))


@pytest.mark.parametrize(
    'name', [pytest.param('straight_through', marks=pytest.mark.exhaustive), 'rigl']
)
def test_replicates_under_vmap(name):
    tx = METHODS[name]()
    seeds = [jax.tree.map(jnp.asarray, cases.dyadic(seed)) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *seeds)
    params, state = jax.vmap(functools.partial(gradual.start, tx))(stacked)
    step = hasty(jax.vmap(cases.stepper(tx), in_axes=(0, 0, None)))
    expected = [plain(name, seed)[0] for seed in (0, 1)]
    for i, g in enumerate(GRADS):
        params, state = step(params, state, g)
        for seed in (0, 1):
            found = jax.tree.map(lambda x: x[seed], (params, jp.get_masks(state)))  # noqa: B023
            same(here(*found), expected[seed][i])


@pytest.mark.parametrize('name', [pytest.param('prune', marks=pytest.mark.exhaustive), 'rigl'])
def test_pmap(name):
    tx = METHODS[name]()
    params, state = jax.tree.map(lambda x: jnp.stack([x] * DEVICES), begin(tx))
    step = jax.pmap(cases.stepper(tx), in_axes=(0, 0, None))
    for g, expected in zip(GRADS, plain(name)[0], strict=True):
        params, state = step(params, state, g)
        found = jax.tree.map(lambda x: x[DEVICES - 1], (params, jp.get_masks(state)))
        same(here(*found), expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ('name', 'packed'),
    [
        *(
            pytest.param(name, packed, marks=pytest.mark.exhaustive)
            for name, packed in [
                ('prune', True),
                ('straight_through', True),
                ('set', True),
                ('rigl', False),
            ]
        ),
        ('rigl', True),
    ],
)
def test_sharded_parameters(name, packed):
    mesh = jax.make_mesh((DEVICES,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {'a': P('x'), 'b': P(None, 'x'), 'bias': P()}

    def place(tree):
        return {k: jax.device_put(w, NamedSharding(mesh, specs[k])) for k, w in tree.items()}

    tx = METHODS[name](packed=packed)
    params, state = gradual.start(tx, place(cases.dyadic(0)))
    step = hasty(cases.stepper(tx))
    for g, expected in zip(GRADS, plain(name)[0], strict=True):
        params, state = step(params, state, place(g))
        same(here(params, jp.get_masks(state)), expected)
    for k in 'ab':
        assert params[k].sharding.is_equivalent_to(NamedSharding(mesh, specs[k]), 2)


def test_the_state_lies_where_the_parameters_lie():
    mesh = jax.make_mesh((DEVICES,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, P('x'))
    params = {'w': jax.device_put(jnp.ones((8, 4)), sharding)}
    moving = gradual.prune(cases.INNER, 0.5, SCHEDULE, score=scores.movement, running=True).init(
        params
    )
    straight = gradual.straight_through(cases.INNER, 0.5, SCHEDULE).init(params)
    for leaf in (moving.memory['w'], moving.pruned.masks['w'], straight.memory['w']):
        assert leaf.sharding.is_equivalent_to(sharding, 2)


def test_rewinding_the_schedule_leaves_the_masks_step():
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.5})
    tx = gradual.prune(optax.sgd(schedule), 0.2, SCHEDULE)
    params, state = begin(tx)
    step = hasty(cases.stepper(tx))
    for g in GRADS[:3]:
        params, state = step(params, state, g)
    rewound = jp.rewind_schedule(state, 0)
    assert int(rewound.step) == int(state.step) == 3
    counts = [s.pruned.inner_state[1].count for s in (state, rewound)]
    assert list(map(int, counts)) == [3, 0]
    same(jp.get_masks(rewound), jp.get_masks(state))


DEPTHS = {
    'chain': lambda tx: optax.chain(optax.clip(1.0), tx),
    'multi steps': lambda tx: optax.MultiSteps(tx, 2),
    'if finite': lambda tx: optax.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('name', ['rigl', 'straight_through'])
def test_masks_are_found_and_set_at_depth(name, depth):
    tx = DEPTHS[depth](METHODS[name](packed=True))
    _, state = begin(tx)
    wanted = masks.global_top(scores.magnitude(cases.dyadic(9)), 0.5)
    changed = jp.set_masks(state, wanted)
    same(jp.get_masks(changed), wanted)
    assert jax.tree.structure(changed) == jax.tree.structure(state)


def test_masks_that_were_set_stay_until_the_next_change():
    tx, step, _ = jitted('rigl')
    params, state = begin(tx)
    wanted = masks.leaf_top(scores.magnitude(cases.dyadic(9)), 0.4)
    (expected,) = here(wanted)
    params, state = step(params, jp.set_masks(state, wanted), GRADS[0])
    same(here(jp.get_masks(state))[0], expected)
    assert all((np.asarray(params[k])[~expected[k]] == 0).all() for k in 'ab')


def test_bfloat16_gradients_and_extra_arguments():
    tx = gradual.rigl(
        optax.chain(optax.scale_by_adam(), optax.polyak_sgd()), 0.4, KEY, every=1, end=9
    )
    params, state = begin(tx)
    half = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), GRADS)
    step = hasty(lambda p, s, g: tx.update(g, s, p, value=jnp.float32(1)))
    for g in half[:3]:
        updates, state = step(params, state, g)
        params = optax.apply_updates(params, updates)
    for k, mask in jp.get_masks(state).items():
        if mask is not None:
            assert (np.asarray(params[k])[~np.asarray(mask)] == 0).all()
            assert (np.asarray(params[k])[np.asarray(mask)] != 0).any()


def test_in_flax():  # and in NNX: tests/test_frameworks.py
    tx = METHODS['rigl']()
    params, opt_state = begin(tx)
    state = TrainState.create(apply_fn=None, params=params, tx=tx).replace(opt_state=opt_state)
    step = hasty(lambda state, g: state.apply_gradients(grads=g))
    for g in GRADS[:3]:
        state = step(state, g)
    same(here(state.params)[0], plain('rigl')[0][2][0])
