"""The wrapper that every method of pruning during training is made with."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxprune import masks as masks_lib
from jaxprune import optimizer, packing, tree
from jaxprune.gradual.schedules import OfStep
from jaxprune.optimizer import PrunedState
from jaxprune.tree import Masks, Params

State = TypeVar('State')


class GradualState(NamedTuple):
    """State of a method that changes masks during training."""

    step: jax.Array
    """Updates so far: int32. It is not a counter of the learning rate: rewinding leaves it."""
    pruned: PrunedState
    """The masks, and the state of the wrapped optimizer: `get_masks` and `set_masks` find it."""
    memory: Any
    """What the method remembers: a sum of scores, the data of a random key, or nothing."""


class Now(NamedTuple):
    """What a method may look at when its masks change."""

    step: jax.Array
    masks: Masks
    """The present masks, unpacked."""
    params: Params
    """Before this update; pruned weights are 0."""
    grads: Any
    """As given to `update`: those of pruned weights too."""
    memory: Any


class Method(NamedTuple):
    """How masks begin, when they change, and how."""

    first: Callable[[Params], Masks]
    """The masks to begin with."""
    due: OfStep
    """Whether the masks change at a step."""
    change: Callable[[Now], Masks]
    """The new masks, of the structure of the old ones; runs only when due."""
    regrows: bool = False
    """Whether pruned weights may return, so that their moments must begin afresh."""
    begin_memory: Callable[[Params, Masks], Any] = lambda params, masks: ()
    remember: Callable[[Now], Any] = lambda now: now.memory
    """The memory after this update's gradients; runs at every update."""


def change_masks(
    inner: optax.GradientTransformation, method: Method, *, packed: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that masks change while it trains.

    At a step that is due, the masks change first; then the inner optimizer takes its step under
    the new masks, as under `pruned`: pruned weights land on exactly 0. Weights that return are 0,
    and whatever the inner optimizer holds of their shape and path (momentum, moments, copies) is
    what its `init` would make of them now.

    Args:
      inner: any optax optimizer; extra arguments of `update` go through to it.
      method: how masks begin and change.
      packed: whether the state holds masks at one bit a weight.

    Returns:
      An optimizer with `GradualState`; `start` puts its first masks onto the parameters.

    Raises:
      ValueError: `inner` is no optimizer; at `init`, nothing prunable; at `update`, no `params`.
    """
    inner = optimizer.extended(inner)
    wrapped = optimizer.pruned(inner)

    def init(params: Params) -> GradualState:
        masks = method.first(params)
        memory = method.begin_memory(params, masks)
        held = packing.pack(masks) if packed else masks
        return GradualState(jnp.int32(0), PrunedState(held, inner.init(params)), memory)

    def update(
        updates: Any, state: GradualState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, GradualState]:
        if params is None:
            raise ValueError('masks need the parameters: call tx.update(grads, state, params)')
        held = state.pruned.masks
        now = Now(state.step, packing.unpack(held, params), params, updates, state.memory)
        now = now._replace(memory=method.remember(now))

        def change(state: PrunedState) -> PrunedState:
            masks = packing.unpack(state.masks, params)
            new = method.change(now._replace(masks=masks))
            if method.regrows:
                grown = tree.map_masked(_grown, new, masks)
                fresh = afresh(state.inner_state, inner.init(params), params, grown)
                state = state._replace(inner_state=fresh)
            return state._replace(masks=packing.pack_like(new, state.masks))

        due = method.due(state.step)
        if method.regrows:
            pruned_state = when(due, change, state.pruned)
        else:  # the inner state need not pass through
            masks = when(due, lambda masks: change(state.pruned._replace(masks=masks)).masks, held)
            pruned_state = state.pruned._replace(masks=masks)
        updates, pruned_state = wrapped.update(updates, pruned_state, params, **extra_args)
        step = optax.safe_increment(state.step)
        return updates, GradualState(step, pruned_state, now.memory)

    return optax.GradientTransformationExtraArgs(init, update)


def start(tx: optax.GradientTransformation, params: Params) -> tuple[Params, optax.OptState]:
    """Begins training with masked parameters.

    An optimizer cannot mask the parameters of the first forward pass, since they are not its own;
    this does, for methods that begin sparse (`static`, `rigl`, `sparse_evolution`).

    Args:
      tx: an optimizer that holds masks, at any depth.
      params: the parameters that training begins with.

    Returns:
      The parameters with pruned weights at 0, and the state of the optimizer.

    Raises:
      ValueError: the optimizer holds no masks.
    """
    opt_state = tx.init(params)
    return masks_lib.apply(params, optimizer.get_masks(opt_state)), opt_state


def when(due: jax.Array, change: Callable[[State], State], state: State) -> State:
    """Changes a state when due, and else leaves it where it lies in memory.

    As `lax.cond`, whose results are always copies; and under `vmap` the change runs only when it is
    due for some replicate, not always.
    """
    once = lambda carry: (carry[0] & False, change(carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0], once, (due, state))[1]


def afresh(state: optax.OptState, fresh: optax.OptState, params: Params, grown: Masks) -> Any:
    """Takes what belongs to weights that return from a fresh state.

    Args:
      state: of any optimizer. An array in it belongs to the parameter whose path ends its own and
        whose shape it has, wherever wrappers have put it; but what GaLore holds to none.
      fresh: the same optimizer's state for the parameters as they are now.
      params: the parameters.
      grown: booleans like the parameters, `True` where a weight returns.

    Returns:
      The state, with the fresh entries of those weights.
    """
    returning = dict(jax.tree.leaves_with_path(grown))
    shapes = {path: jnp.shape(w) for path, w in jax.tree.leaves_with_path(params)}

    # by path, since `optax.monitor` begins with fewer entries than it goes on with
    begun = dict(jax.tree.leaves_with_path(fresh))

    def visit(path: tuple[Any, ...], mine: Any) -> Any:
        if _is_projected(mine):
            return mine
        ends = (path[i:] for i in range(len(path) + 1))
        owner = next((end for end in ends if end in shapes), None)
        if owner not in returning or jnp.shape(mine) != shapes[owner]:
            return mine
        return jnp.where(returning[owner], begun[path], mine)

    return jax.tree.map_with_path(visit, state, is_leaf=_is_projected)


def _is_projected(node: Any) -> bool:
    """GaLore's moments are of projected gradients, even where they have the shape of a weight."""
    return isinstance(node, optax.contrib.GaLoreState)


def _grown(new: Any, old: Any) -> Any:
    return None if new is None else new & ~old
