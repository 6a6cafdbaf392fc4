# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Smaller for real
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxprune/jaxprune/blob/main/notebooks/smaller_for_real.ipynb)
#
# A mask makes nothing faster: the program multiplies by its zeros. Here whole channels go, the
# arrays become smaller, and a clock says what was won.

# %%
try:
    import jaxprune as jp
except ImportError:
    # %pip install -q "jaxprune[train] @ git+https://github.com/jaxprune/jaxprune"
    import jaxprune as jp

# %% [markdown]
# Handwritten digits from scikit-learn, 1,437 for training and 360 for the test.

# %%
import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

pixels, labels = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(labels))
x, y = np.float32(pixels[order] / 16).reshape(-1, 8, 8, 1), labels[order]


# %% [markdown]
# A small convolutional network. The sum in its middle ties channels together: what goes in the one
# branch must go in the other.


# %%
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(48, (3, 3))(x))
        x = x + nn.relu(nn.Conv(48, (3, 3))(x))
        x = nn.relu(nn.Conv(96, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


dense = lambda params, x: Net().apply(params, x)

# %% [markdown]
# A training loop that takes any function of parameters and images, and masks if there are some.


# %%
def train(apply, params, masks=None):
    tx = jp.pruned(optax.adam(optax.cosine_decay_schedule(2e-3, 120)), masks)

    @jax.jit
    def step(params, opt_state, x, y):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(apply(p, x), y).mean()
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for batch in np.random.RandomState(0).randint(0, 1437, (120, 64)):
        params, opt_state = step(params, opt_state, x[batch], y[batch])
    return params


whole = train(dense, Net().init(jax.random.key(0), x[:1]))

# %% [markdown]
# First masks, for comparison: a tenth of the weights stays.

# %%
masks = jp.masks.global_top(jp.scores.magnitude(whole), 0.1)
networks = {'dense': (dense, whole), '90 % masked': (dense, train(dense, whole, masks))}

# %% [markdown]
# Which units go together is read off the function's program; it knows no layers and no framework.

# %%
print(jp.structured.groups(dense, whole, x[:1]).table())

# %% [markdown]
# Now units go: in each of three rounds two fifths of them, those of the least magnitude, and what
# is left trains on. `shrink` returns smaller arrays and the function that runs on them, with which
# the next round begins. Numbers of units are multiples of four, which processors like.

# %%
apply, params = dense, whole
for level in range(1, 4):
    groups = jp.structured.groups(apply, params, x[:1])
    importance = jp.structured.importance(groups, jp.scores.magnitude(params), normalize=True)
    keep = jp.structured.top(groups, importance, 0.6, multiple=4)
    params, apply = jp.structured.shrink(params, groups, keep)
    params = train(apply, params)
    networks[f'round {level}'] = (apply, params)

# %% [markdown]
# On the left the networks, each layer as wide as it has units. On the right how many test digits
# they read correctly, and how long they take for 256 images on the machine that ran this: the
# median of 100 calls, with a bar from the 10th to the 90th percentile. Masks made nothing faster.
# One image is 0.28 points, and each round has trained longer than the one before it.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), dpi=80, layout='constrained')
for k, (name, (apply, params)) in enumerate(networks.items()):
    sizes = {layer: own['kernel'].shape[-1] for layer, own in params['params'].items()}
    bars = left.barh([*sizes], [*sizes.values()], left=[130 * k - n / 2 for n in sizes.values()])
    left.bar_label(bars, sizes.values(), padding=2, fontsize=8)
    correct = 100 * np.mean(jax.jit(apply)(params, x[1437:]).argmax(-1) == y[1437:])
    time = 1000 * np.array(jp.cost.latency(apply, params, x[:256], repeats=100)[:3])
    spread = abs(time[1:, None] - time[0])
    right.errorbar(time[0], correct, xerr=spread, label=name, fmt='os^Dv'[k], capsize=3)
left.set(xticks=range(0, 650, 130), xticklabels=networks, title='Units by layer')
right.set(xlabel='latency for 256 images, ms', ylabel='test accuracy, %', xlim=0)
legend = right.legend(frameon=False)
