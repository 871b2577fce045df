"""The containers of a journal, compared with plain lists."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.ring import RetainedFrame, RetainedFrames, Ring

KEYS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 2)


def filled(count: int) -> Ring:
    """Return a ring of frames with 1, 2, 3, ... bytes, whose keys are 0, 1, 2, 0, 1, 2, ..."""
    ring = Ring()
    for i in range(count):
        assert ring.append(b"x" * (i + 1), i % 3) == i
    return ring


def test_a_new_ring_is_empty() -> None:
    ring = Ring()
    assert (len(ring), ring.nbytes, ring.first, ring.next) == (0, 0, 0, 0)
    assert ring.offset(0) == 0
    assert ring.frames(0, 0) == []
    assert list(ring.find(0)) == []


def test_frames_and_keys_are_found_by_sequence_number() -> None:
    ring = filled(5)
    assert [ring.frame(seq) for seq in range(5)] == [b"x" * n for n in range(1, 6)]
    assert [ring.key(seq) for seq in range(5)] == [0, 1, 2, 0, 1]
    assert ring.frames(1, 3) == [b"xx", b"xxx"]
    assert (len(ring), ring.nbytes, ring.next) == (5, 15, 5)


def test_offsets_count_the_bytes_before_a_frame() -> None:
    ring = filled(4)
    assert [ring.offset(seq) for seq in range(5)] == [0, 1, 3, 6, 10]
    ring.drop(2)
    assert [ring.offset(seq) for seq in range(2, 5)] == [3, 6, 10]
    assert (ring.appended, ring.dropped, ring.nbytes) == (10, 3, 7)


@pytest.mark.parametrize(
    ("offset", "start", "stop", "reached"),
    [
        (0, 0, 5, 0),
        (1, 0, 5, 1),
        (2, 0, 5, 2),
        (3, 0, 5, 2),
        (10, 0, 5, 4),
        (11, 0, 5, 5),
        (1000, 0, 3, 3),
        (0, 3, 5, 3),
    ],
)
def test_reach_is_the_first_frame_with_so_many_bytes_before_it(
    offset: int, start: int, stop: int, reached: int
) -> None:
    assert filled(5).reach(offset, start, stop) == reached


def test_a_key_is_found_newest_first_and_only_in_the_ring() -> None:
    ring = filled(9)
    assert list(ring.find(1)) == [7, 4, 1]
    assert list(ring.find(9)) == []
    ring.drop(4)
    assert list(ring.find(1)) == [7, 4]
    ring.drop(5)
    assert list(ring.find(1)) == [7]


def test_a_key_that_spans_two_other_keys_is_not_found() -> None:
    """The search compares bytes: a match between two keys does not count."""
    ring = Ring()
    for number in (0x0100, 0x0001):
        ring.append(b"", int.from_bytes(number.to_bytes(8, "big"), "little", signed=True))
    shifted = b"".join(ring.key(seq).to_bytes(8, "little", signed=True) for seq in (0, 1))[1:9]
    assert list(ring.find(int.from_bytes(shifted, "little", signed=True))) == []


def test_pop_removes_the_oldest_frame() -> None:
    ring = filled(3)
    assert [ring.pop(), ring.pop()] == [b"x", b"xx"]
    assert (ring.first, ring.next, len(ring), ring.nbytes) == (2, 3, 1, 3)
    assert ring.frame(2) == b"xxx"


def test_clear_keeps_sequence_numbers_and_offsets() -> None:
    ring = filled(3)
    ring.clear()
    assert (len(ring), ring.nbytes, ring.first, ring.next) == (0, 0, 3, 3)
    assert ring.offset(3) == 6
    assert ring.append(b"next", 7) == 3
    assert (ring.frame(3), ring.key(3), ring.offset(3), ring.nbytes) == (b"next", 7, 6, 4)


@pytest.mark.parametrize("step", [1, 7, 1500])
def test_a_ring_gives_the_same_answers_after_it_was_compacted(step: int) -> None:
    ring = Ring()
    kept = 0
    for i in range(6000):
        ring.append(b"%d" % i, i)
        if i - kept >= step:
            ring.drop(i - step // 2)
            kept = i - step // 2
    assert ring.first == kept
    for seq in range(ring.first, ring.next):
        assert (ring.frame(seq), ring.key(seq)) == (b"%d" % seq, seq)
        assert list(ring.find(seq)) == [seq]
    assert ring.frames(ring.first, ring.next) == [b"%d" % i for i in range(kept, 6000)]
    assert ring.offset(ring.first) == ring.dropped == sum(len(b"%d" % i) for i in range(kept))
    assert ring.reach(ring.offset(ring.next - 1), ring.first, ring.next) == ring.next - 1


@given(st.lists(st.tuples(st.binary(max_size=9), KEYS), max_size=40), st.integers(0, 40), st.data())
def test_a_ring_agrees_with_a_list(frames: list[tuple[bytes, int]], drop: int, data) -> None:
    ring = Ring()
    together = data.draw(st.integers(0, len(frames)))
    ring.extend(*zip(*frames[:together], strict=True) if together else ((), ()))
    for frame, key in frames[together:]:
        ring.append(frame, key)
    assert [ring.offset(seq) for seq in range(len(frames))] == [
        sum(len(frame) for frame, _ in frames[:seq]) for seq in range(len(frames))
    ]
    first = min(drop, len(frames))
    ring.drop(first)
    assert ring.frames(first, ring.next) == [frame for frame, _ in frames[first:]]
    assert ring.nbytes == sum(len(frame) for frame, _ in frames[first:])
    key = data.draw(st.sampled_from([0, 1, *(key for _, key in frames)]))
    found = [seq for seq in range(first, len(frames)) if frames[seq][1] == key]
    assert list(ring.find(key)) == found[::-1]


def retained(*numbers: int) -> RetainedFrames:
    """Return retained frames with these numbers; each has its number as text and as offset."""
    frames = RetainedFrames()
    for number in numbers:
        frames.append(RetainedFrame(number, b"%d" % number, number), number % 3)
    return frames


def test_no_retained_frames_have_no_first_and_last() -> None:
    frames = RetainedFrames()
    assert (len(frames), frames.nbytes, frames.first, frames.last) == (0, 0, None, None)
    assert frames.get(0) is None
    assert list(frames) == list(frames.find(0)) == []


def test_retained_frames_are_found_by_number() -> None:
    frames = retained(2, 5, 11)
    assert (len(frames), frames.nbytes, frames.first, frames.last) == (3, 4, 2, 11)
    assert [number for number in range(13) if frames.get(number)] == [2, 5, 11]
    assert frames.get(5) == RetainedFrame(5, b"5", 5)


@pytest.mark.parametrize(
    ("seq", "numbers"), [(-1, [2, 5, 11]), (2, [2, 5, 11]), (3, [5, 11]), (11, [11]), (12, [])]
)
def test_since_yields_the_frames_from_a_number_on(seq: int, numbers: list[int]) -> None:
    assert [item.seq for item in retained(2, 5, 11).since(seq)] == numbers


def test_retained_frames_are_found_by_key_newest_first() -> None:
    frames = retained(2, 5, 6, 11)
    assert [item.seq for item in frames.find(2)] == [11, 5, 2]
    frames.popleft()
    assert [item.seq for item in frames.find(2)] == [11, 5]


def test_popleft_removes_the_oldest_retained_frame() -> None:
    frames = retained(2, 5, 11)
    assert frames.popleft() == RetainedFrame(2, b"2", 2)
    assert (len(frames), frames.nbytes, frames.first, frames.last) == (2, 3, 5, 11)
    assert frames.get(2) is None
    assert [item.seq for item in frames] == [5, 11]


def test_cleared_retained_frames_can_be_used_again() -> None:
    frames = retained(2, 5)
    frames.popleft()
    frames.clear()
    assert (len(frames), frames.nbytes, frames.first, frames.last) == (0, 0, None, None)
    frames.append(RetainedFrame(7, b"seven", 0), 1)
    assert frames.get(7) == RetainedFrame(7, b"seven", 0)
    assert [item.seq for item in frames.find(1)] == [7]


def test_retained_frames_give_the_same_answers_after_they_were_compacted() -> None:
    frames = retained(*range(0, 8000, 2))
    for number in range(0, 5000, 2):
        assert frames.popleft().seq == number
    assert (len(frames), frames.first, frames.last) == (1500, 5000, 7998)
    assert frames.nbytes == 1500 * 4
    assert [item.seq for item in frames] == list(range(5000, 8000, 2))
    assert frames.get(6000) == RetainedFrame(6000, b"6000", 6000)
    assert next(frames.find(7998 % 3)).seq == 7998


def test_memory_of_removed_retained_frames_is_released() -> None:
    frames = RetainedFrames()
    for number in range(50_000):
        frames.append(RetainedFrame(number, b"frame", 0), number)
        if number >= 100:
            frames.popleft()
    assert len(frames) == 100
    assert len(pickle.dumps(frames)) < 50_000
