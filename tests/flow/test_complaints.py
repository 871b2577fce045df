"""What may come a million times is reported once an interval, and nothing goes uncounted."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.complaints import Complaints


def test_the_first_is_reported_at_once_whatever_the_clock_says() -> None:
    for now in (-1e9, 0.0, 1e9):
        assert Complaints().note(now) == 1


def test_the_rest_of_an_interval_is_reported_with_the_first_after_it() -> None:
    complaints = Complaints(60.0)
    assert [complaints.note(100.0 + i) for i in range(61)] == [1, *[0] * 59, 60]
    assert complaints.total == 61
    assert complaints.note(161.0) == 0


def test_a_minute_is_what_is_usual() -> None:
    complaints = Complaints()
    complaints.note(0.0)
    assert complaints.note(59.9) == 0
    assert complaints.note(60.0) == 2


@pytest.mark.parametrize("interval", [0.0, 1e-9])
def test_without_an_interval_each_is_reported(interval: float) -> None:
    complaints = Complaints(interval)
    assert [complaints.note(float(i)) for i in range(5)] == [1] * 5


@given(st.lists(st.floats(0, 20), max_size=60), st.floats(0.1, 100))
def test_reports_add_up_and_keep_their_distance(gaps: list[float], interval: float) -> None:
    complaints = Complaints(interval)
    now, unreported = 0.0, 0
    reported: list[float] = []
    for gap in gaps:
        now += gap
        unreported += 1
        count = complaints.note(now)
        assert count in (0, unreported)
        if count:
            reported.append(now)
            unreported = 0
    assert complaints.total == len(gaps)
    assert all(later >= one + interval for one, later in pairwise(reported))
