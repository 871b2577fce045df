"""Answers to heartbeat pings, and missing ones."""

import pytest

from kbridge.flow.heartbeat_monitor import HeartbeatActions, HeartbeatMonitor

NOTHING = HeartbeatActions(lost=False, reconnect=False)
RECONNECT = HeartbeatActions(lost=False, reconnect=True)
LOST = HeartbeatActions(lost=True, reconnect=True)


def play(misses: int, *events: str) -> list[HeartbeatActions | bool]:
    """Feed a monitor: "answer", or the busy request at a tick."""
    monitor = HeartbeatMonitor(misses)
    return [monitor.answered() if e == "answer" else monitor.tick(e) for e in events]


def test_a_kernel_that_answers_is_never_lost() -> None:
    assert play(2, *["", "answer"] * 50) == [NOTHING, False] * 50


def test_a_lost_kernel_is_reported_once_and_found_once() -> None:
    events = ["", "answer", "", "", "", "", "", "answer", "", "answer"]
    assert play(2, *events) == [
        *(NOTHING, False, NOTHING, NOTHING),
        *(LOST, NOTHING, RECONNECT, True),
        *(NOTHING, False),
    ]


def test_lost_says_whether_the_kernel_is_lost() -> None:
    monitor = HeartbeatMonitor(1)
    monitor.tick()
    monitor.answered()
    monitor.tick()
    assert not monitor.lost
    monitor.tick()
    assert monitor.lost
    monitor.answered()
    assert not monitor.lost


def test_a_kernel_can_be_lost_again() -> None:
    assert play(1, "", "answer", "", "", "answer", "", "").count(LOST) == 2


def test_a_kernel_that_never_answered_is_not_lost() -> None:
    assert play(2, *[""] * 7) == [
        NOTHING,
        NOTHING,
        RECONNECT,
        NOTHING,
        RECONNECT,
        NOTHING,
        RECONNECT,
    ]


def test_a_kernel_that_answers_only_when_idle_is_not_lost_while_busy() -> None:
    known = ["", "answer"]
    assert LOST not in play(2, *known, *["a cell"] * 20)
    # it answers between two cells, which does not show answers during a cell
    assert LOST not in play(2, *known, "one", "answer", "two", *["two"] * 20)
    assert play(2, *known, "one", "one", "one", "", "")[-1] == LOST


def test_a_kernel_that_answered_while_busy_is_lost_while_busy() -> None:
    played = play(2, "", "answer", "one", "answer", "one", "answer", "two", "two", "two")
    assert played[-1] == LOST


def test_forget_removes_all_evidence() -> None:
    monitor = HeartbeatMonitor(1)
    monitor.tick()
    monitor.answered()
    monitor.tick()
    assert monitor.tick() == LOST
    monitor.forget()
    assert not monitor.lost
    assert LOST not in [monitor.tick() for _ in range(9)]


def test_unanswered_pings_are_bounded() -> None:
    monitor = HeartbeatMonitor(3)
    for _ in range(100):
        monitor.tick()
        assert monitor.waiting <= 3


def test_a_limit_of_zero_missed_pings_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        HeartbeatMonitor(0)
