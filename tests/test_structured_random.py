"""Networks made at random of all operations that are understood: removed is as zeroed."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from structured_cases import images, linen, sequences
from test_structured_oracle import hold_gradient, keeps

from jaxprune import structured

pytestmark = pytest.mark.promotes
QUICK, SLOW, CASES = 4, 14, 100


def width(rng, multiple=1):
    return multiple * int(rng.integers(2, 5))


def dense(rng, x, train):
    return nn.Dense(width(rng))(x)


def activation(rng, x, train):
    functions = (nn.relu, nn.gelu, nn.silu, jnp.tanh, nn.sigmoid, nn.leaky_relu, nn.relu6)
    return functions[rng.integers(len(functions))](x)


def norm(rng, x, train):
    kind = rng.integers(4)
    if kind == 0:
        return nn.BatchNorm(use_running_average=not train)(x)
    if kind == 1:
        return nn.LayerNorm()(x)
    if kind == 2:
        return nn.RMSNorm()(x)
    groups = next(n for n in (3, 2, 1) if x.shape[-1] % n == 0)
    return nn.GroupNorm(num_groups=groups)(x)


def residual(rng, x, train):
    return x + nn.Dense(x.shape[-1])(activation(rng, nn.Dense(width(rng))(x), train))


def concatenated(rng, x, train):
    return jnp.concatenate([x, activation(rng, nn.Dense(width(rng))(x), train)], axis=-1)


def gated(rng, x, train):
    units = width(rng)
    a, b = jnp.split(nn.Dense(2 * units)(x), 2, axis=-1)
    return a * nn.sigmoid(b)


def sliced(rng, x, train):
    x = nn.Dense(width(rng, 2))(x)
    cut = int(rng.integers(1, x.shape[-1]))
    return jnp.concatenate([x[..., cut:], x[..., :cut]], axis=-1)


def padded(rng, x, train):
    wider = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 2)])
    return wider + nn.Dense(wider.shape[-1])(x)


def excited(rng, x, train):
    mean = x.mean(axis=tuple(range(1, x.ndim - 1)), keepdims=True)
    return x * nn.sigmoid(nn.Dense(x.shape[-1])(nn.relu(nn.Dense(2)(mean))))


def heads(rng, x, train):
    count, units = width(rng), width(rng)
    x = nn.Dense(count * units)(x).reshape(*x.shape[:-1], count, units)
    return nn.Dense(width(rng))(x.swapaxes(-1, -2).reshape(*x.shape[:-2], -1))


def repeated(rng, x, train):
    return nn.Dense(2 * width(rng))(jnp.repeat(x, 2, axis=-1))


def convolution(rng, x, train):
    return nn.Conv(width(rng), (3, 3), strides=int(rng.integers(1, 3)))(x)


def depthwise(rng, x, train):
    return nn.Conv(x.shape[-1], (3, 3), feature_group_count=x.shape[-1])(x)


def grouped(rng, x, train):
    x = nn.Conv(width(rng, 2), (1, 1))(x)
    return nn.Conv(width(rng, 2), (3, 3), feature_group_count=2)(x)


def pooled(rng, x, train):
    return nn.max_pool(x, (2, 2), (1, 1)) if min(x.shape[1:3]) > 1 else x


def transposed(rng, x, train):
    return nn.ConvTranspose(width(rng), (2, 2))(x)


def attention(rng, x, train):
    count = width(rng)
    return nn.MultiHeadDotProductAttention(count, qkv_features=2 * count, out_features=4)(x)


def recurrent(rng, x, train):
    cell = (nn.OptimizedLSTMCell, nn.GRUCell)[rng.integers(2)]
    return nn.RNN(cell(width(rng)))(x)


ANYWHERE = (
    activation, concatenated, dense, excited, gated, heads, norm, padded, repeated, residual,
    sliced,
)  # fmt: skip
OF_IMAGES = (convolution, depthwise, grouped, pooled, transposed)
OF_SEQUENCES = (attention, recurrent)


def network(seed):
    """Draws 5 operations; drawn anew for each trace, so that all traces are of one network."""

    def call(x, train):
        rng = np.random.default_rng(seed)
        choices = ANYWHERE + (OF_IMAGES if x.ndim == 4 else OF_SEQUENCES)
        x = dense(rng, x, train)
        for _ in range(5):
            x = choices[rng.integers(len(choices))](rng, x, train)
        flat = x.reshape(len(x), -1)
        x = flat if seed % 3 == 0 else x.mean(axis=tuple(range(1, x.ndim - 1)))
        return nn.Dense(3)(x)

    return call


@pytest.mark.parametrize(
    'seed',
    [
        *range(QUICK),
        *(pytest.param(n, marks=pytest.mark.slow) for n in range(QUICK, SLOW)),
        *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(SLOW, CASES)),
    ],
)
def test_removed_is_as_zeroed(seed):
    x = images(channels=4, size=4) if seed % 2 else sequences(width=5)
    fn, params, args, train = linen(network(seed), x)
    groups = structured.groups(fn, params, *args)
    assert not groups.barriers
    _, keep = keeps(groups, seed)
    small, smaller = structured.shrink(params, groups, keep)
    whole = {'params': params, 'small': small, 'args': args, 'keep': keep}
    hold_gradient(fn, smaller, groups, **whole)
    hold_gradient(train, structured.rewritten(train, groups, keep), groups, **whole)
