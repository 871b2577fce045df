"""The faults that the soak has found, and its counters."""

from __future__ import annotations

import re
import time
from collections import Counter

__all__ = ["Findings"]

_KEPT = 200
_ALIKE = 3  # faults of one client that differ only in numbers
_NUMBERS = re.compile(r"\b[0-9a-f_]{8,}|[\d,]+")


class Findings:
    """Faults as sentences, and counters by kind.

    Attributes
    ----------
    faults : list of str
        The first faults.
    count : int
        The number of faults.
    tally : Counter
        By (kind, what): messages, lines, connections, ...
    """

    def __init__(self, echo: bool = False) -> None:
        self.faults: list[str] = []
        self.count = 0
        self.tally: Counter[tuple[str, str]] = Counter()
        self._echo = echo
        self._alike: Counter[tuple[str, str]] = Counter()
        self._begin = time.monotonic()

    def fault(self, who: str, what: str) -> None:
        """Record a fault."""
        self.count += 1
        kind = who, _NUMBERS.sub("#", what)
        self._alike[kind] += 1
        if self._alike[kind] > _ALIKE:
            return
        line = f"{time.monotonic() - self._begin:6.1f} s  {who}: {what}"
        if len(self.faults) < _KEPT:
            self.faults.append(line)
            if self._echo:
                print(f"FOUND {line}", flush=True)

    def add(self, kind: str, what: str, count: int = 1) -> None:
        """Increase a counter."""
        self.tally[kind, what] += count

    def total(self, what: str) -> int:
        """Return the sum of a counter over all kinds."""
        return sum(n for (_, name), n in self.tally.items() if name == what)
