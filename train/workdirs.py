"""The folder of a run: it belongs to one config."""

import os
from pathlib import Path

import ml_collections

from train import config as config_lib
from train import results
from train.errors import BadInput

_CONFIG = 'config.json'


def check(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Raises `BadInput` where a run of another config is, or nothing can be written."""
    existing = workdir.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f'cannot write to {workdir}: {existing} is not a folder one can write to')
    path = workdir / _CONFIG
    if path.exists():
        differences = config_lib.difference(path.read_text(), config_lib.to_json(config))
        if differences:
            raise BadInput(
                f'{workdir} holds a run of another config; nothing was touched. Choose another '
                'workdir, or set these fields back:\n  ' + '\n  '.join(differences)
            )
    elif (workdir / 'checkpoints').exists():
        raise BadInput(f'{workdir} holds checkpoints but no {_CONFIG}: choose another workdir')


def claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes the folder and writes the config into it, or raises `BadInput`."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        results.write_whole(workdir / _CONFIG, config_lib.to_json(config).encode())
    except OSError as error:
        raise BadInput(f'cannot write to {workdir}: {error}') from error
