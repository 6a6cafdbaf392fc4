"""Trains, prunes and retrains: python -m train.main --config=FILE --workdir=DIR."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from train import interrupt
from train.errors import BadInput, RunError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for checkpoints and results.', required=True
)


def main(argv: Sequence[str]) -> None:
    """Runs the config of the flags; the exit code is that of the error, if any."""
    del argv
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # checkpoints tell much
    try:
        with interrupt.requested() as interrupted:
            from train import loop  # takes seconds, in which a signal must not be lost

            loop.run(_CONFIG.value, Path(_WORKDIR.value), interrupted)
    except RunError as error:
        fail(error)


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; the config's own errors end the run as bad input, without a traceback."""
    try:
        left = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        fail(BadInput(str(error).strip('\'"')))
    if left[1:]:
        fail(BadInput(f'unexpected arguments: {" ".join(left[1:])}'))
    return left


def fail(error: RunError) -> None:
    """Ends the program with the message and the exit code of an error."""
    print(f'{type(error).__name__}: {error}', file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    app.run(main, flags_parser=parse)
