"""The source of the time for hubs."""

from types import SimpleNamespace

import pytest

from kbridge.hub import clock as module
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


def test_the_two_clocks_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    system = SimpleNamespace(time=lambda: 86_400.5, monotonic=lambda: 7.0)
    monkeypatch.setattr(module, "time", system)
    clock = Clock()
    assert (clock.monotonic(), clock.wall()) == (7.0, 86_400.5)
    assert clock.iso() == "1970-01-02T00:00:00.500000Z"
