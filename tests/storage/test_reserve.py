"""The share of a file system that stays free, on file systems that free space at once or later."""

from __future__ import annotations

import pytest

from kbridge.storage.context import Usage
from kbridge.storage.disk import Space
from kbridge.storage.reserve import SETTLE_S, Reserve

TOTAL = 10_000
STEP = 100  # bytes of a file


class Files:
    """Files of journals on a file system that counts removed ones as free after some time."""

    def __init__(self, free: int, late: float) -> None:
        self.usage = Usage(1 << 40)
        self.reserve = Reserve(0.1)  # 1000 bytes
        self.free = free
        self.late = late
        self.now = 0.0
        self.removed: list[tuple[float, int]] = []

    def space(self) -> Space:
        gone = sum(nbytes for when, nbytes in self.removed if self.now - when >= self.late)
        return Space(self.free + gone, TOTAL)

    def write(self, nbytes: int) -> None:
        self.usage.change(nbytes, 0)
        self.free -= nbytes

    def measure(self, most: int = 100) -> int:
        """Measure, and remove files until nothing is missing; return the number of files."""
        for count in range(most):
            if not self.reserve.measured(self.space(), self.usage, self.now):
                return count
            self.usage.change(0, STEP)
            self.removed.append((self.now, STEP))
        return most


@pytest.mark.parametrize("late", [0, 5, SETTLE_S - 1])
def test_what_is_missing_is_given_up_once(late: float) -> None:
    files = Files(1500, late)
    assert files.measure() == 0
    files.write(750)  # 250 are missing
    assert files.measure() == 3
    for _ in range(40):
        files.now += 1
        assert files.measure() == 0
        assert not files.reserve.settle(0)
    files.write(300)
    assert files.measure() == 3


def test_more_is_given_up_if_the_space_does_not_come() -> None:
    files = Files(900, 1e9)
    assert files.measure() == 1
    files.now = SETTLE_S - 0.1
    assert files.measure() == 0
    files.now = SETTLE_S
    assert files.measure() == 1


def test_space_that_other_programs_take_is_given_up_too() -> None:
    files = Files(1000, 1e9)
    files.free -= 150
    assert files.measure() == 2
    files.free -= 150
    assert files.measure() == 1  # 50 of the first two were not needed


def test_writing_stops_at_the_reserve_and_goes_on_well_above_it() -> None:
    reserve, usage = Reserve(0.1), Usage(1 << 40)
    changes = []
    for free in [1001, 999, 1001, 998, 1199, 1200, 1001, 1000, 999]:
        missing = reserve.measured(Space(free, TOTAL), usage, 0.0)
        if reserve.settle(missing):
            changes.append((free, reserve.full))
    assert changes == [(999, True), (1200, False), (999, True)]


def test_on_a_large_file_system_64_mib_above_the_reserve_are_enough() -> None:
    reserve, usage = Reserve(0.5), Usage(1 << 40)
    total = 1 << 44
    assert reserve.settle(reserve.measured(Space(0, total), usage, 0.0))
    free = total // 2 + (64 << 20)
    assert not reserve.settle(reserve.measured(Space(free - 1, total), usage, 0.0))
    assert reserve.settle(reserve.measured(Space(free, total), usage, 0.0))
