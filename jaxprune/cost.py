"""Costs of a function: parameters, multiply-accumulates and bytes by layer, and measured latency.

Read off the function's jaxpr: a layer is a leaf of the parameters, whatever the modules are called,
and all products that the leaf takes part in are its.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend import core, source_info_util

from jaxprune import counting, packing, report, tree
from jaxprune.tree import Masks, Params

HEADERS = ('layer', 'shape', 'parameters', 'kept', 'MACs', 'MACs kept', 'kB', 'kB moved')


class Layer(NamedTuple):
    """Costs of one leaf, of the products of two activations at a place, or of the whole."""

    path: str
    """Of the leaf; of products of activations the primitive and its place in the program."""
    shape: tuple[int, ...] | None
    """Of the leaf; `None` where there is none."""
    parameters: int
    kept: int
    """Parameters that masks leave."""
    macs: int
    """Multiply-accumulates, for all examples of the batch that was given."""
    kept_macs: int
    """Those with weights that masks leave, where each weight is used equally often: what a
    program would do that skips zeros."""
    stored: int
    """Bytes of the parameters, as dense arrays."""
    moved: int
    """Bytes that the products read and write, at least: operands and results, once each."""

    def cells(self) -> tuple[str, ...]:
        """Writes the costs as the texts of a table's row, under `HEADERS`."""
        shape = '' if self.shape is None else ' × '.join(map(str, self.shape))
        counts = self.parameters, self.kept, self.macs, self.kept_macs
        sizes = (f'{size / 1000:,.1f}' for size in (self.stored, self.moved))
        return self.path, shape, *(f'{n:,}' for n in counts), *sizes


class Latency(NamedTuple):
    """Measured times of one call, in seconds."""

    median: float
    low: float
    """The 10th percentile."""
    high: float
    """The 90th percentile."""
    times: tuple[float, ...]
    """Of each call, in order."""
    device: str
    """What it ran on, as JAX names it."""


def layers(
    fn: Callable[..., Any], params: Params, *args: Any, masks: Masks | None = None
) -> list[Layer]:
    """Counts the costs of a function by layer; nothing is computed.

    Counted are products of matrices, ragged ones too, and convolutions. The turns of `scan` are
    counted, of `cond` the dearest branch; of a `while` loop, whose turns are not known, one.

    Args:
      fn: a function of the parameters and other arguments.
      params: pytree of arrays, or of their shapes.
      *args: the other arguments, or their shapes; a batch of 1 counts the cost of an example.
      masks: booleans like `params`, packed or not; `None` for a network that is not pruned, whose
        leaves are all kept.

    Returns:
      One record a leaf, in the order of the tree, and then one for each place where activations are
      multiplied with each other.

    Raises:
      ValueError: a leaf that is no array; masks unlike the parameters; a function that returns no
        array, or whose trace depends on values.
    """
    leaves = tree.arrays(params)
    try:
        closed = jax.make_jaxpr(fn)(params, *args)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise ValueError(
            f'the function cannot be traced, for it depends on values of its arguments: {error}'
        ) from error
    if not closed.out_avals:
        raise ValueError('the function returns no array')
    kept = {path: math.prod(leaf.shape) for path, leaf in leaves}
    if masks is not None:
        masks = packing.unpack(masks)
        tree.check_masks(masks, params)
        kept |= {
            path: counting.to_int(counting.count([mask])) for path, mask in tree.present(masks)
        }
    origins: list[Origin] = [{path: math.prod(leaf.shape)} for path, leaf in leaves]
    origins += [{}] * (len(closed.in_avals) - len(leaves))
    macs: dict[str, list[int]] = {}
    for product in _walk(closed.jaxpr, origins, '')[0]:
        sums = macs.setdefault(product.owner, [0, 0])
        sums[0] += product.macs
        sums[1] += product.moved
    found = [_of_leaf(path, leaf, kept[path], macs.pop(path, [0, 0])) for path, leaf in leaves]
    return found + [Layer(at, None, 0, 0, n, n, 0, moved) for at, (n, moved) in macs.items()]


def total(some: Sequence[Layer]) -> Layer:
    """Adds up the costs of layers."""
    sums = (sum(values) for values in zip(*(layer[2:] for layer in some), strict=True))
    return Layer('total', None, *sums)


def table(some: Sequence[Layer], *, width: int = 120) -> str:
    """Draws costs and their total as a table of text; needs the extra `report`."""
    rows = [layer.cells() for layer in some]
    return report.draw(HEADERS, rows, footer=total(some).cells(), width=width)


def latency(fn: Callable[..., Any], *args: Any, repeats: int = 30, warmup: int = 3) -> Latency:
    """Measures how long one call takes, compiled, from call to result.

    Args:
      fn: a function of arrays; it is compiled by `jax.jit`, in the calls that warm up.
      *args: its arguments, at the batch and dtypes that are to be measured.
      repeats: calls that are measured.
      warmup: calls before them.

    Returns:
      The times.

    Raises:
      ValueError: fewer than one call of either.
    """
    if repeats < 1 or warmup < 1:
        raise ValueError(f'repeats={repeats} and warmup={warmup} must be at least 1')
    compiled = jax.jit(fn)
    args = jax.block_until_ready(jax.device_put(args))
    for _ in range(warmup):
        jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    low, median, high = (float(q) for q in np.percentile(times, (10, 50, 90)))
    return Latency(median, low, high, tuple(times), jax.devices()[0].device_kind)


class _Product(NamedTuple):
    owner: str
    macs: int
    moved: int


Origin: TypeAlias = dict[str, int]
"""The leaves that a value was made of alone, by moving or joining their entries, and how many of
each there are; empty for activations."""


def _walk(
    jaxpr: core.Jaxpr, origins: Sequence[Origin], within: str
) -> tuple[list[_Product], list[Origin]]:
    """Lists the products of a program, and what its results were made of.

    Args:
      jaxpr: the program; one turn of it.
      origins: of its arguments.
      within: the place of what calls it, for equations that do not tell theirs.
    """
    products: list[_Product] = []
    env: dict[Any, Origin] = dict(zip(jaxpr.invars, origins, strict=True))
    read = lambda atom: {} if isinstance(atom, core.Literal) else env.get(atom, {})
    for eqn in jaxpr.eqns:
        own = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        where = source_info_util.summarize(eqn.source_info).split(' (')[0].rpartition('/')[2]
        where = where or within
        if name in _PRODUCTS:
            owners = own[1] or own[0] or {f'{name} ({where})': 1}
            for owner, size in owners.items():
                costs = (
                    n * size // max(sum(owners.values()), 1)
                    for n in (_PRODUCTS[name](eqn), _moved(eqn))
                )
                products.append(_Product(owner, *costs))
        elif inner := _called(eqn):
            found, made = _inside(eqn, inner, own, where)
            products += found
            env |= dict(zip(eqn.outvars, made, strict=True))
        elif name in _MOVES:
            env |= dict.fromkeys(eqn.outvars, own[0])
        elif name in ('concatenate', 'stack') and all(own):
            joined: Counter[str] = sum(map(Counter, own), Counter())
            env[eqn.outvars[0]] = dict(joined)
    return products, [read(atom) for atom in jaxpr.outvars]


def _inside(
    eqn: core.JaxprEqn, inner: Sequence[core.Jaxpr], own: Sequence[Origin], where: str
) -> tuple[list[_Product], list[Origin]]:
    """Lists the products of the programs that an equation calls, and the origins of its results."""
    name = eqn.primitive.name
    unknown: list[Origin] = [{}] * len(eqn.outvars)
    if name == 'cond':
        walks = [_walk(branch, own[1:], where) for branch in inner]
        rows = zip(*(walk[1] for walk in walks), strict=True)
        same = [row[0] if row[1:] == row[:-1] else {} for row in rows]
        return max((walk[0] for walk in walks), key=lambda w: sum(p.macs for p in w)), same
    if name == 'while':
        walks = [_walk(program, [{}] * len(program.invars), where) for program in inner]
        return [product for walk in walks for product in walk[0]], unknown
    [program] = inner
    found, made = _walk(program, own[len(own) - len(program.invars) :], where)
    if name != 'scan':
        return found, made if len(made) == len(unknown) else unknown
    turns = eqn.params['length']
    return [_Product(p.owner, turns * p.macs, turns * p.moved) for p in found], unknown


def _called(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """Lists the programs that an equation calls; of a custom derivative only the function."""
    names = ('call_jaxpr', 'jaxpr', 'branches', 'cond_jaxpr', 'body_jaxpr')
    values = [eqn.params[name] for name in names if eqn.params.get(name) is not None]
    flat = [one for value in values for one in (value if isinstance(value, tuple) else [value])]
    return [one.jaxpr if isinstance(one, core.ClosedJaxpr) else one for one in flat]


def _of_dot(eqn: Any) -> int:
    (left, _), _ = eqn.params['dimension_numbers']
    lhs = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in left)


def _of_ragged_dot(eqn: Any) -> int:
    """Each row of the ragged axis belongs to one group, and takes part in its products alone."""
    c = eqn.params['ragged_dot_dimension_numbers']
    (left, _), _ = c.dot_dimension_numbers
    lhs, sizes = eqn.invars[0].aval.shape, eqn.invars[2].aval.shape
    summed = math.prod(lhs[axis] for axis in left)
    groups = sizes[-1] if set(c.lhs_ragged_dimensions) & set(left) else 1
    return math.prod(eqn.outvars[0].aval.shape) // groups * summed


def _of_convolution(eqn: Any) -> int:
    _, *summed = eqn.params['dimension_numbers'].rhs_spec
    rhs = eqn.invars[1].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(rhs[axis] for axis in summed)


def _moved(eqn: Any) -> int:
    avals = [var.aval for var in (*eqn.invars, *eqn.outvars)]
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals)


def _of_leaf(path: str, leaf: Any, kept: int, costs: Sequence[int]) -> Layer:
    size, (macs, moved) = math.prod(leaf.shape), costs
    stored = size * leaf.dtype.itemsize
    return Layer(path, leaf.shape, size, kept, macs, macs * kept // max(size, 1), stored, moved)


_PRODUCTS: dict[str, Callable[[Any], int]] = {
    'conv_general_dilated': _of_convolution,
    'dot_general': _of_dot,
    'ragged_dot_general': _of_ragged_dot,
}
"""How many multiply-accumulates an equation needs."""
_MOVES = frozenset(
    """
    broadcast_in_dim convert_element_type copy copy_p name pvary reshape rev slice squeeze
    split stop_gradient tile transpose unstack
    """.split()
)
"""Primitives whose result holds entries of the first operand alone."""
