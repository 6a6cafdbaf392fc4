"""The folder of a run: it belongs to one config."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import ml_collections

from train import config as config_lib
from train import processes, results
from train.errors import BadInput

_CONFIG, _LOCK = 'config.json', '.lock'
_VISIBLE = 60.0
"""Seconds after which a file system of several machines shows each what another wrote."""
_FOLDERS = ('checkpoints', 'models')
_WRITTEN = (
    *_FOLDERS,
    _CONFIG,
    'results.csv',
    'layers.csv',
    'timings.csv',
    'run.json',
    'report.html',
    'report.md',
)


def check(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Raises `BadInput` where a run of another config is, or nothing can be written."""
    name = str(workdir)
    if name in ('', '.') or any(part in name for part in ('[', '\\', ':/')):
        raise BadInput(
            f'the workdir is {name!r}: name a folder of its own on a mounted file system, without '
            'brackets, backslashes or a scheme such as gs://, which the checkpoints cannot have in '
            'a path'
        )
    existing = workdir.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
    except OSError as error:  # a name that is too long
        raise BadInput(f'cannot write to {workdir}: {error}') from error
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f'cannot write to {workdir}: {existing} is not a folder one can write to')
    path = workdir / _CONFIG
    if path.exists():
        try:
            differences = config_lib.difference(path.read_text(), config_lib.to_json(config))
        except (OSError, ValueError) as error:  # no JSON, or no text
            raise BadInput(f'{path} cannot be read: {error}') from error
        if differences:
            raise BadInput(
                f'{workdir} holds a run of another config; nothing was touched. Choose another '
                'workdir, or set these fields back:\n  ' + '\n  '.join(differences)
            )
    elif found := [name for name in _WRITTEN if (workdir / name).exists()]:
        raise BadInput(f'{workdir} holds {found[0]} but no {_CONFIG}: choose another workdir')
    for name in _WRITTEN:
        path = workdir / name
        if path.exists() and path.is_dir() != (name in _FOLDERS):
            kind = 'folder' if name in _FOLDERS else 'file'
            raise BadInput(f'{path} is no {kind}: choose another workdir, or move it away')
    results.check_timings(workdir)


@contextlib.contextmanager
def claim(workdir: Path, config: ml_collections.ConfigDict) -> Iterator[None]:
    """Makes the folder, writes the config into it, and keeps other runs out while the block runs.

    Raises:
      BadInput: it cannot be written, another run is in it, or processes have different ones.
    """
    with contextlib.ExitStack() as stack:
        token = processes.of_writer(secrets.token_bytes(16)).hex()
        with processes.together():
            if processes.writes():
                lock = stack.enter_context(_lock(workdir))
                lock.truncate(0)
                lock.write(token)
                lock.flush()
        with processes.together():
            if not _finds(workdir / _LOCK, token):
                raise BadInput(
                    f'{workdir} of this process is not the workdir of process 0: they need one '
                    'that they share, on a file system that all machines see'
                )
        results.write_whole(workdir / _CONFIG, config_lib.to_json(config).encode())
        yield


def _lock(workdir: Path) -> TextIO:
    """Makes the folder and locks it until the file is closed, or the process ends."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / _LOCK).open('a')
    except OSError as error:
        raise BadInput(f'cannot write to {workdir}: {error}') from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise BadInput(f'another run is in {workdir}: wait for its end, or stop it') from error
    return lock


def _finds(path: Path, content: str) -> bool:
    """Waits until a file is there with its content, or it will not be."""
    last = time.monotonic() + _VISIBLE
    while not (path.is_file() and path.read_text() == content):
        if time.monotonic() > last:
            return False
        time.sleep(0.1)
    return True
