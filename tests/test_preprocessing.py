"""Preprocessing that runs inside jit: the half of train/data.py that needs no data set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import data


def _images(shape=(6, 5, 4, 3), seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def test_channel_moments_and_standardize():
    images = _images()
    mean, std = data.channel_moments(images)
    assert mean.shape == std.shape == (3,) and mean.dtype == std.dtype == np.float32
    x = jax.jit(data.standardize)(images, mean=mean, std=std)
    assert x.dtype == jnp.float32 and x.shape == images.shape
    for c in range(3):
        values = images[..., c].astype(float)
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(x[..., c], expected, atol=1e-5)
    np.testing.assert_allclose(
        data.standardize(jnp.asarray(images), mean=1.0, std=2.0), (images - 1.0) / 2, rtol=1e-6
    )


def test_signals_and_vectors_are_standardised_a_channel():
    for shape in ((50, 9, 2), (50, 3)):
        inputs = np.random.RandomState(0).randn(*shape).astype(np.float32) * 3 + 5
        mean, std = data.channel_moments(inputs)
        assert mean.shape == std.shape == shape[-1:]
        x = np.asarray(data.standardize(jnp.asarray(inputs), mean=mean, std=std), np.float64)
        columns = x.reshape(-1, shape[-1])
        np.testing.assert_allclose(columns.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(columns.std(0), 1, atol=1e-6)
        each = np.asarray(data.standardize_each(jnp.asarray(inputs)), np.float64).reshape(50, -1)
        np.testing.assert_allclose(each.mean(1), 0, atol=1e-6)
        assert each.std(1).max() < 1 + 1e-6


def test_only_images_are_cropped():
    with pytest.raises(ValueError, match=r'only images .* not \(8, 40, 1\)'):
        data.crop_and_flip(jax.random.key(0), jnp.zeros((8, 40, 1)))


def test_channel_moments_refuse_a_constant_channel():
    images = _images()
    images[..., 1] = 3
    with pytest.raises(ValueError, match='channel 1 is constant'):
        data.channel_moments(images)


def test_standardize_each_against_a_loop():
    images = _images()
    images[1], images[2] = 7, 7
    images[2, 0, 0, 0] = 8
    x = jax.jit(data.standardize_each)(images)
    assert x.dtype == jnp.float32
    for row, image in zip(x, images.astype(float), strict=True):
        expected = (image - image.mean()) / max(image.std(), 1 / np.sqrt(image.size))
        np.testing.assert_allclose(row, expected, atol=2e-5)
    assert jnp.abs(x[1]).max() < 1e-4


def test_standardize_each_has_the_floor_of_one_over_root_n():
    images = np.full((1, 4, 4, 1), 0.5, np.float32)
    images[0, 0, 0, 0] = 0.6
    expected = (images - images.mean()) * 4
    np.testing.assert_allclose(data.standardize_each(jnp.asarray(images)), expected, atol=1e-6)


@pytest.mark.parametrize('padding', [0, 1, 4])
def test_crop_and_flip_against_a_loop(padding):
    images, rng = _images((12, 5, 6, 2)), np.random.RandomState(padding)
    corners, flips = rng.randint(0, 2 * padding + 1, (12, 2)), rng.rand(12) < 0.5
    x = data._crop_and_flip(jnp.asarray(images), jnp.asarray(corners), jnp.asarray(flips), padding)
    expected = np.zeros_like(images)
    for n, r, c in np.ndindex(12, 5, 6):
        row = r + corners[n, 0] - padding
        column = (5 - c if flips[n] else c) + corners[n, 1] - padding
        if 0 <= row < 5 and 0 <= column < 6:
            expected[n, r, c] = images[n, row, column]
    np.testing.assert_array_equal(x, expected)
    assert x.dtype == images.dtype


def test_crop_and_flip_makes_every_choice_equally_often():
    one = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    images = jnp.asarray(np.repeat(one, 3600, axis=0))
    x = jax.jit(data.crop_and_flip, static_argnames='padding')(jax.random.key(0), images, padding=1)
    _, counts = np.unique(x.reshape(3600, 9), axis=0, return_counts=True)
    assert len(counts) == 18  # 3 rows, 3 columns, 2 flips, about 200 times each
    assert counts.min() > 130 and counts.max() < 270


def test_crop_and_flip_depends_on_the_key_and_not_on_jit():
    images = jnp.asarray(_images((8, 8, 8, 1)))
    x, y = (data.crop_and_flip(jax.random.key(seed), images) for seed in (0, 1))
    assert (x != y).any()
    np.testing.assert_array_equal(jax.jit(data.crop_and_flip)(jax.random.key(0), images), x)
