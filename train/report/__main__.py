"""Reports on runs: python -m train.report DIR [DIR ...] --out=DIR."""

import argparse
import sys
from collections.abc import Sequence

from train.errors import BadInput
from train.report import page, reference


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of the command line; returns the exit code."""
    arguments = parser().parse_args(argv)
    select = {name: getattr(arguments, f'reference_{name}') for name in reference.SELECTORS}
    try:
        if arguments.reference is None and any(select.values()):
            raise BadInput('--reference_... choose rows of a file: give it as --reference=FILE')
        written = page.write(
            arguments.directories,
            arguments.out,
            reference_file=arguments.reference,
            reference_select=select,
            baseline=arguments.baseline,
            require_intervals=arguments.require_intervals,
        )
    except BadInput as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return error.exit_code
    print(written[0])
    return 0


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    made = argparse.ArgumentParser(prog='python -m train.report', description=__doc__)
    made.add_argument('directories', nargs='+', metavar='DIR', help='workdir of a run')
    made.add_argument('--out', required=True, help='folder for report.html, report.md, pictures')
    made.add_argument('--baseline', help='technique to compare with (default: fine_tune)')
    made.add_argument(
        '--require_intervals',
        action='store_true',
        help='an error where there are fewer than two replicates',
    )
    made.add_argument('--reference', help='CSV of curves to draw beside, such as summary.csv')
    for name in reference.SELECTORS:
        made.add_argument(f'--reference_{name}', help=f'which {name} of the reference')
    return made


if __name__ == '__main__':
    sys.exit(main())
