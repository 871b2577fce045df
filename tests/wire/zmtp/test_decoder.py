"""Frames of a peer: whole, cut at every byte, invalid, and above the limits."""

import re

import pytest

from kbridge.errors import MessageTooBig, ZmtpError
from kbridge.wire.message import RawMessage
from kbridge.wire.zmtp.commands import COMMAND_LIMIT
from kbridge.wire.zmtp.decoder import Decoder
from kbridge.wire.zmtp.encoder import encode
from tests.wire.zmtp.libzmq import BORDERS, LIMITS

PART, MESSAGE, PARTS = 1000, 2500, 5  # limits
LONG = 70_000  # bytes of a part that is received into `pending`


def frame(flags: int, body: bytes = b"") -> bytes:
    size = len(body).to_bytes(8 if flags & 2 else 1, "big")
    return bytes((flags,)) + size + body


def claim(flags: int, size: int) -> bytes:
    """The head of a long frame."""
    return bytes((flags,)) + size.to_bytes(8, "big")


class Result:
    """The results of a decoder that was fed with pieces of bytes."""

    def __init__(self, decoder: Decoder, *pieces: bytes) -> None:
        self.messages: list[RawMessage] = []
        for piece in pieces:
            rest = piece
            while rest and decoder.fault is None:
                if decoder.pending is None:
                    self.messages += decoder.feed(rest)
                    break
                size = min(len(rest), len(decoder.pending))
                decoder.pending[:size] = rest[:size]
                self.messages += decoder.received(size)
                rest = rest[size:]
        self.commands = decoder.take_commands()
        self.fault = decoder.fault


def decode(*pieces: bytes) -> Result:
    return Result(Decoder(PART, MESSAGE, PARTS), *pieces)


def decode_large(*pieces: bytes) -> Result:
    return Result(Decoder(*LIMITS), *pieces)


def steps(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


GOOD: dict[str, tuple[bytes, list[list[bytes]], list[bytes]]] = {
    "nothing": (b"", [], []),
    "an empty part": (frame(0), [[b""]], []),
    "a short part": (frame(0, b"a"), [[b"a"]], []),
    "a short part in a long frame": (frame(2, b"a"), [[b"a"]], []),
    "the longest short part": (frame(0, b"a" * 255), [[b"a" * 255]], []),
    "a long part": (frame(2, b"a" * 256), [[b"a" * 256]], []),
    "two parts": (frame(1, b"a") + frame(0, b"b"), [[b"a", b"b"]], []),
    "two long parts": (frame(3, b"a" * 300) + frame(2, b""), [[b"a" * 300, b""]], []),
    "two messages": (frame(0, b"a") + frame(0, b"b"), [[b"a"], [b"b"]], []),
    "a command": (frame(4, b"c"), [], [b"c"]),
    "an empty command": (frame(4), [], [b""]),
    "a long command": (frame(6, b"c" * 300), [], [b"c" * 300]),
    "commands between parts": (
        frame(1, b"a") + frame(4, b"c") + frame(1, b"b") + frame(6, b"d") + frame(2, b""),
        [[b"a", b"b", b""]],
        [b"c", b"d"],
    ),
    "a part of the limit": (frame(2, b"a" * PART), [[b"a" * PART]], []),
    "a message of the limit": (
        frame(3, b"a" * PART) * 2 + frame(2, b"b" * 500),
        [[b"a" * PART, b"a" * PART, b"b" * 500]],
        [],
    ),
    "parts of the limit": (frame(1, b"a") * (PARTS - 1) + frame(0), [[b"a"] * 4 + [b""]], []),
    "messages that are together above the limit": (
        frame(2, b"a" * PART) * 4,
        [[b"a" * PART]] * 4,
        [],
    ),
}
BEFORE = frame(0, b"before")
# Bytes after a valid message, the type of the fault, and a part of its text.
BAD: dict[str, tuple[bytes, type[ZmtpError], str]] = {
    "a command of several frames": (frame(5, b"x"), ZmtpError, "flags 0x05"),
    "a long command of several frames": (frame(7, b"x"), ZmtpError, "flags 0x07"),
    "a reserved flag": (frame(8, b"x"), ZmtpError, "flags 0x08"),
    "all flags": (frame(255, b"x"), ZmtpError, "flags 0xff"),
    "within a message": (frame(1, b"a") + frame(9, b"x"), ZmtpError, "flags 0x09"),
    "a part": (frame(2, b"x" * (PART + 1)), MessageTooBig, f"a part .* {PART} "),
    "a claim": (claim(2, 1 << 62), MessageTooBig, f"a part .* {PART} "),
    "the largest claim": (claim(3, (1 << 64) - 1), MessageTooBig, f"a part .* {PART} "),
    "a message": (frame(3, b"x" * PART) * 2 + frame(2, b"x" * 501), MessageTooBig, f"{MESSAGE} "),
    "a message of short parts": (
        frame(3, b"x" * PART) * 2 + frame(1, b"x" * 255) + frame(0, b"x" * 246),
        MessageTooBig,
        f"{MESSAGE} ",
    ),
    "a message without end": (frame(3, b"x" * 900) * 3, MessageTooBig, f"{MESSAGE} "),
    "parts": (frame(1, b"x") * PARTS + frame(0), ZmtpError, f"{PARTS} parts"),
    "parts without end": (frame(1) * 10, ZmtpError, f"{PARTS} parts"),
    "a command": (frame(6, bytes(COMMAND_LIMIT + 1)), ZmtpError, f"{COMMAND_LIMIT} "),
    "the claim of a command": (claim(6, (1 << 64) - 1), ZmtpError, f"{COMMAND_LIMIT} "),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("around", [b"", BEFORE], ids=["alone", "after a message"])
def test_frames_are_read_however_the_bytes_are_divided(name: str, around: bytes) -> None:
    data, messages, commands = GOOD[name]
    data = around + data
    expected = ([[b"before"]] if around else []) + messages
    for pieces in [[data[:at], data[at:]] for at in range(len(data))] + [steps(data, 1), [data]]:
        result = decode(*pieces)
        assert (result.messages, result.commands) == (expected, commands)
        assert result.fault is None


@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_found_however_the_bytes_are_divided(name: str) -> None:
    data, kind, text = BAD[name]
    data = BEFORE + data + frame(0, b"after")
    for pieces in [[data[:at], data[at:]] for at in range(len(data))] + [steps(data, 1), [data]]:
        result = decode(*pieces)
        assert result.messages == [[b"before"]]
        assert type(result.fault) is kind
        assert re.search(text, result.fault.reason)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 4096, 100_000, 1 << 20])
def test_parts_of_all_sizes_are_read_from_pieces_of_all_sizes(size: int) -> None:
    messages = [BORDERS, [b"x" * LONG], BORDERS[::-1], [b"y" * LONG, b"z" * LONG]]
    data = b"".join(map(encode, messages))
    assert decode_large(*steps(data, size)).messages == messages
