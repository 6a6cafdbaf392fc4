"""Plots: accuracy against compression."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P')


def accuracy_curve(
    rows: Iterable[Mapping[str, Any]], *, accuracy: str = 'test_accuracy', title: str = ''
) -> 'Figure':
    """Draws accuracy against compression, a line a technique, as in the paper.

    The line is the median over replicates, the band their minimum and maximum. The dense
    network is a dotted line across.

    Args:
      rows: rows of `results.csv`, as `csv.DictReader` gives them too: mappings with `technique`,
        `level`, `compression` and the accuracy; the technique of a dense row is `dense`.
      accuracy: column of the accuracy, in [0, 1].
      title: drawn above.

    Returns:
      A matplotlib figure.

    Raises:
      ImportError: matplotlib is not installed (the extra `report`).
      ValueError: no rows.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'jaxprune[report]'") from error
    rows = list(rows)
    if not rows:
        raise ValueError('there are no rows to draw')
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    techniques = list(dict.fromkeys(row['technique'] for row in rows))
    _draw_dense(axes, [float(row[accuracy]) for row in rows if row['technique'] == 'dense'])
    for number, technique in enumerate(t for t in techniques if t != 'dense'):
        chosen = [row for row in rows if row['technique'] == technique]
        _draw_technique(axes, chosen, accuracy, technique, number)
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}×'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f'{100 * y:g}'))
    axes.set(xlabel='compression (all parameters / kept)', title=title)
    axes.set_ylabel(accuracy.replace('_', ' ') + ' (%)')
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def _draw_dense(axes: 'Axes', accuracies: Sequence[float]) -> None:
    if accuracies:
        axes.axhline(np.median(accuracies), color='0.45', linestyle=':', label='dense')


def _draw_technique(
    axes: 'Axes', rows: Sequence[Mapping[str, Any]], accuracy: str, technique: str, number: int
) -> None:
    levels: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        levels.setdefault(int(row['level']), []).append(row)
    groups = [levels[level] for level in sorted(levels)]
    x = [np.median([float(row['compression']) for row in group]) for group in groups]
    y = [[float(row[accuracy]) for row in group] for group in groups]
    colour = _COLOURS[number % len(_COLOURS)]
    marker = _MARKERS[number % len(_MARKERS)]
    axes.plot(
        x, list(map(np.median, y)), color=colour, marker=marker, markersize=4, label=technique
    )
    axes.fill_between(x, list(map(min, y)), list(map(max, y)), color=colour, alpha=0.15, lw=0)
