"""The place where a stretch of frames ends."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.places import stop_of


def expected(sizes: list[int], start: int, stop: int, max_bytes: int) -> int:
    """Add frames one by one."""
    nbytes = 0
    for index in range(start, stop):
        if index > start and sizes[index] > max_bytes:
            return index  # it is read alone
        nbytes += sizes[index]
        if nbytes >= max_bytes:
            return index + 1
    return stop


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 40), st.data())
def test_a_stretch_ends_with_the_frame_that_reaches_its_size(
    sizes: list[int], max_bytes: int, data: st.DataObject
) -> None:
    offsets = [100, *accumulate(sizes, initial=100)][1:]
    start = data.draw(st.integers(0, len(sizes) - 1))
    stop = data.draw(st.integers(start + 1, len(sizes)))
    found = stop_of(offsets[:-1], start, stop, offsets[stop], max_bytes)
    assert found == expected(sizes, start, stop, max_bytes)
