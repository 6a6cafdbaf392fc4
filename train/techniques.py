"""What a round does to a trained network: the masks it gets, and the point it retrains from."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

import jaxprune as jp
from jaxprune import rounds
from jaxprune.structured import Groups
from train import config as config_lib
from train import l1_filters, units
from train.data import Split
from train.rates import rates
from train.timeline import Training


def trainings(config: ml_collections.ConfigDict) -> list[Training]:
    """Lists how each technique of a config trains its rounds, and whose networks it prunes.

    The controls retrain as the first technique does. Shuffled masks and reinitialised tickets
    have the masks of its rounds, so they prune its networks.
    """
    lead, *_ = names = config.retrain.techniques
    whole = config.train.steps
    lengths = dict.fromkeys(names, config_lib.retrain_steps(config))
    lengths |= {'weight_rewind': whole - config.retrain.rewind_step}
    lengths |= {'reinit': whole, 'small_dense': whole}
    lengths |= dict.fromkeys(_MASK_CONTROLS, lengths[lead])
    prunes = {'shuffled_masks': lead, 'reinit': lead, 'small_dense': None}
    return [Training(name, lengths[name], prunes.get(name, name)) for name in names]


def scorer(
    config: ml_collections.ConfigDict, loss: Callable[[jp.Point, Any, Any], jax.Array]
) -> Callable[[jp.Point, Split | None, jax.Array], jp.tree.Scores]:
    """Makes the jitted function that scores a trained network as the config says.

    Args:
      config: a checked config.
      loss: the loss of a point with other weights on a batch.

    Returns:
      A function of a point, the training part of the data (`None` unless it `needs_data`), and a
      key for what is random.
    """
    name, sizes = config.prune.score, (config.prune.score_batches, config.train.batch_size)

    def score(point: jp.Point, part: Split | None, key: jax.Array) -> jp.tree.Scores:
        where = jp.tree.covered_by(jp.get_masks(point.opt_state))
        if name == 'random':
            return jp.scores.random(point.params, key, where=where)
        if name in OF_WEIGHTS:
            return OF_WEIGHTS[name](point.params, where=where)
        rows = jnp.arange(sizes[0] * sizes[1]).reshape(sizes)
        assert part is not None  # needs_data
        batches = part.inputs[rows], part.labels[rows]
        own = functools.partial(loss, point)
        if name == 'grasp':
            return jp.scores.grasp(own, point.params, batches, where=where)
        if name == 'fisher':
            examples = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), batches)
            squares = jp.scores.mean_squared_gradient(
                own, point.params, examples, batch_size=sizes[1]
            )
            return jp.scores.fisher(point.params, squares, where=where)
        grads = jp.scores.mean_gradient(own, point.params, batches)
        return OF_GRADIENTS[name](point.params, grads, where=where)

    return jax.jit(score)


def needs_data(config: ml_collections.ConfigDict) -> bool:
    """Tells whether the score of a config is computed on training examples."""
    return config.prune.score not in ('random', *OF_WEIGHTS)


def prune(
    point: jp.Point,
    technique: str,
    density: float,
    *,
    config: ml_collections.ConfigDict,
    score: Callable[[jp.Point], jp.tree.Scores],
    key: jax.Array,
    groups: Groups | None = None,
) -> jp.tree.Masks:
    """Chooses the masks of a round, by the score, allocation and pattern of the config.

    Args:
      point: a trained network.
      technique: name of the technique, which may be a control.
      density: share of all prunable weights that stays.
      config: a checked config.
      score: scores the point.
      key: of this round, for controls that are random.
      groups: of the network, where its units are removed.

    Returns:
      Masks inside the present ones; those of shuffled masks are not.
    """
    if technique == 'random_masks':
        where = jp.tree.covered_by(jp.get_masks(point.opt_state))
        scores = jp.scores.random(point.params, key, where=where)
    else:
        scores = score(point)
    masks = allocate(point, scores, density, config, groups)
    return jp.masks.shuffle(masks, key) if technique == 'shuffled_masks' else masks


def check(config: ml_collections.ConfigDict, point: jp.Point, groups: Groups | None = None) -> None:
    """Raises `ValueError` where the config's rules, floor or pattern do not fit a dense network."""
    where = jp.tree.covered_by(jp.get_masks(point.opt_state))
    scores = jp.scores.random(point.params, jax.random.key(0), where=where)
    plan = config_lib.density_plan(config)
    for density in (plan[0], plan[-1]):
        try:
            allocate(point, scores, density, config, groups, allow_empty=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f'config.prune does not fit the network: {error}') from error


def allocate(
    point: jp.Point,
    scores: jp.tree.Scores,
    density: float,
    config: ml_collections.ConfigDict,
    groups: Groups | None = None,
    *,
    allow_empty: bool = False,
) -> jp.tree.Masks:
    """Keeps the highest scores, as the allocation and pattern of the config have it."""
    if groups is not None:
        return units.allocate(groups, scores, jp.get_masks(point.opt_state), density, config)
    top = functools.partial(jp.masks.leaf_top, allow_empty=allow_empty)
    c, present = config.prune, jp.get_masks(point.opt_state)
    pattern = PATTERNS[c.pattern](c)
    if c.layer_densities:
        densities = {'*': 1.0} | l1_filters.densities(c.layer_densities)
        return top(scores, densities, present, pattern=pattern)
    rules = dict.fromkeys(c.dense, 1.0) or None
    if c.allocation == 'global_top':
        return jp.masks.global_top(
            scores,
            density,
            present,
            pattern=pattern,
            rules=rules,
            floor=c.floor,
            allow_empty=allow_empty,
        )
    share = {'uniform': jp.allocate.uniform, 'erdos_renyi': jp.allocate.erdos_renyi}[c.allocation]
    where = jp.tree.covered_by(present)
    densities = share(point.params, density, rules=rules, where=where)
    return top(scores, densities, present, pattern=pattern)


def retrain(
    technique: str,
    config: ml_collections.ConfigDict,
    *,
    stored: Callable[[], jp.Point],
    drawn: Callable[[], jp.Point],
    init: Callable[[Any], Any],
) -> rounds.Retrain:
    """Makes the technique that a round retrains by.

    Args:
      technique: its name; a control retrains as the config's first technique.
      config: a checked config.
      stored: restores the dense training at the rewind step.
      drawn: draws the network anew.
      init: of the optimizer, for moments that begin afresh.

    Returns:
      Where retraining starts, from a trained point and the masks of the round.
    """
    own = init if config.retrain.reset_moments else None
    starts = rates(config).starts
    technique = _retrains_as(technique, config)
    if technique == 'reinit':
        return rounds.weight_rewind(drawn())
    if technique == 'weight_rewind':
        return rounds.weight_rewind(stored())
    if technique == 'lr_rewind':
        return rounds.lr_rewind(config.train.steps - config_lib.retrain_steps(config), init=own)
    if technique == 'allr':
        share = config_lib.retrain_steps(config) / config.train.steps
        return rounds.allr(starts['llr'], share, init=own)
    return rounds.lr_rewind(starts[technique], init=own)


def rewinds(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Tells the step of the dense training whose weights a technique restores, where one does."""
    names = config.retrain.techniques
    to_stored = [name for name in names if _retrains_as(name, config) == 'weight_rewind']
    return dict.fromkeys(to_stored, config.retrain.rewind_step)


def _retrains_as(technique: str, config: ml_collections.ConfigDict) -> str:
    """Names the technique that another retrains like: controls of masks like the first."""
    return config.retrain.techniques[0] if technique in _MASK_CONTROLS else technique


_MASK_CONTROLS = ('random_masks', 'shuffled_masks')
OF_WEIGHTS: dict[str, Callable[..., jp.tree.Scores]] = {
    'magnitude': jp.scores.magnitude,
    'normalized_magnitude': jp.scores.normalized_magnitude,
    'lamp': jp.scores.lamp,
}
OF_GRADIENTS: dict[str, Callable[..., jp.tree.Scores]] = {
    'taylor': jp.scores.taylor,
    'snip': jp.scores.snip,
}
PATTERNS: dict[str, Callable[[ml_collections.ConfigDict], jp.patterns.Pattern]] = {
    'unstructured': lambda c: jp.patterns.unstructured,
    'channels': lambda c: jp.patterns.channels(),
    'blocks': lambda c: jp.patterns.blocks(c.block),
    'n_of_m': lambda c: jp.patterns.n_of_m(c.n, c.m),
}
"""What is pruned together, by the names of the config's `prune` section."""
