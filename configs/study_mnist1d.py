"""MNIST-1D, a study: a perceptron of 256 and 128 units, three techniques, five replicates.

python -m train.main --config=configs/study_mnist1d.py --workdir=runs/study_mnist1d

The results are in docs/results.md, with the time it took. Another network:
--config.model.name=conv1d.
"""

import ml_collections

from configs import study_digits


def get_config() -> ml_collections.ConfigDict:
    c = study_digits.get_config()
    c.data.name = 'mnist1d'
    c.data.validation_examples = 500
    c.data.normalize = 'dataset'
    c.model.name = 'mlp256'
    c.train.steps = 1750  # 50 epochs
    c.train.batch_size = 100
    c.train.steps_per_dispatch = 350
    c.checkpoint.every_steps = 7000
    return c
