"""Removal: smaller arrays, and the function that runs on them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune import packing, tree
from jaxprune.structured import coupled, dims, rewrite, trace
from jaxprune.structured.coupled import Groups, Keep
from jaxprune.structured.trace import Block
from jaxprune.tree import Params


class Shrunk(NamedTuple):
    """A smaller network."""

    params: Params
    fn: Callable[..., Any]
    """The function of the smaller parameters, and the other arguments as before."""


def shrink(params: Params, groups: Groups, keep: Keep) -> Shrunk:
    """Removes units from parameters and from the function that runs them.

    What runs on the host; shapes change. The function is the program of `groups.fn` at the new
    widths: constants that were computed from a width, such as the 1 / C of a mean, stay.

    Args:
      params: pytree of arrays, as given to `groups`.
      groups: of the function.
      keep: which units of each group stay.

    Returns:
      The parameters that stay, in their order, and the function.

    Raises:
      ValueError: parameters of other shapes; a keep set that does not fit, see `check`.
    """
    check(groups, keep)
    return Shrunk(narrow(params, groups, keep), rewritten(groups.fn, groups, keep))


def check(groups: Groups, keep: Keep) -> None:
    """Raises `ValueError` at the first group that is unknown, of another size, or left empty."""
    for name, mask in keep.items():
        group = groups[name] if name in _names(groups) else _raise_unknown(groups, name)
        given = np.asarray(mask)
        if given.dtype != bool or given.shape != (group.size,):
            raise ValueError(
                f'keep[{name!r}] is {given.dtype} of shape {given.shape}, expected booleans '
                f'({group.size},): True where the unit stays'
            )
        if not given.any():
            raise ValueError(
                f'keep[{name!r}] removes all {group.size} units, and with them what the function '
                'computes: keep one at least'
            )


def axis_masks(groups: Groups, keep: Keep) -> dict[tuple[str, int], np.ndarray]:
    """Tells which positions along each axis that is cut stay, by path and axis."""
    masks: dict[tuple[str, int], np.ndarray] = {}
    for group in groups.groups:
        own = np.asarray(keep.get(group.name, np.ones(group.size, bool)))
        for cut in group.slices:
            stays = np.where(cut.index < 0, True, own[cut.index])
            at = cut.path, cut.axis
            masks[at] = masks[at] & stays if at in masks else stays
    return masks


def narrow(state: Any, groups: Groups, keep: Keep, *, under: str = '') -> Any:
    """Removes units from any tree that holds trees like the parameters: moments, masks, averages.

    Runs on the host. A leaf is cut where its path ends with that of a parameter and its shape is
    that parameter's; packed masks are unpacked and packed again.

    Args:
      state: any pytree, such as the parameters themselves or the state of an optimizer of them.
      groups: of the function.
      keep: which units of each group stay.
      under: the branch of the parameters that `state` is about, as `'params'` where the optimizer
        was given `variables['params']` and the groups were found for `variables`.

    Returns:
      The tree with smaller leaves.

    Raises:
      ValueError: a keep set that does not fit; a leaf named like a parameter with axes of other
        sizes, as in factored moments, which must be made afresh.
    """
    check(groups, keep)
    masks = axis_masks(groups, keep)
    prefix = f'{under}/' if under else ''
    shapes = {
        path.removeprefix(prefix): leaf.shape
        for path, leaf in tree.present(groups.params)
        if path.startswith(prefix)
    }
    if not shapes:
        raise ValueError(f'under={under!r} is no branch of the parameters')
    is_packed = lambda x: isinstance(x, packing.Packed)

    def visit(key_path: Any, leaf: Any) -> Any:
        path = _ending(tree.path_name(key_path), shapes)
        if path is None:
            return leaf
        if is_packed(leaf):
            return packing.pack(visit(key_path, packing.unpack(leaf)))
        cut = {axis: mask for (own, axis), mask in masks.items() if own == prefix + path}
        if not any(not mask.all() for mask in cut.values()) or np.size(leaf) <= 1:
            return leaf
        if np.shape(leaf) != shapes[path]:
            raise ValueError(
                f'leaf {tree.path_name(key_path)!r} has shape {np.shape(leaf)} where the parameter '
                f'has {shapes[path]}, so it cannot be cut: make this state afresh'
            )
        array = np.asarray(leaf)
        for axis, mask in cut.items():
            array = np.compress(mask, array, axis=axis)
        return jax.numpy.asarray(array)

    return jax.tree_util.tree_map_with_path(visit, state, is_leaf=is_packed)


def rewritten(fn: Callable[..., Any], groups: Groups, keep: Keep) -> Callable[..., Any]:
    """Makes the function that runs on smaller parameters, of any function of the larger ones.

    Such as the loss in training mode, where `groups` were found in evaluation mode. The program is
    traced again for each shape of the other arguments.

    Args:
      fn: a function of the parameters, and other arguments.
      groups: of the same parameters.
      keep: which units of each group stay.

    Returns:
      A pure function of parameters that `shrink` returned, for jit, grad and vmap. It raises
      `ValueError` where the parameters have other shapes, or where units that go together in this
      function do not in `keep`.
    """
    check(groups, keep)
    masks = axis_masks(groups, keep)
    whole = tree.present(groups.params)
    expected = {
        path: tuple(
            int(masks[path, axis].sum()) if (path, axis) in masks else size
            for axis, size in enumerate(leaf.shape)
        )
        for path, leaf in whole
    }
    known: dict[Any, tuple[Block, rewrite.MaskOf, Any]] = {}

    def smaller(params: Params, *args: Any) -> Any:
        leaves = dict(tree.present(params))
        for path, shape in expected.items():
            if path not in leaves or np.shape(leaves[path]) != shape:
                has = np.shape(leaves[path]) if path in leaves else 'nothing'
                raise ValueError(f'the smaller parameters have {has} at {path!r}, expected {shape}')
        avals = jax.tree.map(_shape, (params, *args))
        key = (
            jax.tree.structure(avals),
            tuple((s.shape, s.dtype, s.weak_type) for s in jax.tree.leaves(avals)),
        )
        if key not in known:
            shapes = {path: leaf.shape for path, leaf in whole}
            full = jax.tree_util.tree_map_with_path(
                lambda p, s: jax.ShapeDtypeStruct(shapes[tree.path_name(p)], s.dtype), avals[0]
            )
            closed, out = trace.closed_jaxpr(fn, full, *avals[1:])
            block, _ = coupled.traced(closed, len(whole), tangents=True)
            names = [path for path, _ in whole]
            known[key] = block, rewrite.masks_of(_kept(block, names, masks)), out
        block, mask_of, out = known[key]
        results = rewrite.run(block, mask_of, jax.tree.leaves((params, *args)))
        return jax.tree.unflatten(jax.tree.structure(out), results)

    return smaller


def _kept(
    block: Block, names: list[str], masks: Mapping[tuple[str, int], np.ndarray]
) -> dict[dims.Dim, np.ndarray]:
    """Finds the units that stay in a program, from the positions of parameters that do."""
    kept: dict[dims.Dim, np.ndarray] = {}
    axes = [
        (path, axis, dim)
        for path, own in zip(names, block.ins, strict=False)
        for axis, dim in enumerate(own)
    ]
    for path, axis, dim in axes:
        stays = masks.get((path, axis), np.ones(dim.size, bool))
        for row, index in dims.columns(dim):
            own = kept.setdefault(row, np.zeros(row.size, bool))
            own[index[stays & (index >= 0)]] = True
    for path, axis, dim in axes:
        stays = masks.get((path, axis), np.ones(dim.size, bool))
        found = dims.mask(dim, kept)
        rows = [row for row in dims.units(dim) if row.kept and not kept[row].all()]
        if rows or (found != stays).any():
            why = rows[0].kept if rows else 'its units go with others that stay'
            raise ValueError(f'axis {axis} of {path!r} cannot be cut in this function: {why}')
    return kept


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    aval = jax.typeof(x)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _ending(path: str, paths: Mapping[str, Any]) -> str | None:
    """Finds the longest of some paths that a path ends with."""
    parts = path.split('/')
    endings = ('/'.join(parts[start:]) for start in range(len(parts)))
    return next((ending for ending in endings if ending in paths), None)


def _names(groups: Groups) -> set[str]:
    return {group.name for group in groups.groups}


def _raise_unknown(groups: Groups, name: str) -> Any:
    path, _, place = name.partition(':')
    axis = place.split('.')[0]
    why = groups.kept.get((path, int(axis))) if axis.isdigit() else None
    if why:
        raise ValueError(f'keep names {name!r}, which stays whole: {why}')
    raise ValueError(f'keep names {name!r}; the groups are {sorted(_names(groups))}')
