"""Trains, prunes and retrains: python -m train.main --config=FILE --workdir=DIR."""

import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from absl import app, flags, logging
from ml_collections import config_flags

from train import loop
from train.errors import RunError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for checkpoints and results.', required=True
)


def main(argv: Sequence[str]) -> None:
    """Runs the config of the flags; the exit code is that of the error, if any."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # checkpoints tell much
    tfds.disable_progress_bar()
    try:
        loop.run(_CONFIG.value, Path(_WORKDIR.value))
    except RunError as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    app.run(main)
