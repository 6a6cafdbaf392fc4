"""Runs that remove units, beside runs that mask single weights: accuracy, MACs, measured latency.

    python -m benchmarks.units digits mnist1d

Trains configs/units_NAME.py with three seeds, and the same unstructured, in runs/; goes on where it
was stopped. Prints a table each, and draws docs/units_NAME.png. Latency is that of the jitted
network on a batch of 32; masks leave the dense network's.
"""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import jaxprune as jp
from jaxprune import plots
from train import checkpoint, loop
from train import step as step_lib

DOCS = Path(__file__).parents[1] / 'docs'
SEEDS = (0, 1, 2)
BATCH = 32


def config_of(name, pattern, seed):
    config = importlib.import_module(f'configs.units_{name}').get_config()
    config.prune.pattern, config.seed = pattern, seed
    return config


def finished(name, pattern, seed):
    """Trains a run, or goes on with it, and returns its config and directory."""
    config, workdir = config_of(name, pattern, seed), Path(f'runs/units_{name}/{pattern}_{seed}')
    loop.run(config, workdir)
    return config, workdir


def latencies(config, workdir):
    """Measures the network of each level, at its own size, in turns: milliseconds."""
    networks, pipeline = loop.prepare(config)
    inputs = jnp.asarray(np.repeat(pipeline.like, BATCH, axis=0))
    keys = jax.random.split(jax.random.key(0), 1)
    like = jax.eval_shape(lambda: loop.TrainState(networks.full.init(keys), jnp.int32(0), keys))
    model = loop.networks.build(config, pipeline.num_classes, 1.0)
    calls = {}
    with checkpoint.open_store(workdir / 'checkpoints', ()) as store:
        for segment in loop.lay_out(config):
            point = loop.replicate(checkpoint.restore(store, segment.end, like).point, 0)
            smaller = loop.networks.units.smaller(networks.groups, point)
            rewrite = (lambda fn: fn) if smaller is None else smaller.rewrite
            learner = step_lib.make_learner(
                config, model, pipeline.normalization, pipeline.like, rewrite
            )
            own = point if smaller is None else smaller.narrow(point)
            calls[segment.level] = jax.jit(learner.predict), own
    medians = {level: [] for level in calls}
    for _ in range(7):
        for level, (predict, point) in calls.items():
            found = jp.cost.latency(predict, point, inputs, repeats=15)
            medians[level].append(1000 * found.median)
    return {level: float(np.median(own)) for level, own in medians.items()}


def measured(name):
    """Gathers the rows of all runs of a name."""
    tables = []
    for seed in SEEDS:
        for pattern in ('groups', 'unstructured'):
            config, workdir = finished(name, pattern, seed)
            rows = pd.read_csv(workdir / 'results.csv').assign(pattern=pattern, seed=seed)
            if pattern == 'groups':
                own = latencies(config, workdir)
            tables.append(rows.assign(ms=rows.level.map(own) if pattern == 'groups' else own[0]))
            timings = pd.read_csv(workdir / 'timings.csv').groupby(['technique', 'level']).seconds
            tables[-1]['seconds'] = timings.sum().to_numpy()[: len(rows)]
    return pd.concat(tables)


def spread(values, scale=1.0, digits=2):
    return f'{scale * values.mean():.{digits}f} ± {scale * values.std():.{digits}f}'


def table(rows):
    """Writes one line a level in Markdown; the dense network is level 0."""
    lines = [
        '| level | weights, % | kMACs | latency, ms | test, units removed, % '
        '| kMACs, weights masked | test, weights masked, % |',
        '|---|---|---|---|---|---|---|',
    ]
    for level, own in rows.groupby('level'):
        units, masked = (own[own.pattern == p] for p in ('groups', 'unstructured'))
        lines.append(
            f'| {level} | {100 * units.density.mean():.1f} | {units.macs.mean() / 1000:,.1f} '
            f'| {units.ms.mean():.3f} | {spread(units.test_accuracy, 100)} '
            f'| {masked.macs.mean() / 1000:,.1f} | {spread(masked.test_accuracy, 100)} |'
        )
    return '\n'.join(lines)


def picture(rows, path):
    """Draws accuracy against MACs, and against latency."""
    figure = plots.new_figure(9, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    names = {'groups': 'units removed', 'unstructured': 'weights masked'}
    for axes, column, label in zip(
        panels,
        ('macs', 'ms'),
        ('MACs an example', f'latency of a batch of {BATCH}, ms'),
        strict=True,
    ):
        for number, (pattern, name) in enumerate(names.items()):
            own = rows[rows.pattern == pattern].groupby('level')
            x, y = own[column].mean(), 100 * own.test_accuracy.mean()
            style = plots.line_style(number)
            axes.plot(x, y, label=name, **style)
            low, high = (100 * getattr(own.test_accuracy, f)() for f in ('min', 'max'))
            axes.fill_between(x, low, high, alpha=0.15, color=style['color'], linewidth=0)
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set_xscale('log')
    panels[1].set_xlim(left=0)
    panels[0].set_ylabel('test accuracy, %')
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=160, metadata={'Software': None})


def main():
    for name in sys.argv[1:]:
        rows = measured(name)
        print(f'\n## {name}: three seeds, mean ± sample standard deviation\n\n{table(rows)}\n')
        picture(rows, DOCS / f'units_{name}.png')


if __name__ == '__main__':
    main()
