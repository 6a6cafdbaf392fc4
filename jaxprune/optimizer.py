"""An optax wrapper that keeps pruned weights at exactly zero, whatever the optimizer does."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune import packing, tree
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
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that each update lands pruned weights on exactly 0.

    With mask m, gradient g and weight w, the inner optimizer is given m ? g : 0 and its update u
    becomes m ? u : -w, so that w + u is 0 where m is False: under momentum, Adam, weight decay and
    noise, and also when w was not 0 before. A NaN gradient of a pruned weight does no harm; a
    pruned weight that is itself NaN or infinite is healed by `masks.apply`, as no added update can.
    It goes outermost: what is chained after it, or accumulates steps around it, moves weights too.
    Where an optimizer evaluates other weights than it trains, as
    `optax.contrib.schedule_free_eval_params` does, pruned ones return: `masks.apply` them.

    Args:
      inner: any optax optimizer; extra arguments of `update` go through to it.
      masks: booleans like the parameters, `None` where not prunable; all True by default.
      where: which leaves are prunable, by path and leaf, when `masks` are not given.
      packed: whether the state holds masks at one bit a weight, an eighth of the memory; on CPU
        the step is faster too. Masks given packed stay so.

    Returns:
      An optimizer with `PrunedState`. Updates have the dtype that the inner optimizer gave them,
      promoted with the parameter's where they differ, so that they cancel it exactly.

    Raises:
      ValueError: `inner` is no optimizer; at `init`, masks unlike the parameters, or nothing
        prunable; at `update`, no `params`.
    """
    inner = extended(inner)
    packed = packed or packing.is_packed(masks)

    def init(params: Params) -> PrunedState:
        if masks is None:
            first = tree.map_prunable(lambda _, w: jnp.ones_like(w, bool), params, where=where)
        else:
            first = _restrict(packing.unpack(masks), params)
        return PrunedState(packing.pack(first) if packed else first, inner.init(params))

    def update(
        updates: Any, state: PrunedState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Any, PrunedState]:
        if params is None:
            raise ValueError('pruned needs the parameters: call tx.update(grads, state, params)')
        masks = packing.unpack(state.masks, params)
        updates = tree.map_masked(_mask_gradient, _of_gradients(masks), updates)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        updates = tree.map_masked(_land_on_zero, masks, updates, params)
        return updates, PrunedState(state.masks, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def extended(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer take extra arguments; raises `ValueError` unless it is one."""
    if not all(callable(getattr(inner, method, None)) for method in ('init', 'update')):
        raise ValueError(
            f'expected an optax optimizer to wrap, with init and update, got {inner!r}: give one '
            'that is made, such as optax.sgd(0.1)'
        )
    return optax.with_extra_args_support(inner)


def get_masks(opt_state: optax.OptState) -> Masks:
    """Finds the masks in an optimizer state, at any depth.

    Args:
      opt_state: state that holds a `PrunedState`, however it is chained or wrapped; or several,
        where `optax.multi_transform` gives them different leaves.

    Returns:
      The tree of masks, unpacked; `None` also for what `optax.masked` hides from the optimizer.

    Raises:
      ValueError: there is no `PrunedState` in the state; two have masks for one leaf.
    """
    first, *others = [packing.unpack(state.masks) for state in _find(opt_state)]
    merged = functools.reduce(_merge, others, first)
    return jax.tree.map(lambda m: None if _is_hidden(m) else m, merged, is_leaf=_is_hidden)


def set_masks(opt_state: optax.OptState, masks: Masks) -> optax.OptState:
    """Replaces the masks in an optimizer state, at any depth.

    The weights themselves land on zero at the next update; `masks.apply` does it at once.

    Args:
      opt_state: state that holds a `PrunedState`, or several for different leaves.
      masks: booleans of the structure and shapes of the masks there, packed or not.

    Returns:
      The same state with the new masks, packed where the old ones are; the same shapes, so nothing
      compiles again.

    Raises:
      ValueError: no `PrunedState`; masks of another structure, shape or dtype.
    """
    old, masks = get_masks(opt_state), packing.unpack(masks)
    tree.check_boolean(masks)
    tree.check_like(masks, old, like='the masks in the state')
    masks = tree.in_structure_of(masks, old)
    for (path, new), (_, mask) in zip(
        tree.named_leaves(masks), tree.named_leaves(old), strict=True
    ):
        if (new is None) != (mask is None):
            found, expected = ('None' if m is None else 'bool' for m in (new, mask))
            raise ValueError(
                f'masks are {found} at {path!r}, where the state has {expected}: '
                'give scores and pruned the same where'
            )
    given = dict(tree.named_leaves(masks))

    def replace(node: Any) -> Any:
        if not _is_pruned(node):
            return node
        own = packing.unpack(node.masks)
        own = jax.tree.map_with_path(
            lambda path, m: m if m is None else given[tree.path_name(path)],
            own,
            is_leaf=tree.is_none,
        )
        return node._replace(masks=packing.pack_like(own, node.masks))

    return jax.tree.map(replace, opt_state, is_leaf=_is_pruned)


def _of_gradients(masks: Masks) -> Masks:
    """The masks of what gradients are taken of: of `optax.lookahead`'s two copies, the fast one."""
    return masks.fast if isinstance(masks, optax.LookaheadParams) else masks


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


def _is_hidden(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _find(opt_state: optax.OptState) -> list[PrunedState]:
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_pruned)
    found = [node for node in nodes if _is_pruned(node)]
    inside = [
        node for state in found for node in jax.tree.leaves(state.inner_state, is_leaf=_is_pruned)
    ]
    if not found or any(map(_is_pruned, inside)):
        raise ValueError(
            'expected one PrunedState in the optimizer state, found '
            f'{"none" if not found else "one inside another"}: wrap the optimizer once, '
            'jaxprune.pruned(inner), before its init'
        )
    return found


def _merge(masks: Masks, other: Masks) -> Masks:
    """Puts masks of different leaves together, each of which hides those of the other."""
    hidden = {path for path, leaf in _with_paths(other) if _is_hidden(leaf)}

    def choose(path: Any, mine: Any, its: Any) -> Any:
        if _is_hidden(mine):
            return its
        if _is_hidden(its):
            return mine
        raise ValueError(
            'expected one PrunedState in the optimizer state, found two with masks for '
            f'{tree.path_name(path)!r}: wrap the optimizer once, jaxprune.pruned(inner), before '
            'its init'
        )

    return jax.tree.map_with_path(
        choose,
        masks,
        other,
        is_leaf=lambda path, node: node is None or _is_hidden(node) or path in hidden,
        is_leaf_takes_path=True,
    )


def _with_paths(masks: Masks) -> list[tuple[Any, Any]]:
    return jax.tree.leaves_with_path(masks, is_leaf=lambda m: m is None or _is_hidden(m))


def _restrict(masks: Masks, params: Params) -> Masks:
    """Masks like the parameters, of which `optax.masked` may hide some."""
    hidden = [tree.path_name(path) for path, leaf in _with_paths(params) if _is_hidden(leaf)]
    under = lambda path: any(path == h or path.startswith(f'{h}/') for h in hidden)
    shown = {path: mask for path, mask in tree.named_leaves(masks) if not under(path)}
    tree.check_masks(shown, params)
    shown = {path: m if m is None else jnp.asarray(m) for path, m in shown.items()}
    return tree.in_structure_of(shown, params)
