"""Kernels leave file descriptors free for other uses; the tests choose the numbers."""

import os
import sys

import pytest

from kbridge.errors import Busy
from kbridge.kernels.lifecycle import descriptors
from kbridge.kernels.lifecycle.descriptors import KernelBudget, free_descriptors


@pytest.mark.parametrize(
    ("limit", "free", "fits"),
    [
        (1000, 88, True),  # 24 for the kernel, 64 for others
        (1000, 87, False),
        (100, 49, True),  # a quarter if there are few descriptors
        (100, 48, False),
        (sys.maxsize, sys.maxsize, True),
    ],
)
def test_what_is_kept_back(
    monkeypatch: pytest.MonkeyPatch, limit: int, free: int, fits: bool
) -> None:
    monkeypatch.setattr(descriptors, "_limit", lambda: limit)
    monkeypatch.setattr(descriptors, "free_descriptors", lambda: free)
    budget = KernelBudget()
    if fits:
        with budget.start():
            pass
    else:
        with pytest.raises(Busy, match="min_open_files_limit"), budget.start():
            pass


def test_starts_under_way_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_limit", lambda: 1000)
    monkeypatch.setattr(descriptors, "free_descriptors", lambda: 64 + 2 * 24)
    budget = KernelBudget()
    with budget.start(), budget.start(), pytest.raises(Busy), budget.start():
        pass
    with budget.start(), budget.start():
        pass


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="Linux has /proc")  # noqa: PTH110
def test_they_are_counted() -> None:
    before = free_descriptors()
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        assert free_descriptors() == before - 5
        assert free_descriptors(quick=True) in (before - 5, sys.maxsize)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_where_they_cannot_be_counted_nothing_is_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descriptors, "_TABLES", ("/nowhere/fd",))
    assert free_descriptors() == sys.maxsize
    with KernelBudget().start():
        pass
