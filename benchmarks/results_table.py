"""Prints the levels of a finished run as a Markdown table, mean (minimum to maximum) of replicates.

python -m benchmarks.results_table runs/digits
"""

import csv
import sys
from pathlib import Path

LEVELS = (0, 5, 10, 14, 17, 20)


def cell(rows):
    values = [100 * float(row['test_accuracy']) for row in rows]
    mean = f'{sum(values) / len(values):.2f}'
    return mean if len(values) == 1 else f'{mean} ({min(values):.2f} to {max(values):.2f})'


def main():
    with (Path(sys.argv[1]) / 'results.csv').open() as file:
        rows = list(csv.DictReader(file))
    techniques = [t for t in dict.fromkeys(row['technique'] for row in rows) if t != 'dense']
    print('| density | compression |', ' | '.join(f'`{t}`' for t in techniques), '|')
    print('|---|---|' + '---|' * len(techniques))
    found = {int(row['level']) for row in rows}
    for level in LEVELS if found.issuperset(LEVELS) else sorted(found):
        here = [row for row in rows if int(row['level']) == level]
        cells = [
            cell([row for row in here if row['technique'] in (technique, 'dense')])
            for technique in techniques
        ]
        density, compression = float(here[0]['density']), float(here[0]['compression'])
        print(f'| {density:.2%} | {compression:.1f}× |', ' | '.join(cells), '|')


if __name__ == '__main__':
    main()
