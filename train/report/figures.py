"""Pictures of the report: each drawn for a page of either theme, and on white for a file."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, SymmetricalLogLocator

from jaxprune import plots
from train.report.names import ACCURACY, DENSE, NAMES, Metric, prose
from train.report.reference import Reference
from train.report.runs import Study
from train.report.statistics import Comparison, own_dense

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = '#010203'  # black in the PNG; in the SVG it becomes the text colour of the page
_INKED = ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color')
_NO_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
_VECTOR_CELLS = 2000  # more cells than these are drawn as one image


class Picture(NamedTuple):
    """A finished picture."""

    svg: str
    png: bytes


def draw(name: str, alt: str, figure: Callable[[], Figure]) -> Picture:
    """Draws a figure as SVG in the colours of the page around it, and as PNG on white.

    Args:
      name: of the file, without its ending.
      alt: what the picture shows, for who cannot see it.
      figure: makes the figure; called once, under the colours of the report.

    Returns:
      The picture; the same bytes for the same figure.
    """
    theme: Any = dict.fromkeys(_INKED, _INK) | {'svg.hashsalt': name, 'axes.facecolor': 'none'}
    text, image = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context(theme):
        drawn = figure()
        drawn.savefig(text, format='svg', metadata=_NO_METADATA, facecolor='none')
        drawn.savefig(image, format='png', dpi=160, metadata={'Software': None}, facecolor='w')
    return Picture(_inline(text.getvalue(), name, alt), image.getvalue())


def accuracy(study: Study, column: str) -> Figure:
    """Draws a column of the results against compression, a band a technique."""
    rows = study.results
    order = [DENSE, *study.techniques]
    chosen = pd.concat([rows[rows.technique == name] for name in order])
    return plots.accuracy_curve(chosen.to_dict('records'), accuracy=column, names=NAMES)


def differences(
    compared: Mapping[str, Sequence[Comparison]],
    baseline: str,
    order: Sequence[str],
    metric: Metric,
) -> Figure:
    """Draws the mean difference of each technique to the baseline, with its interval."""
    figure = plots.new_figure(6, 4)
    axes = figure.subplots()
    _signed_axis(axes, metric)
    axes.axhline(0, color='0.5', linestyle=':', label=prose(baseline))
    for place, (technique, levels) in enumerate(compared.items()):
        shown = [each for each in levels if each.interval is not None]
        # Moved aside by a little, so that intervals do not lie on each other.
        x = [each.compression * 2 ** (0.04 * (place - len(compared) / 2)) for each in shown]
        y = np.array([each.difference for each in shown]) * metric.scale
        ends = np.array([each.interval for each in shown]).T.reshape(2, -1) * metric.scale
        style = plots.line_style(order.index(technique)) | {'linestyle': 'none'}
        reach = np.maximum([y - ends[0], ends[1] - y], 0)  # a mean may lie at the very end
        axes.errorbar(x, y, reach, label=prose(technique), elinewidth=1, **style)
    plots.compression_axis(axes)
    better = 'above is better' if metric.higher_is_better else 'below is better'
    axes.set(xlabel='compression (all parameters / kept)')
    axes.set_ylabel(f'difference ({metric.unit}; {better})')
    plots.legend(figure, axes)
    return figure


def beside(study: Study, reference: Reference) -> Figure:
    """Draws the delta to the dense network, a panel a technique, ours beside the reference's."""
    drawn = [name for name in study.techniques if name in reference.curves]
    rows, columns = -(-len(drawn) // 2), min(2, len(drawn))
    figure = plots.new_figure(6, 0.7 + 2.4 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, technique in zip(grid.flat, drawn, strict=False):
        _beside(axes, study, reference, technique)
    _blank(grid, len(drawn))
    figure.supxlabel('1 / density of the prunable weights', fontsize='medium')
    figure.supylabel('test accuracy, points against own dense', fontsize='medium')
    return figure


def layers(study: Study, table: pd.DataFrame) -> Figure:
    """Draws the density of each layer at each level, a panel a technique.

    Args:
      study: the runs.
      table: rows with `technique`, `level`, `path` and `density`, of prunable layers.

    Returns:
      The figure; a layer with nothing left is red.
    """
    drawn = [name for name in study.techniques if (table.technique == name).any()]
    paths = list(dict.fromkeys(table.path))
    rows, columns = -(-len(drawn) // 2), min(2, len(drawn))
    figure = plots.new_figure(6, 0.9 + rows * (0.6 + 0.22 * min(len(paths), 40)))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    least = table.density[table.density > 0].min()
    colours = matplotlib.colormaps['viridis'].with_extremes(bad='#D9352C')
    for axes, technique in zip(grid.flat, drawn, strict=False):
        wide = table[table.technique == technique].pivot(
            index='path', columns='level', values='density'
        )
        cells = np.ma.masked_equal(wide.loc[paths].to_numpy(), 0)
        levels = np.append(wide.columns, wide.columns[-1] + 1) - 0.5
        mesh = axes.pcolormesh(
            levels,
            np.arange(len(paths) + 1) - 0.5,
            cells,
            norm=LogNorm(min(least, 0.5), 1),
            cmap=colours,
            edgecolors='face',  # no seams between cells
            linewidth=0.3,
            rasterized=cells.size > _VECTOR_CELLS,
        )
        axes.set_title(prose(technique), fontsize='medium')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _blank(grid, len(drawn))
    step = -(-len(paths) // 40)
    for axes in grid[:, 0]:
        axes.set_yticks(range(0, len(paths), step), paths[::step], fontsize='small')
    grid[0, 0].invert_yaxis()
    figure.supxlabel('level', fontsize='medium')
    bar = figure.colorbar(mesh, ax=grid, label='density (%)', ticks=LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(lambda y, _: f'{100 * y:g}')
    bar.ax.minorticks_off()
    return figure


def _beside(axes: 'Axes', study: Study, reference: Reference, technique: str) -> None:
    number = study.techniques.index(technique)
    rows = study.results[study.results.technique == technique]
    dense = own_dense(study.results, technique).test_accuracy.mean()
    ours = rows.assign(delta=100 * (rows.test_accuracy - dense), compression=1 / rows.density)
    _signed_axis(axes, ACCURACY)
    x, values = plots.by_level(ours.to_dict('records'), 'delta')
    axes.axhline(0, color='0.5', linestyle=':')
    plots.band(axes, x, values, number, 'here')
    theirs = reference.curves[technique]
    spread = 100 * theirs[['median', 'min', 'max']].to_numpy()
    line = {'color': '0.5', 'linestyle': '--', 'marker': 'x'}
    plots.band(axes, theirs.compression.tolist(), spread.tolist(), number, 'reference', **line)
    plots.compression_axis(axes)
    axes.set_title(prose(technique), fontsize='medium')
    axes.legend(frameon=False, loc='lower left')


def _signed_axis(axes: 'Axes', metric: Metric) -> None:
    axes.set_yscale('symlog', linthresh=metric.small)
    locator = SymmetricalLogLocator(base=10, linthresh=metric.small, subs=(1, 2, 5))
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(lambda y, _: f'{y:+g}'.replace('-', '−') if y else '0')


def _blank(grid: np.ndarray, drawn: int) -> None:
    """Leaves the last places of a grid empty; those above them carry the labels of the axis."""
    for number in range(drawn, grid.size):
        grid.flat[number].set_axis_off()
        grid.flat[number - grid.shape[1]].tick_params(labelbottom=True)


def _inline(svg: str, name: str, alt: str) -> str:
    """Fits a drawing into a page: its colours, its size, names of its own for its parts."""
    svg = svg[svg.index('<svg') :].replace(_INK, 'currentColor')
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', '', svg, count=2)
    return svg.replace('<svg', f'<svg role="img" aria-label="{html.escape(alt)}"', 1)
