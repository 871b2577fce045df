from __future__ import annotations

import pytest

from kbridge.flow import histogram
from kbridge.flow.histogram import Histogram


def test_values_are_counted_in_the_bucket_of_the_next_bound() -> None:
    counted = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1, 1e9):
        counted.observe(value)
    assert counted.counts == [2, 2, 2]
    assert counted.total == pytest.approx(1e9 + 6.6)


def test_histograms_with_the_same_buckets_can_be_added() -> None:
    one, other = Histogram((1.0,)), Histogram((1.0,))
    one.observe(0.5)
    other.observe(0.5)
    other.observe(3.0)
    one.add(other)
    assert (one.counts, one.total) == ([2, 1], 4.0)
    assert other.counts == [1, 1], "the other one is unchanged"
    with pytest.raises(ValueError, match="different buckets"):
        one.add(Histogram((2.0,)))


@pytest.mark.parametrize("bounds", [histogram.LAG, histogram.ROUND_TRIP, histogram.START])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
