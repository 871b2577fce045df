"""The counters of hubs: integers that only grow, as monitoring reads them.

Each part of a hub counts in plain integers and reports them under keys: the name of the counter,
then the values of its labels. `kbridge.metrics.families` describes them.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from kbridge.flow.histogram import ROUND_TRIP, Histogram

__all__ = ["Counts", "Totals"]

Counts: TypeAlias = Counter[tuple[str, ...]]
"""Numbers by name and values of labels."""


class Totals:
    """The sums of the counters of several hubs.

    Attributes
    ----------
    counts : Counts
        The sums.
    round_trips : Histogram
        Seconds from pings to their pongs.
    """

    def __init__(self) -> None:
        self.counts: Counts = Counter()
        self.round_trips = Histogram(ROUND_TRIP)

    def add(self, counts: Counts, round_trips: Histogram) -> None:
        """Add the counters of a hub, or other sums."""
        self.counts.update(counts)
        self.round_trips.add(round_trips)
