"""Channels, heads and hidden units that a round removes for real: the later rounds train faster.

The state of a run keeps its whole shapes, with masks that hold all weights of the units that are
gone; each dispatch trains the smaller network, and puts zeros back.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import jaxprune as jp
from jaxprune import structured
from jaxprune.structured import Groups, Keep
from train import l1_filters

PARAMS = 'params'
"""The branch of the variables that is trained."""


def find(
    config: ml_collections.ConfigDict, model: nn.Module, prepare: Callable[[Any], Any], like: Any
) -> Groups:
    """Finds the groups of a model's variables, in evaluation mode.

    Args:
      config: a checked config; the layers of its `prune.dense` are protected.
      model: called as `model.apply(variables, inputs, train=...)`.
      prepare: turns raw inputs into the model's.
      like: one raw input, with a leading axis of length 1.

    Raises:
      ValueError: nothing can be removed; a path of `prune.dense` that matches no leaf.
    """
    return structured.groups(*evaluation(model, prepare, like), protect=protected(config))


def evaluation(
    model: nn.Module, prepare: Callable[[Any], Any], like: Any
) -> tuple[Callable[[Any, Any], Any], Any, Any]:
    """Makes the function of a model's variables and inputs, in evaluation, and their shapes.

    Args:
      model: called as `model.apply(variables, inputs, train=...)`.
      prepare: turns raw inputs into the model's.
      like: raw inputs.

    Returns:
      The function to logits, and the shapes of its two arguments.
    """
    inputs = jax.eval_shape(prepare, jnp.asarray(like))
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), key, inputs)
    return lambda variables, x: model.apply(variables, x, train=False), variables, inputs


def protected(config: ml_collections.ConfigDict) -> list[str]:
    """Lists the paths of variables that stay whole."""
    return [f'{PARAMS}/{path}' for path in config.prune.dense]


def allocate(
    groups: Groups,
    scores: jp.tree.Scores,
    present: jp.tree.Masks,
    density: float,
    config: ml_collections.ConfigDict,
) -> jp.tree.Masks:
    """Keeps the units with the highest sums of scores, as many as a share of the weights allows.

    Args:
      groups: of the model.
      scores: of its prunable weights.
      present: masks that the round starts from; units that are gone stay so.
      density: share of all prunable weights that stays at most.
      config: a checked config.

    Returns:
      Masks inside the present ones, which hold whole units.

    Raises:
      ValueError: the smallest network that is left has more weights.
    """
    c = config.prune
    whole = {name: leaf for name, leaf in groups.params.items() if name != PARAMS}
    tree = {PARAMS: scores} | jax.tree.map(lambda _: None, whole)
    kept = structured.kept_by(groups, present, under=PARAMS)
    if c.layer_densities:
        keep = _by_layer(groups, tree, l1_filters.densities(c.layer_densities))
        return structured.masks_of(groups, keep, present, under=PARAMS)
    found = structured.importance(groups, tree, normalize=c.normalize)
    ranked = {
        name: np.where(kept[name], own, own.min() - 1) for name, own in found.items()
    }  # units that are gone go first
    prunable = {f'{PARAMS}/{path}' for path, mask in jp.tree.present(present)}
    budget = density * sum(np.size(mask) for _, mask in jp.tree.present(present))
    weights = structured.parameters(groups, where=lambda path: path in prunable)
    keep = structured.within(groups, ranked, budget, weights, multiple=c.multiple, floor=c.floor)
    return structured.masks_of(groups, keep, present, under=PARAMS)


def _by_layer(groups: Groups, scores: Any, densities: dict[str, float]) -> Keep:
    """Keeps a share of the filters of some convolutions, by the scores of their own weights."""
    names = {group.name.rsplit(':', 1)[0]: group.name for group in groups.groups}
    keep: dict[str, np.ndarray] = {}
    for path, density in densities.items():
        full = f'{PARAMS}/{path}'
        if full not in names:
            raise ValueError(f'the filters of {path!r} cannot be removed by themselves')
        own = jax.tree_util.tree_map_with_path(
            lambda p, x, full=full: x if jp.tree.path_name(p) == full else None,
            scores,
            is_leaf=jp.tree.is_none,
        )
        ranked = {names[full]: structured.importance(groups, own)[names[full]]}
        keep |= structured.top(groups, ranked, density, scope='group')
    return keep


class Smaller(NamedTuple):
    """A network without the units that are gone."""

    groups: Groups
    keep: Keep

    def rewrite(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Makes the function of the smaller variables from that of the whole ones."""
        return structured.rewritten(fn, self.groups, self.keep)

    def narrowed(self, variables: Any) -> Any:
        """Gives the shapes of the smaller variables."""
        return jax.eval_shape(lambda v: structured.narrow(v, self.groups, self.keep), variables)

    def narrow(self, point: jp.Point) -> jp.Point:
        """Takes the units that stay out of a point; works under jit."""
        return self._each(structured.narrow, point)

    def widen(self, point: jp.Point) -> jp.Point:
        """Puts zeros back for the units that are gone; works under jit."""
        return self._each(structured.widen, point)

    def removed(self) -> dict[str, list[int]]:
        """Lists the units that are gone, by the name of the group."""
        kept = self.keep.items()
        return {name: np.flatnonzero(~mask).tolist() for name, mask in kept if not mask.all()}

    def _each(self, f: Callable[..., Any], point: jp.Point) -> jp.Point:
        return jp.Point(
            f(point.params, self.groups, self.keep, under=PARAMS),
            f(point.opt_state, self.groups, self.keep, under=PARAMS),
            f(point.extra, self.groups, self.keep) if point.extra else point.extra,
        )


def network(about: Mapping[str, Any], model: nn.Module, inputs: Any) -> Callable[[Any, Any], Any]:
    """Makes the function of a saved network, whose units may be gone.

    Args:
      about: what the saved model says about itself.
      model: the whole one.
      inputs: as the model takes them, for their shape; any batch.

    Returns:
      A function of the variables that were saved, and of inputs: logits, in evaluation.
    """
    fn, variables, inputs = evaluation(model, lambda x: x, inputs)
    if not about['removed']:
        return fn
    groups = structured.groups(fn, variables, inputs, protect=about['protected'])
    size = lambda name: np.arange(groups.named(name).size)
    keep = {name: ~np.isin(size(name), gone) for name, gone in about['removed'].items()}
    return structured.rewritten(fn, groups, keep)


def smaller(groups: Groups, point: jp.Point) -> Smaller | None:
    """Finds the network that the masks of a point leave, `None` where it is whole."""
    keep = structured.kept_by(groups, jp.get_masks(point.opt_state), under=PARAMS)
    return None if all(mask.all() for mask in keep.values()) else Smaller(groups, keep)
