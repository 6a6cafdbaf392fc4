"""Images a second of the stream, against a loop that decodes one image after the other.

512 JPEGs of 400 x 500 pixels, a random crop of each resized to 224 x 224. Each turn measures all.

python -m benchmarks.stream
"""

import io
import itertools
import os
import statistics
import time

import numpy as np
from PIL import Image

from train import stream

BATCH, BATCHES, TURNS = 64, 8, 5


def photographs(number):
    """Smooth shapes with noise on them: about as many bytes as a photograph of that size."""
    rng = np.random.default_rng(0)
    for label in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (50, 40, 3), np.uint8))
        pixels = np.asarray(coarse.resize((400, 500), Image.Resampling.BICUBIC), np.int16)
        noisy = (pixels + rng.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, 'JPEG', quality=90)
        yield {'image': buffer.getvalue(), 'label': label}


def loop(source):
    """Decodes, crops and stacks by hand."""
    rng = np.random.default_rng(0)
    for start in range(0, len(source), BATCH):
        rows = []
        for example in source[start : start + BATCH]:
            image = Image.open(io.BytesIO(example['image'])).convert('RGB')
            box = stream._random_box(rng, *image.size)
            image = image.resize((224, 224), Image.Resampling.BICUBIC, box=box)
            if rng.integers(2):
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            rows.append(np.asarray(image))
        yield np.stack(rows), np.array([x['label'] for x in source[start : start + BATCH]])


def streamed(source, workers):
    return stream.train_batches(
        source, batch_size=BATCH, seed=0, start_step=0, image_size=224, workers=workers
    )


def speed(batches, *, lead):
    """Images a second, after `lead` batches in which processes start and buffers fill."""
    for _ in range(lead):
        next(batches)
    began = time.perf_counter()
    found = sum(len(labels) for _, labels in itertools.islice(batches, BATCHES - lead))
    seconds = time.perf_counter() - began
    batches.close()
    return found / seconds


def main():
    source = list(photographs(BATCH * BATCHES))
    print(
        f'{os.cpu_count()} cores, {np.mean([len(x["image"]) for x in source]) / 1e3:.0f} kB a JPEG'
    )
    ways = {
        'loop by hand': lambda: speed(loop(source), lead=0),
        'stream, threads': lambda: speed(streamed(source, 0), lead=2),
        'stream, 1 worker': lambda: speed(streamed(source, 1), lead=2),
        'stream, 2 workers': lambda: speed(streamed(source, 2), lead=2),
    }
    found = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            found[name].append(way())
    for name, values in found.items():
        ratios = [a / b for a, b in zip(values, found['loop by hand'], strict=True)]
        median, ratio = statistics.median(values), statistics.median(ratios)
        print(f'{name:20s} {median:7.0f} images/s, {ratio:.2f} x')


if __name__ == '__main__':
    main()
