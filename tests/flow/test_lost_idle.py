"""Requests that have a reply and will never have an idle status."""

from __future__ import annotations

import pytest

from kbridge.flow.lost_idle import GRACE, LostIdle

HEADER = b'{"msg_id": "a"}'


@pytest.fixture
def idle() -> LostIdle:
    return LostIdle()


@pytest.mark.parametrize("idle_first", [True, False])
def test_a_request_with_both_is_not_waited_for(idle: LostIdle, idle_first: bool) -> None:
    if idle_first:
        idle.ended("a")
    idle.replied("a", HEADER, 10.0)
    if not idle_first:
        idle.ended("a")
        assert idle.next_at == 10.0 + GRACE
    assert not idle.due(10.0 + GRACE)
    assert idle.next_at is None


def test_the_answer_to_a_probe_proves_that_the_idle_is_lost(idle: LostIdle) -> None:
    idle.replied("a", HEADER, 10.0)
    assert not idle.due(10.0)
    assert idle.due(10.0 + GRACE)
    idle.ask("p1")
    idle.replied("b", b"{}", 11.0 + GRACE)  # its idle may be behind the answer
    assert idle.answered("p0") == []
    assert idle.answered("p1") == [HEADER]
    assert idle.answered("p1") == []
    assert idle.next_at is not None
    assert idle.due(idle.next_at)
    idle.ask("p2")
    assert idle.answered("p2") == [b"{}"]


def test_an_idle_behind_much_output_is_not_lost(idle: LostIdle) -> None:
    idle.replied("a", HEADER, 10.0)
    assert idle.due(10.0 + GRACE)
    idle.ask("p1")
    idle.ended("a")
    assert idle.answered("p1") == []


def test_probes_become_rarer_and_end_and_their_answer_still_counts(idle: LostIdle) -> None:
    idle.replied("a", HEADER, 0.0)
    times = []
    while idle.next_at is not None:
        times.append(idle.next_at)
        assert idle.due(idle.next_at)
        idle.ask(f"p{len(times)}")
    assert times == [5.0, 15.0, 35.0, 75.0, 155.0, 315.0]
    assert idle.answered("p6") == [HEADER]


def test_nothing_is_left_of_a_process_that_has_ended(idle: LostIdle) -> None:
    idle.replied("a", HEADER, 0.0)
    assert idle.due(GRACE)
    idle.ask("p1")
    idle.clear()
    assert idle.next_at is None
    assert idle.answered("p1") == []


def test_the_memory_is_bounded(idle: LostIdle) -> None:
    idle.replied("long", b"x" * 5000, 0.0)
    assert idle.next_at is None
    for number in range(3000):
        idle.replied(f"a{number}", HEADER, 0.0)
        idle.ended(f"b{number}")
    assert idle.due(GRACE)
    idle.ask("p")
    assert len(idle.answered("p")) == 1000
