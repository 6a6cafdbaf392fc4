"""Checksums of checkpoints: what was truncated, flipped or lost is found before it is used.

Those of files lie in a file beside them. Metadata are rewritten when a checkpoint is committed, so
that what a run puts there carries its own.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

_SUMS = 'checksums.json'
_UNFINISHED = '*.orbax-checkpoint-tmp*'
_REWRITTEN = ('_CHECKPOINT_METADATA', 'commit_success.txt', _SUMS)  # when a checkpoint is committed


def seal(directory: Path) -> None:
    """Writes the SHA-256 of each file into the checkpoint that is about to be committed.

    Args:
      directory: of all checkpoints.
    """
    for unfinished in directory.glob(_UNFINISHED):
        sums = {str(path.relative_to(unfinished)): _sum(path) for path in _files(unfinished)}
        (unfinished / _SUMS).write_text(json.dumps(sums, indent=1, sort_keys=True))


def damage(checkpoint: Path) -> str | None:
    """Finds what is wrong with a committed checkpoint.

    Args:
      checkpoint: the directory of one.

    Returns:
      The first file that is missing, or not as it was written; `None` where all are whole.
    """
    try:
        sums = json.loads((checkpoint / _SUMS).read_text())
        for name, expected in sums.items():
            path = checkpoint / name
            if not path.is_file():
                return f'{path} is missing'
            if _sum(path) != expected:
                return f'{path} is not as it was written'
    except (OSError, ValueError, AttributeError) as error:
        return f'{checkpoint / _SUMS} cannot be read: {error}'
    return None


def sealed(value: Any) -> dict[str, str]:
    """Writes a value as JSON, with the SHA-256 of the text beside it."""
    text = json.dumps(value)
    return {'text': text, 'sha256': hashlib.sha256(text.encode()).hexdigest()}


def unsealed(found: Any) -> Any:
    """Takes the value out of what `sealed` made.

    Raises:
      ValueError: it is not as it was sealed, or not there.
    """
    whole = isinstance(found, dict) and found.keys() == {'text', 'sha256'}
    if not whole or not isinstance(found['text'], str):
        raise ValueError('is missing, or of another version')
    if hashlib.sha256(found['text'].encode()).hexdigest() != found['sha256']:
        raise ValueError('is not as it was written')
    return json.loads(found['text'])


def _files(directory: Path) -> list[Path]:
    found = (path for path in sorted(directory.rglob('*')) if path.is_file())
    return [path for path in found if path.name not in _REWRITTEN]


def _sum(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
