"""What beats and their absence say of a kernel."""

import pytest

from kbridge.flow.pulse import Beat, Pulse

NOTHING = Beat(lost=False, afresh=False)
AFRESH = Beat(lost=False, afresh=True)
LOST = Beat(lost=True, afresh=True)


def play(misses: int, *events: str) -> list[Beat | bool]:
    """Feed a pulse: "answer", or the request that the kernel is at when a beat is due."""
    pulse = Pulse(misses)
    return [pulse.heard() if e == "answer" else pulse.beat(e) for e in events]


def test_a_kernel_that_answers_is_left_alone() -> None:
    assert play(2, *["", "answer"] * 50) == [NOTHING, False] * 50


def test_it_is_lost_once_and_found_once() -> None:
    events = ["", "answer", "", "", "", "", "", "answer", "", "answer"]
    assert play(2, *events) == [
        *(NOTHING, False, NOTHING, NOTHING),
        *(LOST, NOTHING, AFRESH, True),
        *(NOTHING, False),
    ]


def test_it_may_be_lost_again() -> None:
    assert play(1, "", "answer", "", "", "answer", "", "").count(LOST) == 2


def test_a_kernel_that_was_never_heard_is_not_lost() -> None:
    assert play(2, *[""] * 7) == [NOTHING, NOTHING, AFRESH, NOTHING, AFRESH, NOTHING, AFRESH]


def test_one_with_a_single_thread_is_not_lost_while_it_works() -> None:
    known = ["", "answer"]
    assert LOST not in play(2, *known, *["a cell"] * 20)
    # it answers between two cells, which says nothing of cells
    assert LOST not in play(2, *known, "one", "answer", "two", *["two"] * 20)
    assert play(2, *known, "one", "one", "one", "", "")[-1] == LOST


def test_one_that_has_answered_in_the_midst_of_a_request_is() -> None:
    played = play(2, "", "answer", "one", "answer", "one", "answer", "two", "two", "two")
    assert played[-1] == LOST


def test_another_kernel_in_its_place_begins_anew() -> None:
    pulse = Pulse(1)
    pulse.beat()
    pulse.heard()
    pulse.beat()
    assert pulse.beat() == LOST
    pulse.forget()
    assert not pulse.lost
    assert LOST not in [pulse.beat() for _ in range(9)]


def test_pings_that_wait_are_bounded() -> None:
    pulse = Pulse(3)
    for _ in range(100):
        pulse.beat()
        assert pulse.statistics()["waiting"] <= 3


def test_none_may_be_missed_is_no_setting() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pulse(0)
