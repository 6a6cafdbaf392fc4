"""What a run writes for its user: tables, models, the curve, the report."""

import csv
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import ml_collections
import numpy as np
import safetensors.numpy

import jaxprune as jp
from train import processes
from train.errors import BadInput
from train.input_pipeline import InputPipeline
from train.timeline import Segment
from train.trainer import Measured

COLUMNS = (
    'replicate',
    'technique',
    'level',
    'density',
    'compression',
    'kept',
    'macs',
    'train_steps',
    'pruned_val_accuracy',
    'pruned_test_accuracy',
    'val_accuracy',
    'test_accuracy',
    'val_bits',
    'test_bits',
)
LAYER_COLUMNS = (
    'replicate',
    'technique',
    'level',
    'path',
    'shape',
    'parameters',
    'prunable',
    'kept',
)
_TIMING_HEADER, _TIMING = 'technique,level,seconds\n', re.compile(r'\w+,\d+,\d+\.\d+\n')
_PACKAGES = ('jaxprune', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy')


def accuracies(
    prefix: str, measured: Mapping[str, Measured], sizes: Mapping[str, int]
) -> dict[str, list[float]]:
    """Makes the columns of accuracy from sums, a value a replicate.

    Args:
      prefix: of the columns' names.
      measured: sums over each part, `'val'` and `'test'`.
      sizes: predictions of each part.

    Returns:
      The share of right predictions in [0, 1], by column.
    """
    return {
        f'{prefix}{part}_accuracy': [int(n) / sizes[part] for n in np.asarray(sums.right).sum(1)]
        for part, sums in measured.items()
    }


def bits(measured: Mapping[str, Measured], sizes: Mapping[str, int]) -> dict[str, list[float]]:
    """Makes the columns of mean cross-entropy in bits a prediction; as `accuracies`."""
    nats = {part: np.asarray(sums.nats, np.float64).sum(1) for part, sums in measured.items()}
    return {f'{part}_bits': list(nats[part] / sizes[part] / math.log(2)) for part in measured}


def sizes(layers: Sequence[jp.report.Record], full: jp.report.Record, macs: int) -> dict[str, Any]:
    """Makes the columns of size of a network.

    Args:
      layers: counts of its leaves.
      full: counts of the full dense network, of which its density is a share.
      macs: multiply-accumulates of one example.

    Returns:
      The columns.
    """
    kept = sum(layer.kept for layer in layers)
    return {
        'density': sum(layer.kept for layer in layers if layer.prunable) / full.prunable,
        'compression': full.parameters / kept,
        'kept': kept,
        'macs': macs,
    }


def layer_rows(cell: Mapping[str, Any], layers: Sequence[jp.report.Record]) -> list[list[Any]]:
    """Makes the rows of `layers.csv` of one network, a row a leaf, as lists: they are many."""
    own = [cell[name] for name in LAYER_COLUMNS[:3]]
    shape = lambda layer: 'x'.join(map(str, layer.shape or ()))
    return [
        [*own, layer.path, shape(layer), layer.parameters, layer.prunable, layer.kept]
        for layer in layers
    ]


def write_tables(
    workdir: Path, rows: Sequence[Mapping[str, Any]], layers: Sequence[Sequence[Any]]
) -> None:
    """Writes `results.csv` and `layers.csv` anew, so that a resumed run writes the same bytes."""
    _write_table(workdir / 'layers.csv', LAYER_COLUMNS, layers)
    cells = [[row.get(name, '') for name in COLUMNS] for row in rows]
    _write_table(workdir / 'results.csv', COLUMNS, cells)


def check_timings(workdir: Path) -> None:
    """Raises `BadInput` where a line of `timings.csv` was cut or edited, before more are added."""
    path = workdir / 'timings.csv'
    if not path.exists():
        return
    lines = path.read_text(errors='replace').splitlines(keepends=True) or ['']
    for number, text in enumerate(lines, 1):
        whole = _TIMING.fullmatch(text) if number > 1 else text == _TIMING_HEADER
        if not whole:
            raise BadInput(
                f'{path}, line {number}, is {text!r}, not technique,level,seconds: mend it, or '
                'delete the file, which holds wall times only; nothing was touched'
            )


def append_timing(workdir: Path, segment: Segment, seconds: float) -> None:
    """Adds a line to `timings.csv`, the one table that depends on the clock."""
    if not processes.writes() or not workdir.is_dir():  # it has gone: another error says so
        return
    path = workdir / 'timings.csv'
    before = path.read_text() if path.exists() else _TIMING_HEADER
    own = f'{segment.technique},{segment.level},{seconds:.3f}\n'
    write_whole(path, (before + own).encode())


def write_about(
    workdir: Path,
    config: ml_collections.ConfigDict,
    total: jp.report.Record,
    pipeline: InputPipeline,
) -> None:
    """Writes `run.json`: what was trained on what, by which versions; no clock in it.

    A run that goes on elsewhere, or by other versions, adds these under `continued`.

    Raises:
      BadInput: there is one, of other data or another network.
    """
    about = {
        'dataset': {
            'name': config.data.name,
            'num_classes': pipeline.num_classes,
            **{f'{name}_examples': n for name, n in pipeline.examples.items()},
            'predictions_per_example': math.prod(pipeline.label_shape),
            'fingerprint': pipeline.fingerprint(),
        },
        'model': {
            'name': config.model.name,
            'parameters': total.parameters,
            'prunable': total.prunable,
        },
    }
    where = {
        'versions': {package: metadata.version(package) for package in _PACKAGES},
        'python': platform.python_version(),
        'devices': _devices(config),
    }
    written = about | where | {'continued': []}
    path = workdir / 'run.json'
    if path.exists():
        try:
            written = json.loads(path.read_text())
            last = [written, *written.get('continued', [])][-1]
        except (AttributeError, TypeError, ValueError) as error:
            raise BadInput(f'{path} cannot be read: {error}') from error
        for part in ('dataset', 'model'):
            if written.get(part) != about[part]:
                raise BadInput(
                    f'{path} says that this run began on another {part}: {written.get(part)} '
                    f'there, {about[part]} now; nothing was touched'
                )
        if all(last.get(name) == value for name, value in where.items()):
            return
        written['continued'] = [*written.get('continued', []), where]
    write_whole(path, (json.dumps(written, indent=2) + '\n').encode())


def _devices(config: ml_collections.ConfigDict) -> str:
    """Says how many devices there are, of which kind, and how a network is split over them."""
    count, processes = jax.device_count(), jax.process_count()
    split = [f'{axis} {size}' for axis, size in sorted(config.mesh.items()) if size > 1]
    of_several = [f'{processes} processes'] if processes > 1 else []
    return ', '.join([f'{count} x {jax.devices()[0].device_kind}', *of_several, *split])


def line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the rows of a cell as a line for the log: means over replicates."""
    row = rows[0]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in COLUMNS[-4:]}
    return (
        f'{row["technique"]:>14} level {row["level"]:2d}  density {row["density"]:7.2%}  '
        f'val {mean["val_accuracy"]:7.2%}  test {mean["test_accuracy"]:7.2%}'
    )


def write_model(path: Path, point: jp.Point, about: Mapping[str, Any]) -> None:
    """Writes weights, batch statistics and masks as safetensors.

    The names are paths: `params/Dense_0/kernel`, `batch_stats/...`, `masks/Dense_0/kernel`.

    Args:
      path: of the file; its folder is made.
      point: what is written; its pruned weights are stored as zeros.
      about: written as JSON into the metadata of the file, under `about`; one entry, because
        safetensors writes several in an order of its own each time.
    """
    trees = {
        'params': point.params,
        **point.extra,
        'masks': jp.get_masks(point.opt_state),
    }
    flat = flax.traverse_util.flatten_dict(trees, sep='/')
    arrays = {name: np.asarray(leaf) for name, leaf in flat.items() if leaf is not None}
    if processes.writes():
        path.parent.mkdir(parents=True, exist_ok=True)
    content = safetensors.numpy.save(arrays, metadata={'about': json.dumps(about)})
    write_whole(path, content)


def read_model(path: Path) -> tuple[dict[str, Any], jp.tree.Masks, dict[str, Any]]:
    """Reads a model that `write_model` wrote.

    Args:
      path: of the safetensors file.

    Returns:
      The variables for `model.apply`; the masks, like `variables['params']` with `None` where not
      prunable; and what the file says about itself, the normalisation of the input included.
    """
    with safetensors.safe_open(path, 'numpy') as file:
        flat = {name: file.get_tensor(name) for name in file.keys()}
        about = json.loads(file.metadata()['about'])
    masks = {name: flat.pop(name) for name in list(flat) if name.startswith('masks/')}
    variables = flax.traverse_util.unflatten_dict(flat, sep='/')
    tree = jax.tree_util.tree_map_with_path(
        lambda path, _: masks.get(f'masks/{jp.tree.path_name(path)}'), variables['params']
    )
    return variables, tree, about


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a killed run, finds it whole or not at all.

    Of several processes one writes.
    """
    if not processes.writes():
        return
    part = path.with_name(path.name + '.part')
    with part.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([columns, *rows])
    write_whole(path, text.getvalue().encode())
