"""The source text of Python's standard library, by characters, as a TFDS builder."""

import hashlib
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

NEWLINE, OTHER, VOCABULARY = 0, 96, 97
"""Ids: 0 is a newline, 1 to 95 are ASCII's space to tilde, 96 is any other character."""

_CHARACTERS = 2_000_000
_LENGTHS = (64, 128)
_LEFT_OUT = frozenset(
    {
        *('test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__'),
        *('encodings', 'pydoc_data'),  # tables that a program wrote
    }
)
_CITATION = """@misc{python,
  author = {{Python Software Foundation}},
  title = {The Python Standard Library},
  howpublished = {https://github.com/python/cpython},
}"""


class StdlibText(tfds.core.GeneratorBasedBuilder):
    """About 2 million characters of the standard library of the Python that prepares it.

    Which files, and which split a file goes to, follow from the SHA-256 of its path: about 80 % of
    the text is for training, 10 % for validation and 10 % for the test, and no file is in two
    splits. Tests, installed packages, `encodings` and `pydoc_data` (tables that programs wrote) are
    left out. A file is cut into chunks of 64 or 128 characters, whose targets are the characters
    that follow each; what is left at its end is dropped. Ids are those of `encode`.

    The text depends on Python's version, which is therefore part of the configuration's name:
    `stdlib_text/py3.11.7_64`, say. `stdlib_text` alone is this Python's with chunks of 64. Prepare
    it with `file_format='array_record'`.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First release.'}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(
            name=f'py{platform.python_version()}_{length}',
            description=f"Python {platform.python_version()}'s library, {length} characters each.",
        )
        for length in _LENGTHS
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        chunk = tfds.features.Tensor(shape=(self._length,), dtype=np.uint8)
        return tfds.core.DatasetInfo(
            builder=self,
            description="The source text of Python's standard library, by characters.",
            features=tfds.features.FeaturesDict({'text': chunk, 'next': chunk}),
            supervised_keys=('text', 'next'),
            metadata=tfds.core.MetadataDict(num_classes=VOCABULARY),
            homepage='https://docs.python.org/3/library/',
            citation=_CITATION,
            disable_shuffling=True,
        )

    @property
    def _length(self) -> int:
        return dict(zip((c.name for c in self.BUILDER_CONFIGS), _LENGTHS, strict=True))[
            self.builder_config.name
        ]

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        texts = choose(standard_library(), _CHARACTERS)
        return {
            split: self._generate_examples(
                [t for path, t in texts.items() if split_of(path) == split]
            )
            for split in ('train', 'validation', 'test')
        }

    def _generate_examples(self, texts: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for ids in map(encode, texts):
            for start in range(0, len(ids) - self._length, self._length):
                chunk = ids[start : start + self._length + 1]
                yield number, {'text': chunk[:-1], 'next': chunk[1:]}
                number += 1


def standard_library() -> Path:
    """Finds the directory of this Python's standard library."""
    return Path(sysconfig.get_path('stdlib'))


def choose(root: Path, characters: int) -> dict[str, str]:
    """Reads files of a library, in the order of their hashes, until there are enough characters.

    Args:
      root: directory of the library.
      characters: to reach; all files together may have fewer.

    Returns:
      Texts by path relative to `root`, with '/' between its parts.
    """
    texts: dict[str, str] = {}
    left = characters
    for path in sorted(_sources(root), key=_digest):
        if left <= 0:
            break
        with tokenize.open(root / path) as file:  # in the encoding that the file declares
            texts[path] = text = file.read()
        left -= len(text)
    return texts


def split_of(path: str) -> str:
    """Finds the split of a file: 80 % of the paths go to 'train', 10 % each to the others."""
    share = int(_digest(path)[32:], 16) / 16**32  # the other half gives the order
    return 'train' if share < 0.8 else 'validation' if share < 0.9 else 'test'


def encode(text: str) -> np.ndarray:
    """Writes text as ids, (characters,) uint8: newline 0, space to tilde 1 to 95, others 96."""
    points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
    printable = (points >= 32) & (points < 127)
    ids = np.where(printable, points - 31, OTHER)
    return np.where(points == 10, NEWLINE, ids).astype(np.uint8)


def decode(ids: np.ndarray) -> str:
    """Writes ids as text; 96, any other character, becomes U+FFFD."""
    characters = ['\n', *map(chr, range(32, 127)), '\ufffd']
    return ''.join(characters[i] for i in ids)


def _sources(root: Path) -> Iterator[str]:
    """Lists the Python files below a directory that people wrote, relative to it."""
    for directory, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT and _is_written(name)]
        for name in filter(_is_written, files):
            if name.endswith('.py'):
                yield (Path(directory) / name).relative_to(root).as_posix()


def _is_written(name: str) -> bool:
    return not name.startswith(('config-', '_sysconfigdata'))  # what building Python leaves


def _digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()
