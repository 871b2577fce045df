"""The data of a benchmark: figures, rows of figures, and targets.

This module does not start, measure or print anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from benchmarks.servers import BASE, EXTENSION, NAMES, OURS, REFERENCE, Server, Variant

# The difference between two processes of the same program, even if each repeats exactly.
NOISE = 0.05
T = TypeVar("T")
Values = Mapping[str, float]


class Life(Enum):
    """The lifetime of a server."""

    ROW = "row"  # one process for all rounds of a row
    ROUND = "round"  # a new process for each round
    OWN = "own"  # the row starts and stops it


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a row measures.

    Parameters
    ----------
    key, label, unit : str
        The key in the results, the label in the table, and the unit.
    more_is_better : bool
        True if a higher value is better. The ratio always says how many times better kbridge is.
    ratio : float | None
        The target ratio.
    limit : float | None
        The target for kbridge's value: a maximum, or a minimum if more is better. If there is also
        a ratio, it is the value on the reference machine.
    info : bool
        True for figures that are shown without a ratio and not plotted.
    aim : float | None
        The target for kbridge's value divided by that of the baseline: a maximum, or a minimum if
        more is better.
    """

    key: str
    label: str
    unit: str
    more_is_better: bool = False
    ratio: float | None = None
    limit: float | None = None
    info: bool = False
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """The size of the run. `quick` is a smoke test, whose figures are meaningless."""

    home: Path
    quick: bool = False
    rounds: int = 3
    count: int | None = None
    kernel: str | None = None

    def pick(self, full: T, quick: T) -> T:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a measurement that the runner repeats on alternating servers.

    Parameters
    ----------
    measure : callable
        Takes a server and the settings; returns values by figure key.
    floor : callable | None
        The same measurement without a server.
    rounds : int | None
        Maximum number of rounds, for long measurements.
    servers : tuple of str
        The servers to measure.
    alike : bool
        True if the extension should be as good as the standalone server. It cannot be where the
        figure depends on jupyter_server.
    compared : bool
        True if `make bench` also measures the baseline, which is an old commit.
    """

    name: str
    title: str
    figures: tuple[Figure, ...]
    measure: Callable[[Server, Settings], Values]
    life: Life = Life.ROW
    floor: Callable[[Settings], Values] | None = None
    rounds: int | None = None
    servers: tuple[str, ...] = NAMES
    alike: bool = True
    compared: bool = False

    def runs_on(self, name: str, variant: Variant) -> bool:
        """Return True if the row measures a server, given its name and its variant."""
        kind = name if name in NAMES else OURS
        return kind in self.servers and (self.compared or not variant.selected)


@dataclass(slots=True)
class Outcome:
    """The results of one row: the values of each round per server (or "floor")."""

    row: Row
    rounds: dict[str, list[Values]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, server: str, key: str) -> float | None:
        values = [r[key] for r in self.rounds.get(server, []) if key in r]
        return statistics.median(values) if values else None

    def ratio(self, figure: Figure, server: str = OURS, base_name: str = BASE) -> float | None:
        """Return the ratio of the medians, above 1 if the server is better; None if meaningless."""
        base, ours = self.median(base_name, figure.key), self.median(server, figure.key)
        if figure.info or not base or not ours or base < 0 or ours < 0:
            return None
        return ours / base if figure.more_is_better else base / ours

    def to_baseline(self, figure: Figure, server: str = OURS) -> float | None:
        """Return how many times better a server is than the baseline; None if not measured."""
        share = self.share(figure, server)
        return share if share is None or figure.more_is_better else 1 / share

    def share(self, figure: Figure, server: str = OURS) -> float | None:
        """Return a server's value divided by that of the baseline; None if not measured."""
        base, value = (self.median(name, figure.key) for name in (REFERENCE, server))
        if not base or not value or base < 0 or value < 0:
            return None
        return value / base

    def aim_met(self, figure: Figure) -> bool | None:
        """Return True if the aim of a figure is met; None if it has none or was not measured."""
        share = self.share(figure)
        if figure.aim is None or share is None:
            return None
        return share >= figure.aim if figure.more_is_better else share <= figure.aim

    def met(self, figure: Figure) -> bool | None:
        """Return True if the target of a figure is met; None if it has none or was not measured.

        The ratio decides if there is one, because it does not depend on the machine.
        """
        if figure.ratio is not None and (ratio := self.ratio(figure)) is not None:
            return ratio >= figure.ratio
        ours = self.median(OURS, figure.key)
        if figure.limit is None or ours is None:
            return None
        return ours >= figure.limit if figure.more_is_better else ours <= figure.limit

    def to_standalone(self, figure: Figure) -> float | None:
        """Return the ratio of the extension to the standalone server; None if not alike."""
        return self.ratio(figure, EXTENSION, OURS) if self.row.alike else None

    def same(self, figure: Figure) -> bool | None:
        """Return True if the extension is as good as the standalone server, within noise.

        That is so if its median is at most `NOISE` worse, or its best round is not worse than the
        worst round of the standalone server. None if they are not alike, if there is no target, or
        if there is only one round, which does not show the noise.
        """
        compared = self.row.alike and (figure.limit is not None or not figure.info)
        theirs, ours = self._goodness(EXTENSION, figure), self._goodness(OURS, figure)
        if not theirs or not ours or not compared:
            return None
        wanted = statistics.median(ours)
        if statistics.median(theirs) >= wanted - NOISE * abs(wanted):
            return True
        return max(theirs) >= min(ours) if len(theirs) > 1 and len(ours) > 1 else None

    def _goodness(self, server: str, figure: Figure) -> list[float]:
        """Return the values of the rounds, with a sign so that more is better."""
        sign = 1 if figure.more_is_better else -1
        return [sign * r[figure.key] for r in self.rounds.get(server, []) if figure.key in r]
