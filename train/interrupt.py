"""Ctrl-C and SIGTERM: asked once, a run saves and stops; asked twice, it stops at once."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def requested() -> Iterator[Callable[[], int | None]]:
    """Catches the signals that ask to stop, while the block runs on the main thread.

    Yields:
      A function that returns the number of the signal that came, or `None`.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        del frame
        if received:
            os._exit(128 + number)
        received.append(number)

    before = {each: signal.signal(each, receive) for each in _SIGNALS}
    try:
        yield lambda: received[0] if received else None
    finally:
        for each in _SIGNALS:
            signal.signal(each, before[each])
