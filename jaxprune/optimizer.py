"""An optax wrapper that keeps pruned weights at exactly zero, whatever the optimizer does."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import tree
from jaxprune.tree import Masks, Params, Predicate


class PrunedState(NamedTuple):
    """State of `pruned`: the masks, and the state of the wrapped optimizer."""

    masks: Masks
    inner_state: optax.OptState


def pruned(
    inner: optax.GradientTransformation,
    masks: Masks | None = None,
    *,
    where: Predicate = tree.prunable,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that each update lands pruned weights on exactly 0.

    With mask m, gradient g and weight w, the inner optimizer is given m ? g : 0 and its update u
    becomes m ? u : -w, so that w + u is 0 where m is False: under momentum, Adam, weight decay and
    noise, and also when w was not 0 before. A NaN gradient of a pruned weight does no harm; a
    pruned weight that is itself NaN or infinite is healed by `masks.apply`, as no added update can.
    It goes outermost: what is chained after it, or accumulates steps around it, moves weights too.

    Args:
      inner: any optax optimizer; extra arguments of `update` go through to it.
      masks: booleans like the parameters, `None` where not prunable; all True by default.
      where: which leaves are prunable, by path and leaf, when `masks` are not given.

    Returns:
      An optimizer with `PrunedState`. Updates have the dtype that the inner optimizer gave them,
      promoted with the parameter's where they differ, so that they cancel it exactly.

    Raises:
      ValueError: at `init`, masks unlike the parameters, or nothing prunable; at `update`,
        no `params`.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> PrunedState:
        if masks is None:
            first = tree.map_prunable(lambda _, w: jnp.ones_like(w, bool), params, where=where)
        else:
            tree.check_masks(masks, params)
            first = tree.in_structure_of(masks, params)
            first = tree.map_masked(lambda m: m if m is None else jnp.asarray(m), first)
        return PrunedState(first, inner.init(params))

    def update(
        updates: Any, state: PrunedState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, PrunedState]:
        if params is None:
            raise ValueError('pruned needs the parameters: call tx.update(grads, state, params)')
        updates = tree.map_masked(_mask_gradient, state.masks, updates)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        updates = tree.map_masked(_land_on_zero, state.masks, updates, params)
        return updates, PrunedState(state.masks, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def get_masks(opt_state: optax.OptState) -> Masks:
    """Finds the masks in an optimizer state, at any depth.

    Args:
      opt_state: state that holds one `PrunedState`, however it is chained or wrapped.

    Returns:
      The tree of masks.

    Raises:
      ValueError: there is no `PrunedState` in the state, or more than one.
    """
    return _find(opt_state).masks


def set_masks(opt_state: optax.OptState, masks: Masks) -> optax.OptState:
    """Replaces the masks in an optimizer state, at any depth.

    The weights themselves land on zero at the next update; `masks.apply` does it at once.

    Args:
      opt_state: state that holds one `PrunedState`.
      masks: booleans of the structure and shapes of the masks there.

    Returns:
      The same state with the new masks; the same shapes, so nothing compiles again.

    Raises:
      ValueError: no `PrunedState` or more than one; masks of another structure, shape or dtype.
    """
    old = _find(opt_state).masks
    tree.check_like(masks, old, like='the masks in the state')
    for (path, new), (_, mask) in zip(
        tree.named_leaves(masks), tree.named_leaves(old), strict=True
    ):
        if (new is None) != (mask is None) or (new is not None and new.dtype != bool):
            found = 'None' if new is None else new.dtype
            expected = 'None' if mask is None else 'bool'
            raise ValueError(
                f'masks are {found} at {path!r}, where the state has {expected}: '
                'give scores and pruned the same where'
            )
    masks = tree.in_structure_of(masks, old)
    return jax.tree.map(
        lambda node: node._replace(masks=masks) if _is_pruned(node) else node,
        opt_state,
        is_leaf=_is_pruned,
    )


def _mask_gradient(mask: Any, gradient: Any) -> Any:
    if mask is None or gradient is None:
        return gradient
    return _or_zero(mask, gradient)


def _or_zero(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Selects x where the mask is True, else 0, NaN or not: as `where`, which takes XLA on CPU
    twice the time (benchmarks/pruned_step.py), by and-ing the bits of floats.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.where(mask, x, jnp.zeros_like(x))
    integer = jnp.dtype(f'int{8 * x.dtype.itemsize}')
    bits = jax.lax.bitcast_convert_type(x, integer) & -mask.astype(integer)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def _land_on_zero(mask: Any, update: Any, weight: Any) -> Any:
    if mask is None or update is None:
        return update
    dtype = jnp.promote_types(update.dtype, weight.dtype)
    return jnp.where(mask, update.astype(dtype), -weight.astype(dtype))


def _is_pruned(node: Any) -> bool:
    return isinstance(node, PrunedState)


def _find(opt_state: optax.OptState) -> PrunedState:
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_pruned) if _is_pruned(node)]
    if len(found) != 1:
        raise ValueError(
            f'expected one PrunedState in the optimizer state, found {len(found)}: wrap the '
            'optimizer once, jaxprune.pruned(inner), before its init'
        )
    return found[0]
