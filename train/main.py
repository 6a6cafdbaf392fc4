"""Trains, prunes and retrains: python -m train.main --config=FILE --workdir=DIR."""

import ast
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from train import interrupt
from train.errors import BadInput, Broken, RunError

_KEPT = 'The last good checkpoint stays: the same command goes on from there'
_LESS = (
    'Lower config.train.batch_size or config.replicates, or split the weights over devices by '
    'config.mesh.fsdp. The last good checkpoint stays'
)
_CONFIG = config_flags.DEFINE_config_file('config', None, 'A file of configs/.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for checkpoints and results.', required=True
)

_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Whether this is one of several processes that train together.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, where the cluster does not tell it.'
)
_PROCESSES = flags.DEFINE_integer('processes', None, 'Their number, where it is not told.')
_PROCESS = flags.DEFINE_integer('process', None, 'Which one this is, where it is not told.')


def main(argv: Sequence[str]) -> None:
    """Runs the config of the flags; the exit code is that of the error, if any."""
    del argv
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # checkpoints tell much
    if _DISTRIBUTED.value:
        join()
    try:
        with interrupt.requested() as interrupted:
            run(interrupted)
    except RunError as error:
        fail(error)


def run(interrupted: Callable[[], int | None]) -> None:
    """Runs the config of the flags, and says in plain words what broke."""
    import jax  # takes seconds, in which a signal must not be lost

    from train import loop

    try:
        loop.run(_CONFIG.value, Path(_WORKDIR.value), interrupted)
    except jax.errors.JaxRuntimeError as error:
        full = 'out of memory' in str(error).lower() or 'RESOURCE_EXHAUSTED' in str(error)
        raise Broken(
            f'a device {"is out of memory" if full else "or another process failed"}: {error}. '
            f'{_LESS if full else _KEPT}'
        ) from error
    except OSError as error:
        raise Broken(f'a file cannot be written or read: {error}. {_KEPT}') from error


def join() -> None:
    """Joins the other processes of the run, as JAX finds them in the environment."""
    import jax

    try:
        jax.distributed.initialize(
            _COORDINATOR.value,
            _PROCESSES.value,
            _PROCESS.value,
            heartbeat_timeout_seconds=30,  # after which the others end where one has died
        )
    except (RuntimeError, ValueError) as error:
        fail(
            BadInput(
                f'the other processes cannot be joined: {str(error).rstrip(".")}. Outside SLURM, '
                'Open MPI, Kubernetes and Cloud TPU set --coordinator=HOST:PORT --processes=N '
                '--process=NUMBER'
            )
        )


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; the config's own errors end the run as bad input, without a traceback."""
    try:
        left = flags.FLAGS(argv)
        _ = _CONFIG.value.seed  # which raises where its file could not be read
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        text = str(error)
        with contextlib.suppress(SyntaxError, ValueError):
            text = str(ast.literal_eval(text))  # that of a KeyError is quoted
        fail(BadInput(text))
    of_several = (_COORDINATOR, _PROCESSES, _PROCESS)
    if not _DISTRIBUTED.value and any(flag.value is not None for flag in of_several):
        fail(BadInput('--coordinator, --processes and --process need --distributed'))
    if left[1:]:
        fail(BadInput(f'unexpected arguments: {" ".join(left[1:])}'))
    return left


def fail(error: RunError) -> None:
    """Ends the program with the message and the exit code of an error."""
    print(f'{type(error).__name__}: {error}', file=sys.stderr, flush=True)
    if isinstance(error, Broken):
        os._exit(error.exit_code)  # an orderly end would wait for processes that are gone
    sys.exit(error.exit_code)


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    app.run(main, flags_parser=parse)
