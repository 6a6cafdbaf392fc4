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
_LINES = ('-', '--', ':')


def accuracy_curve(
    rows: Iterable[Mapping[str, Any]],
    *,
    accuracy: str = 'test_accuracy',
    title: str = '',
    names: Mapping[str, str] | None = None,
) -> 'Figure':
    """Draws accuracy against compression, a line a technique, as in the paper.

    The line is the median over replicates, the band their minimum and maximum. The dense
    network is a dotted line across.

    Args:
      rows: rows of `results.csv`, as `csv.DictReader` gives them too: mappings with `technique`,
        `level`, `compression` and the accuracy; the technique of a dense row is `dense`.
      accuracy: column of the accuracy, in [0, 1]; or one that ends in `bits`, drawn as it is.
      title: drawn above.
      names: what the legend calls the techniques; those left out keep their own name.

    Returns:
      A matplotlib figure.

    Raises:
      ImportError: matplotlib is not installed (the extra `report`).
      ValueError: no rows.
    """
    rows = list(rows)
    figure = new_figure(6, 4)
    if not rows:
        raise ValueError('there are no rows to draw')
    axes = figure.subplots()
    techniques = list(dict.fromkeys(row['technique'] for row in rows))
    dense = [float(row[accuracy]) for row in rows if row['technique'] == 'dense']
    if dense:
        axes.axhline(np.median(dense), color='0.5', linestyle=':', label='dense')
    for number, technique in enumerate(t for t in techniques if t != 'dense'):
        x, values = by_level([row for row in rows if row['technique'] == technique], accuracy)
        label = (names or {}).get(technique, technique)
        band(axes, x, values, number, label)
    compression_axis(axes)
    axes.set(xlabel='compression (all parameters / kept)', title=title)
    axes.set_ylabel(accuracy.replace('_', ' '))
    if not accuracy.endswith('bits'):
        axes.set_ylabel(axes.get_ylabel() + ' (%)')
        axes.yaxis.set_major_formatter(lambda y, _: f'{100 * y:g}')
    legend(figure, axes)
    return figure


def new_figure(width: float, height: float) -> 'Figure':
    """Makes an empty figure, in inches; without matplotlib, `ImportError` names the extra."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'jaxprune[report]'") from error
    return Figure(figsize=(width, height), layout='constrained')


def by_level(
    rows: Sequence[Mapping[str, Any]], column: str
) -> tuple[list[float], list[list[float]]]:
    """Gathers the rows of a technique by level.

    Args:
      rows: mappings with `level`, `compression` and the column.
      column: whose values are gathered.

    Returns:
      The median compression of each level, and the values of its rows, lowest level first.
    """
    levels: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        levels.setdefault(int(row['level']), []).append(row)
    groups = [levels[level] for level in sorted(levels)]
    x = [float(np.median([float(row['compression']) for row in group])) for group in groups]
    return x, [[float(row[column]) for row in group] for group in groups]


def band(
    axes: 'Axes',
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    number: int,
    label: str,
    **line: Any,
) -> None:
    """Draws the median as a line and the range from minimum to maximum as a band.

    Args:
      axes: where.
      x: one a point.
      values: several a point.
      number: of the technique; each number has its colour, marker and line.
      label: for the legend.
      **line: properties of matplotlib's line, over those of the number.
    """
    style = line_style(number) | line
    axes.plot(x, list(map(np.median, values)), label=label, **style)
    low, high = list(map(min, values)), list(map(max, values))
    axes.fill_between(x, low, high, color=style['color'], alpha=0.15, lw=0)


def line_style(number: int) -> dict[str, Any]:
    """Gives colour, marker and line of a technique's number; 18 numbers look different."""
    turn = number // len(_COLOURS)
    return {
        'color': _COLOURS[number % len(_COLOURS)],
        'marker': _MARKERS[(number + turn) % len(_MARKERS)],
        'linestyle': _LINES[turn % len(_LINES)],
        'markersize': 4,
    }


def compression_axis(axes: 'Axes') -> None:
    """Scales x by powers of two, written as factors, and draws a faint grid."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}×'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)


def legend(figure: 'Figure', axes: 'Axes') -> None:
    """Draws the legend inside the axes, or below them when it is long."""
    lines, labels = axes.get_legend_handles_labels()
    if len(labels) <= 5:
        axes.legend(frameon=False)
    else:
        rows = -(-len(labels) // 3)
        figure.set_figheight(figure.get_figheight() + 0.22 * rows)
        figure.legend(lines, labels, loc='outside lower center', ncols=3, frameon=False)
