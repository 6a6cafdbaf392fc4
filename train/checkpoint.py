"""Checkpoints through orbax: the state of training and the rows of results so far."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    progress: Any,
) -> None:
    """Saves a state in the background, which may then be donated.

    Args:
      store: what `open_store` returned.
      step: of the whole run.
      state: a tree of arrays.
      progress: what else the run needs to go on from here, as JSON has it.

    Raises:
      Broken: it, or the one before, cannot be written; the folder has gone.
    """
    if not Path(store.directory).is_dir():
        raise Broken(f'{store.directory} has disappeared, with all that was saved there')
    args = ocp.args.Composite(state=ocp.args.StandardSave(state))
    with _told(store):  # an item of its own for the progress would be saved by threads of its own
        store.save(step, args=args, custom_metadata=integrity.sealed([step, progress]))


def finish(store: ocp.CheckpointManager) -> None:
    """Waits until all that was saved is on the disk.

    Raises:
      Broken: it cannot be written.
    """
    with _told(store):
        store.wait_until_finished()


def newest_whole(
    store: ocp.CheckpointManager, needed: Callable[[int], set[int]]
) -> tuple[int, list[str]]:
    """Finds the checkpoint to go on from, and removes those that are damaged or come after it.

    Args:
      store: what `open_store` returned.
      needed: tells which steps, up to one, are restored by what comes after that one.

    Returns:
      The newest step that is whole, as all that are needed after it are, 0 where there is no
      checkpoint; and, in words, what is wrong with others and what comes of it.

    Raises:
      BadInput: there are checkpoints and none can be gone on from; nothing was removed.
    """
    found = None
    with processes.together():
        if processes.writes():  # one reads them all, and the others go by what it finds
            found = _judged(store, needed)
    done, said, useless = json.loads(processes.of_writer(json.dumps(found).encode()))
    for step in useless:
        store.delete(step)
    return done, said


def _judged(
    store: ocp.CheckpointManager, needed: Callable[[int], set[int]]
) -> tuple[int, list[str], list[int]]:
    """Does the same but for removing; returns also the steps that are to be removed."""
    steps = sorted(store.all_steps())
    wrong = {step: text for step in steps if (text := _damage(store, step))}
    whole = [step for step in steps if step not in wrong]
    lacking = {step: needed(step) - set(whole) for step in whole}
    done = max((step for step in whole if not lacking[step]), default=0)
    later = [step for step in whole if step > done]
    missed = sorted(lacking[later[-1]]) if later else []
    gone = [step for step in missed if step not in wrong]
    said = [*wrong.values(), *(f'{store.directory}/{step} is missing' for step in gone)]
    why = f'; what is still to do restores {_listed(missed)}' if missed else ''
    if steps and not done:
        more = f'; and {len(said) - 3} more' if len(said) > 3 else ''
        raise BadInput(
            f'no checkpoint can be gone on from: {"; ".join(said[:3])}{more}{why}. Put the files '
            'back, or choose another workdir to begin anew; nothing was touched, and '
            f'{len(whole)} of {len(steps)} checkpoints are whole'
        )
    if later:
        said[-1] += f'{why}, so that {_listed(later)}, which are whole, are made again'
    return done, said, [step for step in steps if step in wrong or step > done]


def _listed(steps: Sequence[int]) -> str:
    return ('step ' if len(steps) == 1 else 'steps ') + ', '.join(map(str, steps))


def _damage(store: ocp.CheckpointManager, step: int) -> str | None:
    """Says what is wrong with the files of a checkpoint or with its progress."""
    if found := integrity.damage(Path(store.directory) / str(step)):
        return found
    try:
        restore_progress(store, step)
    except ValueError as error:
        return f'the progress in {store.directory}/{step} {error}'
    return None


def restore(store: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """Restores the state of a step, laid out as `like`, a tree of shapes with shardings."""
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    with _told(store):
        store.wait_until_finished()
        return store.restore(step, args=args).state


def restore_progress(store: ocp.CheckpointManager, step: int) -> Any:
    """Restores the progress that was saved with a step; `ValueError` where it is damaged."""
    own, progress = integrity.unsealed(store.metadata(step).custom_metadata)
    if own != step:
        raise ValueError(f'is that of step {own}')
    return progress


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
