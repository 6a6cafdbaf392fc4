"""Choosing masks for 25 M weights, against one pass of |w| (read and write) over the same tree.

python -m benchmarks.selection           # all cases, some minutes, most of it compiling
python -m benchmarks.selection global    # the cases whose name holds a word
python -m benchmarks.selection vmap      # 8 replicates of 3.1 M weights, under vmap and one by one
"""

import functools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from benchmarks import timing

DENSITY, TURNS, REPLICATES = 0.5, 9, 8


def equal_shapes():
    """50 leaves of 500 x 1000."""
    return [(500, 1000)] * 50


def mixed_shapes():
    """160 leaves, from 16 to 4 M entries, 25 M in all: wide, tall, flat and convolutional ones."""
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.uniform(np.log(16), np.log(4e6), 160))
    shapes = []
    for i, size in enumerate(sizes * 25e6 / sizes.sum()):
        side, wide = max(1, round(size**0.5)), max(1, round(size / 64))
        kernel = max(1, round((size / 9) ** 0.5))
        shapes.append([(side, side), (wide, 64), (64, wide), (3, 3, kernel, kernel)][i % 4])
    return shapes


CASES = {
    'global, 50 leaves, float32': (jp.masks.global_top, equal_shapes, jnp.float32),
    'global, 50 leaves, bfloat16': (jp.masks.global_top, equal_shapes, jnp.bfloat16),
    'by leaf, 50 leaves, float32': (jp.masks.leaf_top, equal_shapes, jnp.float32),
    'by leaf, 50 leaves, bfloat16': (jp.masks.leaf_top, equal_shapes, jnp.bfloat16),
    'mixed, 160 leaves, float32': (jp.masks.global_top, mixed_shapes, jnp.float32),
    'mixed, 160 leaves, bfloat16': (jp.masks.global_top, mixed_shapes, jnp.bfloat16),
    'mixed, by leaf, float32': (jp.masks.leaf_top, mixed_shapes, jnp.float32),
    'mixed, by leaf, bfloat16': (jp.masks.leaf_top, mixed_shapes, jnp.bfloat16),
}
VMAP_CASES = {
    'vmap, global, float32': (jp.masks.global_top, jnp.float32),
    'vmap, global, bfloat16': (jp.masks.global_top, jnp.bfloat16),
    'vmap, by leaf, float32': (jp.masks.leaf_top, jnp.float32),
    'vmap, by leaf, bfloat16': (jp.masks.leaf_top, jnp.bfloat16),
}


def measure(name, select, shapes, dtype):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    draw = jax.jit(lambda key, shape: jnp.abs(jax.random.normal(key, shape)), static_argnums=1)
    scores = [draw(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]
    began = time.perf_counter()
    compiled = jax.jit(functools.partial(select, density=DENSITY)).lower(scores).compile()
    seconds = time.perf_counter() - began
    one_pass = jax.jit(lambda leaves: [jnp.abs(leaf) for leaf in leaves])
    functions = {
        'one pass of |w|': lambda: one_pass(scores),
        name: lambda: compiled(scores),
        f'{name}, eager': lambda: select(scores, DENSITY),
    }
    print(timing.table(timing.interleave(functions, TURNS), 'one pass of |w|'))
    weights = sum(leaf.size for leaf in scores)
    temporary = compiled.memory_analysis().temp_size_in_bytes / weights
    print(f'{temporary:.4f} bytes of temporary memory a weight, compiled in {seconds:.1f} s\n')


def measure_replicates(name, select, dtype):
    """Under vmap against one call a replicate, of 8 leaves each."""
    keys = jax.random.split(jax.random.key(0), 8)
    draw = jax.jit(lambda key: jnp.abs(jax.random.normal(key, (REPLICATES, 400, 1000))))
    stacked = [draw(key).astype(dtype) for key in keys]
    single = [[leaf[i] for leaf in stacked] for i in range(REPLICATES)]
    one = jax.jit(functools.partial(select, density=DENSITY))
    together = jax.jit(jax.vmap(functools.partial(select, density=DENSITY)))
    functions = {
        'one by one': lambda: [one(scores) for scores in single],
        name: lambda: together(stacked),
    }
    print(timing.table(timing.interleave(functions, TURNS), 'one by one') + '\n')


def main():
    word = ' '.join(sys.argv[1:])
    for name, (select, shapes, dtype) in CASES.items():
        if word in name:
            measure(name, select, shapes(), dtype)
    for name, (select, dtype) in VMAP_CASES.items():
        if word in name:
            measure_replicates(name, select, dtype)


if __name__ == '__main__':
    main()
