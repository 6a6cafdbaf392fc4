"""Pruning a decoder of a billion weights, on one device or sharded over many: time and peak memory.

    python -m benchmarks.scale --devices=1              # a billion weights, 11 GB of memory
    python -m benchmarks.scale --devices=8 --layers=2   # fewer, sharded over virtual devices

The weights are float32, made in place, each split by rows over the devices, as are the masks. Each
way of choosing masks runs in a process of its own, which compiles all first, for its own peak: the
largest resident memory of the process from making the weights on, less what it has before, against
weights and masks.
"""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

if devices := [flag for flag in sys.argv if flag.startswith('--devices=')]:
    count = devices[0].split('=')[1]  # before JAX is imported
    os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={count}'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from benchmarks import timing

DEVICES = flags.DEFINE_integer('devices', 1, 'Virtual devices, 1 where it is not given.')
LAYERS = flags.DEFINE_integer('layers', 20, 'Of the decoder.')
METHOD = flags.DEFINE_string('method', None, 'One way of choosing masks, in this process.')

UNITS, KEYS, HIDDEN, VOCABULARY = 2048, 512, 5632, 32_000

METHODS = {
    'global_top': lambda w: jp.masks.global_top(w, 0.1, absolute=True),
    'n_of_m': lambda w: jp.masks.leaf_top(
        jp.scores.magnitude(w), 0.5, pattern=jp.patterns.n_of_m(2, 4)
    ),
    'erdos_renyi': lambda w: jp.masks.leaf_top(w, jp.allocate.erdos_renyi(w, 0.1), absolute=True),
    'global_top, scores held': lambda w: jp.masks.global_top(jp.scores.magnitude(w), 0.1),
}


def shapes(layers):
    """The kernels of a decoder with grouped queries and gated layers."""
    layer = {
        'query': (UNITS, UNITS),
        'key': (UNITS, KEYS),
        'value': (UNITS, KEYS),
        'out': (UNITS, UNITS),
        'gate': (UNITS, HIDDEN),
        'up': (UNITS, HIDDEN),
        'down': (HIDDEN, UNITS),
    }
    ends = {'embedding': (VOCABULARY, UNITS), 'logits': (UNITS, VOCABULARY)}
    return ends | {f'layer_{n}': layer for n in range(layers)}


def normal(shape, seed):
    """Normal numbers by a hash of their place: `jax.random` would hold several times its result."""
    place = lambda axis: jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    bits = jnp.uint32(seed) * jnp.uint32(0x9E3779B9) + place(0) * jnp.uint32(shape[1]) + place(1)
    for factor in (0x85EBCA6B, 0xC2B2AE35):  # as MurmurHash3 ends
        bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
    uniform = ((bits >> 8).astype(jnp.float32) + 0.5) / 2**24
    return shape[0] ** -0.5 * jax.scipy.special.ndtri(uniform)


def resident(field):
    """Reads the resident memory of this process, in bytes: 'VmRSS' now, 'VmHWM' at most."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def measure(method, layers):
    """Makes the weights, chooses masks once, and prints a row of the table."""
    mesh = jax.make_mesh((jax.device_count(),), ('x',), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P('x'))
    is_shape = lambda x: isinstance(x, tuple)
    lies = lambda s: jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding)
    like = jax.tree.map(lies, shapes(layers), is_leaf=is_shape)
    select = jax.jit(METHODS[method]).lower(like).compile()
    sides = {s.shape for s in jax.tree.leaves(like)}
    draw = {
        s: jax.jit(partial(normal, s), out_shardings=sharding).lower(0).compile() for s in sides
    }
    before, compiling = resident('VmRSS'), resident('VmHWM')
    leaves, structure = jax.tree.flatten(like)
    made = [jax.block_until_ready(draw[s.shape](n)) for n, s in enumerate(leaves)]
    params = structure.unflatten(made)
    began = time.perf_counter()
    masks = jax.block_until_ready(select(params))
    seconds = time.perf_counter() - began
    peak = resident('VmHWM') - before
    weights = sum(x.size for x in jax.tree.leaves(params))
    kept = jp.counting.count(jax.tree.leaves(masks))
    density = jp.counting.to_int(kept) / weights
    print(
        f'| {method} | {weights / 1e9:.3f} | {density:.4f} | {seconds:.1f} '
        f'| {compiling / 1e9:.2f} | {peak / 1e9:.2f} | {peak / (5 * weights):.3f} |',
        flush=True,
    )


def main(argv):
    del argv
    if METHOD.value:
        measure(METHOD.value, LAYERS.value)
        return
    print(timing.hardware(), '\n')
    print(
        '| masks | G weights | density | seconds | GB of Python, JAX and its compiler, before '
        '| GB at most, beyond those | against weights + masks |\n|---|---|---|---|---|---|---|',
        flush=True,
    )
    for method in METHODS:
        command = [sys.executable, '-m', 'benchmarks.scale', f'--method={method}']
        command += [f'--layers={LAYERS.value}', f'--devices={DEVICES.value}']
        subprocess.run(command, check=True)


if __name__ == '__main__':
    app.run(main)
