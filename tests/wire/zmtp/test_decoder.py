"""Frames of a peer: whole, cut at every byte, invalid, and above the limits."""

import re
import subprocess
import sys
import time
import tracemalloc
from itertools import chain, pairwise
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kbridge.errors import MessageTooBig, ZmtpError
from kbridge.wire.message import RawMessage
from kbridge.wire.zmtp.commands import COMMAND_LIMIT
from kbridge.wire.zmtp.decoder import Decoder
from kbridge.wire.zmtp.encoder import encode
from tests.wire.zmtp.libzmq import BORDERS, LIMITS

pytestmark = pytest.mark.usefixtures("twin")

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
                    while decoder.more:
                        self.messages += decoder.feed(b"")
                    break
                size = min(len(rest), len(decoder.pending))
                decoder.pending[:size] = rest[:size]
                self.messages += decoder.received(size)
                rest = rest[size:]
        self.commands = [body for _, body in decoder.take_commands()]
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


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 4096, 10_000, 100_000, 1 << 20])
def test_a_flood_of_similar_messages_is_read_from_pieces_of_all_sizes(size: int) -> None:
    """Messages of one shape, then of another one, then of many, with commands between them."""
    alike: list[list[bytes]] = [[b"topic", b"s" * 64, b"h" * 300, b"c" * i] for i in range(400)]
    others: list[list[bytes]] = [[b"t" * (i % 7), b"", b"c"] for i in range(4000)]
    many: list[list[bytes]] = [[b"p"] * 40 for _ in range(200)]
    messages = [*alike, [b"x" * LONG], *alike, *others, *many, *alike]
    data = b"".join(
        encode(parts) + (frame(4, b"command") if number % 100 == 50 else b"")
        for number, parts in enumerate(messages)
    )
    result = decode_large(*steps(data, size))
    assert result.messages == messages
    assert result.commands == [b"command"] * len(range(50, len(messages), 100))
    assert result.fault is None


def reference(data: bytes) -> tuple[list[RawMessage], list[bytes], bool]:
    """Decode whole frames in the simplest way; the last value is True if there is a fault."""
    messages: list[RawMessage] = []
    commands: list[bytes] = []
    parts: RawMessage = []
    while data:
        flags = data[0]
        if flags not in {0, 1, 2, 3, 4, 6}:
            return messages, commands, True
        head = 9 if flags & 2 else 2
        if len(data) < head:
            break  # cut
        size = int.from_bytes(data[1:head], "big")
        if size > (COMMAND_LIMIT if flags & 4 else PART):
            return messages, commands, True
        if not flags & 4 and size + sum(map(len, parts)) > MESSAGE:
            return messages, commands, True
        if len(data) < head + size:
            break
        body, data = data[head : head + size], data[head + size :]
        if flags & 4:
            commands.append(body)
            continue
        parts.append(body)
        if len(parts) > PARTS:
            return messages, commands, True
        if not flags & 1:
            messages.append(parts)
            parts = []
    return messages, commands, False


BODIES = st.builds(
    lambda size, byte: bytes((byte,)) * size, st.integers(0, 1300), st.integers(0, 9)
)
SHORT = st.binary(max_size=255)
FRAMES = st.one_of(
    st.builds(frame, st.sampled_from([0, 1, 4]), SHORT),
    st.builds(frame, st.sampled_from([2, 3, 6]), BODIES),
    st.sampled_from([GOOD["a message of the limit"][0], GOOD["parts of the limit"][0]]),
    st.sampled_from([data for data, _, _ in BAD.values()]),
)
# A flood: the first parts of all messages, the number of sizes of their last parts, and the number
# of messages.
Flood: TypeAlias = tuple[list[bytes], int, int]
FLOODS = st.tuples(
    st.lists(SHORT, max_size=PARTS - 1), st.integers(1, 256), st.sampled_from([1, 10, 100])
)


def flood(head: list[bytes], sizes: int, count: int) -> bytes:
    return b"".join(encode([*head, bytes(i % sizes)]) for i in range(count))


@given(
    pieces=st.lists(FRAMES | FLOODS, max_size=8),
    tail=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 20_000), max_size=8),
)
@example([([b"x" * 200], 256, 60), frame(5), frame(0)], b"", [9000])
def test_any_frames_in_any_pieces_are_read_as_the_reference_does(
    pieces: list[bytes | Flood], tail: bytes, cuts: list[int]
) -> None:
    data = b"".join(p if isinstance(p, bytes) else flood(*p) for p in pieces) + tail
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    result = decode(*(data[a:b] for a, b in pairwise(places)))
    messages, commands, fault = reference(data)
    assert result.messages == messages
    assert (result.fault is not None) == fault
    # Commands of an incomplete message may be decoded before its fault is.
    assert result.commands[: len(commands)] == commands[: len(result.commands)]


@given(
    pieces=st.lists(FRAMES | FLOODS, max_size=8), cuts=st.lists(st.integers(0, 20_000), max_size=8)
)
def test_another_decoder_continues_with_the_unfinished_bytes(
    pieces: list[bytes | Flood], cuts: list[int]
) -> None:
    data = b"".join(p if isinstance(p, bytes) else flood(*p) for p in pieces)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    messages: list[RawMessage] = []
    decoder = Decoder(PART, MESSAGE, PARTS)
    for start, end in pairwise(places):
        messages += decoder.feed(data[start:end])
        if decoder.fault is not None:
            break
        assert decoder.unfinished <= end
        rest = data[end - decoder.unfinished : end]
        decoder = Decoder(PART, MESSAGE, PARTS)
        assert decoder.feed(rest) == []
        assert decoder.unfinished == len(rest)
    whole, _, fault = reference(data)
    assert messages == whole
    assert (decoder.fault is not None) == fault


def test_the_bytes_of_an_incomplete_message_are_counted_until_it_is_complete() -> None:
    decoder = Decoder(*LIMITS)
    message = encode([b"topic", bytes(LONG), b"s" * 300, bytes(LONG)])
    data = BEFORE + frame(4, b"c") + message + frame(4, b"c")
    for at, byte in enumerate(data):
        piece = bytes((byte,))
        if decoder.pending is None:
            decoder.feed(piece)
        else:
            decoder.pending[:1] = piece
            decoder.received(1)
        done = [len(data), len(BEFORE) + 3 + len(message), len(BEFORE) + 3, len(BEFORE), 0]
        assert decoder.unfinished == at + 1 - next(end for end in done if end <= at + 1)


def test_a_decoder_with_limits_below_a_short_frame_enforces_them() -> None:
    decoder = Decoder(part_limit=3, message_limit=5, parts_limit=3)
    assert decoder.feed(encode([b"abc", b"de"]) + encode([b"abcd"])) == [[b"abc", b"de"]]
    assert isinstance(decoder.fault, MessageTooBig)
    assert decoder.fault.limit == 3
    decoder = Decoder(part_limit=3, message_limit=5, parts_limit=3)
    assert decoder.feed(encode([b"abc", b"def"])) == []
    assert isinstance(decoder.fault, MessageTooBig)
    assert decoder.fault.limit == 5


def test_after_a_fault_all_bytes_are_ignored() -> None:
    decoder = Decoder(*LIMITS)
    assert decoder.feed(BEFORE + frame(9) + BEFORE) == [[b"before"]]
    fault = decoder.fault
    assert decoder.feed(BEFORE) == decoder.feed(b"") == []
    assert decoder.fault is fault


def test_commands_are_given_once_with_the_number_of_messages_before_them() -> None:
    decoder = Decoder(*LIMITS)
    data = frame(4, b"a") + BEFORE + frame(1) + frame(6, b"b") + frame(0)
    assert decoder.feed(data) == [[b"before"], [b"", b""]]
    assert decoder.commands == decoder.take_commands() == [(0, b"a"), (1, b"b")]
    assert decoder.commands == decoder.take_commands() == []


def test_all_parts_are_bytes() -> None:
    [parts] = decode_large(*steps(encode([*BORDERS, b"x" * LONG]), 1000)).messages
    assert {type(part) for part in parts} == {bytes}


def test_a_long_part_is_received_into_its_place() -> None:
    part = b"0123456789" * 7_000
    data = encode([b"topic", part, b"end"])
    decoder = Decoder(*LIMITS)
    assert decoder.feed(data[:100]) == []
    place = data.index(part)
    rest = memoryview(part)[100 - place :]
    while decoder.pending is not None:
        assert len(decoder.pending) == len(rest)
        size = min(30_000, len(rest))
        decoder.pending[:size] = rest[:size]
        assert decoder.received(size) == []
        rest = rest[size:]
    assert decoder.feed(data[place + len(part) :]) == [[b"topic", part, b"end"]]


def test_a_long_part_may_be_the_last_one() -> None:
    part = b"x" * LONG
    decoder = Decoder(*LIMITS)
    assert decoder.feed(encode([b"topic", part])[:-1]) == []
    assert decoder.pending is not None
    assert decoder.received(0) == []
    decoder.pending[:] = b"x"
    assert decoder.received(1) == [[b"topic", part]]
    assert decoder.pending is None
    assert decoder.feed(BEFORE) == [[b"before"]]


def test_a_part_is_received_in_pieces_up_to_the_number_of_parts() -> None:
    head = frame(1) * 2
    for last in (False, True):
        decoder = Decoder(1 << 20, 1 << 20, parts_limit=2)
        assert decoder.feed(head + frame(2 if last else 3, bytes(LONG))[:-1]) == []
        assert decoder.pending is not None
        assert decoder.received(1) == []
        assert decoder.fault is not None
        assert "2 parts" in decoder.fault.reason


def test_a_long_part_is_not_copied() -> None:
    size = 8 << 20
    decoder = Decoder(size, size, 1)
    head = claim(2, size)
    tracemalloc.start()
    try:
        decoder.feed(head)
        assert decoder.pending is not None
        [[part]] = decoder.received(size)
        assert tracemalloc.get_traced_memory()[1] < size * 1.1
    finally:
        tracemalloc.stop()
    assert part == bytes(size)


def test_a_part_stays_whole_although_the_owner_keeps_a_view_of_its_memory() -> None:
    decoder = Decoder(*LIMITS)
    decoder.feed(claim(2, LONG))
    assert decoder.pending is not None
    kept = decoder.pending[:10]
    [[part]] = decoder.received(LONG)
    kept[:] = b"overwrites"
    assert part == bytes(LONG)


CLAIM = """
import resource
from kbridge.wire.zmtp.decoder import Decoder
decoders = [Decoder(1 << 30, 1 << 30, 9) for _ in range(4)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for decoder in decoders:
    decoder.feed(b"\\2" + (200 << 20).to_bytes(8, "big"))
    decoder.pending[:1] = b"x"
    decoder.received(1)
    assert len(decoder.pending) == (200 << 20) - 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_claim_takes_no_memory_before_its_bytes_arrive() -> None:
    done = subprocess.run([sys.executable, "-c", CLAIM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, "KiB; the claims are 800 MiB"


def test_a_claim_of_more_memory_than_there_is_is_a_fault() -> None:
    for size in (1 << 61, (1 << 64) - 1):
        decoder = Decoder(1 << 64, 1 << 64, 1)
        assert decoder.feed(BEFORE + claim(2, size)) == [[b"before"]]
        assert decoder.pending is None
        assert decoder.fault is not None
        assert f"no memory for a part of {size} bytes" in decoder.fault.reason


@pytest.mark.timing
@pytest.mark.parametrize("kind", ["a frame", "a message", "a long part"])
def test_costs_of_small_pieces_grow_with_their_number(kind: str) -> None:
    def cost(size: int) -> float:
        data = {
            "a frame": lambda: frame(2, bytes(size)),
            "a message": lambda: frame(1, b"x") * (size // 3) + frame(0),
            "a long part": lambda: frame(2, bytes(size + LONG)),
        }[kind]()
        pieces = steps(data, 1)
        times = []
        for _ in range(3):
            begin = time.process_time()
            result = Result(Decoder(1 << 20, 1 << 20, 1 << 20), *pieces)
            times.append(time.process_time() - begin)
            assert len(result.messages) == 1
        return min(times)

    assert cost(64_000) < 24 * cost(8_000) + 0.01, "a quadratic cost would be 64 times as much"


@pytest.mark.parametrize(
    ("message", "count"), [([b""], 1 << 16), ([b"", b"x"], 1 << 14), ([b"x" * 300], 5000)]
)
def test_a_call_returns_a_bounded_number_of_messages(message, count) -> None:
    decoder = Decoder(*LIMITS)
    cut = encode([b"rest"])
    data = encode(message) * count + cut[:-1]
    batches = [decoder.feed(data)]
    while decoder.more:
        whole = sum(map(len, batches))
        assert decoder.unfinished == len(data) - whole * len(encode(message))
        batches.append(decoder.feed(b""))
    assert max(map(len, batches)) <= 2000
    assert list(chain.from_iterable(batches)) == [message] * count
    assert decoder.unfinished == len(cut) - 1
    assert decoder.feed(cut[-1:]) == [[b"rest"]]


def test_bytes_may_be_fed_while_messages_are_left() -> None:
    decoder = Decoder(*LIMITS)
    messages = decoder.feed(encode([b""]) * 5000)
    assert decoder.more
    messages += decoder.feed(encode([b"last"]))
    while decoder.more:
        messages += decoder.feed(b"")
    assert messages == [[b""]] * 5000 + [[b"last"]]


def test_a_fault_behind_many_messages() -> None:
    decoder = Decoder(*LIMITS)
    messages = decoder.feed(encode([b""]) * 5000 + frame(9))
    while decoder.more:
        assert decoder.fault is None
        messages += decoder.feed(b"")
    assert len(messages) == 5000
    assert decoder.fault is not None
