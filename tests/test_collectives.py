"""What devices exchange: masks add nothing to a step, and their update moves counts alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from benchmarks import step_tpu
from benchmarks.collectives import exchanged
from train import models

WIDTHS = (32, 256, 256, 16)


@pytest.fixture(scope='module')
def mesh():
    return jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))


def network():
    pairs = itertools.pairwise(WIDTHS)
    return {f'layer_{n}': jnp.ones(shape) / 100 for n, shape in enumerate(pairs)}


def loss(params, x):
    for n, kernel in enumerate(params.values()):
        x = jax.nn.relu(x @ kernel) if n < len(params) - 1 else x @ kernel
    return (x**2).mean()


def step(tx):
    def run(params, state, x):
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    return run


def compiled(tx, mesh, spec):
    """The text of a step whose batch is split over devices, and weights as `spec` says."""
    placed = lambda tree: jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(
            s.shape, s.dtype, sharding=NamedSharding(mesh, spec if len(s.shape) > 1 else P())
        ),
        tree,
    )
    params = placed(jax.eval_shape(network))
    state = placed(jax.eval_shape(tx.init, params))
    x = jax.ShapeDtypeStruct((64, WIDTHS[0]), jnp.float32, sharding=NamedSharding(mesh, P('x')))
    outs = jax.tree.map(lambda s: s.sharding, (params, state))
    return jax.jit(step(tx), out_shardings=outs).lower(params, state, x).compile().as_text()


@pytest.mark.promotes  # optax does
@pytest.mark.parametrize('spec', [P(), P('x')], ids=['data-parallel', 'fsdp'])
@pytest.mark.parametrize(
    'inner', [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1)], ids=['sgd', 'adamw']
)
def test_masks_add_no_collective_to_a_step(inner, spec, mesh):
    dense = exchanged(compiled(inner, mesh, spec))
    assert dense and exchanged(compiled(jp.pruned(inner), mesh, spec)) == dense


@pytest.fixture(params=[256, 4096])
def scores(request, mesh):
    """Shapes of four leaves, split by rows."""
    sharding = NamedSharding(mesh, P('x'))
    lies = jax.ShapeDtypeStruct((request.param, 64), jnp.float32, sharding=sharding)
    return dict.fromkeys('abcd', lies)


WAYS = {
    'global_top': lambda scores: jp.masks.global_top(scores, 0.3),
    'leaf_top': lambda scores: jp.masks.leaf_top(scores, 0.3),
    'absolute': lambda scores: jp.masks.global_top(scores, 0.3, absolute=True),
}


@pytest.mark.parametrize('way', WAYS)
def test_the_update_of_masks_moves_counts_alone(way, scores):
    """The same few bytes for weights of any number, and no copy of them is held."""
    program = jax.jit(WAYS[way]).lower(scores).compile()
    found = exchanged(program.as_text())
    assert set(found) == {'all-gather'}  # on CPU, of a count from each device
    assert found['all-gather'][1] / 8 < 1000
    assert program.memory_analysis().temp_size_in_bytes < 30_000


@pytest.mark.usefixtures('counts_as_accelerators')
@pytest.mark.parametrize('way', WAYS)
def test_the_update_of_masks_on_accelerators_has_all_reduces_alone(way, scores):
    found = exchanged(jax.jit(WAYS[way]).lower(scores).compile().as_text())
    assert set(found) == {'all-reduce'}
    assert found['all-reduce'][1] == 2 * 7 * 4 * len(scores)  # the threshold's loop, and the ties'


def test_what_n_of_m_settles_moves_and_holds_nothing(scores):
    pattern = jp.patterns.n_of_m(2, 4)
    select = lambda w: jp.masks.leaf_top(jp.scores.magnitude(w), 0.5, pattern=pattern)
    program = jax.jit(select).lower(scores).compile()
    assert not exchanged(program.as_text())
    assert program.memory_analysis().temp_size_in_bytes == 0


@pytest.mark.promotes
def test_the_decoder_that_is_compiled_for_tpus_is_that_of_the_trainer():
    """Its layers are scanned: the same weights, stacked, compute the same."""
    fields = {'num_classes': 11, 'layers': 2, 'heads': 4, 'groups': 2, 'head_units': 8, 'units': 32}
    tokens = jnp.arange(6)[None]
    model, scanned = models.Decoder(**fields), step_tpu.Scanned(**fields)
    params = model.init(jax.random.key(0), tokens, train=False)['params']
    stack = lambda kind, n, many: jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(params[f'{kind}_{n + k * many}'] for k in (0, 1))
    )
    layers = {f'DenseGeneral_{n}': stack('DenseGeneral', n, 4) for n in range(4)}
    layers |= {f'Dense_{n}': stack('Dense', n, 3) for n in range(3)}
    layers |= {f'RMSNorm_{n}': stack('RMSNorm', n, 2) for n in range(2)}
    given = {name: params[name] for name in ('Embed_0',)}
    given |= {'Dense_0': params['Dense_6'], 'RMSNorm_0': params['RMSNorm_4']}
    shapes = jax.eval_shape(lambda: scanned.init(jax.random.key(0), tokens, train=False))['params']
    [name] = shapes.keys() - given.keys()
    given[name] = layers
    assert jax.tree.map(jnp.shape, given) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_allclose(
        scanned.apply({'params': given}, tokens, train=False),
        model.apply({'params': params}, tokens, train=False),
        atol=1e-5,
    )
