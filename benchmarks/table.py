"""What a benchmark is made of: figures, rows of figures, and the bars they have to reach.

Pure: nothing here starts, measures or prints.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from benchmarks.servers import BASE, EXTENSION, NAMES, OURS, Server

# What two processes of one program differ by, even where each repeats itself exactly.
NOISE = 0.05
T = TypeVar("T")
Values = Mapping[str, float]


class Life(Enum):
    """How long a server lives."""

    ROW = "row"  # one process for all rounds of a row
    ROUND = "round"  # a fresh one each round
    OWN = "own"  # the row starts and stops it


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a row measures.

    Parameters
    ----------
    key, label, unit : str
        The name in results, the words in the table, and the unit in both.
    more_is_better : bool
        Turns the ratio round: it always says how many times better kbridge is.
    ratio : float | None
        The ratio to reach.
    limit : float | None
        What kbridge's own value may be at most (at least, where more is better); next to a
        ratio, what the budget's machine reached.
    info : bool
        Shown, but not plotted and without a ratio.
    """

    key: str
    label: str
    unit: str
    more_is_better: bool = False
    ratio: float | None = None
    limit: float | None = None
    info: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """How much to do. `quick` is a smoke run: its figures mean little."""

    home: Path
    quick: bool = False
    rounds: int = 3
    count: int | None = None
    kernel: str | None = None

    def pick(self, full: T, quick: T) -> T:
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a measurement of one server, repeated and alternated by the runner.

    Parameters
    ----------
    measure : callable
        Takes a server and the settings, gives values by figure key.
    floor : callable | None
        The same without any server.
    rounds : int | None
        At most so many rounds, where a round takes long.
    servers : tuple of str
        Whom it is measured for.
    alike : bool
        Whether the extension is to do as well as the standalone server. It cannot where what
        counts is jupyter_server's own.
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


@dataclass(slots=True)
class Outcome:
    """What was measured of one row: per server (or "floor") the values of each round."""

    row: Row
    rounds: dict[str, list[Values]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def median(self, server: str, key: str) -> float | None:
        values = [r[key] for r in self.rounds.get(server, []) if key in r]
        return statistics.median(values) if values else None

    def ratio(self, figure: Figure, server: str = OURS, base_name: str = BASE) -> float | None:
        """How many times better a server is, by medians; None where that says nothing."""
        base, ours = self.median(base_name, figure.key), self.median(server, figure.key)
        if figure.info or not base or not ours or base < 0 or ours < 0:
            return None
        return ours / base if figure.more_is_better else base / ours

    def met(self, figure: Figure) -> bool | None:
        """Whether the bar of a figure is met; None where it has none or was not measured.

        Where there is a ratio it decides: it means the same on any machine, a limit does not.
        """
        if figure.ratio is not None and (ratio := self.ratio(figure)) is not None:
            return ratio >= figure.ratio
        ours = self.median(OURS, figure.key)
        if figure.limit is None or ours is None:
            return None
        return ours >= figure.limit if figure.more_is_better else ours <= figure.limit

    def to_standalone(self, figure: Figure) -> float | None:
        """The extension's ratio over the standalone server's; None where they are not alike."""
        return self.ratio(figure, EXTENSION, OURS) if self.row.alike else None

    def same(self, figure: Figure) -> bool | None:
        """Whether the extension does as well as the standalone server, within noise.

        It does if its median is no more than `NOISE` worse, or its best round no worse than the
        standalone's worst. None where they are not alike, where nothing is to be reached, or
        where single rounds differ: they do not show the noise.
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
        """The rounds' values, with their sign such that more is better."""
        sign = 1 if figure.more_is_better else -1
        return [sign * r[figure.key] for r in self.rounds.get(server, []) if figure.key in r]
