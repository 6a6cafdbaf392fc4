"""Sections on how it was measured: search cost, layers, data, seeds, versions, configs."""

import itertools
import json
from collections.abc import Iterable

import pandas as pd

from train.report import figures, runs, statistics
from train.report.blocks import Block, Drawing, Listing, Section, Table, Text
from train.report.names import DENSE, percent, prose
from train.report.runs import Study
from train.report.sentences import count

_MASKED = (
    'Pruned weights are zeros in dense arrays, held there by masks: they are not removed '
    'physically. The network needs as many multiplications as before: kMACs count products with '
    'kept weights only, what a program would do that skips zeros. No claim on latency or memory '
    'is made here.'
)
_REMOVED = (
    'Pruned units are removed physically: after each round the arrays that are trained, measured '
    'and saved are smaller, batch statistics included, and kMACs are those of the smaller network. '
    'In dense arrays it computes the same as the whole network with these units at zero. Latency '
    'was not measured here.'
)


def cost(study: Study) -> Section:
    """Tabulates the search cost in epochs, per level and in total, and the wall time."""
    batch, examples = study.config['train']['batch_size'], study.about['dataset']['train_examples']
    lead, *_ = study.config['retrain']['techniques']
    searches = {
        technique: statistics.search_steps(study.results, technique, lead)
        for technique in study.techniques
    }
    dense = study.results.train_steps[study.results.technique == DENSE].mean()
    rows = [('0', *(_epochs(dense, batch, examples),) * len(searches))]
    for level in range(1, study.results.level.max() + 1):
        steps = [per_level.get(level) for per_level, _ in searches.values()]
        rows.append((f'{level}', *(_epochs(each, batch, examples) for each in steps)))
    rows.append(
        ('whole search', *(_epochs(all_, batch, examples) for _, all_ in searches.values()))
    )
    text = (
        'Epochs of training that the network of a level has cost so far, the dense training '
        f'included: steps × batch size {batch:,} / {examples:,} training examples. The last row is '
        'the whole search, all levels and the dense training together, for one replicate.'
    )
    headers = ('level', *map(prose, searches))
    return Section('Search cost', [Text(text), Table(headers, rows), *_wall_time(study)])


def layers(study: Study) -> Section:
    """Draws the density of each layer, and tabulates the layers at the last level."""
    table = _mean_layers(study)
    alike = [name for name in study.techniques if _shapes(table, name) == _shapes(table, DENSE)]
    prunable = table[table.prunable.gt(0) & table.technique.isin(alike)]
    blocks: list[Block] = []
    if len(prunable):
        drawing = Drawing(
            'layers',
            'density of each prunable layer at each level, a panel a technique',
            lambda: figures.layers(study, prunable),
            'Means over replicates. Red: nothing left of the layer.',
        )
        blocks.append(drawing)
        blocks.append(_layer_table(table, alike))
    blocks += [_layer_table(table, [name]) for name in study.techniques if name not in alike]
    return Section('Layers', blocks)


def reading(study: Study) -> Section:
    """Says which split is for what, and what zeros are worth."""
    texts = [
        'Validation examples are none of the training or test examples; whatever is chosen, such '
        'as the largest compression, is chosen on them. Test examples report, and chose nothing: '
        'no checkpoint, no level, no technique was selected by test accuracy, save in the columns '
        'that say so.',
        _REMOVED if study.config['prune'].get('pattern') == 'groups' else _MASKED,
    ]
    if 'small_dense' in study.techniques:
        texts.append('The small dense network is smaller physically too: it was built narrower.')
    return Section('How to read this', [Text(text) for text in texts])


def provenance(study: Study) -> Section:
    """Tabulates data, network, seeds and versions, and gives the configs in full."""
    data, model = study.about['dataset'], study.about['model']
    rows = [
        ('dataset', f'{data["name"]} {data.get("version", "")}'.strip()),
        ('classes', f'{data["num_classes"]:,}'),
        *((f'{part} examples', _part(data, part)) for part in ('train', 'validation', 'test')),
        ('predictions an example', f'{data["predictions_per_example"]:,}'),
        ('network', f'{model["name"]}: {model["parameters"]:,} parameters'),
        ('seeds/replicates', ', '.join(study.results.unit.unique())),
        *(('hardware' + run, text) for run, text in _each(study, 'devices')),
        *(('Python' + run, text) for run, text in _each(study, 'python')),
        *(('versions' + run, text) for run, text in _each(study, 'versions')),
    ]
    blocks: list[Block] = [Table(('', ''), rows, words=2)]
    differences = runs.retraining_differences(study.runs)
    if differences:
        blocks.append(Text(f'The retraining of the runs differs: {"; ".join(differences)}.'))
    blocks.append(
        Text(
            'To run this again: python -m train.main with a config of the fields below '
            '(config.json of each run) and an empty workdir, then python -m train.report on it.'
        )
    )
    for run in study.runs:
        title = 'config.json' + (f' of {run.name}' if len(study.runs) > 1 else '')
        blocks.append(Listing(title, json.dumps(run.config, indent=2, sort_keys=True)))
    return Section('Data, seeds, versions, configs', blocks)


def status(study: Study) -> str | None:
    """Says how much is still missing; nothing where the study is finished."""
    planned = sum(len(run.planned | run.finished) for run in study.runs)
    there = sum(len(run.finished) for run in study.runs)
    if there == planned:
        return None
    return f'Unfinished: {there} of {count(planned, "cell", "cells")} (a technique at a level).'


def _epochs(steps: float | None, batch: int, examples: int) -> str:
    return '' if steps is None else f'{steps * batch / examples:,.1f}'


def _wall_time(study: Study) -> list[Block]:
    if study.timings is None:
        return [Text('No wall times: there is no timings.csv.')]
    seconds = study.timings.groupby('technique').seconds.sum()
    rows = [
        (prose(name), f'{seconds[name]:,.1f}')
        for name in (DENSE, *study.techniques)
        if name in seconds
    ]
    text = (
        'Wall time, of all levels and replicates together: the one number here that another run '
        'of the same config changes; it depends on the machine and what else it did.'
    )
    return [Text(text), Table(('technique', 'seconds'), rows)]


def _mean_layers(study: Study) -> pd.DataFrame:
    """Means over replicates at each level, and the density of each layer."""
    by = ['technique', 'level', 'path', 'shape', 'parameters', 'prunable']
    table = study.layers.groupby(by, sort=False).kept.mean().reset_index()
    left = table.kept - table.parameters + table.prunable
    return table.assign(density=left / table.prunable.where(table.prunable > 0))


def _shapes(table: pd.DataFrame, technique: str) -> set[tuple[str, str]]:
    rows = table[table.technique == technique]
    return set(rows[['path', 'shape']].itertuples(index=False, name=None))


def _layer_table(table: pd.DataFrame, techniques: list[str]) -> Table:
    """Makes the table of the layers at the last level, for techniques with the same layers."""
    last = {
        name: rows[rows.level == rows.level.max()].set_index('path')
        for name in techniques
        for rows in [table[table.technique == name]]
    }
    first = last[techniques[0]]
    rows = [
        (
            path,
            shape.replace('x', ' × '),
            f'{parameters:,}',
            *(_kept(last[t].loc[path]) for t in last),
        )
        for path, shape, parameters in zip(
            first.index, first['shape'], first.parameters, strict=True
        )
    ]
    totals = (f'{each.kept.sum():,.0f}' for each in last.values())
    rows.append(('total', '', f'{first.parameters.sum():,}', *totals))
    headers = ('layer', 'shape', 'parameters', *map(prose, techniques))
    return Table(headers, rows, 'Weights kept at the last level, and the density of the layer.')


def _kept(layer: pd.Series) -> str:
    share = '' if pd.isna(layer.density) else f' ({percent(layer.density)})'
    return f'{layer.kept:,.0f}{share}'


def _part(data: dict, part: str) -> str:
    return f'{data[f"{part}_examples"]:,}, sha256 {data["fingerprint"][part]}'


def _each(study: Study, field: str) -> Iterable[tuple[str, str]]:
    """A field of `run.json`: once where all runs agree, otherwise a line a run."""
    texts = [_over_time(run.about, field) for run in study.runs]
    if len(set(texts)) == 1:
        return [('', texts[0])]
    return [(f', {run.name}', text) for run, text in zip(study.runs, texts, strict=True)]


def _over_time(about: dict, field: str) -> str:
    """A field as it was when a run began, and what it became where it went on."""
    texts = [_written(part[field]) for part in (about, *about.get('continued', ()))]
    return ', then '.join(text for text, _ in itertools.groupby(texts))


def _written(value: str | dict[str, str]) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{name} {version}' for name, version in sorted(value.items()))
    return value
