"""Slow NumPy truth, written apart from the library."""

import itertools

import numpy as np


def top(leaves, keep):
    """Keeps the highest over all leaves by a stable sort: ties to the lower leaf, then index."""
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind='stable')[:keep]] = True
    masks, start = [], 0
    for leaf in leaves:
        masks.append(kept[start : start + np.size(leaf)].reshape(np.shape(leaf)))
        start += np.size(leaf)
    return masks


def sgd_with_momentum(w, grads, mask, rates, *, momentum, decay):
    """Runs masked SGD on one array: L2 into the gradient, heavy-ball momentum, pruned at 0."""
    velocity = np.zeros_like(w)
    for gradient, rate in zip(grads, rates, strict=True):
        velocity = momentum * velocity + np.where(mask, gradient, 0) + decay * w
        w = np.where(mask, w - rate * velocity, 0)
    return w


def lamp(w):
    """Scores one leaf: its square over those of all larger weights, and equal ones up to it."""
    flat = np.abs(np.asarray(w, np.float64).ravel())
    scores = np.zeros_like(flat)
    for u, size in enumerate(flat):
        outlast = [s for v, s in enumerate(flat) if s > size or (s == size and v <= u)]
        scores[u] = size**2 / sum(s**2 for s in outlast) if size else 0
    return scores.reshape(np.shape(w))


def normalized_magnitude(w):
    flat = [float(x) for x in np.ravel(w)]
    norm = sum(x * x for x in flat) ** 0.5
    return np.reshape([abs(x) / norm for x in flat], np.shape(w))


def snip(weights, grads):
    """Scores a list of leaves by the share of each product in the sum over all of them."""
    total = 0.0
    for w, g in zip(weights, grads, strict=True):
        for a, b in zip(np.ravel(w), np.ravel(g), strict=True):
            total += abs(float(a) * float(b))
    return [
        abs(np.asarray(w, np.float64) * np.asarray(g, np.float64)) / total
        for w, g in zip(weights, grads, strict=True)
    ]


def linear_gradients(w, bias, xs, ys):
    """Each example's gradients of ½ ||x W + b - y||² by W and b, entry by entry."""
    by_w, by_bias = [], []
    for x, y in zip(np.asarray(xs, np.float64), np.asarray(ys, np.float64), strict=True):
        residual = [
            sum(x[i] * float(w[i, j]) for i in range(len(x))) + float(bias[j]) - y[j]
            for j in range(len(y))
        ]
        by_w.append([[x[i] * residual[j] for j in range(len(y))] for i in range(len(x))])
        by_bias.append(residual)
    return np.array(by_w), np.array(by_bias)


def synaptic_flow(layers):
    """Adds up |product of weights| over all paths through each weight of a linear network."""
    layers = [np.abs(np.asarray(w, np.float64)) for w in layers]
    scores = [np.zeros_like(w) for w in layers]
    widths = [layers[0].shape[0], *(w.shape[1] for w in layers)]
    for path in np.ndindex(*widths):
        steps = list(itertools.pairwise(path))
        flow = np.prod([w[step] for w, step in zip(layers, steps, strict=True)])
        for score, step in zip(scores, steps, strict=True):
            score[step] += flow
    return scores
