"""The examples run, and prune as they say."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxprune as jp

EXAMPLES = Path(__file__).parents[1] / 'examples'


@pytest.mark.slow
@pytest.mark.promotes  # optax and flax do
def test_a_pmapped_loop(capsys):
    state = runpy.run_path(str(EXAMPLES / 'pmap_loop.py'))['main'](levels=2)
    first, *others = (
        jax.tree.map(lambda x, n=n: np.asarray(x[n]), (state.params, jp.get_masks(state.opt_state)))
        for n in range(jax.local_device_count())
    )
    assert len(others) == 7
    for each in others:
        jax.tree.map(np.testing.assert_array_equal, first, each)
    params, masks = first
    for path, mask in jp.tree.present(masks):
        assert not np.asarray(dict(jp.tree.present(params))[path])[~mask].any()
    assert jp.masks.density(masks) == pytest.approx(0.36, abs=1e-4)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('level 2') and float(last.split()[-1][:-1]) > 85
