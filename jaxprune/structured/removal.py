"""Removal: smaller arrays, and the function that runs on them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import packing, tree
from jaxprune.structured import coupled, dims, rewrite, trace
from jaxprune.structured.coupled import Groups, Keep
from jaxprune.structured.trace import Block
from jaxprune.tree import Masks, Params


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
    tree.check_like(params, groups.params, name='params', like='those of groups')
    return Shrunk(narrow(params, groups, keep), rewritten(groups.fn, groups, keep))


def check(groups: Groups, keep: Keep) -> None:
    """Raises `ValueError` at the first group that is unknown, of another size, or left empty."""
    for name, mask in keep.items():
        group = groups.named(name) if name in _names(groups) else _raise_unknown(groups, name)
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
            stays = np.where(cut.units < 0, True, own[cut.units])
            at = cut.path, cut.axis
            masks[at] = masks[at] & stays if at in masks else stays
    return masks


def masks_of(groups: Groups, keep: Keep, masks: Masks, *, under: str = '') -> Masks:
    """Prunes all weights of the units that go, in masks of unstructured pruning.

    Args:
      groups: of the function.
      keep: which units of each group stay.
      masks: booleans by weight; `None` where not prunable.
      under: the branch of the parameters that the masks are like, see `narrow`.

    Returns:
      Masks inside the given ones.
    """
    cuts = _Cuts(groups, keep, under)

    def visit(key_path: Any, mask: Any) -> Any:
        if mask is None:
            return None
        if isinstance(mask, packing.Packed):
            return packing.pack(visit(key_path, packing.unpack(mask)))
        for axis, stays in cuts.of(key_path)[1].items():
            mask = mask & stays.reshape(-1, *[1] * (mask.ndim - 1 - axis))
        return mask

    return jax.tree_util.tree_map_with_path(
        visit, masks, is_leaf=lambda x: x is None or isinstance(x, packing.Packed)
    )


def kept_by(groups: Groups, masks: Masks, *, under: str = '') -> dict[str, np.ndarray]:
    """Finds the units of which masks leave a weight: what `masks_of` was given, or more.

    Args:
      groups: of the function.
      masks: booleans by weight; `None` where not prunable.
      under: the branch of the parameters that the masks are like, see `narrow`.

    Returns:
      The units that stay, of each group of which a leaf is masked.
    """
    prefix = f'{under}/' if under else ''
    whole = tree.present(packing.unpack(masks))
    own = {prefix + path: np.asarray(mask) for path, mask in whole}
    keep = {}
    for group in groups.groups:
        cuts = [cut for cut in group.slices if cut.path in own]
        stays = np.zeros(group.size, bool)
        for cut in cuts:
            others = tuple(axis for axis in range(own[cut.path].ndim) if axis != cut.axis)
            stays[cut.units[own[cut.path].any(axis=others) & (cut.units >= 0)]] = True
        if cuts:
            keep[group.name] = stays
    return keep


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
        sizes, as in factored moments, which must be made afresh; no leaf named like a parameter.
    """
    cuts = _Cuts(groups, keep, under)
    known: list[bool] = []

    def visit(key_path: Any, leaf: Any) -> Any:
        if isinstance(leaf, packing.Packed):
            return packing.pack(visit(key_path, packing.unpack(leaf)))
        path, masks = cuts.of(key_path)
        if np.size(leaf) > 1:
            known.append(path is not None)
        if path is None or not masks or np.size(leaf) <= 1:
            return leaf
        if np.shape(leaf) != cuts.shapes[path]:
            raise ValueError(
                f'leaf {tree.path_name(key_path)!r} has shape {np.shape(leaf)} where the parameter '
                f'has {cuts.shapes[path]}, so it cannot be cut: make this state afresh'
            )
        if isinstance(leaf, jax.core.Tracer):
            for axis, mask in masks.items():
                leaf = jnp.take(leaf, np.flatnonzero(mask), axis=axis)
            return leaf
        array = np.asarray(leaf)
        for axis, mask in masks.items():
            array = np.compress(mask, array, axis=axis)
        return jnp.asarray(array)

    smaller = jax.tree_util.tree_map_with_path(
        visit, state, is_leaf=lambda x: isinstance(x, packing.Packed)
    )
    if known and not any(known):
        raise ValueError(
            'no leaf of the state has the path of a parameter, so that nothing would be cut: give '
            f'under= the branch that it is about; the parameters are {sorted(cuts.shapes)[:5]}'
        )
    return smaller


def widen(state: Any, groups: Groups, keep: Keep, *, under: str = '') -> Any:
    """Undoes `narrow`: puts zeros, or `False`, where units were removed.

    Args:
      state: what `narrow` returned, or a tree like it.
      groups: of the function.
      keep: which units of each group stay.
      under: as it was given to `narrow`.

    Returns:
      The tree with leaves of the whole shapes; works under jit.

    Raises:
      ValueError: a keep set that does not fit.
    """
    cuts = _Cuts(groups, keep, under)

    def visit(key_path: Any, leaf: Any) -> Any:
        if isinstance(leaf, packing.Packed):
            return packing.pack(visit(key_path, packing.unpack(leaf)))
        path, masks = cuts.of(key_path)
        small = cuts.small(path, masks) if path is not None else ()
        if not masks or np.shape(leaf) != small:
            return leaf
        for axis, mask in masks.items():
            whole = jnp.zeros((*leaf.shape[:axis], len(mask), *leaf.shape[axis + 1 :]), leaf.dtype)
            leaf = whole.at[(slice(None),) * axis + (np.flatnonzero(mask),)].set(leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(
        visit, state, is_leaf=lambda x: isinstance(x, packing.Packed)
    )


class _Cuts:
    """Which positions along which axes of a leaf stay, by the ending of its path."""

    def __init__(self, groups: Groups, keep: Keep, under: str) -> None:
        check(groups, keep)
        prefix = f'{under}/' if under else ''
        self.shapes = {
            path.removeprefix(prefix): leaf.shape
            for path, leaf in tree.present(groups.params)
            if path.startswith(prefix)
        }
        if not self.shapes:
            raise ValueError(f'under={under!r} is no branch of the parameters')
        self._masks: dict[str, dict[int, np.ndarray]] = {}
        for (path, axis), mask in axis_masks(groups, keep).items():
            if path.startswith(prefix) and not mask.all():
                self._masks.setdefault(path.removeprefix(prefix), {})[axis] = mask

    def of(self, key_path: Any) -> tuple[str | None, dict[int, np.ndarray]]:
        """Finds the parameter that a leaf is about, and its masks by axis."""
        parts = tree.path_name(key_path).split('/')
        endings = ('/'.join(parts[start:]) for start in range(len(parts) + 1))
        path = next((ending for ending in endings if ending in self.shapes), None)
        return path, {} if path is None else self._masks.get(path, {})

    def small(self, path: str, masks: Mapping[int, np.ndarray]) -> tuple[int, ...]:
        """Gives the shape of a parameter that is cut."""
        whole = enumerate(self.shapes[path])
        return tuple(int(masks[axis].sum()) if axis in masks else size for axis, size in whole)


def rewritten(fn: Callable[..., Any], groups: Groups, keep: Keep) -> Callable[..., Any]:
    """Makes the function that runs on smaller parameters, of any function of the larger ones.

    Such as the loss in training mode, where `groups` were found in evaluation mode. The program is
    traced again for each shape of the other arguments.

    Args:
      fn: a function of the parameters, and other arguments.
      groups: of the same parameters.
      keep: which units of each group stay.

    Returns:
      A pure function of parameters that `shrink` returned, for jit, grad and vmap, and for
      `jax.shard_map` with `check_vma=False`. It raises
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
        if key in known:
            block, mask_of, out = known[key]
        else:
            shapes = {path: leaf.shape for path, leaf in whole}
            full = jax.tree_util.tree_map_with_path(
                lambda p, s: jax.ShapeDtypeStruct(shapes[tree.path_name(p)], s.dtype), avals[0]
            )
            closed, out = trace.closed_jaxpr(fn, full, *avals[1:])
            block, _ = coupled.traced(closed, len(whole), tangents=True)
            names = [path for path, _ in whole]
            mask_of = rewrite.masks_of(_kept(block, names, masks))
            if not any(isinstance(const, jax.core.Tracer) for const in closed.consts):
                known[key] = block, mask_of, out  # tracers mean nothing at the next call
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


def _names(groups: Groups) -> set[str]:
    return {group.name for group in groups.groups}


def _raise_unknown(groups: Groups, name: str) -> Any:
    path, _, place = name.partition(':')
    axis = place.split('.')[0]
    why = groups.kept.get((path, int(axis))) if axis.isdigit() else None
    if why:
        raise ValueError(f'keep names {name!r}, which stays whole: {why}')
    raise ValueError(f'keep names {name!r}; the groups are {sorted(_names(groups))}')
