"""Replicates in one program: steps a second and memory, against one after the other and PyTorch.

LeNet-300-100 on digits, batch 64, SGD with momentum, masks at a tenth of the weights.

python -m benchmarks.replicates

The comparison with PyTorch needs the extra `benchmark`, and is left out without it.
"""

import importlib.util
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

import jaxprune as jp
from benchmarks import timing
from configs import digits
from train import loop
from train.trainer import TrainState

REPLICATES = 8
STEPS = 300


def prepare(replicates, by):
    """Makes a trainer, its data and its pruned state."""
    config = digits.get_config()
    config.replicates, config.replicate_by = replicates, by
    config.train.steps_per_dispatch = STEPS
    networks, pipeline = loop.prepare(config)
    keys = jax.random.split(jax.random.key(0), replicates)
    points = networks.full.init(keys)
    prune = lambda point, density: jp.masks.leaf_top(jp.scores.magnitude(point.params), density)
    cut = lambda point: jp.rounds.begin(point, 0.1, jp.rounds.lr_rewind(), prune=prune)
    points = jax.tree.map(
        lambda *x: jnp.stack(x), *[cut(loop.replicate(points, r)) for r in range(replicates)]
    )
    state = jax.device_put(TrainState(points, jnp.int32(0), keys), networks.full.shardings)
    return networks.full, pipeline.sample(), state


def runner(trainer, part, state):
    """Trains from the same state each time."""
    return lambda: trainer.train(jax.tree.map(jnp.copy, state), part)


def compiled(replicates, by):
    """Compiles the training anew; returns it, and the seconds that took."""
    trainer, part, state = prepare(replicates, by)
    lowered = trainer.train.lower(state, part)
    began = time.perf_counter()
    program = lowered.compile()
    return program, time.perf_counter() - began


def torch_loop(part):
    """Makes the same training in PyTorch: data in memory, masks after each step."""
    import torch

    inputs = torch.tensor(np.asarray(part.inputs), dtype=torch.float32).flatten(1)
    inputs = (inputs - inputs.mean()) / inputs.std()
    labels = torch.tensor(np.asarray(part.labels), dtype=torch.int64)
    torch.manual_seed(0)
    sizes = (64, 300, 100, 10)
    parts = []
    for before, after in itertools.pairwise(sizes):
        parts += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    network = torch.nn.Sequential(*parts[:-1])
    weights = [p for p in network.parameters() if p.ndim == 2]
    flat = torch.cat([w.detach().abs().flatten() for w in weights])
    threshold = flat.kthvalue(int(0.9 * len(flat))).values
    masks = [w.detach().abs() > threshold for w in weights]
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=True
    )

    def run():
        for step in range(STEPS):
            place = step % (len(labels) // 64)
            if place == 0:
                order = torch.randperm(len(labels))
            now = order[place * 64 : place * 64 + 64]
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(network(inputs[now]), labels[now])
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_mul_(weights, masks)
        return loss.item()

    return run


def memory(by):
    """Draws how the bytes of the compiled training grow with the replicates."""
    table = rich.table.Table(
        'replicates', 'state', 'temporary', 'state + temporary, of one', title=f'memory, {by}, MB'
    )
    first = None
    for replicates in (1, 2, 4, 8):
        sizes = compiled(replicates, by)[0].memory_analysis()
        state, temporary = sizes.output_size_in_bytes, sizes.temp_size_in_bytes
        first = first or state + temporary
        ratio = (state + temporary) / (replicates * first)
        table.add_row(
            str(replicates), f'{state / 1e6:.2f}', f'{temporary / 1e6:.2f}', f'{ratio:.2f} x'
        )
    rich.console.Console(width=100).print(table)


def main():
    one = prepare(1, 'vmap')
    alone = runner(*one)
    turns = {
        f'{REPLICATES} in turn, a call each': lambda: [alone() for _ in range(REPLICATES)],
        f'{REPLICATES} by vmap': runner(*prepare(REPLICATES, 'vmap')),
        f'{REPLICATES} by map': runner(*prepare(REPLICATES, 'map')),
    }
    if importlib.util.find_spec('torch'):
        train = torch_loop(one[1])
        turns[f'{REPLICATES} in turn, PyTorch'] = lambda: [train() for _ in range(REPLICATES)]
    seconds = timing.interleave(turns, turns=9)
    reference = next(iter(turns))
    print(timing.table(seconds, reference=reference))
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    _, once = compiled(1, 'vmap')
    for by in ('vmap', 'map'):
        _, together = compiled(REPLICATES, by)
        ours = together + median[f'{REPLICATES} by {by}']
        theirs = REPLICATES * once + median[reference]
        print(f'{by}, compilation counted for each process: {theirs / ours:.1f} x the throughput')
    for by in ('vmap', 'map'):
        memory(by)


if __name__ == '__main__':
    main()
