"""The places between frames, in streams that are cut anywhere."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.wire import frames
from kbridge.wire.frame_edges import FrameEdges
from kbridge.wire.frames import BINARY, CLOSE, PING, TEXT
from tests.wire.test_reader import frame as masked

SIZES = [0, 1, 125, 126, 127, 65535, 65536, 70000]
one_frame = st.builds(
    lambda size, opcode, mask: (masked if mask else _plain)(opcode, b"\x88\x7f" * size),
    st.sampled_from([0, 1, 62, 63, 64, 300, 33000]),
    st.sampled_from([TEXT, BINARY, PING]),
    st.booleans(),
)


def _plain(opcode: int, payload: bytes) -> bytes:
    return frames.frame(payload, opcode)


@pytest.mark.parametrize("size", SIZES)
def test_each_byte_of_a_frame_is_counted(size: int) -> None:
    for whole in (frames.frame(b"x" * size, BINARY), masked(BINARY, b"x" * size)):
        edges = FrameEdges()
        edges.skip(whole[:-1])
        assert not edges.at_edge
        edges.skip(whole[-1:])
        assert edges.at_edge
        edges.skip(whole + whole[:1])
        assert not edges.at_edge


@given(st.lists(one_frame, min_size=1, max_size=6), st.lists(st.integers(1, 5000)))
def test_edges_are_found_wherever_the_stream_is_cut(all_frames, cuts) -> None:
    data = b"".join(all_frames)
    ends = set(accumulate(len(frame) for frame in all_frames)) | {0}
    edges, at = FrameEdges(), 0
    for cut in (*cuts, len(data)):
        edges.skip(data[at : at + cut])
        at = min(at + cut, len(data))
        assert edges.at_edge == (at in ends)
        assert not edges.closing


@given(st.lists(one_frame, min_size=1, max_size=4), st.data(), st.integers(1, 40000))
def test_the_rest_of_a_frame_is_told_from_the_next_frame(all_frames, data, step) -> None:
    stream = b"".join(all_frames)
    ends = sorted(set(accumulate(len(frame) for frame in all_frames)))
    begin = data.draw(st.integers(0, len(stream)))
    edges = FrameEdges()
    edges.skip(stream[:begin])
    end = begin if edges.at_edge else min(end for end in ends if end >= begin)
    at = begin
    while True:
        count = edges.skip_frame(stream[at : at + step])
        at += count
        if edges.at_edge:
            break
        assert count
    assert at == end


def test_a_close_frame_is_noted() -> None:
    edges = FrameEdges()
    edges.skip(frames.frame(b"\x88\x00", BINARY))
    assert not edges.closing
    edges.skip(frames.close(1001, "going")[:3])
    assert edges.closing
    again = FrameEdges()
    again.skip(masked(BINARY, b"x") + masked(CLOSE))
    assert again.closing
