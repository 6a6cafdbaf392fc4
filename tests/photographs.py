"""A TFDS data set like ImageNet, of a few small JPEGs."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def jpeg(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'JPEG', **options)
    return buffer.getvalue()


def smooth(seed, width, height):
    """Pixels that differ from image to image and from place to place."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


SOURCE = [
    {'image': jpeg(smooth(i, 40 + i, 50 - i), quality=95), 'label': i % 11} for i in range(22)
]


SPLITS = ('train', 'validation', 'test', 'visible')


class Photographs(tfds.core.GeneratorBasedBuilder):
    """JPEGs of several sizes and 1,000 classes; 'test' hides its labels, 'visible' does not."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = {
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(num_classes=1000),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=('image', 'label'),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        for i, example in enumerate(SOURCE):
            label = -1 if split == 'test' else example['label']
            yield i, {'image': io.BytesIO(example['image']), 'label': label}


def prepare(folder):
    """Writes the data set to a folder."""
    tfds.builder('photographs', data_dir=folder).download_and_prepare(file_format='array_record')
