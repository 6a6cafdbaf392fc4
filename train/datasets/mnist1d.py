"""MNIST-1D as a TensorFlow Datasets builder over the generator of its author's package."""

import random
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

_CITATION = """@article{greydanus2020scaling,
  author = {Greydanus, Sam},
  title = {Scaling down Deep Learning},
  journal = {arXiv preprint arXiv:2011.14439},
  year = {2020},
}"""


class Mnist1d(tfds.core.GeneratorBasedBuilder):
    """5,000 signals of 40 points made from ten templates of digits, in 10 classes.

    Each template is padded, scaled, moved, made noisy and sheared at random, by the defaults and
    the seed (42) of the package `mnist1d`; the first 4,000 are for training and the other 1,000
    for the test. All values together have mean 0 and variance 1. The package can also fetch a
    pickle of the same signals; that is never done. Prepare it with `file_format='array_record'`.

    Source: Greydanus 2020, arXiv:2011.14439, sec. 2. Deviation: float32 instead of float64.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First release.'}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Signals of 40 points made from ten templates of digits.',
            features=tfds.features.FeaturesDict(
                {
                    'signal': tfds.features.Tensor(shape=(40, 1), dtype=np.float32),
                    'label': tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=('signal', 'label'),
            homepage='https://github.com/greydanus/mnist1d',
            citation=_CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        signals = generate()
        return {
            'train': self._generate_examples(signals['x'], signals['y']),
            'test': self._generate_examples(signals['x_test'], signals['y_test']),
        }

    def _generate_examples(
        self, signals: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (signal, label) in enumerate(zip(signals, labels, strict=True)):
            yield i, {'signal': signal[:, None].astype(np.float32), 'label': int(label)}


def generate() -> dict[str, Any]:
    """Runs the package's generator, and leaves Python's and NumPy's random state as they were.

    Returns:
      `x` (4000, 40) and `x_test` (1000, 40), float64; `y` and `y_test`, the classes.
    """
    from mnist1d import data  # brings matplotlib and SciPy, and is only needed here

    before = random.getstate(), np.random.get_state()
    try:
        return data.make_dataset(data.get_dataset_args())
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
