"""Scores of weights and gradients: given as trees, or taken here from a loss.

All estimate by a Taylor expansion what changes when a weight becomes 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import tree
from jaxprune.precision import largest, over, wide
from jaxprune.scores import averages
from jaxprune.scores.averages import Loss
from jaxprune.tree import Params, Predicate, Scores


def taylor(params: Params, grads: Params, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by |w g|: how far the loss moves, to first order, without the weight.

    Args:
      params: any pytree of arrays.
      grads: the gradient of the loss by `params`, such as `mean_gradient` gives; like `params`,
        `None` allowed where not prunable.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64); `None` where
      not prunable.

    Raises:
      ValueError: grads that are not like `params`, or not floating-point where prunable; no leaf is
        prunable; `where` accepts a leaf that is not floating-point.
    Source: Molchanov et al. 2017, arXiv:1611.06440, and 2019, arXiv:1906.10771 (first order).
      Deviation: single weights; the papers sum over the activations or weights of a channel, and
      the second squares the sum.
    """
    return _pair(lambda w, g: jnp.abs(w * g), params, grads, where)


def snip(params: Params, grads: Params, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by |w g| / Σ |w g|, the sum over all prunable weights.

    Meant for the initial weights. The order is that of `taylor`; the scale lets scores of several
    batches or seeds be added.

    Args:
      params: any pytree of arrays.
      grads: the gradient of the loss by `params`; like `params`, `None` allowed where not prunable.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64), that sums to 1,
      or is 0 throughout where all products are; `None` where not prunable.

    Raises:
      ValueError: as `taylor`.
    Source: Lee et al. 2019, arXiv:1810.02340, section 4 (connection sensitivity).
    """
    products = taylor(params, grads, where=where)
    peak = jnp.max(jnp.stack([largest(x) for x in jax.tree.leaves(products)]))
    shares = jax.tree.map(lambda x: over(x, peak), products)  # else the sum may overflow
    total = jnp.sum(jnp.stack([jnp.sum(x) for x in jax.tree.leaves(shares)]))
    return jax.tree.map(lambda x: over(x, total), shares)


def movement(params: Params, grads: Params, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by -w g: high where a step of gradient descent takes it away from 0.

    This is one step. The paper's score is the sum over the steps of training, times the rate:
    `total = jax.tree.map(lambda s, m: s + rate * m, total, movement(params, grads))` after each,
    from zeros; it uses no other accumulator, so the sum may live in the training state.

    Args:
      params: any pytree of arrays.
      grads: the gradient of the loss by `params` at this step; like `params`, `None` allowed where
        not prunable. For pruned weights to come back, the gradient by the masked weights, taken
        before it is masked itself (straight-through).
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64), of both signs;
      `None` where not prunable.

    Raises:
      ValueError: as `taylor`.
    Source: Sanh et al. 2020, arXiv:2005.07683, section 4. Deviation: one step, to be added up.
    """
    return _pair(lambda w, g: -(w * g), params, grads, where)


def fisher(params: Params, squared_grads: Params, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by ½ w² E[g²]: the second-order change of the loss at a minimum.

    Optimal brain damage scores ½ w² H_ww. The diagonal of the empirical Fisher matrix, E[g²] over
    single examples, stands in for the Hessian's.

    Args:
      params: any pytree of arrays; trained, for the first-order term to vanish.
      squared_grads: E[g²] as `mean_squared_gradient` gives it; like `params`, `None` allowed where
        not prunable.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64); `None` where
      not prunable.

    Raises:
      ValueError: as `taylor`, for `squared_grads`.
    Source: LeCun, Denker, Solla 1989, Optimal Brain Damage; Theis et al. 2018, arXiv:1801.05787.
      Deviation: from the first, the Fisher for the Hessian; from the second, single weights, where
      it sums over a channel.
    """
    half = lambda w, f: w**2 * f / 2
    return _pair(half, params, squared_grads, where, 'squared_grads')


def grasp(loss: Loss, params: Params, batches: Any, *, where: Predicate = tree.prunable) -> Scores:
    """Scores each weight by w (H g): how much of the squared gradient norm goes with it.

    To first order, removing a weight changes gᵀg by -2 w (H g); the weights stay whose removal
    would lower it most. g is the mean gradient over the batches and H g the mean of their
    Hessian-vector products, each a forward derivative of a gradient, so no Hessian is held.

    The paper divides the logits by a temperature of 200 before the softmax: that belongs in `loss`.
    Inside `pmap` or `shard_map` each device scores by its own batches; to use many devices for one
    score, shard the batches under `jit`. Eagerly each call compiles anew.

    Args:
      loss: `loss(params, batch)`, a floating-point scalar, twice differentiable.
      params: any pytree of arrays, at initialization.
      batches: a pytree of arrays that share their leading axis, which counts the batches.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64), of both signs;
      `None` where not prunable.

    Raises:
      ValueError: as `mean_gradient`; no leaf is prunable; `where` accepts a leaf that is not
        floating-point.
    Source: Wang, Zhang, Grosse 2020, arXiv:2002.07376, section 4. Deviation: the sign, since they
      score -w (H g) and remove the highest; g and H are by all floating-point leaves, as in the
      equation, where the authors' code takes the kernels alone.
    """
    weights = tree.map_prunable(lambda _, w: wide(w), params, where=where)
    averages.length_of(batches)
    floats = averages.wide_floats(params, batches)
    gradient = averages.gradient_of(loss, params)
    g = averages.mean_over(gradient, floats, batches)

    def product(floats: Params, batch: Any) -> Params:
        return jax.jvp(lambda x: gradient(x, batch), (floats,), (g,))[1]

    h = averages.mean_over(product, floats, batches)
    return tree.map_masked(lambda w, hg: None if w is None else w * hg, weights, h)


def synflow(
    output: Callable[[Params], jax.Array], params: Params, *, where: Predicate = tree.prunable
) -> Scores:
    """Scores each weight by | |w| ∂R/∂|w| |: its share in the flow R = Σ output(|params|).

    For a network of linear layers without bias, R = 1ᵀ |W_L| ... |W_1| 1, and the scores of each
    layer sum to R: none of them starves. No data are needed. The paper prunes in a hundred small
    steps, scoring anew before each; scored once, whole layers may still go.

    R is a product over layers and may pass float32's range in a deep network: infinite or NaN
    scores, of which only NaN is noticed where masks are made. A constant input other than 1 changes
    no order where the output is homogeneous in it: let `output` start from a smaller one, or
    compute in float64.

    Args:
      output: the network's output, of any shape, for parameters: on an input of ones, in
        evaluation mode (without dropout, normalization by stored statistics).
      params: any pytree of arrays; all floating-point leaves enter by their absolute values.
      where: which leaves are prunable, by path and leaf.

    Returns:
      A tree of the structure and shapes of `params`, float32 (float64 for float64); `None` where
      not prunable.

    Raises:
      ValueError: an output that is not one floating-point array; no leaf is prunable; `where`
        accepts a leaf that is not floating-point.
    Source: Tanaka et al. 2020, arXiv:2006.05467, section 5 (R_SF). Deviation: the score without
      the schedule.
    """
    weights = tree.map_prunable(lambda _, w: jnp.abs(wide(w)), params, where=where)

    def flow(params: Params) -> jax.Array:
        found = output(params)
        averages.check_float(found, 'output', scalar=False)
        return jnp.sum(wide(found))

    positive = jax.tree.map(jnp.abs, averages.wide_floats(params))
    slope = averages.gradient_of(flow, params)(positive)
    return tree.map_masked(lambda w, g: None if w is None else jnp.abs(w * g), weights, slope)


def _pair(
    score: Callable[[jax.Array, jax.Array], jax.Array],
    params: Params,
    grads: Params,
    where: Predicate,
    name: str = 'grads',
) -> Scores:
    """Maps a function of a weight and its gradient over the prunable leaves."""
    given = dict(tree.named_leaves(grads))
    _check_like(given, dict(tree.named_leaves(params)), name)

    def visit(path: str, w: jax.Array) -> jax.Array:
        g = given[path]
        if g is None or not jnp.issubdtype(jnp.result_type(g), jnp.floating):
            found = None if g is None else jnp.result_type(g)
            raise ValueError(
                f'{name} are {found} at {path!r}, which is prunable: expected floating-point '
                'values there, or where=lambda path, leaf: ... that leaves it out'
            )
        return score(wide(w), wide(g))

    return tree.map_prunable(visit, params, where=where)


def _check_like(given: dict[str, Any], params: dict[str, Any], name: str) -> None:
    remedy = 'take the gradient by these params, as scores.mean_gradient does'
    for path, leaf in params.items():
        if path not in given:
            raise ValueError(f'{name} have no leaf {path!r}, which params have: {remedy}')
        g = given[path]
        if g is not None and (leaf is None or jnp.shape(g) != jnp.shape(leaf)):
            shape = None if leaf is None else jnp.shape(leaf)
            raise ValueError(
                f'{name} have shape {jnp.shape(g)} at {path!r} where params have {shape}: {remedy}'
            )
    for path in given:
        if path not in params:
            raise ValueError(f'{name} have a leaf {path!r}, which params do not have: {remedy}')
