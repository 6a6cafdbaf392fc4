"""What checkpoints cost: the share of a run that waits for them, and restoring a large state.

    python -m benchmarks.checkpoints

The default run, digits to 1.2 % of the weights by two techniques: seconds inside of the calls that
save, which write in the background, against all of the run. Then a state of 100 MB in 50 leaves,
verified by its checksums and restored.
"""

import contextlib
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import timing
from configs import digits
from train import checkpoint, integrity, loop


@contextlib.contextmanager
def clocked(room, name):
    """Adds up the seconds inside of a function of a module."""
    function, seconds = getattr(room, name), []

    def call(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    setattr(room, name, call)
    try:
        yield seconds
    finally:
        setattr(room, name, function)


def stall(folder):
    config = digits.get_config()
    with clocked(checkpoint, 'save') as saves, clocked(loop, 'train_all') as training:
        loop.run(config, folder / 'run')
    share = sum(saves) / sum(training)
    print(
        f'{len(saves)} checkpoints in {sum(training):.1f} s of training, pruning and measuring: '
        f'the loop waits {sum(saves):.2f} s, {share:.2%}'
    )


def restore(folder):
    draw = lambda n: jax.random.normal(jax.random.key(n), (512, 1024))  # noise does not compress
    state = {f'leaf_{n}': draw(n) for n in range(50)}
    with checkpoint.open_store(folder / 'large', [1]) as store:
        checkpoint.save(store, 1, state, {})
    with checkpoint.open_store(folder / 'large', [1]) as store:
        began = time.perf_counter()
        wrong = integrity.damage(folder / 'large' / '1')
        verified = time.perf_counter()
        found = checkpoint.restore(store, 1, jax.eval_shape(lambda: state))
        jax.block_until_ready(found)
        ended = time.perf_counter()
    assert wrong is None and all((found[key] == x).all() for key, x in state.items())
    size = sum(x.nbytes for x in state.values()) / 1e6
    print(
        f'{size:.0f} MB: verified in {verified - began:.2f} s, restored in {ended - verified:.2f} s'
    )


def main():
    with tempfile.TemporaryDirectory() as folder:
        stall(Path(folder))
        restore(Path(folder))
    print(timing.hardware())


if __name__ == '__main__':
    main()
