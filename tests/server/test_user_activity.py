"""The activity of users, and the reports of it."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from kbridge.errors import UsersUnavailable
from kbridge.server.user_activity import ActivityReporter, last_activities
from tests.support.waiting import until


class Kernels(list[Any]):
    """Kernels in use, each with a user, a state and the time of its last activity."""

    def last_activity_of(self, kernel: Any) -> float:
        return float(kernel.last)


def kernel(user: str, last: float, state: str = "idle") -> Any:
    return SimpleNamespace(user=user, last=last, execution_state=lambda: state)


def test_the_newest_kernel_of_each_user_counts_and_busy_ones_are_active_now() -> None:
    kernels = Kernels(
        [
            kernel("alice", 5.0),
            kernel("alice", 3.0),
            kernel("bob", 1.0, "busy"),
            kernel("", 9.0),
        ]
    )
    found = last_activities(kernels, 100.0)  # type: ignore[arg-type]
    assert found == {"alice": 5.0, "bob": 100.0}


class Reports:
    """The other side."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {"alice": 1.0}
        self.seen: list[tuple[str, float]] = []
        self.status = 200
        self.down = False
        self.reporter = ActivityReporter(lambda: self.times, self.report, 300.0, self.pause)
        self.pauses: list[float] = []

    async def report(self, user: str, last: float) -> int:
        if self.down:
            raise UsersUnavailable("it does not answer")
        self.seen.append((user, last))
        return self.status

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) > 2:
            await asyncio.Event().wait()


async def test_only_new_activity_is_reported() -> None:
    other = Reports()
    for time in (1.0, 1.0, 2.0):
        other.times["alice"] = time
        await other.reporter.report_once()
    assert other.seen == [("alice", 1.0), ("alice", 2.0)]


async def test_after_a_failure_it_is_reported_again_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = Reports()
    other.down = True
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await other.reporter.report_once()
    assert caplog.text.count("it does not answer") == 1
    other.down = False
    await other.reporter.report_once()
    assert other.seen == [("alice", 1.0)]


async def test_without_the_scope_the_log_names_it(caplog: pytest.LogCaptureFixture) -> None:
    other = Reports()
    other.status = 403
    with caplog.at_level(logging.WARNING):
        await other.reporter.report_once()
    assert "users:activity" in caplog.text
    other.status = 200
    await other.reporter.report_once()
    assert len(other.seen) == 2


async def test_the_next_report_comes_after_an_error_that_nobody_expects(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Reports()
    once, failed = other.reporter.report_once, []

    async def fail() -> None:
        if not failed:
            failed.append(True)
            raise AttributeError("a defect")
        await once()

    monkeypatch.setattr(other.reporter, "report_once", fail)
    other.reporter.start()
    await until(lambda: other.seen, "the second report")
    await other.reporter.aclose()
    assert "a defect" in caplog.text


async def test_it_reports_at_intervals_until_it_is_closed() -> None:
    other = Reports()
    other.reporter.start()
    await until(lambda: len(other.pauses) == 3, "three pauses")
    await other.reporter.aclose()
    await other.reporter.aclose()
    assert (other.pauses, other.seen) == ([300.0] * 3, [("alice", 1.0)])
