"""One table: each function x each way it is called gives the bits of one device under jit.

Weights are small dyadic numbers, so that sums are exact in whatever order devices add them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import hasty
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune import gradual, masks, patterns, scores

pytestmark = pytest.mark.promotes  # optax does

DEVICES = 8
KEY = jax.random.key(3)
SCHEDULE = optax.piecewise_constant_schedule(0.5, {2: 0.5})
SGD = optax.sgd(SCHEDULE, momentum=0.5)
PATTERNS = {
    'blocks': patterns.blocks((1, 4)),
    'high blocks': patterns.blocks((4, 2), reduce='max'),
    'channels': patterns.channels(reduce='mean'),
    'n of m': patterns.n_of_m(2, 4),
    'by path': {'tied': patterns.n_of_m(1, 4, axis=-1), 'deep/*': patterns.channels(-2)},
}
METHODS = {
    'pruned': lambda packed: jp.pruned(SGD, packed=packed),
    'prune': lambda packed: gradual.prune(SGD, 0.5, gradual.cubic(0, 2, 1), packed=packed),
    'prune by leaf, running': lambda packed: gradual.prune(
        SGD,
        {'*': 0.5},
        gradual.one_shot(1),
        score=scores.movement,
        running=True,
        choose=functools.partial(masks.leaf_top, pattern=patterns.n_of_m(2, 4)),
        packed=packed,
    ),
    'ac_dc': lambda packed: gradual.ac_dc(SGD, 0.5, begin=0, end=2, every=1, packed=packed),
    'straight_through': lambda packed: gradual.straight_through(
        SGD, 0.5, gradual.periodic(1), packed=packed
    ),
    'static': lambda packed: gradual.static(SGD, 0.5, KEY, packed=packed),
    'sparse_evolution': lambda packed: gradual.sparse_evolution(
        SGD, 0.5, KEY, schedule=gradual.periodic(1), packed=packed
    ),
    'rigl': lambda packed: gradual.rigl(SGD, 0.5, KEY, every=1, end=4, packed=packed),
}


def half(params):
    """Masks that are quick to compile."""
    return jp.tree.map_prunable(lambda _, w: jnp.abs(w) > 1, params)


def output(params):
    x = jnp.ones((2, 16), jnp.float32) @ params['tied'].astype(jnp.float32)
    return jnp.einsum('bi,ijk->bjk', x, params['deep']['kernel'].astype(jnp.float32))


def loss(params, batch):
    return jnp.sum(output(params) * batch) / 16


BATCHES = jnp.array([1.0, 2.0])


def trained(packed, tx, params):
    """Three steps from masked parameters, with gradients that differ from the weights."""
    params, state = gradual.start(tx(packed), params)
    if tx is METHODS['pruned']:
        state = jp.set_masks(state, half(params))

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda w: w[::-1], params)
        updates, state = tx(packed).update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), length=3)
    return params, state


def chosen(pattern, params):
    return masks.global_top(scores.magnitude(params), 0.6, pattern=pattern)


SCORES = {
    'magnitude': scores.magnitude,
    'random': lambda params: scores.random(params, KEY),
    'normalized_magnitude': scores.normalized_magnitude,
    'lamp': scores.lamp,
    'taylor': lambda params: scores.taylor(params, params),
    'snip': lambda params: scores.snip(params, params),
    'movement': lambda params: scores.movement(params, params),
    'fisher': lambda params: scores.fisher(
        params, scores.mean_squared_gradient(loss, params, BATCHES, batch_size=1)
    ),
    'grasp': lambda params: scores.grasp(
        lambda p, batch: batch * jnp.sum(p['tied'].astype(jnp.float32)) ** 2 + loss(p, batch),
        params,
        BATCHES,
    ),
    'synflow': lambda params: scores.synflow(output, params),
}
CHOICES = {
    'global_top': lambda params: masks.global_top(scores.magnitude(params), 0.3),
    'global_top within masks': lambda params: masks.global_top(
        scores.magnitude(params), 0.1, half(params)
    ),
    'rules and floor': lambda params: masks.global_top(
        scores.magnitude(params), 0.3, rules={'tied': 0.5}, floor=0.1, progress=0.75
    ),
    'absolute values': lambda params: masks.global_top(
        jp.tree.map_prunable(lambda _, w: w, params), 0.3, absolute=True
    ),
    'leaf_top': lambda params: masks.leaf_top(scores.magnitude(params), {'*': 0.3, 'tied': 0.1}),
    'n_of_m': lambda params: masks.n_of_m(scores.magnitude(params), 2, 4),
    'iterated': lambda params: masks.iterated(scores.magnitude, params, 0.2, rounds=3),
    **{f'pattern {name}': functools.partial(chosen, pattern) for name, pattern in PATTERNS.items()},
}
OTHERS = {
    'apply': lambda params: masks.apply(params, half(params)),
    'pack': lambda params: masks.pack(half(params)),
    'unpack': lambda params: masks.unpack(masks.pack(half(params))),
    'shuffle': lambda params: masks.shuffle(half(params), KEY),
    'density': lambda params: jnp.float32(masks.density(half(params))),
    'rewind_schedule': lambda params: jp.rewind_schedule(jp.pruned(SGD).init(params), 2),
    'put_masks': lambda params: jp.rewind.put_masks(
        jp.Point(params, jp.pruned(SGD).init(params)), half(params)
    ),
}
WRAPPERS = {
    f'{name}{" packed" * packed}': functools.partial(trained, packed, tx)
    for name, tx in METHODS.items()
    for packed in (False, True)
}
FUNCTIONS = SCORES | CHOICES | OTHERS | WRAPPERS


def jit(f, params):
    """One trace, whatever the values."""
    traces = []

    @hasty
    def counted(params):
        traces.append(1)
        return f(params)

    for other in (jax.tree.map(jnp.negative, params), jax.tree.map(jnp.zeros_like, params)):
        counted(other)
    out = counted(params)
    assert len(traces) == 1
    return out


def scan(f, params):
    loop = lambda params: jax.lax.scan(lambda carry, _: (carry, f(params)), 0, length=2)
    _, out = hasty(loop)(params)
    return jax.tree.map(lambda x: x[1], out)


def vmap(f, params):
    other = jax.tree.map(lambda w: -2 * w[::-1], params)
    out = hasty(jax.vmap(f))(jax.tree.map(lambda *w: jnp.stack(w), other, params))
    return jax.tree.map(lambda x: x[1], out)


def pmap(f, params):
    out = jax.pmap(f)(jax.tree.map(lambda w: jnp.stack([w] * DEVICES), params))
    return jax.tree.map(lambda x: x[DEVICES - 1], out)


def mesh():
    return jax.make_mesh((DEVICES,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))


def shard_map(f, params):
    """Each device holds its own copy, along a new axis, and comes to the same result."""
    own = jax.tree.map(lambda w: jnp.stack([w] * DEVICES), params)
    on_one = lambda copy: jax.tree.map(lambda x: x[None], f(jax.tree.map(lambda w: w[0], copy)))
    out = hasty(jax.shard_map(on_one, mesh=mesh(), in_specs=P('x'), out_specs=P('x')))(own)
    return jax.tree.map(lambda x: x[DEVICES - 1], out)


def sharded(axis):
    def call(f, params):
        def place(w):
            spec = [None] * w.ndim
            if w.ndim > 1:
                spec[axis] = 'x'
            return jax.device_put(w, NamedSharding(mesh(), P(*spec)))

        return f(jax.tree.map(place, params))

    return call


CALLS = {
    'eager': lambda f, params: f(params),
    'scan': scan,
    'vmap': vmap,
    'pmap': pmap,
    'shard_map': shard_map,
    'sharded rows, jit': lambda f, params: sharded(0)(hasty(f), params),
    'sharded columns, jit': lambda f, params: sharded(1)(hasty(f), params),
}


def parameters(dtype):
    rng = np.random.default_rng(0)
    draw = lambda shape, most: jnp.asarray(rng.integers(-most, most + 1, shape), dtype)
    return {
        'tied': draw((16, 8), 4),  # many equal magnitudes
        'bias': draw((8,), 4) / 4,
        'deep': {'kernel': draw((8, 16, 8), 16) / 4},
    }


@functools.cache
def plain(name, dtype):
    return jit(FUNCTIONS[name], parameters(DTYPES[dtype]))


DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Neighbours share what `plain` has found.
CASES = [
    (call, dtype, function)
    for function in FUNCTIONS
    for dtype in DTYPES
    for call in CALLS
    # an optimizer step is compiled: each eager one would compile its loop anew
    if call != 'eager' or function not in WRAPPERS
]
QUICK = {
    'lamp',
    'grasp',
    'global_top',
    'leaf_top',
    'pattern by path',
    'pack',
    'pruned',
    'rigl packed',
}


def marked(case):
    """Of the quick functions one call by default and two in CI; the whole table when asked for."""
    call, dtype, function = case
    if dtype == 'float32' and function in QUICK:
        if call == 'sharded rows, jit':
            return case
        if call in ('vmap', 'shard_map'):
            return pytest.param(*case, marks=pytest.mark.slow)
    return pytest.param(*case, marks=pytest.mark.exhaustive)


@pytest.fixture(autouse=True)
def forget_what_was_compiled():
    """Some hundred programs in one process exhaust its memory maps."""
    yield
    jax.clear_caches()


@pytest.mark.parametrize(('call', 'dtype', 'function'), [marked(case) for case in CASES])
def test_same_bits(call, dtype, function):
    f, params = FUNCTIONS[function], parameters(DTYPES[dtype])
    found, expected = CALLS[call](f, params), plain(function, dtype)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.exhaustive
@pytest.mark.parametrize('name', METHODS)
def test_packed_training_is_the_same(name):
    params, state = plain(name, 'float32')
    again, packed = plain(f'{name} packed', 'float32')
    jax.tree.map(np.testing.assert_array_equal, again, params)
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(packed), jp.get_masks(state))
    assert 0 < masks.density(jp.get_masks(state)) < 1


@pytest.mark.parametrize('function', ['global_top', 'leaf_top'])
def test_a_traced_density_is_one_trace(function):
    select, traces = getattr(masks, function), []
    found = scores.magnitude(parameters(jnp.float32))

    @hasty
    def traced(density):
        traces.append(1)
        return select(found, density)

    for density in (1.0, 0.5, 0.125):
        jax.tree.map(np.testing.assert_array_equal, traced(density), select(found, density))
    assert len(traces) == 1


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize(
    'pattern',
    [
        None,
        *(p if p == 'by path' else pytest.param(p, marks=pytest.mark.exhaustive) for p in PATTERNS),
    ],
)
def test_masks_lie_where_their_weights_lie(axis, pattern):
    placed = []
    select = half if pattern is None else functools.partial(chosen, PATTERNS[pattern])
    found = sharded(axis)(
        lambda params: placed.append(params) or hasty(select)(params), parameters(jnp.float32)
    )
    for path, mask in jp.tree.present(found):
        weights = dict(jp.tree.named_leaves(placed[0]))[path]
        assert mask.sharding.is_equivalent_to(weights.sharding, mask.ndim)
