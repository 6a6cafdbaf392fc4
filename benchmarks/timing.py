"""Medians of interleaved turns, so that a machine whose speed drifts is fair to all."""

import os
import platform
import statistics
import time

import jax


def interleave(functions, turns):
    """Calls each function once to compile and then once a turn; returns its seconds by name."""
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - began)
    return seconds


def table(seconds, reference):
    """Writes a line a function: the median time, and the median of its ratios to the reference."""
    lines = [hardware(), f'{"":36s} {"median ms":>10s} {"ratio":>7s}']
    for name, values in seconds.items():
        pairs = zip(values, seconds[reference], strict=True)
        ratio = statistics.median(value / other for value, other in pairs)
        lines.append(f'{name:36s} {1e3 * statistics.median(values):10.3f} {ratio:7.3f}')
    return '\n'.join(lines)


def hardware():
    """Names what the figures were measured on."""
    return (
        f'{jax.device_count()} {jax.default_backend()} device(s), {os.cpu_count()} cores, '
        f'{platform.machine()}, jax {jax.__version__}'
    )
