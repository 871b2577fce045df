"""The table of valid and invalid messages for the tests of both dialects."""

import json
import struct
from collections.abc import Callable

from kbridge.errors import (
    FrameError,
    IgnoredMessage,
    InvalidMessage,
    MalformedFrame,
    WrongFrameType,
)
from kbridge.wire.message import Channel, Message

HEADER = {
    "msg_id": "0b5a3e3c-2b53-4d6b-9d3e-6a1f9c2d7e10_1",
    "msg_type": "execute_request",
    "username": "ana",
    "session": "0b5a3e3c-2b53-4d6b-9d3e-6a1f9c2d7e10",
    "date": "2025-03-01T12:00:00.000001Z",
    "version": "5.4",
}


def raw(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def message(
    channel: str = "shell",
    *,
    parent: object = None,
    metadata: object = None,
    content: object = None,
    buffers: tuple[bytes | memoryview, ...] = (),
    **header: object,
) -> Message:
    return Message(
        Channel(channel),
        raw({**HEADER, **header}),
        raw(parent or {}),
        raw(metadata or {}),
        raw(content or {}),
        buffers,
    )


MESSAGES: dict[str, Message] = {
    "bare": message(),
    "execute": message(
        content={"code": "print(1)", "silent": False, "store_history": True},
        metadata={"cellId": "a-b", "deletedCells": []},
    ),
    "stream": message(
        "iopub", msg_type="stream", parent=HEADER, content={"name": "stdout", "text": "x\n" * 9}
    ),
    "control": message("control", msg_type="interrupt_request"),
    "stdin": message("stdin", msg_type="input_reply", parent=HEADER, content={"value": "ja"}),
    "subshell": message(subshell_id="92d5-éa", parent={**HEADER, "subshell_id": None}),
    "non-ascii everywhere": message(
        msg_id="идентификатор",
        username="žofie",
        parent={**HEADER, "msg_id": "親"},
        metadata={"ключ": "значение"},
        content={"code": "print('🎉 naïve \u2028')", "λ": ["ß", {"中": None}]},
        buffers=("ü".encode(),),
    ),
    "escapes": message(
        msg_type='quo"te\\s\n',
        content={"code": '"}], "channel": "iopub", \\', "control": "\x00\x1f\x7f"},
    ),
    "decoy keys": message(
        content={"header": {"msg_id": "no"}, "channel": "iopub", "buffers": [1]},
        metadata={"msg_type": "no"},
    ),
    "numbers": message(content={"n": [0, -1, 10**30, 1.5e300, 1e-7, float("nan"), float("-inf")]}),
    "one buffer": message(msg_type="comm_msg", buffers=(b"\x00\x01\x02",)),
    "empty buffer": message(msg_type="comm_msg", buffers=(b"",)),
    "empty buffers among full": message(buffers=(b"", b"a", b"", b"", b"bc", b"")),
    "views": message("iopub", buffers=(memoryview(b"abcdef")[1:4], b"x", memoryview(b""))),
    "many buffers": message(buffers=tuple(bytes([i]) * i for i in range(40))),
}


def plain(msg: Message) -> Message:
    """Return the message with buffers as bytes, for comparisons."""
    return msg._replace(buffers=tuple(bytes(b) for b in msg.buffers))


def v1_frame(*parts: bytes, words: Callable[[list[int]], list[int]] = list) -> bytes:
    """Return a v1 frame of any parts; `words` may spoil the table."""
    table = [len(parts) + 1, 8 * (len(parts) + 2)]
    for part in parts:
        table.append(table[-1] + len(part))
    spoilt = words(table)
    return struct.pack(f"<{len(spoilt)}Q", *spoilt) + b"".join(parts)


def legacy_frame(*parts: bytes, words: Callable[[list[int]], list[int]] = list) -> bytes:
    """Return a legacy binary frame of any parts; `words` may spoil the table."""
    table = [len(parts), 4 * (len(parts) + 1)]
    for part in parts[:-1]:
        table.append(table[-1] + len(part))
    spoilt = words(table)
    return struct.pack(f"!{len(spoilt)}I", *spoilt) + b"".join(parts)


def put(index: int, value: int) -> Callable[[list[int]], list[int]]:
    """Change one word of a table."""
    return lambda table: [value if i == index else word for i, word in enumerate(table)]


H = raw(HEADER)
FIVE = (b"shell", H, b"{}", b"{}", b"{}")
DEEP = b'{"a":' * 200_000
DEEP_AND_SMALL = b'{"a":' * 13_000  # small enough to be parsed
Fault = tuple[str | bytes, type[FrameError], str]


def five(channel: bytes = b"shell", header: bytes = H, *rest: bytes) -> bytes:
    return v1_frame(channel, header, *(rest or FIVE[2:]))


V1_FAULTS: dict[str, Fault] = {
    "text": ("{}", WrongFrameType, "text frame"),
    "empty": (b"", MalformedFrame, "too short"),
    "seven bytes": (b"\x06" + b"\0" * 6, MalformedFrame, "too short"),
    "no offsets": (v1_frame(*FIVE, words=put(0, 0)), MalformedFrame, "0 offsets"),
    "five offsets": (v1_frame(*FIVE[:4]), MalformedFrame, "5 offsets"),
    "ten million offsets": (struct.pack("<Q", 10_000_000), MalformedFrame, "do not fit"),
    "2**64 - 1 offsets": (b"\xff" * 64, MalformedFrame, "do not fit"),
    "one offset too many": (
        struct.pack("<7Q", 6, *[56] * 6)[:-1],
        MalformedFrame,
        "do not fit a frame of 55",
    ),
    "first offset inside the table": (
        v1_frame(*FIVE, words=put(1, 8)),
        MalformedFrame,
        "first offset is 8",
    ),
    "falling": (v1_frame(*FIVE, words=put(3, 60)), MalformedFrame, "decreases from"),
    "2**64 - 1 in the middle": (
        v1_frame(*FIVE, words=put(4, 2**64 - 1)),
        MalformedFrame,
        "decreases from 18446744073709551615",
    ),
    "end after the end": (v1_frame(*FIVE)[:-1], MalformedFrame, "the frame ends at"),
    "channel not UTF-8": (five(b"\xff"), MalformedFrame, "channel is not valid UTF-8"),
    "unknown channel": (five(b"heartbeat"), IgnoredMessage, "unknown channel 'heartbeat'"),
    "no channel": (five(b""), IgnoredMessage, "unknown channel ''"),
    "long channel": (five("🎉".encode() * 500), IgnoredMessage, "unknown channel"),
    "header not UTF-8": (five(header=b'{"\xff'), MalformedFrame, "header is not valid UTF-8"),
    "header in UTF-16": (
        five(header=json.dumps(HEADER).encode("utf-16")),
        MalformedFrame,
        "header is not valid",
    ),
    "header with a BOM": (five(header=b"\xef\xbb\xbf" + H), IgnoredMessage, "header is not valid"),
    "header with a surrogate in UTF-8": (
        five(header=b'{"a": "\xed\xa0\x80"}'),
        MalformedFrame,
        "header is not valid UTF-8",
    ),
    "header empty": (five(header=b""), IgnoredMessage, "header is not valid JSON"),
    "header null": (five(header=b"null"), IgnoredMessage, "header is not a JSON object"),
    "header a list": (five(header=b"[1]"), IgnoredMessage, "header is not a JSON object"),
    "header without msg_id": (five(header=b'{"msg_type": "a"}'), IgnoredMessage, "lacks msg_id"),
    "header without msg_type": (five(header=b'{"msg_id": "a"}'), IgnoredMessage, "lacks msg_type"),
    "msg_type a number": (
        five(header=raw({**HEADER, "msg_type": 1})),
        IgnoredMessage,
        "empty or non-string msg_type",
    ),
    "msg_id a lone surrogate": (
        five(header=b'{"msg_id": "\\ud800", "msg_type": "a"}'),
        IgnoredMessage,
        "msg_id of the header contains a lone surrogate",
    ),
    "msg_type twice": (
        five(header=b'{"msg_id": "a", "msg_type": "b", "msg_type": "c"}'),
        InvalidMessage,
        "msg_type twice",
    ),
    "msg_type twice, once in disguise": (
        five(header=b'{"msg_id": "a", "msg_type": "b", "msg_t\\u0079pe": "c"}'),
        InvalidMessage,
        "msg_type twice",
    ),
    "header nested deeply": (
        five(header=DEEP_AND_SMALL),
        IgnoredMessage,
        "header is nested too deeply",
    ),
    "a large header": (five(header=DEEP), InvalidMessage, "header has more than 65,536 bytes"),
    "a large parent": (
        five(b"shell", H, b'{"a": "' + b"x" * 70_000 + b'"}', b"{}", b"{}"),
        InvalidMessage,
        "parent_header has more than 65,536 bytes",
    ),
    "content not JSON": (
        five(b"shell", H, b"{}", b"{}", b"{'a': 1}"),
        IgnoredMessage,
        "content is not valid JSON",
    ),
    "content JSON and more": (
        five(b"shell", H, b"{}", b"{}", b"{} {}"),
        IgnoredMessage,
        "content is not valid JSON",
    ),
    "content not UTF-8": (
        five(b"shell", H, b"{}", b"{}", b'{"a": "\xc3"}'),
        MalformedFrame,
        "content is not valid UTF-8",
    ),
    "content nested deeply": (
        five(b"shell", H, b"{}", b"{}", DEEP_AND_SMALL),
        IgnoredMessage,
        "content is nested too deeply",
    ),
    "content with an endless number": (
        five(b"shell", H, b"{}", b"{}", b'{"a": ' + b"1" * 60_000 + b"}"),
        IgnoredMessage,
        "content is not valid JSON",
    ),
}

_TEXT = '{"header": ' + H.decode()

LEGACY_FAULTS: dict[str, Fault] = {
    "empty text": ("", MalformedFrame, "not valid JSON"),
    "no JSON": ("hello", MalformedFrame, "not valid JSON"),
    "a list": ("[{}]", InvalidMessage, "not a JSON object"),
    "null": (" null ", InvalidMessage, "not a JSON object"),
    "cut": (_TEXT, MalformedFrame, "not valid JSON"),
    "more after the end": (_TEXT + "} {}", MalformedFrame, "not valid JSON"),
    "no colon": ('{"header" 1}', MalformedFrame, "not valid JSON"),
    "no comma": (_TEXT + ' "content": {}}', MalformedFrame, "not valid JSON"),
    "a comma too many": (_TEXT + ",}", MalformedFrame, "not valid JSON"),
    "a number for a key": ('{1: "a"}', MalformedFrame, "not valid JSON"),
    "a BOM": ("\ufeff{}", MalformedFrame, "not valid JSON"),
    "an object without a header": ("{}", InvalidMessage, "has no header"),
    "header a string": ('{"header": "a"}', IgnoredMessage, "header is not a JSON object"),
    "header null": ('{"header": null}', IgnoredMessage, "header is not a JSON object"),
    "header without msg_id": ('{"header": {"msg_type": "a"}}', IgnoredMessage, "lacks msg_id"),
    "header without msg_type": ('{"header": {"msg_id": "a"}}', IgnoredMessage, "lacks msg_type"),
    "msg_id twice": (
        '{"header": {"msg_id": "a", "msg_id": "b", "msg_type": "c"}}',
        InvalidMessage,
        "msg_id twice",
    ),
    "unknown channel": (_TEXT + ', "channel": "ipoub"}', IgnoredMessage, "unknown channel 'ipoub'"),
    "channel a number": (_TEXT + ', "channel": 3}', IgnoredMessage, "channel is not a string"),
    "channel an object": (_TEXT + ', "channel": {}}', IgnoredMessage, "channel is not a string"),
    "channel a lone surrogate": (
        _TEXT + ', "channel": "\\ud800"}',
        IgnoredMessage,
        "unknown channel",
    ),
    "content a string that is not JSON": (
        _TEXT + ', "content": "x"}',
        IgnoredMessage,
        "content is not valid JSON",
    ),
    "buffers in a text frame": (
        _TEXT + ', "buffers": ["YQ=="]}',
        InvalidMessage,
        "buffers in a text frame",
    ),
    "nested deeply": ('{"header": ' + DEEP.decode(), MalformedFrame, "nested too deeply"),
    "keys nested deeply": ("{" + "[" * 60_000, MalformedFrame, "nested too deeply"),
    "list nested deeply": ("[" * 60_000, MalformedFrame, "nested too deeply"),
    "an endless number": ('{"a": ' + "1" * 60_000 + "}", MalformedFrame, "not valid JSON"),
    "an object that never ends": ("{" + " " * 70_000, MalformedFrame, "not valid JSON"),
    "many members": (
        "{" + ", ".join(f'"{i}": 0' for i in range(2_000)) + "}",
        InvalidMessage,
        "more than 1,000 members",
    ),
    "very many members": (
        "{" + ", ".join(f'"{i}": 0' for i in range(20_000)) + "}",
        InvalidMessage,
        "more than 1,000 members",
    ),
    "a large header": (
        '{"header": {"a": "' + "x" * 70_000 + '"}}',
        InvalidMessage,
        "header has more than 65,536 bytes",
    ),
    "a large channel": (
        _TEXT + ', "channel": "' + "x" * 70_000 + '"}',
        InvalidMessage,
        "channel has more than 65,536 bytes",
    ),
    "large buffers in text": (
        _TEXT + ', "buffers": [' + "1, " * 40_000 + "1]}",
        InvalidMessage,
        "buffers in a text frame",
    ),
    "metadata that is no JSON beside a large content": (
        _TEXT + ', "metadata": {"a": nul}, "content": {"a": "' + "x" * 70_000 + '"}}',
        MalformedFrame,
        "metadata is not valid JSON",
    ),
    "a raw lone surrogate": (
        _TEXT + ', "content": {"a": "\ud800"}}',
        MalformedFrame,
        "content contains a lone surrogate",
    ),
    "empty": (b"", MalformedFrame, "too short"),
    "three bytes": (b"\0\0\0", MalformedFrame, "too short"),
    "no offsets": (b"\0\0\0\0\0\0\0\x08", MalformedFrame, "0 offsets"),
    "ten million offsets": (struct.pack("!I", 10_000_000), MalformedFrame, "do not fit"),
    "2**32 - 1 offsets": (b"\xff" * 64, MalformedFrame, "do not fit"),
    "first offset inside the table": (
        legacy_frame(b"{}", b"a", words=put(1, 4)),
        MalformedFrame,
        "first offset is 4",
    ),
    "falling": (
        legacy_frame(b"{}", b"a", b"b", words=put(3, 15)),
        MalformedFrame,
        "decreases from",
    ),
    "outside": (legacy_frame(b"{}", b"a", words=put(2, 99)), MalformedFrame, "last offset is 99"),
    "JSON not UTF-8": (
        legacy_frame(b'{"a": "\xff"}', b"a"),
        MalformedFrame,
        "JSON of the frame is not valid UTF-8",
    ),
    "JSON not JSON": (legacy_frame(b"{", b"a"), MalformedFrame, "not valid JSON"),
    "JSON empty": (legacy_frame(b"", b"a"), MalformedFrame, "not valid JSON"),
    "JSON without a header": (legacy_frame(b"{}", b"a"), InvalidMessage, "has no header"),
}
