"""The source of the time for hubs."""

import time

import pytest

from kbridge.hub.clock import Clock, timestamp


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_900_000_000.25, "2030-03-17T17:46:40.250000Z"),
    ],
)
def test_a_timestamp_is_in_utc_and_always_has_microseconds(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


class FixedClock(Clock):
    def wall(self) -> float:
        return 86_400.5


def test_the_two_clocks_are_those_of_the_system() -> None:
    assert Clock().monotonic is time.monotonic
    assert Clock().wall is time.time


def test_the_text_shows_the_wall_clock_that_a_subclass_reads() -> None:
    assert FixedClock().iso() == "1970-01-02T00:00:00.500000Z"
