"""Characters of Python's standard library, a study: a small Transformer, in bits a character.

python -m train.main --config=configs/study_text.py --workdir=runs/study_text

The results are in docs/results.md, with the time it took. Another network:
--config.model.name=lstm.
"""

import ml_collections

from configs import study_digits


def get_config() -> ml_collections.ConfigDict:
    c = study_digits.get_config()
    c.replicates = 3
    c.data.name = 'stdlib_text'
    c.data.validation_examples = 1000
    c.data.normalize = 'none'
    c.model.name = 'transformer'
    c.optimizer.name = 'adamw'
    c.optimizer.learning_rate = 3e-3
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 1.0
    c.schedule.warmup_steps = 50
    c.train.steps = 500
    c.train.batch_size = 16
    c.train.steps_per_dispatch = 50
    c.prune.rate = 0.5
    c.prune.levels = 4  # 0.5 ** 4 = 6.3 % of the weights
    c.prune.floor = 0.01  # without it, the position embeddings may be left with nothing
    c.checkpoint.every_steps = 500
    return c
