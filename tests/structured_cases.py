"""Small networks, one for each kind of coupling, on which removal is held against zeroing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """A function of parameters and inputs, in evaluation and in training mode."""

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    train: Callable[..., Any] | None = None
    """Returns an output, or an output and what training changes; `None`: as in evaluation."""


def drawn(shapes, seed=0):
    """Fills a tree: kernels with noise, vectors with positive numbers, as variances are."""
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    fill = lambda s: (
        rng.normal(0, 0.5, s.shape) if len(s.shape) > 1 else rng.uniform(0.2, 1, s.shape)
    )
    return jax.tree.unflatten(structure, [jnp.asarray(fill(s), jnp.float32) for s in leaves])


def images(channels=3, size=6):
    return jnp.asarray(np.random.default_rng(1).normal(size=(5, size, size, channels)), jnp.float32)


def vectors(width=7):
    return jnp.asarray(np.random.default_rng(1).normal(size=(5, width)), jnp.float32)


def sequences(width=7, length=3):
    shape = (5, length, width)
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def tokens(length=3, vocabulary=11):
    return jnp.asarray(np.random.default_rng(1).integers(vocabulary, size=(5, length)), jnp.int32)


def linen(network, *args):
    """Makes the case of a network that is called as `network(module, *args, train)`."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, *args, train):
            return network(*args, train=train)

    net = Net()
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), *args, train=False))
    params = drawn(shapes)
    moving = [name for name in params if name != 'params']

    def train(params, *args):
        return net.apply(
            params, *args, train=True, mutable=moving, rngs={'dropout': jax.random.key(3)}
        )

    return Case(lambda params, *args: net.apply(params, *args, train=False), params, args, train)


def dense(x, train):
    return nn.Dense(4)(nn.relu(nn.Dense(9)(x)))


def batch_equals_width(x, train):
    return nn.Dense(4)(nn.gelu(nn.Dense(5)(x)))


def sigmoid(x, train):
    return nn.Dense(4)(nn.sigmoid(nn.Dense(9)(x)))


def dropout(x, train):
    x = nn.Dropout(0.4, deterministic=not train)(nn.relu(nn.Dense(9)(x)))
    return nn.Dense(4)(x)


def convolution(x, train):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
    x = nn.relu(nn.Conv(9, (3, 3), kernel_dilation=2)(x))
    return nn.Conv(4, (1, 1))(x).mean(axis=(1, 2))


def flatten(x, train):
    x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
    return nn.Dense(4)(x.reshape(len(x), -1))


def grouped(x, train):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=2)(x))
    return nn.Dense(4)(x.mean(axis=(1, 2)))


def depthwise(x, train):
    x = nn.relu(nn.Conv(8, (1, 1))(x))
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    return nn.Dense(4)(nn.avg_pool(nn.Conv(6, (1, 1))(x), (2, 2)).mean(axis=(1, 2)))


def multiplied(x, train):
    x = nn.relu(nn.Conv(6, (1, 1))(x))
    x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=6)(x))
    return nn.Dense(4)(x.mean(axis=(1, 2)))


def transposed(x, train):
    x = nn.relu(nn.ConvTranspose(8, (3, 3), strides=(2, 2))(x))
    return nn.Conv(4, (3, 3))(x).mean(axis=(1, 2))


def shuffled(x, train):
    x = nn.relu(nn.Conv(12, (1, 1), feature_group_count=1)(x))
    x = nn.relu(nn.Conv(12, (1, 1), feature_group_count=3)(x))
    x = x.reshape(*x.shape[:3], 3, 4).swapaxes(3, 4).reshape(*x.shape[:3], 12)
    x = nn.relu(nn.Conv(8, (1, 1), feature_group_count=4)(x))
    return nn.Dense(4)(x.mean(axis=(1, 2)))


def batch_norm(x, train):
    for width in (8, 9):
        x = nn.Conv(width, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    return nn.Dense(4)(x.mean(axis=(1, 2)))


def group_norm(x, train):
    x = nn.relu(nn.GroupNorm(num_groups=4)(nn.Conv(12, (3, 3))(x)))
    return nn.Dense(4)(x.mean(axis=(1, 2)))


def residual(x, train):
    x = nn.Conv(8, (3, 3))(x)
    for _ in range(2):
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(7, (3, 3))(x)))
        x = nn.relu(x + nn.Conv(8, (3, 3))(y))
    return nn.Dense(4)(x.mean(axis=(1, 2)))


def padded_shortcut(x, train):
    x = nn.relu(nn.Conv(6, (3, 3))(x))
    y = nn.Conv(10, (3, 3))(x)
    x = y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    return nn.Dense(4)(nn.relu(x).mean(axis=(1, 2)))


def dense_connections(x, train):
    for width in (6, 5, 4):
        x = jnp.concatenate([x, nn.relu(nn.Conv(width, (3, 3))(x))], axis=-1)
    return nn.Dense(4)(x.mean(axis=(1, 2)))


def split(x, train):
    x, gate = jnp.split(nn.Dense(12)(x), 2, axis=-1)
    a, b = x[:, :2], x[:, 2:]
    return nn.Dense(4)(jnp.concatenate([b, a], axis=-1) * nn.sigmoid(gate))


def squeeze_excite(x, train):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    gate = nn.relu(nn.Dense(3)(x.mean(axis=(1, 2), keepdims=True)))
    return nn.Dense(4)((x * nn.hard_sigmoid(nn.Dense(8)(gate))).mean(axis=(1, 2)))


def layer_norm(x, train):
    x = nn.Dense(9)(x)
    return nn.Dense(4)(nn.LayerNorm()(x + nn.Dense(9)(nn.gelu(nn.Dense(6)(x)))))


def rms_norm(x, train):
    return nn.Dense(4)(nn.RMSNorm()(nn.Dense(9)(x)))


def gated(x, train):
    return nn.Dense(4)(nn.silu(nn.Dense(9)(x)) * nn.Dense(9)(x))


def attention(x, train):
    x = nn.Dense(8)(x)
    x = x + nn.MultiHeadDotProductAttention(4, qkv_features=12)(nn.LayerNorm()(x))
    return nn.Dense(4)(x)


def fused_attention(x, train):
    N, L, _ = x.shape
    query, key, value = jnp.moveaxis(nn.Dense(3 * 12)(x).reshape(N, L, 3, 4, 3), 2, 0)
    return nn.Dense(4)(jax.nn.dot_product_attention(query, key, value).reshape(N, L, 12))


def split_attention(x, train):
    N, L, _ = x.shape
    parts = jnp.split(nn.Dense(3 * 12)(x), 3, axis=-1)
    query, key, value = (part.reshape(N, L, 4, 3) for part in parts)
    return nn.Dense(4)(jax.nn.dot_product_attention(query, key, value).reshape(N, L, 12))


def turned(x, interleaved):
    """Rotary embedding of (N, L, H, K): pairs of features, neighbours or half the width apart."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 100.0 ** (-jnp.arange(half)[None] / half)
    cos, sin = (f(angle)[None, :, None] for f in (jnp.cos, jnp.sin))
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def grouped_query(x, train, interleaved=False):
    N, L, _ = x.shape
    query = nn.Dense(6 * 8, use_bias=False)(x).reshape(N, L, 6, 8)
    key, value = (nn.Dense(2 * 8, use_bias=False)(x).reshape(N, L, 2, 8) for _ in range(2))
    query, key = turned(query, interleaved), turned(key, interleaved)
    key, value = jnp.repeat(key, 3, axis=2), jnp.repeat(value, 3, axis=2)
    weights = nn.softmax(jnp.einsum('nqhk,nmhk->nhqm', query, key))
    return nn.Dense(4)(jnp.einsum('nhqm,nmhk->nqhk', weights, value).reshape(N, L, 48))


def interleaved_rotary(x, train):
    return grouped_query(x, train, interleaved=True)


def library_grouped_query(x, train):
    N, L, _ = x.shape
    query = nn.Dense(6 * 8, use_bias=False)(x).reshape(N, L, 6, 8)
    key, value = (nn.Dense(2 * 8, use_bias=False)(x).reshape(N, L, 2, 8) for _ in range(2))
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return nn.Dense(4)(mixed.reshape(N, L, 48))


def tied_embedding(x, train):
    embedding = nn.Embed(11, 8)
    h = nn.LayerNorm()(embedding(x) + nn.Embed(3, 8)(jnp.arange(3))[None])
    return embedding.attend(h + nn.Dense(8)(nn.relu(nn.Dense(6)(h))))


def lstm(x, train):
    return nn.Dense(4)(nn.RNN(nn.OptimizedLSTMCell(6))(x))


def gru(x, train):
    return nn.Dense(4)(nn.RNN(nn.GRUCell(6))(nn.RNN(nn.GRUCell(5))(x)))


def remat(x, train):
    block = nn.remat(nn.Dense)
    return block(4)(nn.relu(block(9)(x)))


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8)(nn.relu(nn.Dense(6)(nn.LayerNorm()(x)))), None


def stacked(x, train):
    layers = nn.scan(_Layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
    return nn.Dense(4)(layers()(nn.Dense(8)(x), None)[0])


def branches(x, train):
    x = nn.Dense(9)(x)
    x = jax.lax.cond(x.sum() > 0, nn.relu, lambda x: -2.0 * x, x)
    return nn.Dense(4)(jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x), x))


def constants(x, train):
    table = jnp.asarray(np.random.default_rng(2).normal(size=9), jnp.float32)
    return nn.Dense(4)(nn.Dense(9)(x) * table[None] * jnp.arange(9.0)[None])


def unstacked(x, train):
    """A network over steps in time, one at a time, and over parts of a layer."""
    layer = nn.Dense(9)
    state, *rest = jnp.unstack(nn.Dense(9)(x), axis=1)
    for step in rest:
        state = jnp.tanh(step + layer(state))
    a, b = jnp.unstack(nn.Dense(12)(state).reshape(-1, 2, 6), axis=1)
    return nn.Dense(4)(a * nn.sigmoid(b))


def tiled(x, train):
    x = jnp.tile(nn.Dense(6)(x), (1, 2))
    x = jnp.stack([jnp.log2(1 + x * x), jnp.polyval(jnp.asarray([1.0, -2.0, 0.5]), x)], axis=1)
    return nn.Dense(4)(x.reshape(len(x), -1))


LINEN = {
    vectors: (
        dense, batch_equals_width, sigmoid, dropout, split, layer_norm, rms_norm, gated, remat,
        branches, constants, stacked, tiled,
    ),
    images: (
        convolution, flatten, grouped, depthwise, multiplied, transposed, shuffled, batch_norm,
        group_norm, residual, padded_shortcut, dense_connections, squeeze_excite,
    ),
    sequences: (
        attention, fused_attention, split_attention, grouped_query, interleaved_rotary,
        library_grouped_query, lstm, gru, unstacked,
    ),
    tokens: (tied_embedding,),
}  # fmt: skip
NETWORKS = {network.__name__: (network, make) for make, own in LINEN.items() for network in own}


def case(name):
    """Makes the case of a name in `NETWORKS`."""
    network, make = NETWORKS[name]
    return linen(network, make())
