from __future__ import annotations

import asyncio

import pytest

from kbridge.errors import KernelStartError
from kbridge.kernels.lifecycle.start_counts import StartCounts


def test_starts_and_failures_are_counted_by_kernelspec() -> None:
    counts = StartCounts()
    with counts.start("python3"):
        pass
    with pytest.raises(KernelStartError), counts.start("python3"):
        raise KernelStartError("it died", "")
    assert sum(counts.durations["python3"].counts) == 1
    assert counts.failures == {"python3": 1}


def test_a_start_that_is_cancelled_does_not_count() -> None:
    counts = StartCounts()
    with pytest.raises(asyncio.CancelledError), counts.start("python3"):
        raise asyncio.CancelledError
    assert not counts.durations
    assert not counts.failures


def test_the_number_of_names_is_bounded() -> None:
    counts = StartCounts()
    for number in range(60):
        with counts.start(f"spec-{number}"):
            pass
    with counts.start("spec-0"):
        pass
    assert len(counts.durations) == 51
    assert sum(counts.durations["other"].counts) == 10
    assert sum(counts.durations["spec-0"].counts) == 2
