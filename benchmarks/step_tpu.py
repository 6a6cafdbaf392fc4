"""A training step under masks against the dense step, compiled for TPUs on a machine with none.

    pip install 'jax[tpu]'
    python -m benchmarks.step_tpu resnet50          # batch 256, bfloat16, eight v5e chips
    python -m benchmarks.step_tpu decoder           # 1.0 G weights, FSDP over eight v5e chips

For the dense and the pruned step: bytes that a chip's program reads and writes, its temporary
memory, its arguments, and what the chips exchange. Nothing runs; where the compiler is not
installed it says so.
"""

import os
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no TPU machine to ask about itself

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from benchmarks.collectives import exchanged
from train import models

DECODER = {'layers': 20, 'heads': 16, 'groups': 4, 'head_units': 128, 'units': 2048}


def resnet50():
    """The network, its inputs and labels, and its optimizer; weights whole on every chip."""
    model = models.build('resnet50', num_classes=1000, dtype=jnp.bfloat16)
    inputs, labels = jax.ShapeDtypeStruct((256, 224, 224, 3), jnp.float32), (256,)
    return model, inputs, labels, optax.sgd(0.1, momentum=0.9), P()


def decoder():
    """The same, of a decoder whose weights are split by rows."""
    model = models.Decoder(num_classes=32_000, hidden=5632, dtype=jnp.bfloat16, **DECODER)
    inputs, labels = jax.ShapeDtypeStruct((8, 1024), jnp.int32), (8, 1024)
    return model, inputs, labels, optax.adamw(1e-4), P('x')


def compiled(make, pruned, mesh):
    """Compiles one step; `pruned` wraps the optimizer."""
    model, inputs, labels, tx, spec = make()
    tx = jp.pruned(tx) if pruned else tx
    init = lambda x: model.init(jax.random.key(0), x, train=False)
    variables = jax.eval_shape(init, inputs)
    params = variables.pop('params')

    def step(params, state, rest, x, y):
        def loss(params):
            logits, own = model.apply({'params': params, **rest}, x, train=True, mutable=list(rest))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), own

        grads, rest = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, rest

    fits = lambda s: spec if s.ndim > 1 and s.shape[0] % mesh.size == 0 else P()
    place = lambda tree: jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, fits(s))),
        tree,
    )
    state = jax.eval_shape(tx.init, params)
    batch = NamedSharding(mesh, P('x'))
    x = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype, sharding=batch)
    y = jax.ShapeDtypeStruct(labels, jnp.int32, sharding=batch)
    args = (place(params), place(state), place(variables))
    outs = jax.tree.map(lambda s: s.sharding, args)
    lowered = jax.jit(step, donate_argnums=(0, 1, 2), out_shardings=outs).lower(*args, x, y)
    began = time.perf_counter()
    program = lowered.compile()
    size = sum(s.size for s in jax.tree.leaves(params))
    return program, size, time.perf_counter() - began


def main():
    cases = {'resnet50': resnet50, 'decoder': decoder}
    try:
        found = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x4')
    except (RuntimeError, ValueError) as error:
        print(f"no compiler for TPUs: pip install 'jax[tpu]' ({error})")
        return
    mesh = Mesh(np.array(found.devices), ('x',))
    for name in sys.argv[1:] or cases:
        rows = {}
        for kind, pruned in (('dense', False), ('pruned', True)):
            program, size, seconds = compiled(cases[name], pruned, mesh)
            memory = program.memory_analysis()
            cost = program.cost_analysis()
            rows[kind] = cost['bytes accessed'], memory.temp_size_in_bytes
            print(
                f'{name}, {size / 1e6:,.1f} M weights, {kind}: {rows[kind][0] / 1e9:.3f} GB moved, '
                f'{rows[kind][1] / 1e9:.3f} GB temporary, '
                f'{memory.argument_size_in_bytes / 1e9:.3f} GB of arguments a chip, '
                f'{exchanged(program.as_text())}, compiled in {seconds:.0f} s',
                flush=True,
            )
        moved, temporary = (a / b for a, b in zip(rows['pruned'], rows['dense'], strict=True))
        print(f'{name}: pruned against dense {moved:.4f} x bytes, {temporary:.4f} x temporary\n')


if __name__ == '__main__':
    main()
