"""What each score is worth: LeNet-300-100 on digits, pruned once and trained again.

Every score prunes the same trained networks, which then train anew at the rewound learning rate;
those that are meant for it also prune networks that have not been trained. Scores see training data
alone. Writes docs/scores.png and prints the tables of docs/choose_a_score.md.

python -m benchmarks.scores
"""

import functools
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from benchmarks import scores_report, timing
from jaxprune import allocate, gradual, masks, scores
from train import data, models

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
SEEDS, EPOCHS, BATCH = 5, 25, 64
LATER = 10**6  # no masks change while this runs

MODEL = models.build('lenet300', num_classes=10)


class Given(NamedTuple):
    """What a score may look at: one network, the training data, and what training remembers."""

    params: jp.tree.Params
    moved: jp.tree.Scores
    """-w g, summed over all steps of the training; zeros before it."""
    key: jax.Array
    inputs: jax.Array
    labels: jax.Array


def loss(params, batch, temperature=1.0):
    images, labels = batch
    logits = MODEL.apply({'params': params}, images, train=False) / temperature
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def gradient(given):
    return scores.mean_gradient(loss, given.params, in_one_batch(given))


def squares(given):
    one = lambda params, example: loss(params, jax.tree.map(lambda x: x[None], example))
    examples = (given.inputs, given.labels)
    return scores.mean_squared_gradient(one, given.params, examples, batch_size=100)


def in_one_batch(given):
    return given.inputs[None], given.labels[None]


def flow(params):
    return scores.synflow(
        lambda p: MODEL.apply({'params': p}, jnp.ones((1, 8, 8, 1)), train=False), params
    )


SCORES = {
    'magnitude': lambda g: scores.magnitude(g.params),
    'random': lambda g: scores.random(g.params, g.key),
    'normalized_magnitude': lambda g: scores.normalized_magnitude(g.params),
    'lamp': lambda g: scores.lamp(g.params),
    'taylor': lambda g: scores.taylor(g.params, gradient(g)),
    'snip': lambda g: scores.snip(g.params, gradient(g)),
    'fisher': lambda g: scores.fisher(g.params, squares(g)),
    'movement': lambda g: g.moved,
    'grasp': lambda g: scores.grasp(
        functools.partial(loss, temperature=200.0), g.params, in_one_batch(g)
    ),
    'synflow': None,  # by masks.iterated: scored anew a hundred times
}
BEFORE_TRAINING = ('magnitude', 'random', 'snip', 'grasp', 'synflow')
ALLOCATIONS = {
    'global_top': lambda s, density: masks.global_top(s, density, allow_empty=True),
    'floor': lambda s, density: masks.global_top(s, density, floor=density / 2),
    'uniform': masks.leaf_top,
    'erdos_renyi': lambda s, density: masks.leaf_top(s, allocate.erdos_renyi(s, density)),
}


def cases():
    """Lists when, score and allocation of each row."""
    found = [('trained', name, 'global_top') for name in SCORES]
    found += [('untrained', name, 'global_top') for name in BEFORE_TRAINING]
    for when, allocations in (
        ('trained', ('uniform', 'erdos_renyi')),
        ('untrained', ('floor', 'uniform', 'erdos_renyi')),
    ):
        found += [(when, 'magnitude', allocation) for allocation in allocations]
        found += [(when, 'random', 'erdos_renyi')]
    return found


def masks_by(name, allocation, given):
    """Makes the masks of every density: leaves of (densities, seeds, ...)."""

    def choose(one, density):
        if name == 'synflow':
            narrow = lambda s, d, m: masks.global_top(s, d, m, allow_empty=True)
            return masks.iterated(flow, one.params, density, choose=narrow)
        return ALLOCATIONS[allocation](SCORES[name](one), density)

    axes = Given(0, 0, 0, None, None)
    every = lambda g: [jax.vmap(lambda one, d=d: choose(one, d), (axes,))(g) for d in DENSITIES]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *jax.jit(every)(given))


def optimizer(steps):
    rate = optax.piecewise_constant_schedule(0.1, {steps // 2: 0.1, 3 * steps // 4: 0.1})
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9))


def fit(tx, params, state, key, examples):
    """Trains for all epochs; every key has its own order of the data."""
    images, labels = examples
    batches = len(labels) // BATCH
    orders = jax.vmap(lambda k: jax.random.permutation(k, len(labels)))(
        jax.random.split(key, EPOCHS)
    )[:, : batches * BATCH]

    def step(carry, chosen):
        params, state = carry
        grads = jax.grad(loss)(params, (images[chosen], labels[chosen]))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), orders.reshape(-1, BATCH))[0]


def accuracy(params, images, labels):
    logits = MODEL.apply({'params': params}, images, train=False)
    return (logits.argmax(-1) == labels).mean()


def load():
    """Reads training and test data, standardised by the moments of the former."""
    found = data.load('digits', directory=None, validation_examples=237, seed=0)
    mean, std = data.channel_moments(found.train.inputs)
    ready = lambda split: (data.standardize(split.inputs, mean=mean, std=std), split.labels)
    return jax.tree.map(jnp.asarray, (ready(found.train), ready(found.test)))


def measure():
    """Yields the dense row, then one a case and density: accuracies by seed, emptied leaves."""
    (images, labels), test = load()
    inner = optimizer(len(labels) // BATCH * EPOCHS)
    recorder = gradual.prune(
        inner, DENSITIES[0], gradual.one_shot(LATER), score=scores.movement, running=True
    )
    keys = jax.random.split(jax.random.key(0), (3, SEEDS))
    init = lambda key: MODEL.init(key, images[:1], train=False)['params']
    untrained = jax.vmap(init)(keys[0])
    begun = jax.vmap(recorder.init)(untrained)
    dense = jax.jit(jax.vmap(functools.partial(fit, recorder), (0, 0, 0, None)))
    trained, ended = dense(untrained, begun, keys[1], (images, labels))

    def again(params, state, chosen, key):
        state = jp.rewind_schedule(jp.set_masks(state, chosen))
        pruned = masks.apply(params, chosen)
        fitted, _ = fit(jp.pruned(inner), pruned, state, key, (images, labels))
        return accuracy(pruned, *test), accuracy(fitted, *test)

    over_seeds = jax.vmap(again, (0, 0, 0, 0))
    retrain = jax.jit(lambda p, s, m, k: jax.lax.map(lambda one: over_seeds(p, s, one, k), m))
    starts = {'trained': (trained, ended), 'untrained': (untrained, begun)}
    yield {
        'when': 'dense',
        'score': 'dense',
        'after': jax.vmap(lambda p: accuracy(p, *test))(trained),
    }
    for when, name, allocation in cases():
        params, state = starts[when]
        given = Given(params, state.memory, keys[2], images, labels)
        chosen = masks_by(name, allocation, given)
        found = zip(*retrain(params, state.pruned, chosen, keys[1]), emptied(chosen), strict=True)
        for density, (before, after, empty) in zip(DENSITIES, found, strict=True):
            row = {'when': when, 'score': name, 'allocation': allocation, 'density': density}
            yield row | {'before': before, 'after': after, 'emptied': empty}


def emptied(chosen):
    """Lists, for each density, the leaves left with nothing and in how many seeds."""
    found = [{} for _ in DENSITIES]
    for path, mask in jp.tree.present(chosen):
        nothing = np.asarray(~mask.any(axis=(-2, -1))).sum(axis=1)
        for i, seeds in enumerate(nothing):
            if seeds:
                found[i][path] = int(seeds)
    return found


def main():
    began = time.perf_counter()
    rows = [
        {name: 100 * np.asarray(x) if isinstance(x, jax.Array) else x for name, x in row.items()}
        for row in measure()
    ]
    scores_report.draw(rows, pathlib.Path('docs/scores.png'))
    print(scores_report.tables(rows))
    print(f'\n{SEEDS} seeds, {time.perf_counter() - began:.0f} s on {timing.hardware()}')


if __name__ == '__main__':
    main()
