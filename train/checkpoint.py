"""Checkpoints through orbax: the state of training and the rows of results so far."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

_LATEST = 2


def open_store(directory: Path, keep: Iterable[int]) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run, numbered by the steps of the whole run.

    Args:
      directory: made if it does not exist.
      keep: steps whose checkpoints stay; of the others only the latest do.

    Returns:
      The manager; close it, or use it in a `with`.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(
            [policies.LatestN(_LATEST), policies.CustomSteps(sorted(keep))]
        )
    )
    return ocp.CheckpointManager(directory.absolute(), options=options)


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
    """
    progress = {'rows': list(rows), 'layers': list(layers)}
    store.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
        ),
    )


def restore(store: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """Restores the state of a step, laid out as `like`, a tree of shapes with shardings."""
    store.wait_until_finished()
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
    return store.restore(step, args=args).state


def restore_rows(store: ocp.CheckpointManager, step: int) -> list[dict[str, Any]]:
    """Restores the rows of results up to a step."""
    return _progress(store, step)['rows']


def restore_layers(store: ocp.CheckpointManager, step: int) -> list[dict[str, Any]]:
    """Restores the layers of the segment that ends at a step."""
    return _progress(store, step)['layers']


def _progress(store: ocp.CheckpointManager, step: int) -> Any:
    args = ocp.args.Composite(progress=ocp.args.JsonRestore())
    return store.restore(step, args=args).progress
