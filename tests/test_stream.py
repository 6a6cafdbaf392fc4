import io
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from photographs import SOURCE, jpeg, smooth
from PIL import Image

from train import data, stream

SIZE = 24


NUMBERED = [{'image': np.full((8, 8, 3), i, np.uint8), 'label': i} for i in range(22)]


def train(source=SOURCE, *, steps=7, start_step=0, **options):
    options = {'batch_size': 6, 'seed': 3, 'image_size': SIZE} | options
    batches = stream.train_batches(source, start_step=start_step, **options)
    return list(itertools.islice(batches, steps))


def evaluate(source=SOURCE, **options):
    return list(stream.eval_batches(source, **{'batch_size': 6, 'image_size': SIZE} | options))


def same(left, right):
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


# -- order


def test_a_batch_is_of_bytes_and_labels():
    ((images, labels),) = train(steps=1)
    assert images.shape == (6, SIZE, SIZE, 3) and images.dtype == np.uint8
    assert labels.shape == (6,) and labels.dtype == np.int32


def test_training_is_a_function_of_the_seed():
    same(train(), train())
    assert (train()[0][0] != train(seed=4)[0][0]).any()


@pytest.mark.parametrize('step', [1, 3, 5])
def test_a_stream_started_later_gives_the_same_batches(step):
    same(train(steps=7 - step, start_step=step), train()[step:])


@pytest.mark.slow  # processes are started
def test_workers_change_nothing():
    same(train(steps=4, start_step=1, workers=2), train(steps=4, start_step=1))
    same(evaluate(workers=1), evaluate())


@pytest.mark.parametrize('shards', [2, 3])
def test_shards_make_up_the_batches_of_one_process(shards):
    parts = [train(shard_index=i, shard_count=shards) for i in range(shards)]
    for step, batch in enumerate(train()):
        for column, whole in enumerate(batch):
            for i in range(shards):
                np.testing.assert_array_equal(parts[i][step][column], whole[i::shards])


def test_an_epoch_repeats_nothing_and_drops_the_remainder():
    epochs = np.concatenate([labels for _, labels in train(NUMBERED, steps=60)]).reshape(20, 18)
    for epoch in epochs:
        assert len(set(epoch)) == 18
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set(epochs.ravel()) == set(range(22))  # what is dropped differs


def test_images_stay_with_their_labels():
    for images, labels in train(NUMBERED, steps=4):
        np.testing.assert_array_equal(
            images, np.broadcast_to(labels[:, None, None, None], images.shape)
        )


def test_neighbouring_seeds_share_no_order():
    orders = [
        np.concatenate([labels for _, labels in train(NUMBERED, steps=9, seed=seed)]).reshape(3, 18)
        for seed in range(5)
    ]
    assert len({tuple(epoch) for order in orders for epoch in order}) == 15


def test_an_image_is_cropped_anew_in_each_epoch():
    one = SOURCE[:1]
    crops = train(one, steps=5, batch_size=1)
    assert len({images.tobytes() for images, _ in crops}) == 5


# -- crops


def test_random_boxes_have_areas_and_aspects_in_range():
    rng = np.random.default_rng(0)
    boxes = np.array([stream._random_box(rng, 400, 300) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, aspects = width * height / (400 * 300), width / height
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 400 and boxes[:, 3].max() <= 300
    assert areas.min() > 0.078 and areas.min() < 0.1 and areas.max() > 0.9
    assert 0.73 < aspects.min() < 0.77 and 1.3 < aspects.max() < 1.36
    assert abs(np.log(aspects).mean()) < 0.05  # as often tall as wide
    assert len(set(boxes[:, 0])) > 100 and len(set(boxes[:, 1])) > 100


def test_an_image_that_no_crop_fits_keeps_its_centre():
    box = stream._random_box(np.random.default_rng(0), 1000, 10)
    assert box == (500 - 4.375, 5 - 4.375, 500 + 4.375, 5 + 4.375)


def test_half_of_the_images_are_mirrored():
    ramp = np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    images = np.concatenate(
        [x for x, _ in train([{'image': ramp, 'label': 0}] * 6, steps=50)]
    ).astype(int)
    mirrored = images[:, 0, 0, 0] > images[:, 0, -1, 0]
    assert 110 < mirrored.sum() < 190  # of 300


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre():
    pixels = smooth(0, 320, 256)
    ((images, labels),) = evaluate([{'image': pixels, 'label': 5}], image_size=224)
    expected = pixels[16:240, 48:272]  # the shorter side is 256 already
    assert np.abs(images[0].astype(int) - expected).max() <= 1
    assert labels.tolist() == [5, -1, -1, -1, -1, -1]


def test_a_large_jpeg_is_decoded_small_and_looks_the_same():
    pixels = smooth(1, 1600, 1200)
    small = evaluate([{'image': jpeg(pixels, quality=95), 'label': 0}])[0][0][0]
    large = evaluate([{'image': pixels, 'label': 0}])[0][0][0]
    assert np.abs(small.astype(int) - large).max() <= 6
    image = stream._open(jpeg(pixels))
    stream._resized(image, (0.0, 0.0, 1600.0, 1200.0), SIZE)
    assert image.size == (200, 150)


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'RGBA'])
def test_images_of_other_modes_become_rgb(mode):
    buffer = io.BytesIO()
    image = Image.new('RGB', (30, 30), (200, 200, 200)).convert(mode)
    image.save(buffer, 'JPEG' if mode in ('L', 'CMYK') else 'PNG')
    images, _ = evaluate([{'image': buffer.getvalue(), 'label': 0}], batch_size=1)[0]
    assert images.shape == (1, SIZE, SIZE, 3) and np.abs(images.astype(int) - 200).max() <= 3


# -- evaluation


@pytest.mark.parametrize('shards', [1, 2])
@pytest.mark.parametrize('batch_size', [2, 6, 22, 40])
def test_evaluation_counts_every_example_once_and_in_order(batch_size, shards):
    seen = []
    parts = [
        evaluate(NUMBERED, batch_size=batch_size, shard_index=i, shard_count=shards)
        for i in range(shards)
    ]
    for batches in zip(*parts, strict=True):
        for images, labels in batches:
            assert len(images) == len(labels) == batch_size // shards
            assert not images[labels < 0].any()
            seen += labels[labels >= 0].tolist()
    assert len(parts[0]) == -(-22 // batch_size)
    assert sorted(seen) == list(range(22)) and (shards > 1 or seen == sorted(seen))


# -- sources


def test_mocked_data_stream_without_tensorflow():
    with tfds.testing.mock_data(num_examples=8):
        source = tfds.builder('imagenet2012').as_data_source(split='train')
    images, labels = train(source, steps=1)[0]
    assert images.shape == (6, SIZE, SIZE, 3) and ((labels >= 0) & (labels < 1000)).all()


def test_hold_out_divides_as_data_in_memory_are_divided():
    kept, held = stream.hold_out(NUMBERED, 7, seed=5)
    arrays = np.arange(22, dtype=np.int32)
    expected = data.hold_out(data.Split(arrays, arrays), 7, seed=5)
    for part, split in zip((kept, held), expected, strict=True):
        assert [part[i]['label'] for i in range(len(part))] == split.labels.tolist()
    assert sum((labels >= 0).sum() for _, labels in evaluate(held)) == 7


# -- errors


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'batch_size': 0}, 'batch_size=0 must be at least 1'),
        ({'shard_count': 4}, 'batch_size=6 must be .* a multiple of shard_count=4'),
        ({'shard_index': 2, 'shard_count': 2}, r'shard_index=2 must be in \[0, shard_count=2\)'),
        ({'workers': -1}, 'workers=-1 must be at least 0'),
        ({'image_size': 0}, 'image_size=0 must be at least 1'),
        ({'seed': -1}, 'seed=-1 must be at least 0'),
        ({'start_step': -1}, 'start_step=-1 must be at least 0'),
        ({'batch_size': 23}, 'batch_size=23 exceeds the 22 examples'),
    ],
)
def test_arguments_out_of_range(options, message):
    options = {'batch_size': 6, 'seed': 0, 'start_step': 0, 'image_size': SIZE} | options
    with pytest.raises(ValueError, match=message):
        stream.train_batches(SOURCE, **options)


def test_there_is_something_to_evaluate():
    with pytest.raises(ValueError, match='there are no examples'):
        stream.eval_batches([], batch_size=2, image_size=SIZE)


@pytest.mark.parametrize('examples', [0, 22])
def test_hold_out_keeps_some_of_each(examples):
    with pytest.raises(ValueError, match=f'{examples} examples held out .* below 22'):
        stream.hold_out(SOURCE, examples, seed=0)


@pytest.mark.parametrize(
    ('pixels', 'found'),
    [
        (np.zeros((8, 8, 1), np.uint8), r'uint8 of shape \(8, 8, 1\)'),
        (np.zeros((8, 8, 3), np.float32), r'float32 of shape'),
    ],
)
def test_arrays_must_be_rgb(pixels, found):
    with pytest.raises(ValueError, match=f'an image is {found}'):
        evaluate([{'image': pixels, 'label': 0}])
