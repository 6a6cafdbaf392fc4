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
# # Prune in ten lines
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxprune/jaxprune/blob/main/notebooks/prune_in_ten_lines.ipynb)
#
# You have a Flax model and a loop that trains it. Here such a model loses nine tenths of its
# weights, first in linen, then in NNX. The loops stay as they are.

# %%
try:
    import jaxprune as jp
except ImportError:
    # %pip install -q "jaxprune[train] @ git+https://github.com/jaxprune/jaxprune"
    import jaxprune as jp

# %% [markdown]
# The data are 1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn. The last 360,
# in an order drawn once, are for the test.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

pixels, labels = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(labels))
x, y = np.float32(pixels[order] / 16), labels[order]
loss = lambda logits: optax.softmax_cross_entropy_with_integer_labels(logits, y[:-360]).mean()
right = lambda logits: f'{np.mean(logits.argmax(-1) == y[-360:]):.1%} of the test digits right'

# %% [markdown]
# ## Linen
#
# A model, a `TrainState`, a step. One word is new: `jp.pruned` around the optimizer. It will hold
# pruned weights at exactly zero; as yet there are none.

# %%
model = linen.Sequential([linen.Dense(128), linen.relu, linen.Dense(10)])
tx = jp.pruned(optax.sgd(optax.cosine_decay_schedule(0.3, 300), momentum=0.9))
state = TrainState.create(apply_fn=model.apply, params=model.init(jax.random.key(0), x), tx=tx)


@jax.jit
def step(state):
    grads = jax.grad(lambda params: loss(state.apply_fn(params, x[:-360])))(state.params)
    return state.apply_gradients(grads=grads)


for _ in range(300):
    state = step(state)
dense = state.params
print('dense:', right(model.apply(dense, x[-360:])))

# %% [markdown]
# The rounds: keep the largest weights of the whole network, begin the schedule of the learning rate
# again, train again. Each round takes a third of what is left, and the step is not compiled again.

# %%
for density in jp.rounds.geometric(2 / 3, 6):
    masks = jp.masks.global_top(jp.scores.magnitude(state.params), density)
    opt_state = jp.rewind_schedule(jp.set_masks(state.opt_state, masks))
    state = state.replace(params=jp.masks.apply(state.params, masks), opt_state=opt_state)
    for _ in range(300):
        state = step(state)
    print(f'{density:.1%} of the weights:', right(model.apply(state.params, x[-360:])))

# %% [markdown]
# ## NNX
#
# The same with `nnx.Optimizer`. The parameters are `nnx.state(net, nnx.Param)`, a tree like any
# other, and what was said above in three lines is said here in four.

# %%
rngs = nnx.Rngs(1)
net = nnx.Sequential(nnx.Linear(64, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 10, rngs=rngs))
optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)


@nnx.jit
def nnx_step(net, optimizer):
    optimizer.update(net, nnx.grad(lambda net: loss(net(x[:-360])))(net))


for density in (1.0, *jp.rounds.geometric(2 / 3, 6)):
    weights = nnx.state(net, nnx.Param)
    masks = jp.masks.global_top(jp.scores.magnitude(weights), density)
    optimizer.opt_state = jp.rewind_schedule(jp.set_masks(optimizer.opt_state, masks))
    nnx.update(net, jp.masks.apply(weights, masks))
    for _ in range(300):
        nnx_step(net, optimizer)
print(f'{density:.1%} of the weights:', right(net(x[-360:])))

# %% [markdown]
# ## What is left
#
# On the left, the weights of the first layer before and after, on a logarithmic scale. Beside it,
# how many of the 128 weights that read a pixel are left. The two networks began from different
# weights, and nobody told them where digits stand; both found that the columns at the sides are
# empty.

# %%
before, after = (np.asarray(p['params']['layers_0']['kernel']) for p in (dense, state.params))
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), dpi=80, layout='constrained')
style = {'color': ['#0072B2', '0.85'], 'label': ['pruned', 'dense'], 'histtype': 'stepfilled'}
axes[0].hist([after[after != 0], before.ravel()], np.linspace(-1.2, 1.2, 81), log=True, **style)
axes[0].set(xlabel='weight', ylabel='number of weights', title='First layer, linen')
axes[0].legend(frameon=False)
for panel, name, kernel in (axes[1], 'linen', after), (axes[2], 'NNX', net.layers[0].kernel[...]):
    image = panel.imshow((kernel != 0).sum(1).reshape(8, 8), vmin=0, vmax=30)
    panel.set(xlabel='column of the image', ylabel='row', title=f'Weights left by pixel, {name}')
bar = figure.colorbar(image, ax=axes[1:], label='weights left of 128')
