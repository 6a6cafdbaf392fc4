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
# # TPU: many devices
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxprune/jaxprune/blob/main/notebooks/many_devices.ipynb)
#
# The same pruned training on all devices in two ways: `jax.pmap`, with a copy of the weights on
# each device, and `jax.jit` over a mesh, with a part of each matrix on each device. Where there is
# no TPU or GPU the CPU plays eight devices; the flag below is about the CPU alone.

# %%
# %env XLA_FLAGS=--xla_force_host_platform_device_count=8
try:
    import jaxprune as jp
except ImportError:
    # %pip install -q "jaxprune[train] @ git+https://github.com/jaxprune/jaxprune"
    import jaxprune as jp

# %% [markdown]
# Handwritten digits from scikit-learn: 1,408 images for training, which eight devices share evenly,
# and the last 360 for the test.

# %%
import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

pixels, labels = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(labels))
x, y = np.float32(pixels[order] / 16), labels[order]
n = jax.device_count()

# %% [markdown]
# Step and pruning, written once. A point holds parameters and the state of the optimizer, with the
# masks in it. `prune` keeps the largest tenth of the weights and begins the schedule of the rate
# again. All that pmap needs more is `average`, the mean of the gradients over the devices. Each
# step is waited for, lest eight devices on few cores block one another.

# %%
model = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(10)])
tx = jp.pruned(optax.sgd(optax.cosine_decay_schedule(0.2, 200), momentum=0.9))


def step(point, x, y, average=lambda grads: grads):
    loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(model.apply(p, x), y).mean()
    grads = average(jax.grad(loss)(point.params))
    updates, opt_state = tx.update(grads, point.opt_state, point.params)
    return jp.Point(optax.apply_updates(point.params, updates), opt_state)


def train(step, point, x, y):
    for _ in range(200):
        point = jax.block_until_ready(step(point, x, y))
    return point


prune = lambda point: jp.rounds.begin(point, 0.1, jp.rounds.lr_rewind())

# %% [markdown]
# ## pmap
#
# A copy of the point for each device, and the images dealt out. Train, then prune: each device
# chooses the masks of its copy.

# %%
params = model.init(jax.random.key(0), x)
copies = jax.tree.map(lambda leaf: np.stack([leaf] * n), jp.Point(params, tx.init(params)))
parts = (x[:1408].reshape(n, -1, 64), y[:1408].reshape(n, -1))
mapped = jax.pmap(lambda *args: step(*args, lambda g: jax.lax.pmean(g, 'devices')), 'devices')
copies = train(mapped, copies, *parts)
first = lambda copies: jax.tree.map(lambda leaf: leaf[0], copies)
dense, copies = first(copies), jax.pmap(prune)(copies)

# %% [markdown]
# ## jit over a mesh
#
# The same dense network in pieces: each matrix is cut into tiles, one a device, and its momentum
# and its mask are cut alike. Functions and optimizer are those of above.

# %%
mesh = jax.make_mesh((-(-n // 2), min(n, 2)), ('rows', 'columns'), axis_types=(AxisType.Auto,) * 2)
over = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
place = lambda leaf: jax.device_put(leaf, over('rows', 'columns') if leaf.ndim == 2 else over())
pieces = jax.jit(prune)(jax.tree.map(place, dense))

# %% [markdown]
# The masks are equal bit for bit, those of all copies and those in pieces, and each piece lies
# where its weights lie.

# %%
masks, others = (jax.tree.leaves(jp.get_masks(point.opt_state)) for point in (pieces, copies))
assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(masks, others, strict=True))
assert all(mask.sharding.is_equivalent_to(over('rows', 'columns'), 2) for mask in masks)

# %% [markdown]
# Both train on. They add up gradients in different orders, so the last digits of the weights may
# differ; the masks stay as they are.

# %%
copies = train(mapped, copies, *parts)
pieces = train(jax.jit(step), pieces, *jax.device_put((x[:1408], y[:1408]), over(mesh.axis_names)))
for name, end in {'dense': dense, 'pmap': first(copies), 'jit': pieces}.items():
    right = model.apply(jax.device_get(end.params), x[-360:]).argmax(-1) == y[-360:]
    print(f'{name}: {right.mean():.1%} of the test digits right')

# %% [markdown]
# ## Where a mask lies
#
# The three matrices in the colours of the devices that hold them. A dot is a weight that is left;
# the pale ground was pruned.

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 4), layout='constrained', width_ratios=(4, 4, 1))
style = {'cmap': plt.get_cmap('Dark2', n), 'interpolation': 'nearest', 'aspect': 'auto'}
for panel, mask in zip(axes, masks, strict=True):
    owner = np.zeros(mask.shape)
    for shard in mask.addressable_shards:
        owner[shard.index] = shard.device.id
    image = panel.imshow(owner, alpha=np.where(mask, 1, 0.2), vmin=-0.5, vmax=n - 0.5, **style)
    panel.set(xlabel='output unit', ylabel='input unit', title='{} × {}'.format(*mask.shape))
bar = fig.colorbar(image, ax=axes, ticks=range(n), label='device')
