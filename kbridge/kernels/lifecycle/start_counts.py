"""Durations and failures of kernel starts, for monitoring."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from kbridge.errors import KbridgeError
from kbridge.flow.histogram import START, Histogram

__all__ = ["Start", "StartCounts"]

_NAMES: Final = 50
_OTHER: Final = "other"


@dataclass(slots=True)
class Start:
    """One start; `measured` is False if its duration says nothing, as that of a wait in a queue."""

    measured: bool = True


class StartCounts:
    """Counts the starts of kernels, by kernelspec; all beyond 50 kernelspecs together.

    Attributes
    ----------
    durations : dict of str to Histogram
        Seconds from the beginning of a start to the first answer, the wait for a slot included.
    failures : Counter
        The number of starts that failed.
    """

    def __init__(self) -> None:
        self.durations: dict[str, Histogram] = {}
        self.failures: Counter[str] = Counter()

    @contextmanager
    def start(self, kernelspec: str) -> Iterator[Start]:
        """Measure one start; one that is cancelled does not count."""
        name = kernelspec if len({*self.durations, *self.failures}) < _NAMES else _OTHER
        if kernelspec in self.durations or kernelspec in self.failures:
            name = kernelspec
        begun, start = time.monotonic(), Start()
        try:
            yield start
        except KbridgeError:
            self.failures[name] += 1
            raise
        if start.measured:
            self.durations.setdefault(name, Histogram(START)).observe(time.monotonic() - begun)
