"""How a run lies over its devices: batches, weights and all that is laid out like weights."""

from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from train.errors import BadInput

REPLICAS, FSDP, TENSOR = 'replicas', 'fsdp', 'tensor'
"""Axes of the mesh: devices along the first hold the same weights, along the others parts."""
BATCH = (REPLICAS, FSDP)
"""The axes that a batch is split over."""


def feeding(mesh: Mesh) -> tuple[int, int]:
    """Tells which share of each batch this process reads, and how many shares there are.

    Processes whose devices hold the same part of a batch, as along the axis of tensors, read the
    same share.

    Args:
      mesh: see `make_mesh`.

    Returns:
      The share of this process, from 0, and their number.

    Raises:
      BadInput: devices of two processes hold parts of a batch of which some are the same.
    """
    held: dict[int, set[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(-1, mesh.shape[TENSOR])):
        for device in devices:
            held.setdefault(device.process_index, set()).add(part)
    shares = sorted({tuple(sorted(parts)) for parts in held.values()})
    if sum(map(len, shares)) != mesh.devices.size // mesh.shape[TENSOR]:
        raise BadInput(
            f'config.mesh.tensor is {mesh.shape[TENSOR]}, which divides the devices of a process '
            'between parts of a batch that other processes hold too: choose a divisor, or a '
            'multiple, of the devices of each process'
        )
    return shares.index(tuple(sorted(held[jax.process_index()]))), len(shares)


def make_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """Lays all devices of all processes out as the config says.

    Args:
      config: a checked config.

    Returns:
      A mesh with the axes `'replicas'`, `'fsdp'` and `'tensor'`.
    """
    c = config.mesh
    shape = jax.device_count() // (c.fsdp * c.tensor), c.fsdp, c.tensor
    return jax.make_mesh(shape, (REPLICAS, FSDP, TENSOR), axis_types=(AxisType.Auto,) * 3)


def is_split(mesh: Mesh) -> bool:
    """Tells whether devices hold parts of the weights."""
    return mesh.shape[FSDP] * mesh.shape[TENSOR] > 1


def spec(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Says which axes of a leaf are split: the last over `tensor`, the longest other over `fsdp`.

    Vectors stay whole, and axes that the devices do not divide.

    Args:
      shape: of one network's leaf.
      mesh: what `make_mesh` returned.

    Returns:
      An entry an axis.
    """
    axes: list[str | None] = [None] * len(shape)
    if len(shape) > 1:
        if mesh.shape[TENSOR] > 1 and shape[-1] % mesh.shape[TENSOR] == 0:
            axes[-1] = TENSOR
        fits = [i for i, n in enumerate(shape) if axes[i] is None and n % mesh.shape[FSDP] == 0]
        if mesh.shape[FSDP] > 1 and fits:
            axes[max(fits, key=lambda i: (shape[i], i))] = FSDP
    return P(*axes)


def shardings(points: jp.Point, mesh: Mesh) -> jp.Point:
    """Lays weights out over the devices, and masks, moments and averages like their weights.

    Args:
      points: shapes of stacked points, the replicates along the first axis.
      mesh: what `make_mesh` returned.

    Returns:
      A sharding a leaf. A leaf is laid out like a weight where its path ends with that of the
      weight and its shape is the same; others are whole everywhere.
    """
    weights = {path: leaf.shape for path, leaf in jp.tree.present(points.params)}

    def of(key_path: Any, leaf: Any) -> NamedSharding:
        parts = jp.tree.path_name(key_path).split('/')
        endings = ('/'.join(parts[start:]) for start in range(len(parts)))
        path = next((ending for ending in endings if ending in weights), None)
        if path is None or np.shape(leaf) != weights[path]:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, P(None, *spec(weights[path][1:], mesh)))

    found: jp.Point = jax.tree_util.tree_map_with_path(of, points)
    return found


def place(tree: Any, shardings: Any) -> Any:
    """Lays arrays out over the devices of all processes, each of which has made them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.jit(lambda tree: tree, out_shardings=shardings)(tree)


def gathered(point: jp.Point) -> jp.Point:
    """Copies a point to every device, where other processes hold parts of it."""

    def whole(x: jax.Array) -> NamedSharding:
        return NamedSharding(x.sharding.mesh, P())  # type: ignore[attr-defined]

    if jax.process_count() == 1:
        return point
    found: jp.Point = place(point, jax.tree.map(whole, point))
    return found
