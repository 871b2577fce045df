"""Events are logged a few times per interval, and every event is counted."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.log_throttle import LogThrottle


def test_the_first_event_is_reported_at_any_time() -> None:
    for now in (-1e9, 0.0, 1e9):
        assert LogThrottle().record(now) == 1


def test_suppressed_events_are_reported_with_the_next_event() -> None:
    throttle = LogThrottle(60.0)
    assert [throttle.record(100.0 + i) for i in range(61)] == [1, *[0] * 59, 60]
    assert throttle.total == 61
    assert throttle.record(161.0) == 0


def test_the_default_interval_is_a_minute() -> None:
    throttle = LogThrottle()
    throttle.record(0.0)
    assert throttle.record(59.9) == 0
    assert throttle.record(60.0) == 2


@pytest.mark.parametrize("interval", [0.0, 1e-9])
def test_without_an_interval_each_event_is_reported(interval: float) -> None:
    throttle = LogThrottle(interval)
    assert [throttle.record(float(i)) for i in range(5)] == [1] * 5


def test_a_burst_is_logged_in_each_interval() -> None:
    throttle = LogThrottle(60.0, burst=3)
    assert [throttle.record(100.0) for _ in range(10)] == [1, 1, 1, *[0] * 7]
    assert [throttle.record(160.0) for _ in range(4)] == [8, 1, 1, 0]
    assert throttle.record(219.9) == 0
    assert throttle.record(220.0) == 3


@given(st.lists(st.floats(0, 20), max_size=60), st.floats(0.1, 100))
def test_reports_count_all_events_and_are_an_interval_apart(
    gaps: list[float], interval: float
) -> None:
    throttle = LogThrottle(interval)
    now, unreported = 0.0, 0
    reported: list[float] = []
    for gap in gaps:
        now += gap
        unreported += 1
        count = throttle.record(now)
        assert count in (0, unreported)
        if count:
            reported.append(now)
            unreported = 0
    assert throttle.total == len(gaps)
    assert all(later >= one + interval for one, later in pairwise(reported))
