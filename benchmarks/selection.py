"""Times the selection of the highest half of a tree against one pass of |w| over the same tree.

Command: python benchmarks/selection.py [--rounds 7] [--density 0.5] [--sort]
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import counting, select


def mixed_shapes():
    """160 leaves, from 16 to 4 M entries, 25 M in all: wide, tall, flat and convolutional ones."""
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.uniform(np.log(16), np.log(4e6), 160))
    sizes = sizes * 25e6 / sizes.sum()
    shapes = []
    for i, size in enumerate(sizes):
        side = max(1, round(size**0.5))
        wide = max(1, round(size / 64))
        kernel = max(1, round((size / 9) ** 0.5))
        shapes.append([(side, side), (wide, 64), (64, wide), (3, 3, kernel, kernel)][i % 4])
    return shapes


def cases():
    equal = [(500, 1000)] * 50
    return {
        '50 x 500x1000 float32, global': (equal, jnp.float32, False),
        '50 x 500x1000 bfloat16, global': (equal, jnp.bfloat16, False),
        '160 mixed float32, global': (mixed_shapes(), jnp.float32, False),
        '160 mixed bfloat16, global': (mixed_shapes(), jnp.bfloat16, False),
        '50 x 500x1000 float32, per leaf': (equal, jnp.float32, True),
        '50 x 500x1000 bfloat16, per leaf': (equal, jnp.bfloat16, True),
    }


def clock(f):
    start = time.perf_counter()
    jax.block_until_ready(f())
    return 1e3 * (time.perf_counter() - start)


def measure(shapes, dtype, *, per_leaf, density, rounds, sort):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    scores = [
        jnp.abs(jax.random.normal(k, s)).astype(dtype) for k, s in zip(keys, shapes, strict=True)
    ]
    sizes = [s.size for s in scores] if per_leaf else [sum(s.size for s in scores)]
    groups = tuple(range(len(shapes))) if per_leaf else (0,) * len(shapes)
    keeps = [counting.share(density, n) for n in sizes]

    def top(scores, keeps):
        return select.top(scores, keeps, groups)

    start = time.perf_counter()
    top = jax.jit(top).lower(scores, keeps).compile()
    compiling = time.perf_counter() - start
    one_pass = jax.jit(lambda leaves: [jnp.abs(leaf) for leaf in leaves])
    masks = top(scores, keeps)
    kept = counting.to_int(counting.count(masks))
    assert kept == sum(counting.to_int(k) for k in keeps), kept
    jax.block_until_ready(one_pass(scores))
    times = [
        (clock(lambda: top(scores, keeps)), clock(lambda: one_pass(scores))) for _ in range(rounds)
    ]
    selecting, passing = (statistics.median(t) for t in zip(*times, strict=True))
    memory = top.memory_analysis().temp_size_in_bytes / sum(s.size for s in scores)
    row = f'{selecting:8.1f} {passing:8.1f} {selecting / passing:7.1f}'
    row += f' {memory:10.4f} {compiling:10.1f}'
    if sort:
        full_sort = jax.jit(lambda leaves: jnp.sort(jnp.concatenate([x.ravel() for x in leaves])))
        row += f' {clock(lambda: full_sort(scores)):10.0f}'
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--density', type=float, default=0.5)
    parser.add_argument('--sort', action='store_true', help='also one full sort, once (slow)')
    parser.add_argument('--only', default='', help='run the cases whose name contains this')
    args = parser.parse_args()
    device = jax.devices()[0]
    print(
        f'{device.platform} {device.device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, '
        f'density {args.density}, medians of {args.rounds} interleaved rounds'
    )
    titles = ('top ms', '|w| ms', 'ratio', 'temp B/w', 'compile s') + ('sort ms',) * args.sort
    print(f'{"":34}{titles[0]:>8} {titles[1]:>8} {titles[2]:>7}', *(f'{t:>10}' for t in titles[3:]))
    for name, (shapes, dtype, per_leaf) in cases().items():
        if args.only in name:
            options = {'density': args.density, 'rounds': args.rounds, 'sort': args.sort}
            row = measure(shapes, dtype, per_leaf=per_leaf, **options)
            print(f'{name:34}{row}', flush=True)


if __name__ == '__main__':
    main()
