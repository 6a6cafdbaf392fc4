"""Progress on a terminal, in a notebook, and in a log file."""

import contextlib
import time
from collections.abc import Iterator
from importlib.util import find_spec

import rich.console
import rich.progress

from train import processes

_SECONDS_BETWEEN_LINES = 60.0


class Display:
    """A live bar where one can be drawn; elsewhere a line a level, and one a minute."""

    def __init__(self, bar: rich.progress.Progress, total: int, done: int) -> None:
        """Starts at `done` of `total` steps of the whole run."""
        self._bar = bar
        self._live = not bar.disable
        self._task = bar.add_task('starting', total=total, completed=done, loss='', left='')
        self._total, self._first, self._done = total, done, done
        self._began: float | None = None  # at the first steps, so that compiling is not counted
        self._last_line = time.monotonic()

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._last_line = time.monotonic()

    def advance(self, done: int, doing: str, loss: float) -> None:
        """Shows that `done` steps of the whole run are taken.

        Args:
          done: steps of the whole run.
          doing: what is being trained, and how far it is.
          loss: the latest, in nats.
        """
        if self._began is None:
            self._began, self._first = time.monotonic(), done
        self._done = done
        self._bar.update(
            self._task,
            completed=done,
            description=doing,
            loss=f'loss {loss:.4f}',
            left=self.time_left(),
        )
        if not self._live and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self.say(f'{doing}  loss {loss:.4f}  {self.time_left()}')

    def time_left(self) -> str:
        """Tells the share done, and the time left at the speed since the start."""
        steps = self._done - self._first
        share = f'{self._done / self._total:4.0%} of the run'
        if self._began is None or steps == 0:
            return share
        left = (time.monotonic() - self._began) / steps * (self._total - self._done)
        return f'{share}, {left / 60:.0f} min left' if left > 90 else f'{share}, {left:.0f} s left'


@contextlib.contextmanager
def display(total: int, done: int) -> Iterator[Display]:
    """Shows progress while the block runs.

    Args:
      total: steps of the whole run.
      done: steps already taken when a run is resumed.

    Yields:
      The display.
    """
    console = rich.console.Console(quiet=not processes.writes())
    live = console.is_terminal or (console.is_jupyter and find_spec('ipywidgets') is not None)
    bar = rich.progress.Progress(
        rich.progress.TextColumn('{task.description}'),
        rich.progress.BarColumn(),
        rich.progress.TextColumn('{task.fields[loss]}'),
        rich.progress.TextColumn('{task.fields[left]}'),
        console=console,
        disable=not live,
    )
    with bar:
        yield Display(bar, total, done)
