"""Layouts over devices that are part of the types of arrays: `jax.make_mesh` makes such meshes.

Under their explicit axes JAX refuses what moves entries between devices, such as a sort or some
reshapes, unless it is told how the result lies. Here it lays out by itself what lies between.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def of(x: Any) -> NamedSharding | None:
    """Tells how an array lies over explicit axes of a mesh, `None` where it does not."""
    sharding = jax.typeof(x).sharding
    return sharding if any(axes is not None for axes in sharding.spec) else None


def fitting(layout: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Lays another shape out likewise, but for axes that the devices do not divide evenly."""
    devices = lambda axes: math.prod(
        layout.mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes)
    )
    kept = (
        axes if axes is not None and n % devices(axes) == 0 else None
        for n, axes in zip(shape, layout.spec, strict=True)
    )
    return NamedSharding(layout.mesh, PartitionSpec(*kept))


def moved(x: jax.Array, like: jax.Array) -> jax.Array:
    """Lays x out as another array of its shape, where that lies over explicit axes."""
    layout = of(like)
    return x if layout is None or of(x) == layout else jax.sharding.reshard(x, layout)


def like(f: Callable[..., Any], tree: Any) -> Callable[..., Any]:
    """Makes f, whose result has the structure and shapes of `tree`, return it laid out as `tree`.

    Args:
      f: a function of trees.
      tree: of arrays; where none lies over explicit axes, f is returned as it is.
    """
    found = [layout for x in jax.tree.leaves(tree) if (layout := of(x)) is not None]
    if not found:
        return f
    whole = NamedSharding(found[0].mesh, PartitionSpec())
    return laid_out(f, jax.tree.map(lambda x: of(x) or whole, tree))


def laid_out(f: Callable[..., Any], layout: Any) -> Callable[..., Any]:
    """Makes f return its result in a layout, a tree of shardings over explicit axes."""

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        arrays = {n: x for n, x in enumerate(leaves) if isinstance(x, jax.Array)}

        def of_arrays(given: dict[int, jax.Array]) -> Any:
            return f(
                *jax.tree.unflatten(structure, [given.get(n, x) for n, x in enumerate(leaves)])
            )

        return jax.sharding.auto_axes(of_arrays, out_sharding=layout)(arrays)

    return call
