"""Writes docs/results.md and its pictures from finished studies.

python -m benchmarks.studies runs/study_digits runs/study_mnist1d runs/study_controls
"""

import json
import os
import sys
from pathlib import Path

import pandas as pd

from train import report
from train.report import runs, statistics
from train.report.names import ACCURACY, BITS

DOCS = Path(__file__).parents[1] / 'docs'
CLAIMS = {
    ('lr_rewind', 'fine_tune'): 'learning-rate rewinding is better than fine-tuning',
    ('weight_rewind', 'fine_tune'): 'weight rewinding is better than fine-tuning',
    (
        'lr_rewind',
        'weight_rewind',
    ): 'learning-rate rewinding is at least as good as weight rewinding',
}
HEADER = """# Results

What the embedded studies found: networks and data that run on any machine, with no download. This
page is written by the command below from finished runs, and each full report, with every table, by
the trainer. The numbers are small-scale: they say how the techniques compare here, and no more.
A network of level k has trained through k rounds after the dense training; what that cost, in
epochs, is in each report, and a network can end above the dense one for that reason alone.

```bash
python -m benchmarks.studies {directories}
```
"""


def found(text):
    """Takes the findings out of a report in Markdown, without what it says of its method."""
    section = text.split('## What was found')[1].split('\n## ')[0]
    return section.split('\nAhead and behind mean')[0].strip()


def chapter(directory):
    """Writes the chapter of one study, and its report beside the page."""
    name = directory.name
    out = DOCS / 'results' / name
    report.write([directory], out)
    (out / 'report.html').unlink()
    about = json.loads((directory / 'run.json').read_text())
    seconds = pd.read_csv(directory / 'timings.csv').seconds.sum()
    picture = 'bits' if (out / 'bits.png').exists() else 'accuracy'
    return f"""## {about['dataset']['name']}, {about['model']['name']}

```bash
python -m train.main --config=configs/{name}.py --workdir=runs/{name}
```

{seconds / 60:.1f} minutes of training on {about['devices']} ({os.cpu_count()} cores),
Python {about['python']}, jax {about['versions']['jax']}.

{found((out / 'report.md').read_text())}

![{picture} against compression](results/{name}/{picture}.png)

![difference to the baseline](results/{name}/differences.png)

[The full report](results/{name}/report.md).
"""


def judge(directory):
    """Writes, for each claim of the paper, what a study says about it."""
    study = runs.load([directory])
    metric = BITS if study.is_text else ACCURACY
    for (ours, theirs), claim in CLAIMS.items():
        if {ours, theirs} <= set(study.techniques):
            compared = statistics.compare(study.results, ours, theirs, f'test_{metric.column}')
            verdicts = [each.verdict(metric) for each in compared]
            ahead, behind = verdicts.count('ahead'), verdicts.count('behind')
            holds = behind == 0 if 'at least' in claim else ahead > 0 and behind == 0
            against = ahead == 0 and behind > 0
            word = 'agrees' if holds else 'disagrees' if against else 'mixed'
            if not ahead and not behind:
                word = 'undecided'
            yield (
                f'| {claim} | {directory.name} | {word} | {ahead} | {behind} | '
                f'{len(verdicts) - ahead - behind} | {compared[0].n} |'
            )


def main():
    directories = [Path(argument) for argument in sys.argv[1:]]
    named = ' '.join(f'runs/{directory.name}' for directory in directories)
    rows = [row for directory in directories for row in judge(directory)]
    table = [
        '## Against the paper',
        '',
        'Claims of Renda, Frankle & Carbin 2020 (arXiv:2003.02389), and at how many densities',
        'the paired bootstrap interval of the difference lies on the side of the claim (for), on',
        'the other (against) or holds 0 (undecided). A claim agrees where none is against it, is',
        'mixed where some are. No correction for the number of comparisons; with so few',
        'replicates such intervals are too narrow, as each report says in figures.',
        '',
        '| claim | study | | for | against | undecided | replicates |',
        '|---|---|---|---|---|---|---|',
        *rows,
        '',
    ]
    parts = [HEADER.format(directories=named), '\n'.join(table), *map(chapter, directories)]
    (DOCS / 'results.md').write_text('\n'.join(parts))


if __name__ == '__main__':
    main()
