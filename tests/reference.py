"""Slow NumPy truth, written apart from the library."""

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
