"""Counts of values in fixed buckets, as Prometheus's histograms have them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

__all__ = ["LAG", "ROUND_TRIP", "START", "Histogram"]

ROUND_TRIP: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets for the round trip to a client, in seconds."""

LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Buckets for the lateness of an event loop, in seconds."""

START: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Buckets for the start of a kernel, in seconds."""


class Histogram:
    """Counts values by size.

    Parameters
    ----------
    bounds : sequence of float
        The upper bounds of the buckets, ascending. A value equal to a bound belongs to its bucket.

    Attributes
    ----------
    bounds : tuple of float
        The upper bounds.
    counts : list of int
        The number of values in each bucket; the last one is for values above all bounds.
    total : float
        The sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Add the counts of another histogram.

        Raises
        ------
        ValueError
            If it has other buckets.
        """
        if other.bounds != self.bounds:
            raise ValueError("two histograms with different buckets cannot be added")
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
