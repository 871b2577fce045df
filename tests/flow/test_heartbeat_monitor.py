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


def test_a_kernel_that_answers_is_left_alone() -> None:
    assert play(2, *["", "answer"] * 50) == [NOTHING, False] * 50


def test_it_is_lost_once_and_found_once() -> None:
    events = ["", "answer", "", "", "", "", "", "answer", "", "answer"]
    assert play(2, *events) == [
        *(NOTHING, False, NOTHING, NOTHING),
        *(LOST, NOTHING, RECONNECT, True),
        *(NOTHING, False),
    ]


def test_it_can_be_asked_whether_the_kernel_is_lost() -> None:
    monitor = HeartbeatMonitor(1)
    monitor.tick()
    monitor.answered()
    monitor.tick()
    assert not monitor.lost
    monitor.tick()
    assert monitor.lost
    monitor.answered()
    assert not monitor.lost


def test_it_may_be_lost_again() -> None:
    assert play(1, "", "answer", "", "", "answer", "", "").count(LOST) == 2


def test_a_kernel_that_was_never_heard_is_not_lost() -> None:
    assert play(2, *[""] * 7) == [
        NOTHING,
        NOTHING,
        RECONNECT,
        NOTHING,
        RECONNECT,
        NOTHING,
        RECONNECT,
    ]


def test_one_with_a_single_thread_is_not_lost_while_it_works() -> None:
    known = ["", "answer"]
    assert LOST not in play(2, *known, *["a cell"] * 20)
    # it answers between two cells, which does not show answers during a cell
    assert LOST not in play(2, *known, "one", "answer", "two", *["two"] * 20)
    assert play(2, *known, "one", "one", "one", "", "")[-1] == LOST


def test_one_that_has_answered_in_the_midst_of_a_request_is() -> None:
    played = play(2, "", "answer", "one", "answer", "one", "answer", "two", "two", "two")
    assert played[-1] == LOST


def test_another_kernel_in_its_place_begins_anew() -> None:
    monitor = HeartbeatMonitor(1)
    monitor.tick()
    monitor.answered()
    monitor.tick()
    assert monitor.tick() == LOST
    monitor.forget()
    assert not monitor.lost
    assert LOST not in [monitor.tick() for _ in range(9)]


def test_pings_that_wait_are_bounded() -> None:
    monitor = HeartbeatMonitor(3)
    for _ in range(100):
        monitor.tick()
        assert monitor.statistics()["waiting"] <= 3


def test_none_may_be_missed_is_no_setting() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        HeartbeatMonitor(0)
