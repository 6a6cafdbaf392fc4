"""Masks at one bit a weight."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune import layouts, tree
from jaxprune.tree import Masks

BYTE = 8


class Packed(NamedTuple):
    """A boolean array at one bit an entry: bit b of byte r on its axis is entry 8 r + b.

    To JAX its bits are its only leaf; `flax.serialization`, which knows named tuples, writes it.
    """

    bits: jax.Array
    """uint8, of the shape of the array but ceil(length / 8) on the packed axis."""
    axis: int
    """The packed axis, counted from the last one, so that axes put in front change nothing."""
    length: int
    """Entries on the packed axis."""


jax.tree_util.register_pytree_with_keys(
    Packed,
    lambda p: (((jax.tree_util.GetAttrKey('bits'), p.bits),), (p.axis, p.length)),
    lambda meta, leaves: Packed(next(iter(leaves)), *meta),
    lambda p: ((p.bits,), (p.axis, p.length)),
)


def pack(masks: Masks) -> Masks:
    """Packs masks to one bit a weight.

    Neighbours on the axis before the last share a byte, or on another axis where this one would
    leave more bits unused; the last axis stays as it is, for vectors of the processor.

    Args:
      masks: booleans, `None` where not prunable; what is already packed stays so.

    Returns:
      The tree with a `Packed` for each mask, laid out over devices as it was.

    Raises:
      ValueError: a mask that is not boolean.
    """
    for path, mask in jax.tree.leaves_with_path(masks, is_leaf=_is_leaf):
        if not _is_leaf(mask) and not jnp.issubdtype(jnp.result_type(mask), jnp.bool_):
            name = tree.path_name(path)
            raise ValueError(f'masks are {jnp.result_type(mask)} at {name!r}, expected bool')
    return jax.tree.map(
        lambda m: m if _is_leaf(m) else _pack(jnp.asarray(m)), masks, is_leaf=_is_leaf
    )


def unpack(masks: Masks, like: Any = None) -> Masks:
    """Unpacks masks to booleans; in a jitted step no boolean mask need ever lie in memory.

    Args:
      masks: what `pack` made; what is not packed stays as it is.
      like: parameters, or what is like them, whose layout over explicit axes of a mesh the booleans
        get; packed, an axis may be too short to be divided.

    Returns:
      The tree with booleans.
    """
    one = lambda m, *like: _unpack(m, *like) if isinstance(m, Packed) else m
    return jax.tree.map(one, masks, *([] if like is None else [like]), is_leaf=_is_leaf)


def is_packed(masks: Masks) -> bool:
    """Tells whether any mask of a tree is packed."""
    return any(isinstance(m, Packed) for m in jax.tree.leaves(masks, is_leaf=_is_leaf))


def pack_like(masks: Masks, other: Masks) -> Masks:
    """Packs masks where those of another tree of the same structure are packed."""
    return jax.tree.map(
        lambda o, m: _pack(m) if isinstance(o, Packed) and m is not None else m,
        other,
        masks,
        is_leaf=_is_leaf,
    )


def _is_leaf(x: Any) -> bool:
    return x is None or isinstance(x, Packed)


def _pack(mask: jax.Array) -> Packed | jax.Array:
    if not mask.ndim:
        return mask  # a scalar
    axis = _axis(mask.shape)
    length = mask.shape[axis]
    shape = list(mask.shape)
    shape[axis] = -(-length // BYTE)
    bits: jax.Array = _laid_out(_to_bits, mask, shape)(mask, axis)
    return Packed(bits, axis, length)


def _to_bits(mask: jax.Array, axis: int) -> jax.Array:
    padding = [(0, 0)] * mask.ndim
    padding[axis] = (0, -mask.shape[axis] % BYTE)
    bytes_ = _split(jnp.pad(mask, padding), axis)
    weights = _bits(bytes_.ndim, axis)
    return jnp.sum(jnp.where(bytes_, weights, jnp.uint8(0)), axis, dtype=jnp.uint8)


def _unpack(packed: Packed, like: jax.Array | None = None) -> jax.Array:
    shape = list(packed.bits.shape)
    shape[packed.axis] = packed.length
    mask: jax.Array = _laid_out(_to_mask, packed.bits if like is None else like, shape)(packed)
    return mask


def _to_mask(packed: Packed) -> jax.Array:
    axis = packed.axis
    bits = jnp.expand_dims(packed.bits, axis)
    ones = bits & _bits(bits.ndim, axis) != 0
    shape = list(packed.bits.shape)
    shape[axis] *= BYTE
    return jax.lax.slice_in_dim(ones.reshape(shape), 0, packed.length, axis=len(shape) + axis)


def _laid_out(f: Callable[..., Any], x: jax.Array, shape: Sequence[int]) -> Callable[..., Any]:
    """Makes f return an array of a shape that is laid out as x, as far as it can be."""
    layout = layouts.of(x)
    return f if layout is None else layouts.laid_out(f, layouts.fitting(layout, tuple(shape)))


def _axis(shape: tuple[int, ...]) -> int:
    """The axis that leaves the fewest bits unused; of equals the last but one, then the last."""
    order = sorted(range(-len(shape), 0), key=lambda axis: (axis != -2, -axis))
    padded = lambda axis: math.ceil(shape[axis] / BYTE) * math.prod(shape) // max(shape[axis], 1)
    return min(order, key=padded)


def _split(mask: jax.Array, axis: int) -> jax.Array:
    """Splits the axis in bytes and their bits; the bits are on `axis` of the result."""
    shape = list(mask.shape)
    shape[axis : axis + 1 or None] = [shape[axis] // BYTE, BYTE]
    return mask.reshape(shape)


def _bits(ndim: int, axis: int) -> jax.Array:
    """The eight powers of two, on an axis."""
    powers = jnp.uint8(1) << jnp.arange(BYTE, dtype=jnp.uint8)
    return powers.reshape([BYTE if i == ndim + axis else 1 for i in range(ndim)])
