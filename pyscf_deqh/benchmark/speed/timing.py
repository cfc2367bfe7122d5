"""Repeated measurements: median, spread, and the clock they are taken with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one quantity."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def spread(self) -> float:
        """Interquartile range, the middle half of the measurements."""
        low, high = np.percentile(self.values, (25, 75))
        return float(high - low)

    def scaled(self, factor: float) -> Sample:
        return Sample(tuple(factor * value for value in self.values))

    def rate(self, count: float) -> Sample:
        """``count`` per value: how many a second, of a number done in these seconds."""
        return Sample(tuple(count / value for value in self.values))


def measure(
    function: Callable[[], object],
    repeats: int,
    warmup: int = 1,
    limit: float = math.inf,
    synchronize: Callable[[], object] | None = None,
) -> Sample:
    """Wall-clock seconds of each of ``repeats`` calls.

    Args:
        function: what is timed; called ``warmup`` times before.
        repeats: calls, at least one.
        limit: seconds of warm-up, and of measurement, after which no further call is begun; the
            first call of each is always made.
        synchronize: waits for a device that works asynchronously; part of every timed call.
    """
    wait = synchronize or (lambda: None)
    begun = time.perf_counter()
    for i in range(warmup):
        if i and time.perf_counter() - begun > limit:
            break
        function()
        wait()
    values: list[float] = []
    begun = time.perf_counter()
    while not values or (len(values) < repeats and time.perf_counter() - begun < limit):
        started = time.perf_counter()
        function()
        wait()
        values.append(time.perf_counter() - started)
    return Sample(tuple(values))


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent p of values ~ sizes^p: slope of the least-squares line through the logarithms.

    Raises:
        ValueError: fewer than two sizes, or a value that is not positive.
    """
    if len(sizes) < 2 or min(*sizes, *values) <= 0:
        raise ValueError("an exponent needs two or more positive values")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
