"""Steps a second of the trainer, masks and all, against a hand-written dense `lax.scan` loop.

The same network, batch, optimizer, schedule and order of data: LeNet-300-100 on digits.

python -m benchmarks.trainer
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import timing
from configs import digits
from train import data, loop, models, rates
from train.trainer import TrainState


def dense_loop(config, pipeline, steps):
    """Trains without masks, checkpoints or rounds: what one would write by hand."""
    model = models.build(config.model.name, num_classes=pipeline.num_classes)
    mean, std = (np.float32(pipeline.normalization[name]) for name in ('mean', 'std'))
    c = config.optimizer
    tx = optax.chain(
        optax.add_decayed_weights(c.weight_decay),
        optax.sgd(rates.dense_schedule(config), momentum=c.momentum),
    )
    images, labels = pipeline.sample()
    batch, examples = config.train.batch_size, len(labels)

    def loss(params, x, y):
        logits = model.apply(
            {'params': params}, data.standardize(x, mean=mean, std=std), train=True
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def order(epoch):
        return jax.random.permutation(jax.random.fold_in(jax.random.key(0), epoch), examples)

    def run(params, opt_state, images, labels):
        def body(carry, number):
            params, opt_state, chosen = carry
            epoch, place = number // (examples // batch), number % (examples // batch)
            chosen = jax.lax.cond(place == 0, order, lambda _: chosen, epoch)
            now = jax.lax.dynamic_slice_in_dim(chosen, place * batch, batch)
            value, grads = jax.value_and_grad(loss)(params, images[now], labels[now])
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, chosen), value

        start = (params, opt_state, order(0))
        (params, opt_state, _), losses = jax.lax.scan(body, start, jnp.arange(steps))
        return params, opt_state, losses

    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)['params']
    compiled = jax.jit(run)
    return lambda: compiled(params, tx.init(params), images, labels)


def main():
    config = digits.get_config()
    networks, pipeline = loop.prepare(config)
    trainer, keys = networks.full, jax.random.split(jax.random.key(0), 1)
    point, steps = trainer.init(keys), config.train.steps_per_dispatch

    def ours():
        copy = jax.tree.map(jnp.copy, TrainState(point, jnp.int32(0), keys))  # it is donated
        return trainer.train(jax.device_put(copy, trainer.shardings), pipeline.sample())

    seconds = timing.interleave(
        {'dense loop by hand': dense_loop(config, pipeline, steps), 'trainer, masks and all': ours},
        turns=30,
    )
    print(timing.table(seconds, reference='dense loop by hand'))
    print(f'a turn is {steps} steps; a ratio of 1.11 is 0.9 × the steps a second')


if __name__ == '__main__':
    main()
