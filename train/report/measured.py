"""Sections on what was measured: accuracy, the largest compression, levels, differences."""

import functools
from collections.abc import Mapping, Sequence

import pandas as pd

from train.report import figures, sentences, statistics
from train.report.blocks import Block, Bullets, Drawing, Section, Table, Text
from train.report.names import ACCURACY, BITS, DENSE, Metric, percent, prose
from train.report.reference import Reference
from train.report.runs import Study
from train.report.sentences import Pair
from train.report.statistics import Comparison

_SHOWN = 20  # more verdicts than these are folded away
_SIGNS = {'ahead': ' ▲', 'behind': ' ▼', 'undecided': ''}


def found(study: Study, compared: Mapping[Pair, Sequence[Comparison]], metric: Metric) -> Section:
    """Says what was found."""
    verdicts = [sentences.verdict(pair, levels, metric) for pair, levels in compared.items()]
    by = f'Compared by test {metric.column}, of which more is better:'
    if not metric.higher_is_better:
        by = f'Compared by test {metric.column} a prediction, of which fewer are better:'
    blocks: list[Block] = [Bullets(sentences.summaries(study))]
    if verdicts:
        blocks += [Text(by), Bullets(verdicts[:_SHOWN])]
        if verdicts[_SHOWN:]:
            folded = sentences.count(len(verdicts) - _SHOWN, 'more comparison', 'more comparisons')
            blocks.append(Bullets(verdicts[_SHOWN:], folded))
        blocks += map(Text, sentences.method(study, list(compared.values())))
    limits = sentences.limits(study)
    if limits:
        blocks += [Text('What a fair report would also have:'), Bullets(limits)]
    return Section('What was found', blocks)


def curves(study: Study) -> Section:
    """Draws accuracy against compression, and bits where the data are text."""
    n = study.results.unit.nunique()
    caption = 'One network a point.'
    if n > 1:
        caption = f'Line: median over {n} replicates; band: their minimum and maximum.'
    columns = ['test_accuracy', *(['test_bits'] if study.is_text else [])]
    drawings = [
        Drawing(
            column.removeprefix('test_'),
            f'{column.replace("_", " ")} against compression, a line a technique',
            functools.partial(figures.accuracy, study, column),
            caption + (' Fewer bits are better.' if column == 'test_bits' else ''),
        )
        for column in columns
    ]
    return Section('Accuracy against compression', drawings)


def headline(study: Study) -> Section:
    """Tabulates the largest compression that holds −0, −0.25 and −1 point."""
    rows = [
        (prose(technique), _criterion(criterion), *_held(study.results, technique, criterion))
        for technique in study.techniques
        for criterion in statistics.CRITERIA
    ]
    headers = (
        'technique',
        'holds (points)',
        'chosen on validation',
        'its test delta',
        'read off test: any',
        'read off test: contiguous',
    )
    text = (
        'The largest compression at which the median accuracy over replicates, less the mean '
        'accuracy of the dense networks, is at least the criterion. Validation accuracy chooses in '
        'the third column and test accuracy reports in the fourth: nothing was selected on what is '
        'reported there. The last two columns read the test accuracies themselves, as the '
        "paper's tables do: any level that holds, and the last before the first that does not. "
        '* is the largest compression tested; — means that no level holds.'
    )
    return Section('Largest compression that holds', [Text(text), Table(headers, rows, words=2)])


def levels(study: Study) -> Section:
    """Tabulates each technique level by level."""
    model = study.about['model']
    text = (
        f'The dense network has {model["parameters"]:,} parameters, {model["prunable"]:,} of them '
        'prunable. Density is the share of these that is kept, compression all / kept parameters; '
        'kMACs are thousands of multiply-accumulates with kept weights, an example. Accuracies are '
        'means ± sample standard deviations in %; delta is the mean difference to the dense '
        'network of the same replicate in points, with its paired bootstrap interval.'
    )
    tables = [_levels(study, technique) for technique in study.techniques]
    return Section('Level by level', [Text(text), *tables])


def differences(
    study: Study, compared: Mapping[Pair, Sequence[Comparison]], baseline: str, metric: Metric
) -> Section | None:
    """Draws and tabulates the differences to the baseline; nothing where there are none."""
    against = {one: levels for (one, other), levels in compared.items() if other == baseline}
    if not any(against.values()):
        return None
    cells = {
        technique: {each.level: _difference(each, metric) for each in levels}
        for technique, levels in against.items()
    }
    compressions = {each.level: each.compression for levels in against.values() for each in levels}
    rows = [
        (f'{level}', f'{compressions[level]:.2f}×', *(cells[t].get(level, '') for t in cells))
        for level in sorted(compressions)
    ]
    table = Table(
        ('level', 'compression', *map(prose, cells)),
        rows,
        f'Mean difference to {sentences.in_sentence(baseline)} in {metric.unit} and its interval; '
        '▲ ahead, ▼ behind.',
        words=0,
    )
    decided = any(each.interval for levels in against.values() for each in levels)
    drawing = Drawing(
        'differences',
        f'difference to {prose(baseline)} against compression',
        lambda: figures.differences(against, baseline, study.techniques, metric),
        f'Mean difference in test {metric.column}; bars: its paired bootstrap interval. The axis '
        f'is linear within {metric.small:g} of 0, logarithmic beyond.',
    )
    title = f'Difference to {sentences.in_sentence(baseline)}'
    return Section(title, [drawing, table] if decided else [table])


def beside(study: Study, reference: Reference) -> Section:
    """Draws the curves of the reference beside ours."""
    chosen = ', '.join(f'{name} {value}' for name, value in reference.chosen.items())
    both = [name for name in study.techniques if name in reference.curves]
    texts = [f'Reference: {reference.name}, {chosen}.']
    ours, theirs = set(study.techniques) - set(both), set(reference.curves) - set(both)
    for where, names in (('the reference', ours), ('these runs', theirs)):
        if names:
            texts.append(f'Not in {where}: {", ".join(map(prose, sorted(names)))}.')
    if not both:
        return Section('Beside the reference', [Text(' '.join(texts))])
    drawing = Drawing(
        'reference',
        'test accuracy against the own dense network, ours and the reference, by density',
        lambda: figures.beside(study, reference),
        'Each against the mean of its own dense networks, since the networks differ. Line: median; '
        'band: minimum and maximum. The axis is linear within one point, logarithmic beyond.',
    )
    return Section('Beside the reference', [Text(' '.join(texts)), drawing])


def _criterion(criterion: float) -> str:
    return f'−{abs(100 * criterion):g}'


def _held(results: pd.DataFrame, technique: str, criterion: float) -> tuple[str, ...]:
    held = statistics.held(results, technique, criterion)
    most = results[results.technique == technique].groupby('level').compression.mean().max()

    def factor(compression: float | None) -> str:
        if compression is None:
            return '—'
        return f'{compression:.2f}×' + ('*' if compression == most else '')

    reported = '—' if held.reported is None else ACCURACY.difference(held.reported)
    return factor(held.chosen), reported, factor(held.any), factor(held.contiguous)


def _levels(study: Study, technique: str) -> Table:
    results = study.results
    metrics = [ACCURACY, BITS] if study.is_text else [ACCURACY]
    delta = {
        (metric, each.level): _interval(each, metric)
        for metric in metrics
        for each in statistics.compare(results, technique, DENSE, f'test_{metric.column}')
    }
    chosen = results[results.technique.isin([DENSE, technique])]
    rows = []
    for level, group in chosen.groupby('level'):
        bits = (_mean(group.test_bits, BITS),) if study.is_text else ()
        rows.append(
            (
                f'{level}',
                percent(group.density.mean()),
                f'{group.kept.mean():,.0f}',
                f'{group.compression.mean():.2f}×',
                f'{group.macs.mean() / 1000:,.1f}',
                f'{len(group)}',
                _mean(group.pruned_test_accuracy, ACCURACY),
                _mean(group.test_accuracy, ACCURACY),
                delta.get((ACCURACY, level), ''),
                _mean(group.val_accuracy, ACCURACY),
                *bits,
                *((delta.get((BITS, level), ''),) if study.is_text else ()),
            )
        )
    headers = (
        'level',
        'density',
        'kept',
        'compression',
        'kMACs',
        'n',
        'test, just pruned',
        'test, retrained',
        'delta',
        'validation',
        *(('test bits', 'delta in bits') if study.is_text else ()),
    )
    return Table(headers, rows, prose(technique), words=0)


def _mean(values: pd.Series, metric: Metric) -> str:
    return '' if values.isna().any() else sentences.spread(values, metric)


def _interval(comparison: Comparison, metric: Metric) -> str:
    text = metric.difference(comparison.difference)
    if comparison.interval is None:
        return text
    return f'{text} [{", ".join(map(metric.difference, comparison.interval))}]'


def _difference(comparison: Comparison, metric: Metric) -> str:
    return _interval(comparison, metric) + _SIGNS[comparison.verdict(metric)]
