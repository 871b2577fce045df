"""Runs of messages that look alike."""

import pytest

from kbridge.wire.message import RawMessage
from kbridge.wire.zmtp.encoder import encode
from kbridge.wire.zmtp.shape import Shape

HEAD = [b"topic", b"", b"s" * 255, b"h" * 256, b"m" * 70_000]
SHAPE = Shape(tuple(map(len, HEAD)))
ALIKE = [[*HEAD, b"x" * size] for size in (0, 1, 255, 256, 70_000, 2)]
LIMIT = 70_000


def read(shape: Shape, data: bytes, at: int = 0, most: int = 100) -> tuple[list[RawMessage], int]:
    messages: list[RawMessage] = []
    return messages, shape.read(data, at, LIMIT, messages, most)


def test_messages_that_differ_in_their_last_part_are_read() -> None:
    data = b"".join(map(encode, ALIKE))
    assert read(SHAPE, data) == (ALIKE, len(data))
    at = len(encode(ALIKE[0]))
    assert read(SHAPE, data, at) == (ALIKE[1:], len(data))


def test_messages_of_one_part_are_read() -> None:
    messages = [[b"a"], [b""], [b"b" * 300]]
    data = b"".join(map(encode, messages))
    assert read(Shape(()), data) == (messages, len(data))


@pytest.mark.parametrize("last", [b"", b"x", b"x" * 255, b"x" * 256])
def test_a_message_that_is_cut_is_left(last: bytes) -> None:
    shape = Shape((5, 300))
    whole, cut = encode([b"topic", b"h" * 300, b"c"]), encode([b"topic", b"h" * 300, last])
    for end in range(len(cut)):
        messages, at = read(shape, whole + cut[:end])
        assert (len(messages), at) == (1, len(whole))


OTHERS = {
    "a part more": [b"topic", b"head", b"", b"x"],
    "a part less": [b"topic", b"headx"],
    "a longer part": [b"topic", b"heads", b"x"],
    "a shorter part": [b"topic", b"hea", b"xx"],
    "a long part": [b"topic", b"h" * 300, b"x"],
    "a last part above the limit": [b"topic", b"head", b"x" * (LIMIT + 1)],
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_message_of_another_shape_is_left(name: str) -> None:
    alike = encode([b"topic", b"head", b"x"])
    messages, at = read(Shape((5, 4)), alike * 2 + encode(OTHERS[name]) + alike)
    assert (len(messages), at) == (2, 2 * len(alike))


@pytest.mark.parametrize("flags", [1, 3, 4, 5, 6, 7, 8, 255])
def test_a_last_frame_with_other_flags_is_left(flags: int) -> None:
    alike = encode([b"topic", b"x"])
    odd = b"\1\5topic" + bytes((flags,)) + b"\0" * 20
    messages, at = read(Shape((5,)), alike + odd)
    assert (len(messages), at) == (1, len(alike))


def test_an_unusual_long_frame_is_left() -> None:
    """A short part in a long frame is valid; the decoder reads it frame by frame."""
    assert read(Shape((5,)), b"\3" + (5).to_bytes(8, "big") + b"topic\0\0") == ([], 0)


def test_one_message_too_many_is_left() -> None:
    data = b"".join(map(encode, ALIKE))
    end = sum(len(encode(message)) for message in ALIKE[:3])
    assert read(SHAPE, data, most=3) == (ALIKE[:3], end)
