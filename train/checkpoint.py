"""Checkpoints through orbax: the state of training and the rows of results so far."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from train import integrity, processes
from train.errors import BadInput, Broken

_LATEST = 2


@contextlib.contextmanager
def open_store(directory: Path, keep: Iterable[int]) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints of a run, numbered by the steps of the whole run.

    Args:
      directory: made if it does not exist.
      keep: steps whose checkpoints stay; of the others only the latest do.

    Yields:
      The manager.

    Raises:
      Broken: at the end, where the last checkpoint cannot be written.
    """
    directory = directory.absolute()

    def seal() -> None:
        if processes.writes():
            integrity.seal(directory)

    options = ocp.CheckpointManagerOptions(
        async_options=ocp.AsyncOptions(post_finalization_callback=seal),
        preservation_policy=policies.AnyPreservationPolicy(
            [policies.LatestN(_LATEST), policies.CustomSteps(sorted(keep))]
        ),
    )
    handlers = {'state': ocp.StandardCheckpointHandler()}  # to read metadata without warnings
    store = ocp.CheckpointManager(directory, options=options, item_handlers=handlers)
    try:
        yield store
    finally:
        with _told(store):
            store.close()


def save(
    store: ocp.CheckpointManager,
    step: int,
    state: Any,
    rows: Sequence[dict[str, Any]],
    layers: Sequence[dict[str, Any]] = (),
) -> None:
    """Saves a state in the background, which may then be donated.

    Args:
      store: what `open_store` returned.
      step: of the whole run.
      state: a tree of arrays.
      rows: of results so far.
      layers: rows of the segment that ends at this step.

    Raises:
      Broken: it, or the one before, cannot be written; the folder has gone.
    """
    if not Path(store.directory).is_dir():
        raise Broken(f'{store.directory} has disappeared, with all that was saved there')
    progress = {'rows': list(rows), 'layers': list(layers)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state))
    with _told(store):  # an item of its own for the progress would be saved by threads of its own
        store.save(step, args=args, custom_metadata=progress)


def finish(store: ocp.CheckpointManager) -> None:
    """Waits until all that was saved is on the disk.

    Raises:
      Broken: it cannot be written.
    """
    with _told(store):
        store.wait_until_finished()


def newest_whole(store: ocp.CheckpointManager, needed: Iterable[int]) -> tuple[int, list[str]]:
    """Finds the checkpoint to go on from, and removes those that are damaged or come after it.

    Args:
      store: what `open_store` returned.
      needed: steps that what comes after them restores again, such as the ends of segments.

    Returns:
      The newest step that is whole, as all needed steps before it are, 0 where there is no
      checkpoint; and what is wrong with others.

    Raises:
      BadInput: there are checkpoints and none can be gone on from; nothing was removed.
    """
    folder, kept, done = Path(store.directory), set(needed), 0
    wrong = {step: integrity.damage(folder / str(step)) for step in sorted(store.all_steps())}
    found = [text for text in wrong.values() if text]
    for step in sorted(kept | wrong.keys()):
        if step in wrong and wrong[step] is None:
            done = step
        elif step in kept:
            break
    if wrong and not done:
        others = f' (and {len(found) - 1} more)' if len(found) > 1 else ''
        raise BadInput(
            f'no checkpoint of {store.directory} is whole: {found[0]}{others}. Put the files back, '
            'or choose another workdir to begin anew; nothing was touched'
        )
    for step, text in wrong.items():
        if text or step > done:
            store.delete(step)
    return done, found


def restore(store: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """Restores the state of a step, laid out as `like`, a tree of shapes with shardings."""
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    with _told(store):
        store.wait_until_finished()
        return store.restore(step, args=args).state


def restore_rows(store: ocp.CheckpointManager, step: int) -> list[dict[str, Any]]:
    """Restores the rows of results up to a step."""
    return _progress(store, step)['rows']


def restore_layers(store: ocp.CheckpointManager, step: int) -> list[dict[str, Any]]:
    """Restores the layers of the segment that ends at a step."""
    return _progress(store, step)['layers']


def _progress(store: ocp.CheckpointManager, step: int) -> Any:
    found = store.metadata(step).custom_metadata
    if not found or 'rows' not in found:
        raise BadInput(
            f'checkpoint {step} of {store.directory} was written by another version: choose '
            'another workdir; nothing was touched'
        )
    return found


@contextlib.contextmanager
def _told(store: ocp.CheckpointManager) -> Iterator[None]:
    """Says in plain words that a checkpoint cannot be written or read."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise Broken(
            f'a checkpoint of {store.directory} cannot be written or read: {error}. Those that are '
            'whole stay: the same command goes on from the newest'
        ) from error
