"""One table: each function x each way it is called gives the bits of the plain eager call."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp

pytestmark = pytest.mark.promotes  # optax does

DEVICES = 8
SCHEDULE = optax.piecewise_constant_schedule(0.5, {2: 0.1})
TX = jp.pruned(optax.sgd(SCHEDULE, momentum=0.5))


def half(params):
    return jp.masks.global_top(jp.scores.magnitude(params), 0.5)


def updated(params):
    state = jp.set_masks(TX.init(params), half(params))
    updates, state = TX.update(params, state, params)
    return optax.apply_updates(params, updates), jp.get_masks(state)


FUNCTIONS = {
    'magnitude': jp.scores.magnitude,
    'random': lambda params: jp.scores.random(params, jax.random.key(3)),
    'global_top': lambda params: jp.masks.global_top(jp.scores.magnitude(params), 0.3),
    'global_top within masks': lambda params: jp.masks.global_top(
        jp.scores.magnitude(params), 0.3, half(params)
    ),
    'leaf_top': lambda params: jp.masks.leaf_top(jp.scores.magnitude(params), 0.3),
    'apply': lambda params: jp.masks.apply(params, half(params)),
    'density': lambda params: jnp.float32(jp.masks.density(half(params))),
    'pruned': updated,
    'rewind_schedule': lambda params: jp.rewind_schedule(TX.init(params), 2),
    'put_masks': lambda params: jp.rewind.put_masks(
        jp.Point(params, TX.init(params)), half(params)
    ),
}


def eager(f, params):
    return f(params)


def jit(f, params):
    return jax.jit(f)(params)


def scan(f, params):
    _, out = jax.lax.scan(lambda carry, _: (carry, f(params)), 0, length=2)
    return jax.tree.map(lambda x: x[1], out)


def vmap(f, params):
    other = jax.tree.map(lambda w: -2 * w[::-1], params)
    out = jax.vmap(f)(jax.tree.map(lambda *w: jnp.stack(w), other, params))
    return jax.tree.map(lambda x: x[1], out)


def pmap(f, params):
    out = jax.pmap(f)(jax.tree.map(lambda w: jnp.stack([w] * DEVICES), params))
    return jax.tree.map(lambda x: x[DEVICES - 1], out)


def sharded(axis):
    def call(f, params):
        mesh = jax.make_mesh((DEVICES,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))

        def place(w):
            spec = [None] * w.ndim
            if w.ndim > 1:
                spec[axis] = 'x'
            return jax.device_put(w, NamedSharding(mesh, P(*spec)))

        return f(jax.tree.map(place, params))

    return call


CALLS = {
    'jit': jit,
    'scan': scan,
    'vmap': vmap,
    'pmap': pmap,
    'sharded over rows': sharded(0),
    'sharded over columns': sharded(1),
    'sharded under jit': lambda f, params: sharded(0)(jax.jit(f), params),
}


def parameters(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    tied = jnp.round(4 * jax.random.normal(keys[0], (16, 8))) / 4  # many equal magnitudes
    return {
        'tied': tied.astype(dtype),
        'bias': jax.random.normal(keys[1], (8,), dtype),
        'deep': {'kernel': jax.random.normal(keys[2], (8, 24, 3), dtype)},
    }


CASES = [(function, jnp.float32) for function in FUNCTIONS] + [
    (function, jnp.bfloat16) for function in ('magnitude', 'global_top')
]


@pytest.mark.parametrize('call', CALLS)
@pytest.mark.parametrize(
    ('function', 'dtype'), CASES, ids=[f'{name}-{dtype.__name__}' for name, dtype in CASES]
)
def test_same_bits(function, call, dtype):
    f, params = FUNCTIONS[function], parameters(dtype)
    expected, found = f(params), CALLS[call](f, params)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize('function', FUNCTIONS)
def test_one_trace_whatever_the_values(function):
    traces = []

    @jax.jit
    def counted(params):
        traces.append(1)
        return FUNCTIONS[function](params)

    params = parameters(jnp.float32)
    for values in (
        params,
        jax.tree.map(jnp.negative, params),
        jax.tree.map(jnp.zeros_like, params),
    ):
        counted(values)
    assert len(traces) == 1


@pytest.mark.parametrize('function', ['global_top', 'leaf_top'])
def test_a_traced_density_is_one_trace(function):
    select, traces = getattr(jp.masks, function), []
    scores = jp.scores.magnitude(parameters(jnp.float32))

    @jax.jit
    def traced(density):
        traces.append(1)
        return select(scores, density)

    for density in (1.0, 0.5, 0.125):
        jax.tree.map(np.testing.assert_array_equal, traced(density), select(scores, density))
    assert len(traces) == 1


@pytest.mark.parametrize('axis', [0, 1])
def test_masks_lie_where_their_weights_lie(axis):
    placed = []
    masks = sharded(axis)(
        lambda params: placed.append(params) or half(params), parameters(jnp.float32)
    )
    for path, mask in jp.tree.named_leaves(masks):
        if mask is not None:
            weights = dict(jp.tree.named_leaves(placed[0]))[path]
            assert mask.sharding.is_equivalent_to(weights.sharding, mask.ndim)
