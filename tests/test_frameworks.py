"""The ten-line loop with Flax, NNX, Equinox and Haiku: train, prune, rewind the schedule, train."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune import gradual

pytestmark = pytest.mark.promotes  # optax does

RATE = optax.piecewise_constant_schedule(0.05, {5: 0.1})
X = jnp.asarray(np.random.RandomState(0).normal(size=(32, 4)), jnp.float32)
Y = jnp.sin(X[:, :1]) * X[:, 1:2]


def squared_error(found):
    return jnp.mean((found - Y) ** 2)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.tanh(linen.Dense(8)(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


class Flax:
    """A linen model in a TrainState."""

    def __init__(self, tx):
        variables = Linen().init(jax.random.key(0), X)
        self.state = TrainState.create(apply_fn=Linen().apply, params=variables['params'], tx=tx)

        @jax.jit
        def step(state):
            loss = lambda params: squared_error(state.apply_fn({'params': params}, X))
            value, grads = jax.value_and_grad(loss)(state.params)
            return state.apply_gradients(grads=grads), value

        self.step = step

    def train(self):
        self.state, value = self.step(self.state)
        return value

    def read(self):
        return self.state.params, self.state.opt_state

    def write(self, params, opt_state):
        self.state = self.state.replace(params=params, opt_state=opt_state)


class NnxLoop:
    """An NNX model with nnx.Optimizer; its parameters are `nnx.state(model, nnx.Param)`."""

    def __init__(self, tx):
        self.model = Nnx(nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            value, grads = nnx.value_and_grad(lambda m: squared_error(m(X)))(model)
            optimizer.update(model, grads)
            return value

        self.step = step

    def train(self):
        return self.step(self.model, self.optimizer)

    def read(self):
        return nnx.state(self.model, nnx.Param), self.optimizer.opt_state

    def write(self, params, opt_state):
        nnx.update(self.model, params)
        self.optimizer.opt_state = opt_state


class Plain:
    """A loop over parameters, the state of the optimizer and a loss."""

    def __init__(self, tx, params, loss):
        self.params, self.opt_state = params, tx.init(params)

        @jax.jit
        def step(params, opt_state):
            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        self.step = step

    def train(self):
        self.params, self.opt_state, value = self.step(self.params, self.opt_state)
        return value

    def read(self):
        return self.params, self.opt_state

    def write(self, params, opt_state):
        self.params, self.opt_state = params, opt_state


def equinox(tx):
    """The arrays of an MLP, whose other leaves are None: functions and numbers."""
    model = eqx.nn.MLP(4, 1, 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    assert None in jax.tree.leaves(params, is_leaf=lambda x: x is None)
    return Plain(tx, params, lambda p: squared_error(jax.vmap(eqx.combine(p, static))(X)))


def haiku(tx):
    def mlp(x):
        return hk.nets.MLP([8, 1], activation=jnp.tanh)(x)

    net = hk.without_apply_rng(hk.transform(mlp))
    params = net.init(jax.random.key(0), X)
    return Plain(tx, params, lambda p: squared_error(net.apply(p, X)))


LOOPS = {'linen': Flax, 'nnx': NnxLoop, 'equinox': equinox, 'haiku': haiku}


def check(loop):
    params, opt_state = loop.read()
    masks = jp.get_masks(opt_state)
    covered = 0
    for (_, mask), (_, weight) in zip(
        jp.tree.named_leaves(masks), jp.tree.named_leaves(params), strict=True
    ):
        if mask is not None:
            covered += mask.size
            assert (np.asarray(weight)[~np.asarray(mask)] == 0).all()
    assert covered == 4 * 8 + 8
    return masks


def states(opt_state, kind):
    is_kind = lambda node: isinstance(node, kind)
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_kind) if is_kind(node)]


def counts(opt_state):
    """Steps of the schedule and of Adam."""
    kinds = (optax.ScaleByScheduleState, optax.ScaleByAdamState)
    return [int(node.count[...]) for kind in kinds for node in states(opt_state, kind)]


@pytest.mark.parametrize('framework', LOOPS)
def test_train_prune_rewind_train(framework):
    loop = LOOPS[framework](jp.pruned(optax.adam(RATE)))
    losses = [float(loop.train()) for _ in range(8)]
    assert losses[-1] < losses[0]

    params, opt_state = loop.read()
    masks = jp.masks.leaf_top(jp.scores.magnitude(params), 0.5)
    opt_state = jp.rewind_schedule(jp.set_masks(opt_state, masks))
    assert counts(opt_state) == [0, 8]
    loop.write(jp.masks.apply(params, masks), opt_state)
    check(loop)

    again = [float(loop.train()) for _ in range(20)]
    assert again[-1] < again[0]
    found = check(loop)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), jax.tree.leaves(masks))
    assert sum(int(m.sum()) for m in jax.tree.leaves(found)) == 20
    assert counts(loop.read()[1]) == [20, 28]


@pytest.mark.parametrize('framework', LOOPS)
def test_gradual_pruning_lands_on_its_density(framework):
    loop = LOOPS[framework](gradual.prune(optax.adam(RATE), 0.25, gradual.cubic(2, 6, 2)))
    losses = []
    for _ in range(30):
        losses.append(float(loop.train()))
        check(loop)
    assert losses[-1] < losses[7]  # the first with the last masks
    assert sum(int(m.sum()) for m in jax.tree.leaves(check(loop))) == 10


@pytest.mark.parametrize('framework', LOOPS)
def test_rigl_starts_masked_and_moves_its_masks(framework):
    loop = LOOPS[framework](gradual.rigl(optax.adam(RATE), 0.5, jax.random.key(0), every=3, end=9))
    # where the framework makes the state of the optimizer, this is what `gradual.start` does
    params, opt_state = loop.read()
    loop.write(jp.masks.apply(params, jp.get_masks(opt_state)), opt_state)
    first = check(loop)
    moments = []
    for step in range(12):
        old = jax.tree.leaves(jp.get_masks(loop.read()[1]))
        loop.train()
        new = jax.tree.leaves(check(loop))
        if step == 3:
            moments = returned(loop.read()[1], old, new)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), new, strict=True))
    assert [int(m.sum()) for m in new] == [int(m.sum()) for m in jax.tree.leaves(first)]
    assert moments  # some weights returned, and Adam's averages began afresh: 0.1 g and 0.001 g²
    for mu, nu in moments:
        np.testing.assert_allclose((mu / 0.1) ** 2, nu / 0.001, rtol=1e-3)


def returned(opt_state, old, new):
    """Adam's two moments of the weights that returned in the last step, as pairs."""
    (adam,) = states(opt_state, optax.ScaleByAdamState)
    matrices = lambda t: [np.asarray(leaf) for leaf in jax.tree.leaves(t) if leaf.ndim == 2]
    rows = zip(old, new, matrices(adam.mu), matrices(adam.nu), strict=True)
    pairs = [(mu[n & ~o], nu[n & ~o]) for o, n, mu, nu in rows]
    return [(mu, nu) for mu, nu in pairs if mu.size]
