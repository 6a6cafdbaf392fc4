"""Several processes that train one network together: one writes, and all agree."""

import collections
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.errors import BadInput

T = TypeVar('T')


def writes() -> bool:
    """Tells whether this process is the one that writes results and prints."""
    return jax.process_index() == 0


def agreed(number: int | None) -> int | None:
    """Takes the largest number that any process has, where any has one; all have to ask."""
    if jax.process_count() == 1:
        return number
    largest = int(multihost_utils.process_allgather(np.int32(number or 0)).max())
    return largest or None


def of_writer(content: bytes) -> bytes:
    """Takes the bytes of the process that writes; all have to ask, with bytes of their own."""
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    own = np.frombuffer(content[:size].ljust(size), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(own))


def one_first(function: Callable[[], T]) -> T:
    """Calls a function in the process that writes, and then in the others, which find its files."""
    if jax.process_count() == 1:
        return function()
    if writes():
        try:
            return function()
        finally:
            multihost_utils.sync_global_devices('one first')
    multihost_utils.sync_global_devices('one first')
    return function()


def check_devices() -> None:
    """Raises `BadInput` where the processes of a run have different numbers of devices."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        each = ', '.join(f'process {process} has {n}' for process, n in sorted(counts.items()))
        raise BadInput(f'all processes of a run need as many devices: {each}')


def check_same(what: str, own: Callable[[], Any]) -> None:
    """Raises `BadInput` in all processes where what a function returns is not the same in one."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(str(own()).encode()).digest()
    same = of_writer(digest) == digest
    with together():
        if not same:
            raise BadInput(f'the {what} of this process is not that of process 0')


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Fails in all processes, which all have to enter it, where the block has bad input in one."""
    own: Exception | None = None
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # another process has died: there is none to tell
    except (BadInput, OSError, RuntimeError, ValueError) as error:
        own = error
    failed = jax.process_count() > 1 and agreed(None if own is None else 1)
    if own is not None:
        raise own
    if failed:
        raise BadInput('another process of this run cannot begin: it says why')
