"""TFDS builders for data that every machine has or can make: no download, no TensorFlow."""

from train.datasets.digits import Digits
from train.datasets.mnist1d import Mnist1d
from train.datasets.stdlib_text import StdlibText

__all__ = ['OFFLINE', 'Digits', 'Mnist1d', 'StdlibText']

OFFLINE = (Digits, Mnist1d, StdlibText)
"""The builders that may be prepared on first use, because nothing has to be fetched."""
