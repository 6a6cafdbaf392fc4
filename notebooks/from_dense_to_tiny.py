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
# # From dense to tiny
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxprune/jaxprune/blob/main/notebooks/from_dense_to_tiny.ipynb)
#
# Train, prune a third of the weights, train again, prune again, until 1 % is left; and watch. Two
# techniques race: *learning-rate rewinding* begins the schedule of the learning rate again in each
# round, *fine-tuning* goes on at its last, low rate.

# %%
try:
    import jaxprune as jp
except ImportError:
    # %pip install -q "jaxprune[train] @ git+https://github.com/jaxprune/jaxprune"
    import jaxprune as jp

# %% [markdown]
# Handwritten digits from scikit-learn, 1,437 for training and 360 for the test, and LeNet-300-100,
# the network of many pruning papers.

# %%
# %matplotlib inline
import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import display
from rich.progress import BarColumn, Progress
from sklearn.datasets import load_digits

from jaxprune import plots

pixels, labels = load_digits(return_X_y=True)
order = np.random.RandomState(0).permutation(len(labels))
x, y = jax.device_put((np.float32(pixels[order] / 16), labels[order]))
model = nn.Sequential([nn.Dense(300), nn.relu, nn.Dense(100), nn.relu, nn.Dense(10)])

# %% [markdown]
# The training of a round: 600 steps with batches of 64, compiled once for all rounds. The learning
# rate falls twice, each time to a tenth. `jp.pruned` holds pruned weights at exactly zero. A point
# is what a round starts from and ends at; its `extra` takes the losses along, for a picture.

# %%
schedule = optax.piecewise_constant_schedule(0.1, {300: 0.1, 450: 0.1})
tx = jp.pruned(optax.sgd(schedule, momentum=0.9))
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


@jax.jit
def train(point, level):
    def step(point, i):
        loss = lambda params: cross_entropy(model.apply(params, x[i]), y[i]).mean()
        value, grads = jax.value_and_grad(loss)(point.params)
        updates, opt_state = tx.update(grads, point.opt_state, point.params)
        return jp.Point(optax.apply_updates(point.params, updates), opt_state), value

    batches = jax.random.randint(jax.random.key(level), (600, 64), 0, 1437)
    point, losses = jax.lax.scan(step, point._replace(extra=None), batches)
    return point._replace(extra=losses)


# %% [markdown]
# What is written down after each round: how small the network is, and how many of the test digits
# it reads correctly.

# %%
rows = []


def record(technique, level, point):
    size = jp.report.total(jp.report.records(point.params, jp.get_masks(point.opt_state)))
    right = float((model.apply(point.params, x[1437:]).argmax(-1) == y[1437:]).mean())
    row = {'technique': technique, 'level': level, 'compression': size.compression}
    rows.append(row | {'test_accuracy': right, 'losses': point.extra})
    return f'{size.density:.1%} of the weights, {right:.1%} of the test digits right'


# %% [markdown]
# The race: three networks, two techniques, eleven rounds. Bars and curves are drawn anew after each
# round. A line is the median of the networks, its band reaches from the worst to the best.

# %%
techniques = {'lr_rewind': jp.rounds.lr_rewind(), 'fine_tune': jp.rounds.fine_tune(600)}
progress = Progress('{task.description}', BarColumn(), '{task.fields[now]}')
bars = {name: progress.add_task(name, total=33, now='') for name in techniques}
shown, curves = display(progress, display_id=True), display(display_id=True)
for seed in range(3):
    params = model.init(jax.random.key(seed), x)
    dense = train(jp.Point(params, tx.init(params), np.zeros(600, np.float32)), 0)
    record('dense', 0, dense)
    for name, technique in techniques.items():
        rounds = jp.rounds.iterate(dense, train, jp.rounds.geometric(2 / 3, 11), technique)
        for level, point in rounds:
            progress.update(bars[name], advance=1, now=record(name, level, point))
            shown.update(progress)
            curves.update(plots.accuracy_curve(rows))

# %% [markdown]
# Why? Here is the training loss of the last network, round by round. Each pruning throws it up. At
# the high rate of rewinding the network finds a new place, nearly as good as before; at the low
# rate of fine-tuning it hardly gets away from where pruning has left it.

# %%
figure, axes = plt.subplots(figsize=(8, 3), dpi=80, layout='constrained')
for name in techniques:
    losses = np.concatenate([row['losses'] for row in rows if row['technique'] == name][-11:])
    axes.semilogy(np.linspace(1, 12, 264), losses.reshape(-1, 25).mean(1), label=name)
axes.set(xlabel='round', ylabel='training loss, nats', xticks=range(1, 12))
legend = axes.legend(frameon=False)
