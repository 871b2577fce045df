"""Incomplete and invalid messages in both dialects: one table for all servers.

Each case is a `kernel_info_request` with one fault, and the expected reaction of kbridge:

- "answered": the kernel receives it and replies;
- "ignored": the websocket stays open, and there is no reply;
- "closed N": the websocket is closed with the code N.

kbridge should accept the messages that Jupyter Server and the Kernel Gateway accept. Exceptions
have a reason in the case.
"""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["CASES", "Case"]

_ID = "sloppy-0000"
_PARTS = ("header", "parent_header", "metadata", "content")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Case:
    """One shape of message.

    Attributes
    ----------
    name, dialect : str
        The fault of the message, and the dialect of the websocket.
    frame : str or bytes
        The websocket frame to send.
    outcome : str
        The reaction that kbridge must show.
    stricter : str
        The reason why kbridge rejects a message that others accept; empty for most.
    hangs : bool
        True if Jupyter Server does not recover from it, so that it cannot be compared.
    """

    name: str
    dialect: str
    frame: str | bytes
    outcome: str
    stricter: str = ""
    hangs: bool = False

    def numbered(self, number: int) -> Case:
        """Return the case with new ids, because kernels ignore repeated messages."""
        new = f"sloppy-{number:04}"
        if isinstance(self.frame, str):
            frame: str | bytes = self.frame.replace(_ID, new)
        else:
            frame = self.frame.replace(_ID.encode(), new.encode())
        return Case(self.name, self.dialect, frame, self.outcome, self.stricter, self.hangs)


def _message(where: str = "", value: Any = None) -> dict[str, Any]:
    """Give a good message, but for one field: `where` is `part` or `part.field`."""
    msg: dict[str, Any] = {
        "channel": "shell",
        "header": {
            "msg_id": _ID,
            "msg_type": "kernel_info_request",
            "session": "careless",
            "username": _ID,
            "date": "2026-01-01T00:00:00.000000Z",
            "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {},
        "buffers": [],
    }
    part, _, field = where.partition(".")
    target, key = (msg[part], field) if field else (msg, part)
    if value is _MISSING:
        del target[key]
    elif where:
        target[key] = value
    return msg


def _v1_frame(*parts: bytes) -> bytes:
    offsets = list(itertools.accumulate(map(len, parts), initial=8 * (len(parts) + 2)))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


def _v1_parts(msg: dict[str, Any]) -> list[bytes]:
    return [msg["channel"].encode(), *(json.dumps(msg[part]).encode() for part in _PARTS)]


# -- one field of the message, in both dialects ---------------------------------------------

# Values for a field, by name. `_FIELDS` pairs each field with its values and the outcome.
_ODD_JSON = {
    "null": None,
    "a list": [],
    "a number": 5,
    "JSON as text": "{}",
    "NaN": {"x": float("nan")},
    "an infinite number": {"x": float("inf")},
    "a large number": {"x": 10**40},
    "a number of 4,000 digits": {"x": 10**4000},
}
_DEEP = {"deep": {"x": json.loads("[" * 500 + "]" * 500)}}
_NO_CHANNEL = {"iopub": "iopub", "hb": "hb", "unknown": "shelf", "empty": ""}
_NO_ID = {"missing": _MISSING, "a lone surrogate": "\ud800"}
_ODD_ID = {
    "null": None,
    "empty": "",
    "a number": 7,
    "a fraction": 7.5,
    "true": True,
    "a list": ["x"],
    "an object": {"x": 1},
}
_NO_TYPE = {"missing": _MISSING, "null": None, "empty": "", "a number": 7, "a list": ["x"]}
_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("channel", _NO_CHANNEL, "ignored"),
    ("header", {"null": None, "empty": {}, "text": "x", "a list": []}, "ignored"),
    ("header.msg_id", _NO_ID, "ignored"),
    ("header.msg_id", _ODD_ID, "answered"),
    ("header.msg_type", _NO_TYPE, "ignored"),
    ("header.msg_type", {"unknown": "no_such_request"}, "ignored"),
    ("header.session", {"missing": _MISSING, "null": None, "a number": 7}, "answered"),
    ("header.username", {"missing": _MISSING, "null": None}, "answered"),
    ("header.date", {"missing": _MISSING, "no date": "x", "a number": 7}, "answered"),
    ("header.date", {"naive": "2026-01-01T00:00:00"}, "answered"),
    ("header.version", {"missing": _MISSING}, "answered"),
    ("header.extra", {"added": {"x": 1}}, "answered"),
    ("parent_header", {**_ODD_JSON, "text": "x"}, "answered"),
    ("metadata", {**_ODD_JSON, **_DEEP, "text": "x"}, "answered"),
    ("content", {**_ODD_JSON, **_DEEP}, "answered"),
]

_GARBLED = "the kernel's reply repeats it as bytes that are not UTF-8"


def _fields() -> list[Case]:
    found = []
    for where, values, outcome in _FIELDS:
        for name, value in values.items():
            msg = _message(where, value)
            found += [
                Case(f"{where}: {name}", "legacy", json.dumps(msg), outcome),
                Case(f"{where}: {name}", "v1", _v1_frame(*_v1_parts(msg)), outcome),
            ]
    low = _message("header.msg_id", f"\udc80{_ID}")
    text, v1 = _message("content", "x"), _v1_frame(*_v1_parts(_message("content", "x")))
    return [
        *found,
        Case("header.msg_id: half a pair", "legacy", json.dumps(low), "ignored", _GARBLED),
        Case("header.msg_id: half a pair", "v1", _v1_frame(*_v1_parts(low)), "ignored", _GARBLED),
        Case("content: text", "legacy", json.dumps(text), "ignored"),
        Case("content: text", "v1", v1, "answered"),
    ]


# -- the legacy dialect ---------------------------------------------------------------------

_LEGACY_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("header", {"missing": _MISSING}, "closed 1008"),
    ("channel", {"missing": _MISSING, "null": None}, "answered"),
    ("channel", {"a number": 5, "false": False, "a list": []}, "ignored"),
    ("buffers", {"missing": _MISSING, "null": None, "an object": {}, "empty text": ""}, "answered"),
    ("buffers", {"text": "abc", "a list of text": ["abc"], "an object": {"x": 1}}, "closed 1008"),
    *((part, {"missing": _MISSING}, "answered") for part in _PARTS[1:]),
    *((key, {"added": "other"}, "answered") for key in ("msg_id", "msg_type", "extra")),
]

_TWICE = "it is ambiguous, as parsers differ in which of the two they take"


def _legacy() -> list[Case]:
    good = json.dumps(_message())
    raw = good.encode()
    twice_id = good.replace('"msg_id"', '"msg_id": "first", "msg_id"', 1)
    twice_type = good.replace('"msg_type"', '"msg_type": "comm_info_request", "msg_type"', 1)
    with_buffers = json.dumps(_message("buffers", {"x": 1})).encode()
    end = 16 + len(raw)
    rows: list[tuple[str, str | bytes, str, str]] = [
        ("an empty text frame", "", "closed 1007", ""),
        ("an empty binary frame", b"", "closed 1007", ""),
        ("ping", "ping", "closed 1007", ""),
        ("a JSON string", '"ping"', "closed 1008", ""),
        ("a JSON number", "5", "closed 1008", ""),
        ("null", "null", "closed 1008", ""),
        ("an empty object", "{}", "closed 1008", ""),
        ("a ping as an object", '{"type": "ping"}', "closed 1008", ""),
        ("a list of messages", f"[{good}]", "closed 1008", ""),
        ("two messages in one frame", good + good, "closed 1007", ""),
        ("spaces around", f" \n{good}\r\n ", "answered", ""),
        ("two headers", f'{{"header": {{}}, {good[1:]}', "answered", ""),
        ("two channels", f'{{"channel": "hb", {good[1:]}', "answered", ""),
        ("two msg_id", twice_id, "closed 1008", _TWICE),
        ("two msg_type", twice_type, "closed 1008", _TWICE),
        ("binary, no buffers", struct.pack("!II", 1, 8) + raw, "answered", ""),
        ("binary, a gap", struct.pack("!II", 1, 12) + b"    " + raw, "answered", ""),
        (
            "binary, a buffer",
            struct.pack("!III", 2, 12, 12 + len(raw)) + raw + b"abc",
            "answered",
            "",
        ),
        ("binary, buffers in JSON", struct.pack("!II", 1, 8) + with_buffers, "answered", ""),
        (
            "binary, falling offsets",
            struct.pack("!IIII", 3, 16, end, 20) + raw + b"abc",
            "closed 1007",
            "where its parts are is ambiguous",
        ),
    ]
    return [
        *(
            Case(f"{where}: {name}", "legacy", json.dumps(_message(where, value)), outcome)
            for where, values, outcome in _LEGACY_FIELDS
            for name, value in values.items()
        ),
        *(Case(name, "legacy", frame, out, why) for name, frame, out, why in rows),
        Case("JSON in a binary frame", "legacy", raw, "closed 1007", hangs=True),
    ]


# -- the v1 dialect -------------------------------------------------------------------------

_OFFSETS = "where its parts are is ambiguous"


def _v1() -> list[Case]:
    good = _message()
    channel, header, parent, metadata, content = parts = _v1_parts(good)
    whole = _v1_frame(*parts)
    body = whole[56:]
    offsets = struct.unpack_from("<6Q", whole, 8)

    def table(*words: int, rest: bytes = body) -> bytes:
        return struct.pack(f"<{len(words)}Q", *words) + rest

    two_types = header.replace(b'"msg_type"', b'"msg_type": "comm_info_request", "msg_type"')
    rows: list[tuple[str, str | bytes, str, str]] = [
        ("a text frame", json.dumps(good), "closed 1003", ""),
        ("an empty text frame", "", "closed 1003", ""),
        ("ping", "ping", "closed 1003", ""),
        ("an empty binary frame", b"", "closed 1007", ""),
        ("no offsets", struct.pack("<Q", 0), "closed 1007", ""),
        ("one offset", struct.pack("<QQ", 1, 16), "closed 1007", ""),
        ("bytes behind the last part", whole + b"abc", "answered", ""),
        ("a gap", table(6, *(o + 8 for o in offsets), rest=b"x" * 8 + body), "answered", ""),
        ("buffers", _v1_frame(*parts, b"abc", b""), "answered", ""),
        ("spaces around content", _v1_frame(*parts[:4], b" {} "), "answered", ""),
        ("no parent", _v1_frame(channel, header, b"", metadata, content), "answered", ""),
        ("no metadata", _v1_frame(channel, header, parent, b"", content), "answered", ""),
        ("no content", _v1_frame(channel, header, parent, metadata, b""), "answered", ""),
        ("no header", _v1_frame(channel, b"", parent, metadata, content), "ignored", ""),
        ("header is not JSON", _v1_frame(channel, b"{", *parts[2:]), "ignored", ""),
        ("content is not JSON", _v1_frame(*parts[:4], b"{"), "ignored", ""),
        ("channel is not UTF-8", _v1_frame(b"\xff", *parts[1:]), "closed 1007", ""),
        (
            "content is not UTF-8",
            _v1_frame(*parts[:4], b'{"x": "\xff"}'),
            "closed 1007",
            "what is not UTF-8 is not JSON, and kernels differ in what they make of it",
        ),
        ("two msg_type", _v1_frame(channel, two_types, *parts[2:]), "closed 1008", _TWICE),
        ("a single byte", b"x", "closed 1007", _OFFSETS),
        ("a cut frame", whole[:-1], "closed 1007", _OFFSETS),
        ("four parts", _v1_frame(*parts[:4]), "closed 1007", _OFFSETS),
        ("no end", table(5, *(o - 8 for o in offsets[:5])), "closed 1007", _OFFSETS),
        ("falling offsets", table(6, *offsets[:5], offsets[3]), "closed 1007", _OFFSETS),
        (
            "an offset past the end",
            table(7, *(o + 8 for o in offsets), 9000),
            "closed 1007",
            _OFFSETS,
        ),
    ]
    return [
        *(Case(name, "v1", frame, out, why) for name, frame, out, why in rows),
        Case(
            "a message of the legacy dialect",
            "v1",
            json.dumps(good).encode(),
            "closed 1007",
            hangs=True,
        ),
    ]


CASES = [case.numbered(i) for i, case in enumerate([*_fields(), *_legacy(), *_v1()])]
