"""Slow NumPy truth for pruning during training, written apart from the library."""

import math
from fractions import Fraction

import numpy as np
import reference


def cubic(step, begin, end, initial):
    """Zhu & Gupta 2017, eq. 1, with initial sparsity `initial` and final sparsity 1."""
    final = 1.0
    return final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3


def kept(n, keep, progress):
    """Of n weights those that stay when a float32 share of the way to `keep` is gone."""
    return n - round(Fraction(float(np.float32(progress))) * (n - keep))


def within(score, mask):
    """Scores by which nothing pruned can stay; all scores are finite."""
    return np.where(mask, np.asarray(score, np.float64), -np.inf)


def momentum_step(w, v, g, mask, *, rate=0.25, momentum=0.5):
    """One step of masked SGD on one array."""
    v = momentum * v + np.where(mask, g, 0)
    return np.where(mask, w - rate * v, 0), v


def train(weights, grads, masks, change):
    """Trains a dict of arrays by SGD with momentum while masks change.

    Args:
      weights: arrays by name; those that `masks` do not name are never pruned.
      grads: for each step a dict like the weights, or a function of the weights.
      masks: first masks.
      change: makes the masks of a step from (step, weights, grads, masks), or None when not due.

    Returns:
      For each step the weights and masks after it.
    """
    weights = {k: np.asarray(w, np.float64) for k, w in weights.items()}
    velocity = {k: np.zeros_like(w) for k, w in weights.items()}
    history = []
    for step, each in enumerate(grads):
        g = each(weights) if callable(each) else each
        new = change(step, weights, g, masks)
        if new is not None:
            for k, mask in new.items():
                velocity[k] = np.where(mask & ~masks[k], 0, velocity[k])  # returns afresh
            masks = new
        both = {
            k: momentum_step(w, velocity[k], g[k], masks.get(k, np.ones(w.shape, bool)))
            for k, w in weights.items()
        }
        weights = {k: w for k, (w, _) in both.items()}
        velocity = {k: v for k, (_, v) in both.items()}
        history.append((weights, masks))
    return history


def straight_through(weights, grads, masks, choose):
    """Dense weights that plain SGD moves, along the gradients at the masked ones.

    Args:
      weights: dense arrays by name.
      grads: for each step a function of the masked weights.
      masks: first masks.
      choose: makes the masks of a step from (step, dense weights), or None when not due.

    Returns:
      For each step the masked weights and the masks after it.
    """
    masked = lambda: {k: np.where(masks.get(k, True), w, 0) for k, w in weights.items()}
    weights, history = {k: np.asarray(w, np.float64) for k, w in weights.items()}, []
    for step, gradient in enumerate(grads):
        g = gradient(masked())
        weights = {k: w - 0.25 * g[k] for k, w in weights.items()}
        new = choose(step, weights)
        masks = masks if new is None else new
        history.append((masked(), masks))
    return history


def rigl(w, g, mask, share):
    """Evci et al. 2020, algorithm 1, on one leaf: what stays, weight by weight."""
    flat, gradient, present = np.ravel(w), np.ravel(g), np.ravel(mask)
    active = [i for i in range(flat.size) if present[i]]
    k = round(Fraction(float(np.float32(share))) * len(active))
    active.sort(key=lambda i: (-abs(flat[i]), i))
    stays = set(active[: len(active) - k])
    rest = [i for i in range(flat.size) if i not in stays]
    # a gradient that is NaN comes last; among those what was just dropped first
    steep = lambda i: (math.isnan(gradient[i]), 0 if math.isnan(gradient[i]) else -abs(gradient[i]))
    rest.sort(key=lambda i: (*steep(i), not present[i] if math.isnan(gradient[i]) else 0, i))
    stays |= set(rest[:k])
    return np.array([i in stays for i in range(flat.size)]).reshape(np.shape(w))


def n_of_m(score, mask, n, m, keep):
    """Prunes whole groups along the first axis of a matrix, those whose lowest sum to least."""
    rows, columns = np.shape(score)
    new, groups = np.ones((rows, columns), bool), []
    for first in range(0, rows, m):
        for column in range(columns):
            members = [(first + i, column) for i in range(m)]
            ranked = sorted(members, key=lambda at: (not mask[at], -score[at]))  # stable
            if all(mask[at] for at in members):
                groups.append((sum(score[at] for at in ranked[n:]), ranked[n:]))
            else:
                groups.append((-np.inf, ranked[n:]))
    order = sorted(range(len(groups)), key=lambda i: -groups[i][0])
    spare = (keep - rows // m * n * columns) // (m - n)
    for i in order[spare:]:
        for at in groups[i][1]:
            new[at] = False
    return new & mask


def blocks(score, mask, shape, keep):
    """Keeps as many whole blocks of a matrix as fit, those of the highest sums."""
    (a, b), (rows, columns) = shape, np.shape(score)
    sums = np.full((rows // a, columns // b), -np.inf)
    for i, j in np.ndindex(*sums.shape):
        here = np.s_[i * a : (i + 1) * a, j * b : (j + 1) * b]
        if mask[here].any():
            sums[i, j] = score[here].sum()
    (stay,) = reference.top([sums], keep // (a * b))
    return np.kron(stay, np.ones(shape, bool)) & mask
