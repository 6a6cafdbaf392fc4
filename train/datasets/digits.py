"""Scikit-learn's handwritten digits as a TensorFlow Datasets builder."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

_TRAIN_EXAMPLES = 1437
_CITATION = """@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  publisher = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}"""


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8 x 8 pixels with 17 grey levels (0 to 16), in 10 classes.

    The examples are put in the order `np.random.RandomState(0).permutation(1797)`, whose stream
    NumPy has frozen; the first 1,437 are for training and the other 360 for the test. Prepare it
    with `file_format='array_record'`, the format that needs no TensorFlow.

    Source: Alpaydin & Kaynak 1998, doi:10.24432/C50P49 (the test part, as scikit-learn ships it).
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES: ClassVar[dict[str, str]] = {'1.0.0': 'First release.'}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Handwritten digits of 8 x 8 pixels with 17 grey levels.',
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    'label': tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=('image', 'label'),
            homepage='https://archive.ics.uci.edu/dataset/80',
            citation=_CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        from sklearn.datasets import load_digits  # a second's import, and only needed here

        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
        order = np.random.RandomState(0).permutation(len(labels))
        train, test = np.split(order, [_TRAIN_EXAMPLES])
        return {
            'train': self._generate_examples(images[train], labels[train]),
            'test': self._generate_examples(images[test], labels[test]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {'image': image, 'label': int(label)}
