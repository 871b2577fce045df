from __future__ import annotations

from kbridge.flow.round_trips import RoundTrips


def test_a_pong_ends_the_measurement() -> None:
    trips = RoundTrips()
    trips.sent(7, b"12", 100.0)
    assert trips.measured == 7
    trips.answered(b"11", 100.01)  # of an earlier ping
    assert trips.measured == 7
    trips.answered(b"12", 100.02)
    assert trips.measured == 0
    assert sum(trips.histogram.counts) == 1
    assert 0.019 < trips.histogram.total < 0.021
    assert trips.last == {7: trips.histogram.total}
    trips.gone(7)
    assert trips.last == {}


def test_one_ping_per_second_is_measured() -> None:
    trips = RoundTrips()
    assert trips.due < 100.0
    trips.sent(1, b"1", 100.0)
    assert trips.due == 101.0


def test_a_ping_is_measured_until_it_is_answered_overdue_or_its_websocket_is_gone() -> None:
    trips = RoundTrips()
    trips.sent(1, b"1", 100.0)
    trips.sent(2, b"2", 101.0)
    assert trips.measured == 1
    trips.sent(2, b"2", 160.0)
    assert trips.measured == 2, "the first one is overdue"
    trips.gone(1)
    assert trips.measured == 2
    trips.gone(2)
    assert trips.measured == 0
    assert sum(trips.histogram.counts) == 0


def test_a_clock_that_goes_back_counts_as_no_time() -> None:
    trips = RoundTrips()
    trips.sent(1, b"1", 100.0)
    trips.answered(b"1", 99.0)
    assert trips.histogram.total == 0.0
