"""Training steps under masks, and choosing masks, compiled for TPUs on a machine with none.

    pip install 'jax[tpu]'
    python -m benchmarks.step_tpu                       # all, most of an hour on two cores
    python -m benchmarks.step_tpu resnet50              # batch 256, bfloat16, eight v5e chips
    python -m benchmarks.step_tpu 1B_v5e 8B_v5p_tensor masks_8B_v5p

The decoders' weights, moments and masks are split over all chips, each batch too; the layers are
scanned and computed anew for their gradients. For each program: what a chip reads and writes, what
it holds, and what chips exchange, in one turn of each loop. Nothing runs; where the compiler is not
installed it says so.
"""

import functools
import os
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no TPU machine to ask about itself
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # it only compiles; others may too

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from benchmarks.collectives import exchanged
from train import layout, models

MEMORY = {'v5e': 16, 'v5p': 95}
"""GB of a chip."""
TOPOLOGIES = {'v5e': 'v5e:16x16', 'v5p': 'v5p:8x8x4', 'v5e_8': 'v5e:2x4'}
DECODERS = {
    '1B': {'layers': 16, 'units': 2048, 'heads': 16, 'groups': 4, 'hidden': 7168},
    '8B': {'layers': 32, 'units': 4096, 'heads': 32, 'groups': 8, 'hidden': 14336},
    '70B': {'layers': 80, 'units': 8192, 'heads': 64, 'groups': 8, 'hidden': 28672},
}
VOCABULARY = {'1B': 32_000, '8B': 128_256, '70B': 128_256}
CASES = {  # decoder, chips, those that share an example, batch and tokens of an example
    '1B_v5e': ('1B', 'v5e_8', 1, (8, 2048)),
    '8B_v5e': ('8B', 'v5e', 1, (256, 4096)),
    '8B_v5p': ('8B', 'v5p', 1, (256, 4096)),
    '8B_v5p_tensor': ('8B', 'v5p', 8, (256, 4096)),
    '70B_v5p': ('70B', 'v5p', 1, (256, 4096)),
}


class Layer(models.Decoder):
    """One layer. Its input is laid out by examples, so that weights are gathered for it."""

    where: NamedSharding | None = None

    @nn.compact
    def __call__(self, x, _):
        if self.where is not None:
            x = jax.lax.with_sharding_constraint(x, self.where)
        x = x + self._attention(normalised(x), self.units)
        return x + self._gated(normalised(x), self.units), None


class Scanned(models.Decoder):
    """The trainer's decoder with its layers in one scan, so that one of them is compiled."""

    where: NamedSharding | None = None

    @nn.compact
    def __call__(self, tokens, train):
        del train
        scanned = nn.scan(
            nn.remat(Layer),
            variable_axes={'params': 0},
            split_rngs={'params': True},
            length=self.layers,
        )
        fields = ('num_classes', 'heads', 'groups', 'head_units', 'units', 'hidden', 'dtype')
        layers = scanned(**{name: getattr(self, name) for name in fields}, where=self.where)
        x = nn.Embed(self.num_classes, self.units, dtype=self.dtype)(tokens)
        x, _ = layers(x, None)
        return self._dense(self.num_classes)(normalised(x)).astype(jnp.float32)


def normalised(x):
    return nn.RMSNorm()(x.astype(jnp.float32)).astype(x.dtype)


def decoder(size, where=None):
    """A decoder, and the shapes of its parameters."""
    fields = {'num_classes': VOCABULARY[size], 'head_units': 128, 'dtype': jnp.bfloat16}
    model = Scanned(**fields, **DECODERS[size])
    init = lambda x: model.init(jax.random.key(0), x, train=False)
    params = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 8), jnp.int32))['params']
    return model.clone(where=where), params


def mesh_of(chips, tensor=1):
    """All chips of a topology; along the second axis they share examples."""
    found = topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGIES[chips])
    return Mesh(np.array(found.devices).reshape(-1, tensor), (layout.FSDP, layout.TENSOR))


def split(mesh, layers, shape):
    """Splits weights over all chips: those of all layers, stacked along a first axis, alike.

    Where chips share no example, along the longest axis but the last, which tiles are wide in;
    else as the trainer does.
    """
    stacked = shape[:1] == (layers,)
    own = shape[1:] if stacked else shape
    if mesh.shape[layout.TENSOR] > 1:
        return NamedSharding(mesh, P(*[None] * stacked, *layout.spec(own, mesh)))
    fits = [axis for axis in range(max(0, len(shape) - 3), len(shape) - 1)]
    fits = [axis for axis in fits if shape[axis] % mesh.size == 0]
    if not fits:
        fits = [axis for axis in range(len(shape)) if shape[axis] % mesh.size == 0]
    axis = max(fits, key=lambda axis: shape[axis], default=None)
    return NamedSharding(mesh, P() if axis is None else P(*[None] * axis, layout.FSDP))


def placed(tree, where):
    """Shapes that lie as `where` says of each."""
    place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where(s.shape))
    return jax.tree.map(place, tree)


def lower(loss, tx, variables, batch, where):
    """Lowers a step whose parameters, state and the rest lie as told, and keep their memory."""
    params, rest = variables

    def step(params, state, rest, x, y):
        grads, rest = jax.grad(loss, has_aux=True)(params, rest, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, rest

    args = placed((params, jax.eval_shape(tx.init, params), rest), where)
    outs = jax.tree.map(lambda s: s.sharding, args)
    return jax.jit(step, donate_argnums=(0, 1, 2), out_shardings=outs).lower(*args, *batch)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def resnet50():
    """Makes the lowered step of an optimizer: ResNet-50, data-parallel over eight chips."""
    mesh = mesh_of('v5e_8')
    batch, whole = NamedSharding(mesh, P(layout.FSDP)), NamedSharding(mesh, P())
    model = models.build('resnet50', num_classes=1000, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((256, 224, 224, 3), jnp.float32, sharding=batch)
    y = jax.ShapeDtypeStruct((256,), jnp.int32, sharding=batch)
    rest = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    params = rest.pop('params')

    def loss(params, rest, x, y):
        logits, rest = model.apply({'params': params, **rest}, x, train=True, mutable=list(rest))
        return cross_entropy(logits, y), rest

    tx = optax.sgd(0.1, momentum=0.9)
    step = lambda wrap: lower(loss, wrap(tx), (params, rest), (x, y), lambda shape: whole)
    return step, params, 'v5e'


def decoder_step(size, chips, tensor, tokens):
    """The same, of a decoder whose weights, moments and masks lie over all chips."""
    mesh = mesh_of(chips, tensor)
    batch = NamedSharding(mesh, P(layout.FSDP))
    model, params = decoder(size, batch)
    x = jax.ShapeDtypeStruct(tokens, jnp.int32, sharding=batch)

    def loss(params, rest, x, y):
        return cross_entropy(model.apply({'params': params}, x, train=True), y), rest

    where = functools.partial(split, mesh, model.layers)
    step = lambda wrap: lower(loss, wrap(optax.adamw(1e-4)), (params, {}), (x, x), where)
    return step, params, chips.split('_')[0]


def masks_of(size, chips, tensor):
    """The lowered selections of masks for a decoder's weights."""
    model, params = decoder(size)
    params = placed(params, functools.partial(split, mesh_of(chips, tensor), model.layers))
    weights = lambda params: jp.tree.map_prunable(lambda _, w: w, params)
    n_of_m = jp.patterns.n_of_m(2, 4, axis=-2)
    ways = {
        'global_top': lambda p: jp.masks.global_top(weights(p), 0.1, absolute=True),
        'n_of_m': lambda p: jp.masks.leaf_top(jp.scores.magnitude(p), 0.5, pattern=n_of_m),
        'erdos_renyi': lambda p: jp.masks.leaf_top(
            weights(p), jp.allocate.erdos_renyi(p, 0.1), absolute=True
        ),
    }
    return {name: jax.jit(way).lower(params) for name, way in ways.items()}, params


def report(name, kind, lowered, memory):
    """Compiles, prints a row, and returns bytes moved, bytes temporary, and what is exchanged."""
    began = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - began
    found, moved = program.memory_analysis(), program.cost_analysis()['bytes accessed']
    fresh = found.output_size_in_bytes - found.alias_size_in_bytes
    held = (found.argument_size_in_bytes + fresh + found.temp_size_in_bytes) / 1e9
    exchange = exchanged(program.as_text())
    fits = f'{held:.3f} of {memory}' + ('' if held < memory else ', does not fit')
    print(
        f'| {name} | {kind} | {fits} | {found.temp_size_in_bytes / 1e9:.4f} | {moved / 1e9:.3f} '
        f'| {said(exchange)} | {seconds:.0f} |',
        flush=True,
    )
    return moved, found.temp_size_in_bytes, exchange


def said(exchange):
    """Numbers and megabytes of collectives in words."""
    return ', '.join(f'{n} {kind}s, {size / 1e6:,.4g} MB' for kind, (n, size) in exchange.items())


def compare(name, step, params, chip):
    """Prints rows of the dense and the pruned step, and their ratios; ends where they exchange
    other things."""
    size = sum(s.size for s in jax.tree.leaves(params))
    name = f'{name}, {size / 1e9:,.3f} G weights'
    dense = report(name, 'dense', step(lambda tx: tx), MEMORY[chip])
    pruned = report(name, 'pruned', step(jp.pruned), MEMORY[chip])
    moved, temporary = (a / b for a, b in zip(pruned[:2], dense[:2], strict=True))
    same = pruned[2] == dense[2]
    print(
        f'| {name} | pruned / dense | | {temporary:.4f} × | {moved:.4f} × '
        f'| {"the same" if same else "OTHERS"} | |',
        flush=True,
    )
    if not same:
        sys.exit(f'{name}: masks change what chips exchange')


def main():
    try:
        mesh_of('v5e_8')
    except (RuntimeError, ValueError) as error:
        print(f"the compiler for TPUs cannot be loaded: {error}\npip install 'jax[tpu]' brings it")
        return
    print(
        '| network | program | GB a chip | of them temporary | GB moved a chip '
        '| exchanged: number and bytes | s to compile |\n|---|---|---|---|---|---|---|',
        flush=True,
    )
    for name in sys.argv[1:] or ['resnet50', *CASES, *(f'masks_{case}' for case in CASES)]:
        if name == 'resnet50':
            compare(name, *resnet50())
        elif name in CASES:
            compare(name, *decoder_step(*CASES[name]))
        else:
            size, chips, tensor, _ = CASES[name.removeprefix('masks_')]
            for kind, lowered in masks_of(size, chips, tensor)[0].items():
                report(name, kind, lowered, MEMORY[chips.split('_')[0]])


if __name__ == '__main__':
    main()
