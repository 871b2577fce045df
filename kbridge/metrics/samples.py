"""The values of one scrape."""

from __future__ import annotations

from collections import Counter
from typing import Final

from kbridge.flow.histogram import Histogram

__all__ = ["OTHER", "Samples"]

_NAMES: Final = 50
OTHER: Final = "other"
"""The kernelspec of all kernels beyond the first 50 kernelspecs."""


class Samples:
    """Values by the name of a metric and the values of its labels; equal keys are added up.

    Attributes
    ----------
    values : Counter
        The values of counters and gauges.
    histograms : dict
        The histograms, under keys of the same form.
    """

    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()
        self.histograms: dict[tuple[str, ...], Histogram] = {}
        self._kernelspecs: set[str] = set()

    def add(self, value: int, name: str, *labels: str) -> None:
        """Add to the value of a metric."""
        self.values[name, *labels] += value

    def add_histogram(self, histogram: Histogram, name: str, *labels: str) -> None:
        """Add to a histogram."""
        known = self.histograms.setdefault((name, *labels), Histogram(histogram.bounds))
        known.add(histogram)

    def kernelspec(self, name: str) -> str:
        """Return the label for a kernelspec, which bounds the number of labels.

        Attached kernels may have any name.
        """
        if name in self._kernelspecs or len(self._kernelspecs) < _NAMES:
            self._kernelspecs.add(name)
            return name
        return OTHER
