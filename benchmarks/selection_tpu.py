"""Compiles the choice of masks for eight TPU v5e chips, on a machine with none.

    pip install 'jax[tpu]'
    python -m benchmarks.selection_tpu           # all cases, some minutes
    python -m benchmarks.selection_tpu kernels   # the cases whose name holds a word

For each case: temporary memory a chip, and what the chips exchange. The all-reduces carry counts,
so that their bytes grow with the number of leaves and not with the number of weights.
"""

import os
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # no TPU machine to ask about itself

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from benchmarks.collectives import moved

DENSITY = 0.5
CASES = {
    'tiny, 65 k': ([(64, 128)] * 8, P('x')),
    'one leaf, 34 M': ([(32768, 1024)], P('x')),
    'rows, 16.8 M': ([(2048, 1024)] * 8, P('x')),
    'rows, 67 M': ([(8192, 1024)] * 8, P('x')),
    'rows, 268 M': ([(32768, 1024)] * 8, P('x')),
    'columns, 67 M': ([(8192, 1024)] * 8, P(None, 'x')),
    'narrow, 67 M': ([(1024 * 1024, 8)] * 8, P('x')),
    'narrow columns, 67 M': ([(1024 * 1024, 8)] * 8, P(None, 'x')),
    'kernels, 75 M': ([(3, 3, 1024, 1024)] * 8, P(None, None, None, 'x')),
    'kernels by input, 75 M': ([(3, 3, 1024, 1024)] * 8, P(None, None, 'x')),
    'vectors, 67 M': ([(8192 * 1024,)] * 8, P('x')),
}


def report(name, shapes, spec, dtype, mesh):
    sharding = NamedSharding(mesh, spec)
    scores = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes]
    began = time.perf_counter()
    compiled = jax.jit(lambda scores: jp.masks.global_top(scores, DENSITY)).lower(scores).compile()
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    gathers, _ = moved('all-gather', text)
    others = sum(moved(kind, text)[0] for kind in ('all-to-all', 'collective-permute'))
    reduces, carried = moved('all-reduce', text)
    print(
        f'{name:24s} {jnp.dtype(dtype).name:9s} {temporary / 1e6:12.3f} {gathers:11d} '
        f'{others:8d} {reduces:11d} {carried:11d} {seconds:9.1f}',
        flush=True,
    )


def main():
    word = sys.argv[1] if len(sys.argv) > 1 else ''
    devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x4').devices
    mesh = Mesh(np.array(devices), ('x',))
    print(f'{"":34s} {"temporary MB":>12s} all-gathers   others all-reduces  their bytes   seconds')
    for name, (shapes, spec) in CASES.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            if word in name:
                report(name, shapes, spec, dtype, mesh)


if __name__ == '__main__':
    main()
