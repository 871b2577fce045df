"""Tables of offsets at their limits."""

import struct

import pytest

from kbridge.errors import InvalidMessage, MalformedFrame
from kbridge.wire.offsets import read


def table(word: str, *offsets: int, rest: int = 0) -> bytes:
    """Return a frame of a table and `rest` bytes."""
    return struct.pack(f"{word[0]}{1 + len(offsets)}{word[1]}", len(offsets), *offsets) + bytes(
        rest
    )


@pytest.mark.parametrize("word", ["<Q", "!I"])
def test_the_number_of_offsets_is_limited(word: str) -> None:
    end = 4 * struct.calcsize(word)
    frame = table(word, end, end, end + 1, rest=1)
    assert read(frame, word, 3, 3) == read(frame, word, 1) == (end, end, end + 1)
    with pytest.raises(MalformedFrame, match="at least 4"):
        read(frame, word, 4)
    with pytest.raises(InvalidMessage, match="at most 2"):
        read(frame, word, 1, 2)


@pytest.mark.parametrize(("word", "end"), [("<Q", 32), ("!I", 16)])
@pytest.mark.parametrize(
    ("shifts", "fault"),
    [
        ((-1, 0, 0), "the first offset is {low}, but the table ends at {end}"),
        ((1, 0, 1), "offset 1 decreases from {high} to {end}"),
        ((0, 1, 0), "offset 2 decreases from {high} to {end}"),
        ((0, 0, 1), "the last offset is {high}, the frame ends at {end}"),
    ],
)
def test_an_offset_outside_of_its_limits_is_named_in_the_error(word, end, shifts, fault) -> None:
    frame = table(word, *(end + shift for shift in shifts))
    assert len(frame) == end
    with pytest.raises(MalformedFrame) as caught:
        read(frame, word, 1)
    assert caught.value.reason == fault.format(low=end - 1, end=end, high=end + 1)


@pytest.mark.parametrize("word", ["<Q", "!I"])
def test_a_frame_that_ends_within_its_table_is_refused(word: str) -> None:
    frame = table(word, 100, 100)
    with pytest.raises(MalformedFrame, match="do not fit"):
        read(frame[:-1], word, 1)
    with pytest.raises(MalformedFrame, match="too short"):
        read(frame[: struct.calcsize(word) - 1], word, 1)
