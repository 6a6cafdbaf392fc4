"""Runs: read from their directories, refused where they cannot be compared, put together."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from train.errors import BadInput
from train.report import names, tables
from train.report.names import DENSE

_CONFIG = ('seed', 'replicates', 'train.batch_size', 'prune.levels', 'retrain.techniques')
_ABOUT = (
    'dataset.name',
    'dataset.train_examples',
    'dataset.validation_examples',
    'dataset.test_examples',
    'dataset.predictions_per_example',
    'dataset.num_classes',
    'dataset.fingerprint',
    'model.name',
    'model.parameters',
    'model.prunable',
    'versions',
    'python',
    'devices',
)
# What two runs may differ in and still be replicates, or techniques, of one study.
_FREE = (
    'seed',
    'replicates',
    'replicate_by',
    'checkpoint',
    'retrain',
    'data.directory',
    'train.steps_per_dispatch',
)


class Run(NamedTuple):
    """One run directory."""

    name: str
    config: dict[str, Any]
    about: dict[str, Any]
    results: pd.DataFrame
    layers: pd.DataFrame
    timings: pd.DataFrame | None

    @property
    def planned(self) -> set[tuple[str, int]]:
        """The cells, technique and level, that the config asks for."""
        prune, retrain = self.config['prune'], self.config['retrain']
        levels = len(prune.get('densities') or ()) or prune['levels']
        cells = itertools.product(retrain['techniques'], range(1, levels + 1))
        return {(DENSE, 0), *cells}

    @property
    def finished(self) -> set[tuple[str, int]]:
        """The cells that are there."""
        return set(self.results[['technique', 'level']].itertuples(index=False, name=None))


class Study(NamedTuple):
    """Runs that can be compared, as one."""

    runs: tuple[Run, ...]
    results: pd.DataFrame
    """Rows of all `results.csv`, with `unit`, the seed and replicate: one dense network each."""
    layers: pd.DataFrame
    timings: pd.DataFrame | None

    @property
    def config(self) -> dict[str, Any]:
        """The config of the first run: what the report reads in it, the others share."""
        return self.runs[0].config

    @property
    def about(self) -> dict[str, Any]:
        """Dataset and model, which all runs share."""
        return self.runs[0].about

    @property
    def techniques(self) -> list[str]:
        """Techniques and controls that have rows, in the order of the report."""
        return names.ordered(set(self.results.technique) - {DENSE})

    @property
    def is_text(self) -> bool:
        """Whether an example holds several predictions: networks are compared in bits too."""
        return self.about['dataset']['predictions_per_example'] > 1


def load(directories: Sequence[Path]) -> Study:
    """Reads run directories and puts them together.

    Args:
      directories: workdirs of `train.main`.

    Returns:
      The study; a replicate is told by the seed of its config and its number.

    Raises:
      BadInput: a directory is half-written, or the runs cannot be compared; the message says what
        differs.
    """
    if not directories:
        raise BadInput('there is no run directory to report on')
    runs = tuple(map(read, directories, _labels(directories)))
    for run in runs[1:]:
        _check_alike(runs[0], run)
    _check_retraining(runs)
    results = _unite(runs, [run.results for run in runs])
    _check_replicates(runs, results)
    results = results.drop_duplicates(['unit', 'technique', 'level']).reset_index(drop=True)
    if set(results.technique) == {DENSE}:
        raise BadInput('no pruned network is there yet: wait until the first round is finished')
    layers = _unite(runs, [run.layers for run in runs])
    layers = layers.drop_duplicates(['unit', 'technique', 'level', 'path'])
    timings = [run.timings for run in runs if run.timings is not None]
    return Study(runs, results, layers, pd.concat(timings) if timings else None)


def read(directory: Path, name: str) -> Run:
    """Reads one run directory.

    Args:
      directory: a workdir of `train.main`.
      name: how messages call it.

    Returns:
      The run.

    Raises:
      BadInput: something is missing or half-written.
    """
    if not directory.is_dir():
        raise BadInput(f'{directory} is no directory, expected the workdir of a run')
    timings = directory / 'timings.csv'
    run = Run(
        name,
        tables.read_json(directory / 'config.json', _CONFIG),
        tables.read_json(directory / 'run.json', _ABOUT),
        tables.read_results(directory / 'results.csv'),
        tables.read_csv(directory / 'layers.csv', tables.LAYERS),
        tables.read_csv(timings, tables.TIMINGS) if timings.exists() else None,
    )
    _check_whole(run)
    return run


def _check_whole(run: Run) -> None:
    """Cells hold all replicates, levels have no gap; fewer cells than planned are no error."""
    for (technique, level), cell in run.results.groupby(['technique', 'level'], sort=True):
        if set(cell.replicate) != set(range(run.config['replicates'])):
            found = ', '.join(map(str, sorted(cell.replicate)))
            raise BadInput(
                f'{run.name}: results.csv has replicates {found} of {technique}, level {level}; '
                f'config.json says {run.config["replicates"]}, from 0: it is half-written'
            )
        if technique != DENSE and level > 1 and (technique, level - 1) not in run.finished:
            raise BadInput(f'{run.name}: results.csv has no row of {technique}, level {level - 1}')
    if (DENSE, 0) not in run.finished:
        raise BadInput(f'{run.name}: results.csv has no dense row')
    cells = set(run.layers[['technique', 'level']].itertuples(index=False, name=None))
    for technique, level in sorted(run.finished - cells):
        raise BadInput(f'{run.name}: layers.csv has no row of {technique}, level {level}')


def _check_alike(first: Run, second: Run) -> None:
    differences = [
        f'{name}: {one} in {first.name}, {other} in {second.name}'
        for of in (_comparable_about, _comparable_config)
        for name, one, other in _differences(of(first), of(second))
    ]
    if differences:
        raise BadInput('these runs cannot be compared, they differ in ' + '; '.join(differences))


def _check_retraining(runs: Sequence[Run]) -> None:
    """Replicates of a technique were retrained alike, wherever they were run."""
    for number, first in enumerate(runs):
        for second in runs[number + 1 :]:
            shared = {name for name, _ in first.finished & second.finished} - {DENSE}
            one, other = (_retraining(run) for run in (first, second))
            if shared & names.CONTROLS.keys() - {names.FROM_SCRATCH}:  # retrained as the first is
                leads = [run.config['retrain']['techniques'][0] for run in (first, second)]
                one['first of retrain.techniques'], other['first of retrain.techniques'] = leads
            for name, old, new in _differences(one, other):
                if shared:
                    raise BadInput(
                        f'{first.name} and {second.name} both have {", ".join(sorted(shared))}, '
                        f'retrained otherwise: {name} is {old} and {new}; they are not replicates'
                    )


def _check_replicates(runs: Sequence[Run], results: pd.DataFrame) -> None:
    pruned = results[results.technique != DENSE]
    for (unit, technique, _), rows in pruned.groupby(['unit', 'technique', 'level']):
        if len(rows) > 1:
            raise BadInput(
                f'seed/replicate {unit} of {technique} is in {" and in ".join(rows.run)}: '
                'a replicate counts once; leave one of them out'
            )
    measured = [name for name in tables.RESULTS if name != 'replicate']
    for unit, rows in results[results.technique == DENSE].groupby('unit'):
        for column in measured:
            if rows[column].nunique(dropna=False) > 1:
                values = '; '.join(f'{row[column]} in {row.run}' for _, row in rows.iterrows())
                raise BadInput(
                    f'the dense networks of seed/replicate {unit} are not the same: '
                    f'{column} is {values}; techniques are compared from one dense network'
                )


def retraining_differences(runs: Sequence[Run]) -> list[str]:
    """Lists how the retraining of the runs differs; allowed where they share no technique."""
    found = [
        f'{name}: {one} in {runs[0].name}, {other} in {run.name}'
        for run in runs[1:]
        for name, one, other in _differences(_retraining(runs[0]), _retraining(run))
    ]
    return list(dict.fromkeys(found))


def _retraining(run: Run) -> dict[str, Any]:
    return _flat({k: v for k, v in run.config['retrain'].items() if k != 'techniques'}, 'retrain.')


def _comparable_config(run: Run) -> dict[str, Any]:
    flat = _flat(run.config)
    return {k: v for k, v in flat.items() if not {k, k.split('.')[0]} & set(_FREE)}


def _comparable_about(run: Run) -> dict[str, Any]:
    return _flat({name: run.about[name] for name in ('dataset', 'model')})


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    pairs = [(k, one.get(k, 'absent'), other.get(k, 'absent')) for k in sorted(one | other)]
    return [(name, a, b) for name, a, b in pairs if a != b]


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix('.'): tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f'{prefix}{name}.').items()}


def _unite(runs: Sequence[Run], parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(
        part.assign(run=run.name, unit=[f'{run.config["seed"]}/{r}' for r in part.replicate])
        for run, part in zip(runs, parts, strict=True)
    ).reset_index(drop=True)


def _labels(directories: Sequence[Path]) -> list[str]:
    """The names of the directories, or their paths where two have the same name."""
    short = [directory.resolve().name for directory in directories]
    return short if len(set(short)) == len(short) else [str(each) for each in directories]
