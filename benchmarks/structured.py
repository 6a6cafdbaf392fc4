"""Structured pruning: the oracle's table, and what finding, removing and running cost.

    python -m benchmarks.structured oracle
    python -m benchmarks.structured speed
    python -m benchmarks.structured rounds

`oracle` removes a third of the units of every exact group of a network, all at once, and prints the
largest difference to the network with the same units zeroed, relative to the largest value.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import jaxprune as jp
from benchmarks import timing
from configs import units_digits
from jaxprune import structured
from tests import structured_cases
from train import loop, models

MODELS = {
    'lenet300': {},
    'mlp1d': {},
    'conv1d': {},
    'convnet': {},
    'resnet20': {'width': 0.5},
    'resnet50': {'width': 0.06},
    'mobilenet_v2': {'width': 0.1},
    'vit_tiny': {'width': 0.5},
    'transformer': {'width': 0.25},
    'decoder': {'width': 0.5},
    'lstm': {'width': 0.1},
}
"""How the models of the trainer are made small enough to differentiate here."""


# -- the oracle


def inputs(name):
    if name in ('decoder', 'lstm', 'transformer'):
        return jnp.arange(10).reshape(2, 5) % 7
    signals, large = (3, 40, 1), (8, 64, 64, 3)
    shapes = {'conv1d': signals, 'mlp1d': signals, 'mobilenet_v2': large, 'resnet50': large}
    noise = np.random.default_rng(1).normal(size=shapes.get(name, (4, 8, 8, 3)))
    return jnp.asarray(noise, jnp.float32)


def of_model(name):
    """Makes a model with random variables: in evaluation, in training, and its inputs."""
    model, x = models.build(name, num_classes=7, **MODELS[name]), inputs(name)
    init = lambda x: model.init(jax.random.key(0), x, train=False)
    scale = lambda w: w / np.sqrt(np.prod(w.shape[:-1])) if w.ndim > 1 else w
    variables = jax.tree.map(scale, structured_cases.drawn(jax.eval_shape(init, x)))
    moving = [branch for branch in variables if branch != 'params']
    train = lambda v, x: model.apply(v, x, train=True, mutable=moving)
    return lambda v, x: model.apply(v, x, train=False), variables, (x,), train if moving else None


def thirds(groups):
    """Keeps two thirds of the units of each exact group, drawn."""
    rng = np.random.default_rng(0)
    exact = [group for group in groups.groups if not group.inexact]
    return {g.name: rng.permutation(g.size) >= max(1, g.size // 3) for g in exact}


def difference(a, b):
    """The largest difference over all leaves, relative to the largest value of all."""
    largest = max(np.abs(x).max() for x in jax.tree.leaves(a))
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b))) / largest


def output_and_slopes(fn, params, args):
    """The first result, and the gradient of its product with a fixed direction."""

    def loss(params):
        out = jax.tree.leaves(fn(params, *args))[0]
        direction = np.random.default_rng(5).normal(size=out.shape)
        return (out * jnp.asarray(direction, out.dtype)).sum(), out

    slopes, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(out), slopes


def row(name, network):
    fn, params, args, train = network
    groups = structured.groups(fn, params, *args)
    keep = thirds(groups)
    small = structured.narrow(params, groups, keep)
    zeroed = structured.widen(small, groups, keep)
    found = []
    for each in (fn, train or fn):
        out, slopes = output_and_slopes(each, zeroed, args)
        own, of_small = output_and_slopes(structured.rewritten(each, groups, keep), small, args)
        slopes = structured.narrow(slopes, groups, keep)
        found += [difference(out, own), difference(slopes, of_small)]
    gone = sum(int((~mask).sum()) for mask in keep.values())
    units = sum(group.size for group in groups.groups)
    inexact = sum(bool(group.inexact) for group in groups.groups)
    cells = [name, len(groups.groups), inexact, f'{gone} of {units}']
    return [*cells, *(f'{x:.1e}' for x in found)], max(found)


def oracle():
    with jax.numpy_dtype_promotion('standard'):
        kinds = [(name, structured_cases.case(name)) for name in structured_cases.NETWORKS]
        rows = [row(name.replace('_', ' '), network) for name, network in kinds]
        rows += [row(f'`{name}`', of_model(name)) for name in MODELS]
    print_table(
        'network | groups | not exact | units removed | output | gradient '
        '| output, training | gradient, training',
        [cells for cells, _ in rows],
    )
    print(f'\nlargest of {len(rows)} networks: {max(worst for _, worst in rows):.1e}')


# -- speed


def variables_of(name, shape, **options):
    """A model for 1000 classes and the shapes of its variables."""
    if name == 'decoder':
        model, x = models.Decoder(num_classes=1000, **options), jax.ShapeDtypeStruct(shape, int)
    else:
        model = models.build(name, num_classes=1000, **options)
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
    init = lambda x: model.init(jax.random.key(0), x, train=False)
    return model, jax.eval_shape(init, x), x


def seconds(function, turns=5):
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def find(model, variables, x):
    jax.clear_caches()  # the trace is paid for each time
    return structured.groups(lambda v, x: model.apply(v, x, train=False), variables, x)


def finding():
    photo = (1, 224, 224, 3)
    cases = [(name, (name, photo)) for name in ('resnet50', 'mobilenet_v2', 'vit_b16')]
    options = {'heads': 8, 'groups': 2, 'head_units': 64, 'units': 512, 'hidden': 1408}
    made = {name: variables_of(*own) for name, own in cases}
    for layers in (6, 12, 24, 48):
        made[f'decoder, {layers} layers'] = variables_of(
            'decoder', (1, 64), layers=layers, **options
        )
    rows = []
    for name, network in made.items():
        model, variables, x = network
        fn = lambda v, x, model=model: model.apply(v, x, train=False)
        equations = len(jax.make_jaxpr(fn)(variables, x).eqns)
        found = find(*network)
        took = seconds(lambda network=network: find(*network))
        rows.append([name, f'{equations:,}', len(found.groups), f'{took:.2f}'])
    print_table('network | equations | groups | seconds', rows)


def halves(groups):
    return first(groups, 0.5)


def first(groups, share):
    """Keeps the first units of each group."""
    return {g.name: np.arange(g.size) < np.ceil(share * g.size) for g in groups.groups}


def removing():
    model, variables, x = variables_of('resnet50', (1, 224, 224, 3))
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), variables)
    groups = find(model, variables, x)
    took = seconds(lambda: structured.shrink(params, groups, halves(groups)))
    print(f'\nResNet-50, half of all units removed: {took:.2f} s\n')


def trained(name, shape, batch, *, width=1.0, share=0.5):
    """Steps of a network: whole, narrower by the program, narrower by the module."""
    model = models.build(name, num_classes=10, width=width)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, *shape)), jnp.float32)
    labels = jnp.arange(batch) % 10
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(x)
    groups = structured.groups(lambda v, x: model.apply(v, x, train=False), variables, x)
    keep = first(groups, share)
    small = structured.narrow(variables, groups, keep)
    moving = [branch for branch in variables if branch != 'params']
    apply = lambda v, x: model.apply(v, x, train=True, mutable=moving)
    resized = structured.resized(model)
    native = lambda v, x: resized(v, x, train=True, mutable=moving)
    steps = {
        'whole': (apply, variables),
        'narrower, the program': (structured.rewritten(apply, groups, keep), small),
        'narrower, the module': (native, small),
    }
    whole, half = (
        jp.cost.total(jp.cost.layers(fn, own, x)).macs for fn, own in list(steps.values())[:2]
    )
    return {of: step(fn, own, x, labels) for of, (fn, own) in steps.items()}, half / whole


def step(fn, variables, x, labels):
    """One jitted step of momentum SGD, from the same variables each time."""
    tx = optax.sgd(0.1, momentum=0.9)

    def train(variables, moments):
        def loss(params):
            logits, _ = fn(variables | {'params': params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        grads = jax.grad(loss)(variables['params'])
        updates, moments = tx.update(grads, moments, variables['params'])
        return optax.apply_updates(variables['params'], updates), moments

    compiled = jax.jit(train)
    moments = tx.init(variables['params'])
    return lambda: compiled(variables, moments)


def stepping():
    for name, shape, batch in (('resnet20', (32, 32, 3), 32), ('convnet', (32, 32, 3), 64)):
        steps, ratio = trained(name, shape, batch)
        print(f'{name}, training step, batch {batch}: {ratio:.3f} of the MACs')
        measured = timing.interleave(steps, 21)
        print(timing.table(measured, 'whole'))
        print(timing.table(measured, 'narrower, the module').splitlines()[3], '\n')


def latency():
    """Latency of the jitted network on a batch of 32 against what its MACs promise."""
    rows = []
    for name, size, width in (
        ('convnet', 32, 1.0),
        ('convnet', 64, 1.0),
        ('convnet', 32, 4.0),
        ('convnet', 64, 4.0),
        ('resnet20', 32, 1.0),
        ('resnet20', 64, 4.0),
    ):
        model = models.build(name, num_classes=10, width=width)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(32, size, size, 3)), jnp.float32)
        variables = jax.jit(lambda x, m=model: m.init(jax.random.key(0), x, train=False))(x)
        fn = lambda v, x, model=model: model.apply(v, x, train=False)
        groups = structured.groups(fn, variables, x)
        small, smaller = structured.shrink(variables, groups, halves(groups))
        whole, half = (
            jp.cost.total(jp.cost.layers(f, v, x)) for f, v in ((fn, variables), (smaller, small))
        )
        calls = {'whole': (jax.jit(fn), variables), 'half': (jax.jit(smaller), small)}
        measured = timing.interleave(
            {key: lambda f=f, v=v, x=x: f(v, x) for key, (f, v) in calls.items()}, 31
        )
        pairs = zip(measured['half'], measured['whole'], strict=True)
        share = statistics.median(a / b for a, b in pairs)
        ms = [f'{1e3 * statistics.median(measured[key]):.2f}' for key in ('whole', 'half')]
        label = f'{name}, {width:g} times as wide' if width != 1 else name
        macs, moved = half.macs / whole.macs, half.moved / whole.moved
        cells = [label, f'{size}²', *ms, f'{share:.3f}', f'{macs:.3f}', f'{moved:.3f}']
        rows.append([*cells, f'{share / macs:.2f} ×'])
    print_table(
        'network | pixels | whole, ms | half as wide, ms | time left | MACs left '
        '| bytes moved left | time against what MACs promise',
        rows,
    )


def rounds():
    """The time of a round at about half the MACs against that of the dense one, all included."""
    config = units_digits.get_config()
    config.prune.densities = (0.5,)
    with tempfile.TemporaryDirectory() as directory:
        loop.run(config, pathlib.Path(directory))
        times, rows = (pd.read_csv(f'{directory}/{name}.csv') for name in ('timings', 'results'))
    macs, took = rows.macs.to_numpy(), times.seconds.to_numpy()
    print(timing.hardware())
    print(f'{macs[1] / macs[0]:.2f} of the MACs, {config.train.steps} steps each:')
    print(f'{took[0]:.1f} s, then {took[1]:.1f} s: {took[1] / took[0]:.2f} x')


def steps_at_half():
    """Training steps at half of the MACs against those of the whole network."""
    rows = []
    for name, size, width in (
        ('convnet', 32, 1.0),
        ('convnet', 32, 4.0),
        ('resnet20', 32, 1.0),
        ('resnet20', 32, 4.0),
    ):
        steps, ratio = trained(name, (size, size, 3), 32, width=width, share=0.5**0.5)
        del steps['narrower, the module']
        measured = timing.interleave(steps, 11)
        pairs = zip(measured['narrower, the program'], measured['whole'], strict=True)
        share = statistics.median(a / b for a, b in pairs)
        label = f'{name}, {width:g} times as wide' if width != 1 else name
        ms = [f'{1e3 * statistics.median(times):.1f}' for times in measured.values()]
        rows.append([label, f'{size}²', f'{ratio:.3f}', *ms, f'{share:.3f}'])
    print_table('network | pixels | MACs left | whole, ms | narrower, ms | time left', rows)


def print_table(header, rows):
    names = header.split(' | ')
    print(timing.hardware(), '\n')
    print('| ' + ' | '.join(names) + ' |\n' + '|---' * len(names) + '|')
    for cells in rows:
        print('| ' + ' | '.join(map(str, cells)) + ' |')


def main():
    for command in sys.argv[1:]:
        if command == 'oracle':
            oracle()
        elif command == 'speed':
            finding()
            removing()
            stepping()
            latency()
        elif command == 'rounds':
            rounds()
            steps_at_half()
        else:
            raise SystemExit(f'no command is named {command!r}: see the top of this file')


if __name__ == '__main__':
    main()
