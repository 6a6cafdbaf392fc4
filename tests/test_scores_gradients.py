import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprune import scores


def numbers(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def linear(seed):
    return {'bias': numbers(seed + 1, 2), 'w': numbers(seed, 3, 2), 'step': jnp.int32(7)}


def squares(params, example):
    """½ ||x W + b - y||² of one example."""
    x, y = example
    return jnp.sum((x @ params['w'] + params['bias'] - y) ** 2) / 2


def mean_squares(params, batch):
    return jnp.mean(jax.vmap(squares, (None, 0))(params, batch))


def examples(seed, n):
    return numbers(seed + 2, n, 3), numbers(seed + 3, n, 2)


def in_batches(data, count):
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), data)


def quadratic(params, batch):
    """½ wᵀ A w - cᵀ w, whose Hessian is A."""
    a, c = batch
    w = params['w'].ravel()
    return jnp.dot(w, a @ w) / 2 - jnp.dot(c, w)


def test_products_by_hand():
    params = {'w': jnp.array([[2.0, -3.0], [0.0, 1.0]]), 'bias': jnp.ones(2)}
    grads = {'w': jnp.array([[-1.0, -2.0], [5.0, 0.0]]), 'bias': None}
    for score, expected in (
        (scores.taylor, [[2, 6], [0, 0]]),
        (scores.snip, [[0.25, 0.75], [0, 0]]),
        (scores.movement, [[2, -6], [0, 0]]),
        (scores.fisher, [[-2, -9], [0, 0]]),
    ):
        found = score(params, grads)
        assert found['bias'] is None
        np.testing.assert_array_equal(found['w'], expected)


def test_taylor_is_how_far_a_linear_loss_moves_without_the_weight():
    w, slope = numbers(0, 3, 2), numbers(1, 3, 2)
    loss = lambda w: jnp.sum(w * slope)
    found = scores.taylor(w, jax.grad(loss)(w))
    for place in np.ndindex(3, 2):
        moved = loss(w.at[place].set(0)) - loss(w)
        np.testing.assert_allclose(found[place], abs(moved), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('scale', [1, 1e-15, 4e18])
def test_snip_against_a_loop(scale):
    for seed in range(3):
        params = [scale * numbers(seed, 4, 5), numbers(seed, 3), scale * numbers(seed + 9, 2, 3)]
        grads = [scale * numbers(seed + 1, 4, 5), None, scale * numbers(seed + 2, 2, 3)]
        found = jax.tree.leaves(scores.snip(params, grads))
        expected = reference.snip([params[0], params[2]], [grads[0], grads[2]])
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6)
        assert sum(float(jnp.sum(a)) for a in found) == pytest.approx(1, rel=1e-5)


def test_snip_of_zero_gradients_is_zero():
    np.testing.assert_array_equal(scores.snip(jnp.ones((2, 2)), jnp.zeros((2, 2))), 0)


def test_movement_adds_up_over_training():
    """On ½ (w - goal)², from 1: a weight drawn to 3 gains, one drawn to 0 loses."""
    goal, rate = jnp.array([[3.0, 0.0]]), 0.1
    params = {'w': jnp.ones((1, 2)), 'bias': jnp.ones(2)}
    total = jax.tree.map(jnp.zeros_like, scores.magnitude(params))
    expected, w = np.zeros(2), np.ones(2)
    for _ in range(3):
        grads = {'w': params['w'] - goal, 'bias': jnp.zeros(2)}
        total = jax.tree.map(lambda s, m: s + rate * m, total, scores.movement(params, grads))
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        gradient = w - np.array([3, 0])
        expected, w = expected - rate * gradient * w, w - rate * gradient
    np.testing.assert_allclose(total['w'][0], expected, rtol=1e-5)
    assert total['bias'] is None
    assert total['w'][0, 0] > 0 > total['w'][0, 1]


@pytest.mark.parametrize('count', [1, 3, 12])
def test_mean_gradient_is_that_of_all_examples_at_once(count):
    for seed in range(3):
        params, data = linear(seed), examples(seed, 12)
        found = scores.mean_gradient(mean_squares, params, in_batches(data, count))
        by_w, by_bias = reference.linear_gradients(params['w'], params['bias'], *data)
        np.testing.assert_allclose(found['w'], by_w.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found['bias'], by_bias.mean(0), rtol=1e-4, atol=1e-6)
        assert found['step'] is None


@pytest.mark.parametrize('batch_size', [1, 4, 5, 12, 100])
def test_mean_squared_gradient_squares_each_example(batch_size):
    params, data = linear(0), examples(0, 12)
    found = scores.mean_squared_gradient(squares, params, data, batch_size=batch_size)
    by_w, by_bias = reference.linear_gradients(params['w'], params['bias'], *data)
    np.testing.assert_allclose(found['w'], (by_w**2).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found['bias'], (by_bias**2).mean(0), rtol=1e-4)
    assert found['step'] is None
    fisher = scores.fisher(params, found)
    expected = np.asarray(params['w'], np.float64) ** 2 * (by_w**2).mean(0) / 2
    np.testing.assert_allclose(fisher['w'], expected, rtol=1e-4)
    assert fisher['bias'] is fisher['step'] is None


def test_averages_add_up_in_float32():
    """A thousand bfloat16 gradients of 1: summed in bfloat16 they would stop at 256."""
    params = {'w': jnp.ones((2, 2), jnp.bfloat16)}
    loss = lambda params, x: jnp.sum(params['w']) * x
    ones = jnp.ones(1000, jnp.bfloat16)
    for found in (
        scores.mean_gradient(loss, params, ones),
        scores.mean_squared_gradient(loss, params, ones, batch_size=7),
    ):
        assert found['w'].dtype == jnp.float32
        np.testing.assert_allclose(found['w'], 1, rtol=1e-6)


def test_the_loss_sees_the_parameters_as_they_are():
    params = {
        'w': jnp.ones((2, 2), jnp.bfloat16),
        'table': jnp.arange(3),
        'key': jax.random.key(0),
        'none': None,
    }

    def loss(seen, key):
        assert jax.tree.structure(seen) == jax.tree.structure(params)
        assert jax.tree.map(lambda x: x.dtype, seen) == jax.tree.map(lambda x: x.dtype, params)
        noise = jax.random.uniform(key) + jax.random.uniform(seen['key'])
        return jnp.sum(seen['w'].astype(jnp.float32)) * (noise * 0 + seen['table'][2].astype(float))

    found = scores.mean_gradient(loss, params, jax.random.split(jax.random.key(1), 3))
    np.testing.assert_array_equal(found['w'], 2)
    assert found['table'] is found['key'] is found['none'] is None
    grads = jax.grad(loss, allow_int=True)({**params, 'key': jax.random.key(0)}, jax.random.key(1))
    np.testing.assert_array_equal(scores.taylor(params, grads)['w'], 2)


def test_averages_hold_one_batch_whatever_their_number():
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)

    def memory(count):
        batches = jax.ShapeDtypeStruct((count,), jnp.float32)
        average = jax.jit(lambda w, b: scores.mean_gradient(lambda w, x: jnp.sum(w**2) * x, w, b))
        return average.lower(shape, batches).compile().memory_analysis().temp_size_in_bytes

    assert memory(1000) < memory(10) + 2**18 - 1  # one gradient


@pytest.mark.parametrize('spread', ['pmap', 'shard_map'])
def test_each_device_averages_its_own_batches(spread):
    params, data = linear(0), examples(0, 48)
    average = lambda batches: scores.mean_gradient(mean_squares, params, batches)
    square = lambda rows: scores.mean_squared_gradient(squares, params, rows, batch_size=4)
    joined = lambda data: jax.lax.pmean((average(in_batches(data, 2)), square(data)), 'x')
    if spread == 'pmap':
        found = jax.tree.map(lambda x: x[0], jax.pmap(joined, 'x')(in_batches(data, 8)))
    else:
        mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))
        found = jax.jit(jax.shard_map(joined, mesh=mesh, in_specs=P('x'), out_specs=P()))(data)
    expected = average(in_batches(data, 1)), square(data)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_grasp_by_hand():
    """H = diag(1, -2, 3), so g = (1, -4, 9) - c; removing a weight of high H g lowers gᵀg."""
    batches = jnp.diag(jnp.array([1.0, -2.0, 3.0]))[None], jnp.array([[0.0, 0.0, 10.0]])
    params = {'w': jnp.array([[1.0, 2.0, 3.0]]), 'bias': jnp.ones(3)}
    found = scores.grasp(quadratic, params, batches)
    np.testing.assert_allclose(found['w'], [[1, 16, -9]], rtol=1e-6)
    assert found['bias'] is None


def test_grasp_of_quadratics_is_the_known_hessian_times_the_mean_gradient():
    for seed in range(3):
        a = numbers(seed, 4, 6, 6)
        a, c = a + jnp.swapaxes(a, 1, 2), numbers(seed + 1, 4, 6)
        params = {'w': numbers(seed + 2, 3, 2)}
        found = scores.grasp(quadratic, params, (a, c))['w']
        w, hessian = np.float64(params['w']).ravel(), np.float64(a).mean(0)
        expected = w * (hessian @ (hessian @ w - np.float64(c).mean(0)))
        np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-4)


def test_grasp_is_the_fall_of_the_squared_gradient_norm():
    """Central differences along each weight; biases count in the norm and have no score."""
    params, batches = linear(4), in_batches(examples(4, 6), 2)
    found = scores.grasp(mean_squares, params, batches)

    def norm(w):
        by_w, by_bias = reference.linear_gradients(w, params['bias'], *examples(4, 6))
        return (by_w.mean(0) ** 2).sum() + (by_bias.mean(0) ** 2).sum()

    w = np.float64(params['w'])
    for place in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[place] = 1e-4 * w[place]
        slope = (norm(w + step) - norm(w - step)) / 2e-4
        np.testing.assert_allclose(found['w'][place], slope / 2, rtol=1e-3)
    assert found['bias'] is found['step'] is None


def test_synflow_by_hand():
    """1 → 2 → 1 with weights 1, -2 and 3, 4: the paths carry 3 and 8."""
    params = {
        'first': jnp.array([[1.0, -2.0]]),
        'last': jnp.array([[3.0], [-4.0]]),
        'bias': jnp.array([-5.0]),
    }
    output = lambda p: jnp.ones((1, 1)) @ p['first'] @ p['last'] + p['bias'][None]
    found = scores.synflow(output, params)
    np.testing.assert_array_equal(found['first'], [[3, 8]])
    np.testing.assert_array_equal(found['last'], [[3], [8]])
    assert found['bias'] is None


def test_synflow_is_conserved_and_counts_paths():
    for seed in range(3):
        params = [numbers(seed, 3, 4), numbers(seed + 1, 4, 2), numbers(seed + 2, 2, 3)]
        output = lambda p: jax.nn.relu(jnp.ones((1, 3)) @ p[0]) @ p[1] @ p[2]
        found = scores.synflow(output, params)
        for a, b in zip(found, reference.synaptic_flow(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        flows = [float(jnp.sum(a)) for a in found]
        np.testing.assert_allclose(flows, flows[0], rtol=1e-5)


def test_synflow_makes_every_floating_point_leaf_positive():
    params = {'w': jnp.array([[2.0]]), 'bias': jnp.array([-3.0]), 'sign': jnp.array([-1])}

    def output(p):
        assert p['sign'].dtype == jnp.int32
        return p['w'] ** 2 * p['bias'][None] * p['sign'].astype(jnp.float32)[None]

    np.testing.assert_array_equal(scores.synflow(output, params)['w'], [[24]])  # |2 · 2 · 2 · 3|


TWO = [scores.taylor, scores.snip, scores.movement, scores.fisher]


@pytest.mark.parametrize('score', TWO)
@pytest.mark.parametrize(
    ('grads', 'message'),
    [
        ({'a': {'w': jnp.ones((2, 2))}}, "grads have no leaf 'b', which params have: take"),
        (
            {'a': {'w': jnp.ones((2, 3))}, 'b': jnp.ones(2)},
            r"grads have shape \(2, 3\) at 'a/w' where params have \(2, 2\): take the gradient",
        ),
        (
            {'a': {'w': jnp.ones((2, 2))}, 'b': jnp.ones(3)},
            r"grads have shape \(3,\) at 'b' where params have \(2,\)",
        ),
        (
            {'a': {'w': jnp.ones((2, 2))}, 'b': None, 'c': jnp.ones(2)},
            "grads have a leaf 'c', which params do not have: take",
        ),
        ({'a': {'w': None}, 'b': None}, "grads are None at 'a/w', which is prunable"),
        (
            {'a': {'w': jnp.ones((2, 2), int)}, 'b': None},
            "grads are int32 at 'a/w', which is prunable: expected floating-point",
        ),
    ],
)
def test_gradients_unlike_the_parameters(score, grads, message):
    name = 'squared_' if score is scores.fisher else ''
    with pytest.raises(ValueError, match='^' + name + message):
        score({'a': {'w': jnp.ones((2, 2))}, 'b': jnp.ones(2)}, grads)


AVERAGES = {
    'mean_gradient': scores.mean_gradient,
    'mean_squared_gradient': lambda *args: scores.mean_squared_gradient(*args, batch_size=2),
    'grasp': scores.grasp,
}
every_average = pytest.mark.parametrize('average', AVERAGES.values(), ids=AVERAGES)


@every_average
@pytest.mark.parametrize(
    ('batches', 'message'),
    [
        ((), 'there are no (batches|examples): the tree holds no array'),
        (jnp.ones((0, 3)), 'there are no .*: their leading axis has length 0'),
        (
            {'x': jnp.ones((4, 3)), 'y': jnp.ones((3, 2))},
            r"have shape \(3, 2\) at 'y' but \(4, 3\) at 'x', expected one length of the leading",
        ),
        ({'x': jnp.ones(4), 'y': 1.0}, "hold a scalar at 'y', expected a leading axis over the"),
    ],
)
def test_batches_that_do_not_share_their_leading_axis(average, batches, message):
    with pytest.raises(ValueError, match=message):
        average(lambda params, batch: jnp.sum(params), jnp.ones((2, 2)), batches)


@every_average
@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        (lambda w, x: w[0] * x, r'loss returns an array of shape \(2,\), expected a scalar: take'),
        (lambda w, x: jnp.int32(1), 'loss returns int32, expected floating-point values'),
        (lambda w, x: (jnp.sum(w), x), 'loss returns a tuple, expected one array'),
    ],
)
def test_a_loss_that_is_no_scalar(average, loss, message):
    with pytest.raises(ValueError, match=message):
        average(loss, jnp.ones((2, 2)), jnp.ones(3))


@pytest.mark.parametrize('batch_size', [0, -1, 2.0, True])
def test_a_batch_size_is_a_positive_whole_number(batch_size):
    with pytest.raises(ValueError, match=f'batch_size is {batch_size}, expected a whole number'):
        scores.mean_squared_gradient(squares, linear(0), examples(0, 4), batch_size=batch_size)


def test_no_leaf_to_differentiate_by():
    with pytest.raises(ValueError, match='params have no floating-point leaf'):
        scores.mean_gradient(lambda params, x: x, {'step': jnp.int32(1)}, jnp.ones(2))


@pytest.mark.parametrize(
    ('output', 'message'),
    [
        (lambda w: (w, w), 'output returns a tuple, expected one array'),
        (lambda w: jnp.ones(2, int), 'output returns int32, expected floating-point values'),
    ],
)
def test_an_output_that_is_no_floating_point_array(output, message):
    with pytest.raises(ValueError, match=message):
        scores.synflow(output, jnp.ones((2, 2)))
