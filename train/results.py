"""What a run writes for its user: tables, models, the curve, the report."""

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jinja2
import matplotlib
import numpy as np
import safetensors.numpy

import jaxprune as jp
from jaxprune import plots
from train.timeline import DENSE, Segment

COLUMNS = (
    'replicate',
    'technique',
    'level',
    'density',
    'compression',
    'kept',
    'train_steps',
    'val_accuracy',
    'test_accuracy',
)
_PACKAGES = ('jaxprune', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy')


def row(
    segment: Segment,
    point: jp.Point,
    *,
    train_steps: int,
    val_accuracy: float,
    test_accuracy: float,
) -> dict[str, Any]:
    """Makes the row of `results.csv` of a finished training.

    Args:
      segment: what was trained.
      point: where the training ended.
      train_steps: steps that this network has cost so far, the dense training included.
      val_accuracy: share of the validation part that is classified rightly.
      test_accuracy: the same of the test part.

    Returns:
      The columns, as Python numbers.
    """
    total = jp.report.total(jp.report.records(point.params, jp.get_masks(point.opt_state)))
    return {
        'replicate': segment.replicate,
        'technique': segment.technique,
        'level': segment.level,
        'density': total.density,
        'compression': total.compression,
        'kept': total.kept,
        'train_steps': train_steps,
        'val_accuracy': val_accuracy,
        'test_accuracy': test_accuracy,
    }


def write_rows(workdir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `results.csv` anew, so that a resumed run writes the same bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(workdir / 'results.csv', text.getvalue().encode())


def append_timing(workdir: Path, segment: Segment, seconds: float) -> None:
    """Adds a line to `timings.csv`, the one table that depends on the clock."""
    path = workdir / 'timings.csv'
    header = '' if path.exists() else 'replicate,technique,level,seconds\n'
    with path.open('a') as file:
        name = f'{segment.replicate},{segment.technique},{segment.level}'
        file.write(f'{header}{name},{seconds:.3f}\n')


def line(row: Mapping[str, Any]) -> str:
    """Writes a row as a line for the log."""
    return (
        f'{row["technique"]:>13} level {row["level"]:2d}  density {row["density"]:7.2%}  '
        f'val {row["val_accuracy"]:7.2%}  test {row["test_accuracy"]:7.2%}'
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


def write_report(
    workdir: Path,
    rows: Sequence[Mapping[str, Any]],
    layers: Mapping[str, Sequence[jp.report.Record]],
    config_json: str,
) -> None:
    """Writes `curve.png` and the self-contained `report.html`.

    Args:
      workdir: where to.
      rows: of `results.csv`.
      layers: for each technique, the layers of its last level in the first replicate.
      config_json: the config, as text.
    """
    config = json.loads(config_json)
    name = config['data']['name']
    figure = plots.accuracy_curve(rows, title=f'{name}: accuracy after pruning')
    image, drawing = io.BytesIO(), io.StringIO()
    figure.savefig(image, format='png', dpi=160)
    with matplotlib.rc_context({'svg.hashsalt': name}):  # the same names of shapes each time
        figure.savefig(drawing, format='svg', metadata={'Date': None})
    write_whole(workdir / 'curve.png', image.getvalue())
    svg = drawing.getvalue()
    text = _template().render(
        title=f'{name}: trained, pruned, rewound',
        summaries=_summaries(rows),
        curve=svg[svg.index('<svg') :],
        replicates=config['replicates'],
        techniques=_techniques(rows),
        levels=_levels(rows),
        layers=layers,
        headers=jp.report.HEADERS,
        total=jp.report.total,
        config=config_json,
        versions={package: metadata.version(package) for package in _PACKAGES},
        python=f'Python {platform.python_version()}',
        devices=f'{jax.device_count()} × {jax.devices()[0].device_kind}',
    )
    write_whole(workdir / 'report.html', text.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a killed run, finds it whole or not at all."""
    part = path.with_name(path.name + '.part')
    with part.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _template() -> jinja2.Template:
    source = (Path(__file__).parent / 'report.html.j2').read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source)


def _techniques(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row['technique'] for row in rows if row['technique'] != DENSE))


def _levels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gathers, for each level, its density and the accuracies of each technique."""
    levels: dict[int, dict[str, Any]] = {}
    for row in rows:
        level = levels.setdefault(row['level'], {**row, 'techniques': {}})
        level['techniques'].setdefault(row['technique'], []).append(row['test_accuracy'])
    return [levels[level] for level in sorted(levels)]


def _summaries(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes a sentence for the last level of each technique, from the means over replicates."""
    dense = float(np.mean([row['test_accuracy'] for row in rows if row['technique'] == DENSE]))
    sentences = [f'The dense network has a test accuracy of {dense:.2%}.']
    for technique in _techniques(rows):
        chosen = [row for row in rows if row['technique'] == technique]
        last = [row for row in chosen if row['level'] == max(row['level'] for row in chosen)]
        accuracy = float(np.mean([row['test_accuracy'] for row in last]))
        sentences.append(
            f'{technique} keeps {last[0]["density"]:.2%} of the prunable weights '
            f'({last[0]["compression"]:.1f}× fewer parameters) at {accuracy:.2%}, '
            f'{100 * (accuracy - dense):+.2f} points.'
        )
    return sentences
