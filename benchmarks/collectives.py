"""What devices exchange, read from a compiled program."""

import re

import numpy as np

KINDS = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')
BYTES = {'u32': 4, 's32': 4, 'f32': 4, 'pred': 1, 'u8': 1, 's8': 1, 'bf16': 2, 'u16': 2, 's16': 2}


def moved(kind, text):
    """The number of collectives of a kind in a compiled program, and the bytes each run carries."""
    shapes = re.findall(rf'= (.*?) {kind}(?:-start)?\(', text)
    sizes = [
        BYTES[dtype] * int(np.prod([int(n) for n in dims.split(',') if n]))
        for shape in shapes
        for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', shape)
    ]
    return len(shapes), sum(sizes)


def exchanged(text):
    """Numbers and bytes of each kind of collective."""
    return {kind: found for kind in KINDS if (found := moved(kind, text))[0]}
