"""The tables and the picture of `benchmarks.scores`."""

import numpy as np

BLACK, GREY, BLUE = '#000000', '#8A8A8A', '#0072B2'
SECTIONS = {
    'trained': 'Trained, pruned once, trained again',
    'untrained': 'Pruned before training, then trained',
}


def tables(rows):
    """Writes four Markdown tables: at once, trained again, before training, allocations."""
    dense = rows[0]['after']
    by_score = [row for row in rows[1:] if row['allocation'] == 'global_top']
    trained, untrained = (
        [row for row in by_score if row['when'] == when] for when in ('trained', 'untrained')
    )
    tried = {(row['when'], row['score']) for row in rows[1:] if row['allocation'] != 'global_top'}
    allocated = [row for row in rows[1:] if (row['when'], row['score']) in tried]
    name = lambda row: f'`{row["score"]}`'
    both = lambda row: f'{row["when"]}, `{row["score"]}`, `{row["allocation"]}`'
    parts = [
        f'Dense: {cell(dense)}.',
        f'**{SECTIONS["trained"]}: right after pruning**',
        table(trained, 'before', name),
        f'**{SECTIONS["trained"]}: in the end**',
        table(trained, 'after', name),
        f'**{SECTIONS["untrained"]}**',
        table(untrained, 'after', name),
        '**Allocations**',
        table(sorted(allocated, key=lambda row: row['when']), 'after', both),
    ]
    return '\n\n'.join(parts)


def table(rows, column, name):
    """Writes a line a case; † where a leaf was left with nothing in some seed."""
    densities = sorted({row['density'] for row in rows}, reverse=True)
    lines = ['| | ' + ' | '.join(f'{density:g}' for density in densities) + ' |']
    lines.append('|---|' + '---|' * len(densities))
    cases = {}
    for row in rows:
        mark = ' †' if row['emptied'] else ''
        cases.setdefault(name(row), []).append(cell(row[column]) + mark)
    lines += [f'| {case} | ' + ' | '.join(cells) + ' |' for case, cells in cases.items()]
    return '\n'.join(lines)


def cell(values):
    return f'{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})'


def draw(rows, path):
    """Draws a panel a score, before the same two lines of magnitude and random in each."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = {}
    for row in rows[1:]:
        if row['allocation'] == 'global_top':
            lines.setdefault((row['when'], row['score']), []).append(row)
    panels = [case for case in lines if case not in {('trained', 'magnitude')}]
    panels = [case for case in panels if case[1] != 'random']
    with mpl.rc_context({'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure = Figure(figsize=(10, 7.6), layout='constrained')
        grid = figure.subplots(-(-len(panels) // 4), 4, sharex=True, sharey=True)
        for axes, (when, score) in zip(grid.flat, panels, strict=True):
            panel(axes, lines, when, score)
            if axes in grid[:, 0]:
                axes.set_ylabel(f'pruned when {when}', weight='bold')
        finish(figure, grid, rows[0]['after'].mean())
    figure.savefig(path, dpi=110)


def panel(axes, lines, when, score):
    """Draws one score over the controls that began as it did."""
    for control, colour, style in (('random', GREY, ':'), ('magnitude', BLACK, '--')):
        if control != score:
            curve(axes, lines[when, control], colour, style, control)
    curve(axes, lines[when, score], BLUE, '-', 'the score', marker='o', band=True)
    axes.set_title(score, loc='left', color=BLUE, weight='bold', fontsize=10)


def curve(axes, rows, colour, style, label, *, marker=None, band=False):
    x = [row['density'] for row in rows]
    y = np.array([row['after'] for row in rows])
    axes.plot(x, y.mean(1), style, color=colour, label=label, marker=marker, markersize=3.5, lw=1.5)
    if band:
        axes.fill_between(x, y.min(1), y.max(1), color=colour, alpha=0.2, lw=0)


def finish(figure, grid, dense):
    for axes in grid.flat:
        axes.axhline(dense, color=GREY, lw=0.6)
        axes.set(xscale='log', ylim=(78, 100), xlim=(0.55, 0.018))
        axes.set_xticks([0.5, 0.2, 0.1, 0.05, 0.02], ['0.5', '0.2', '0.1', '0.05', '0.02'])
        axes.minorticks_off()
        axes.grid(alpha=0.2)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper right', ncols=3, frameon=False)
    figure.suptitle(
        'Digits, LeNet-300-100: test accuracy after training with masks, %', x=0.01, ha='left'
    )
    figure.supxlabel(
        'density (lines: means; bands: lowest to highest seed; the line across: dense)',
        fontsize=9,
    )
