"""Run directories with known numbers, as the trainer leaves them."""

import csv
import json

LAYERS = (
    ('Dense_0/bias', (10,), 0),
    ('Dense_0/kernel', (8, 10), 80),
    ('Dense_1/kernel', (10, 2), 20),
)
RESULTS = (
    'replicate,technique,level,density,compression,kept,macs,train_steps,pruned_val_accuracy,'
    'pruned_test_accuracy,val_accuracy,test_accuracy,val_bits,test_bits'
).split(',')
DENSE = (0.90, 0.91, 0.92)


def config(*, seed=0, replicates=3, techniques=('lr_rewind', 'fine_tune'), levels=3, **fields):
    return {
        'seed': seed,
        'replicates': replicates,
        'data': {'name': 'digits', 'directory': '', 'validation_examples': 20},
        'model': {'name': 'lenet300'},
        'train': {'steps': 100, 'batch_size': 8, 'steps_per_dispatch': 10},
        'prune': {'levels': levels, 'densities': [], 'rate': 0.5},
        'retrain': {'techniques': list(techniques), 'share': 1.0},
        'checkpoint': {'every_steps': 1000},
    } | fields


def about(**dataset):
    data = {
        'name': 'digits',
        'version': '1.0.0',
        'num_classes': 10,
        'train_examples': 80,
        'validation_examples': 20,
        'test_examples': 50,
        'predictions_per_example': 1,
        'fingerprint': {'train': 'aa', 'validation': 'bb', 'test': 'cc'},
    }
    return {
        'dataset': data | dataset,
        'model': {'name': 'lenet300', 'parameters': 110, 'prunable': 100},
        'versions': {'jax': '0.10.2', 'numpy': '2.0.0'},
        'python': '3.11.7',
        'devices': '1 x cpu',
    }


def rows(accuracies, *, dense=DENSE, levels=3, step=100):
    """Makes rows of results.

    Args:
      accuracies: for each technique, the test accuracy by level (1 first) and replicate; validation
        accuracy is 0.01 below, accuracy right after pruning half, bits 1 minus accuracy.
      dense: test accuracy a replicate.
      levels: how many.
      step: that a round takes, like the dense training.
    """
    cells = [('dense', 0, dense)]
    for technique, table in accuracies.items():
        cells += [(technique, level, table[level - 1]) for level in range(1, levels + 1)]
    for technique, level, values in cells:
        kept = 10 + 100 // 2**level
        for replicate, value in enumerate(values):
            yield {
                'replicate': replicate,
                'technique': technique,
                'level': level,
                'density': (kept - 10) / 100,
                'compression': 110 / kept,
                'kept': kept,
                'macs': 10 * kept,
                'train_steps': step * (1 + level),
                'pruned_val_accuracy': ''
                if level == 0 or technique == 'small_dense'
                else value / 2,
                'pruned_test_accuracy': ''
                if level == 0 or technique == 'small_dense'
                else value / 2,
                'val_accuracy': value - 0.01,
                'test_accuracy': value,
                'val_bits': 1.01 - value,
                'test_bits': 1 - value,
            }


def layer_rows(results):
    """The kernels share what is kept by their sizes; the last one takes the rest."""
    for row in results:
        kept = row['kept'] - 10
        shares = (10, kept * 4 // 5, kept - kept * 4 // 5)
        for (path, shape, prunable), left in zip(LAYERS, shares, strict=True):
            yield {
                **{name: row[name] for name in ('replicate', 'technique', 'level')},
                'path': path,
                'shape': 'x'.join(map(str, shape)),
                'parameters': 10 if not prunable else prunable,
                'prunable': prunable,
                'kept': left,
            }


def write(directory, results, *, config=None, about=None, timings=True):
    """Writes a run directory; config and about default to those above."""
    results = list(results)
    directory.mkdir(parents=True)
    known = {
        'config.json': config or globals()['config'](),
        'run.json': about or globals()['about'](),
    }
    for name, content in known.items():
        (directory / name).write_text(json.dumps(content, indent=2) + '\n')
    _table(directory / 'results.csv', results, RESULTS)
    _table(directory / 'layers.csv', list(layer_rows(results)))
    if timings:
        cells = dict.fromkeys((row['technique'], row['level']) for row in results)
        seconds = [{'technique': t, 'level': n, 'seconds': f'{1.5:.3f}'} for t, n in cells]
        _table(directory / 'timings.csv', seconds)
    return directory


def _table(path, content, columns=None):
    with path.open('w') as file:
        writer = csv.DictWriter(file, columns or list(content[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(content)
