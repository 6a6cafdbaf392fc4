"""TFDS builders for real data that ships with the machine: no download, no TensorFlow."""

from train.datasets.digits import Digits

__all__ = ['OFFLINE', 'Digits']

OFFLINE = (Digits,)
"""The builders that may be prepared on first use, because nothing has to be fetched."""
