import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from kbridge.wire import frames

OPCODES = [frames.TEXT, frames.BINARY, frames.CLOSE, frames.PING, frames.PONG]
LENGTHS = [0, 1, 125, 126, 127, 65_535, 65_536, 100_000]


def read(data: bytes) -> Frame:
    """Read frames with the `websockets` library, as a client does."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parser = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as stop:
        next(parser)
    frame = stop.value.value
    assert isinstance(frame, Frame)
    return frame


@pytest.mark.parametrize(
    ("opcode", "length"),
    [(o, n) for o in OPCODES for n in LENGTHS if o < frames.CLOSE or n <= 125],
)
def test_the_websockets_library_reads_the_frame(opcode: int, length: int) -> None:
    payload = bytes(i % 251 for i in range(length))
    assert read(frames.frame(payload, opcode)) == Frame(Opcode(opcode), payload)


@pytest.mark.parametrize("length", [*LENGTHS, 2**32, 2**63 - 1])
def test_the_shortest_header_is_written(length: int) -> None:
    size = 2 if length < 126 else 4 if length < 65_536 else 10
    header = frames.header(length, frames.BINARY)
    assert len(header) == size
    assert header[0] == 0x82
    assert not header[1] & 0x80


@pytest.mark.parametrize("lengths", [[n] for n in LENGTHS] + [LENGTHS, LENGTHS[::-1], [], [0, 0]])
def test_consecutive_frames_are_split_into_payloads(lengths: list[int]) -> None:
    written = [bytes(i % 251 for i in range(n)) for n in lengths]
    run = b"".join(frames.frame(data, frames.BINARY) for data in written)
    assert list(frames.each(run)) == [(frames.BINARY, data) for data in written]
    for data in written:
        assert frames.payload(frames.frame(data, frames.BINARY)) == data


@given(st.lists(st.binary(max_size=300)))
def test_any_sequence_of_frames_is_read_back(written: list[bytes]) -> None:
    run = b"".join(frames.frame(data, frames.TEXT) for data in written)
    assert list(frames.each(run)) == [(frames.TEXT, data) for data in written]


def test_a_ping_has_at_most_125_bytes() -> None:
    assert frames.ping(b"\x01\x02") == b"\x89\x02\x01\x02"
    assert read(frames.ping(bytes(125))) == Frame(Opcode.PING, bytes(125))
    with pytest.raises(ValueError, match="125"):
        frames.ping(bytes(126))


@pytest.mark.parametrize("length", [0, 1, 125])
def test_a_pong_has_the_payload_of_its_ping(length: int) -> None:
    assert read(frames.pong(b"p" * length)) == Frame(Opcode.PONG, b"p" * length)


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (None, None, b""),
        (1001, None, b"\x03\xe9"),
        (None, "bye", b"\x03\xe8bye"),
        (4000, "bye", b"\x0f\xa0bye"),
        (1001, "x" * 123, b"\x03\xe9" + b"x" * 123),
        (1001, "x" * 124, b"\x03\xe9" + b"x" * 123),
        (1001, "x" * 122 + "ü", b"\x03\xe9" + b"x" * 122),  # a character is not cut in two
    ],
)
def test_a_close_frame_fits_the_limit(code: int | None, reason: str | None, payload: bytes) -> None:
    assert read(frames.close(code, reason)) == Frame(Opcode.CLOSE, payload)
