"""Checks of a client's message that both dialects share.

The checks are as strict as Jupyter Server: a message that it passes to the kernel passes here, and
a message that it or the kernel ignores raises `IgnoredMessage`. Only an unsafe or ambiguous message
closes the websocket: text that is not UTF-8, or a header that names its type twice.

Invariants:

- a check either passes or raises a subclass of `FrameError`, for any bytes;
- a reason names the error and fits into a close frame (123 bytes of UTF-8, RFC 6455 section 5.5);
- the bytes of a valid message are not changed;
- at most `MAX_PARSED` bytes of JSON are parsed at once, because the parser cannot be interrupted. A
  larger header is refused; a larger content is validated by the kernel.

JSON is valid if Python's parser accepts it, which includes `NaN`. Kernels written in Python accept
it too, so refusing it would break clients that work today.
"""

from __future__ import annotations

import json
from typing import Any

from kbridge.errors import IgnoredMessage, InvalidMessage, MalformedFrame
from kbridge.wire.headers import is_usual
from kbridge.wire.message import Buffer, Channel, Message

__all__ = [
    "EMPTY",
    "MAX_PARSED",
    "channel",
    "check_header",
    "check_size",
    "checked",
    "encodable",
    "json_or_empty",
    "parse",
    "utf8",
]

EMPTY = b"{}"

MAX_PARSED = 1 << 16
"""Maximum number of bytes of JSON to parse at once; 64 KiB of small numbers take 3 ms."""

_DECODER = json.JSONDecoder()
_NAMES = ("msg_id", "msg_type")
_CHANNELS = {str(name): name for name in Channel}
_new = tuple.__new__  # the constructor of a NamedTuple takes twice the time


def channel(name: str) -> Channel:
    """Return the channel with a name.

    Raises
    ------
    IgnoredMessage
        If no kernel has a channel of that name.
    """
    found = _CHANNELS.get(name)
    if found is None:
        # ascii(): the length of a reason is limited in bytes, and the log must not contain raw
        # bytes from outside.
        raise IgnoredMessage(f"unknown channel {ascii(name[:24])[:60]}")
    return found


def utf8(raw: Buffer, name: str) -> str:
    """Decode a part that must be UTF-8.

    Raises
    ------
    MalformedFrame
        If it is not; the reason begins with `name`.
    """
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise MalformedFrame(f"{name} is not valid UTF-8") from None


def encodable(text: str, name: str) -> bytes:
    """Encode text as UTF-8.

    Raises
    ------
    MalformedFrame
        If the text has a lone surrogate; the reason begins with `name`.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MalformedFrame(f"{name} contains a lone surrogate") from None


def parse(text: str, name: str) -> Any:
    """Parse a part that must be JSON.

    Raises
    ------
    MalformedFrame
        If it is not JSON, is nested deeper than the parser's stack, or has a number with more
        digits than Python converts (`sys.set_int_max_str_digits`); the reason begins with `name`.
    """
    try:
        if text[:1] == "{":
            value, end = _DECODER.raw_decode(text)
            if end == len(text):  # nearly always; saves half of the time of `json.loads`
                return value
        return json.loads(text)
    except RecursionError:
        raise MalformedFrame(f"{name} is nested too deeply") from None
    except ValueError:
        raise MalformedFrame(f"{name} is not valid JSON") from None


def json_or_empty(raw: bytes, name: str) -> bytes:
    """Check a part that must be JSON; replace ``null`` or an empty part by an empty object.

    Clients send ``null``, or nothing, for a missing parent and for metadata or content that they
    did not set; kernels accept neither. Other values that are not objects are validated by the
    kernel.

    Raises
    ------
    MalformedFrame
        If it is not UTF-8.
    IgnoredMessage
        If it is not JSON.
    """
    if raw == EMPTY:
        return raw
    if not raw:
        return EMPTY
    if len(raw) > MAX_PARSED:
        return raw
    return EMPTY if _parse_part(utf8(raw, name), name) is None else raw


def checked(msg: Message) -> Message:
    """Check the JSON parts of a message; return it with empty objects for missing parts.

    Raises
    ------
    FrameError
        If a part is not valid; see `check_size`, `check_header` and `json_or_empty`.
    """
    channel, header, parent, metadata, content, buffers = msg
    check_size(header, "header")
    if not is_usual(header):
        _check_members(utf8(header, "header"))
    check_size(parent, "parent_header")
    parent = json_or_empty(parent, "parent_header")
    metadata = json_or_empty(metadata, "metadata")
    content = json_or_empty(content, "content")
    return _new(Message, (channel, header, parent, metadata, content, buffers))


def check_size(part: str | bytes, name: str) -> None:
    """Check the size of a part that is parsed for each message.

    Raises
    ------
    InvalidMessage
        If the part has more than `MAX_PARSED` bytes or characters.
    """
    if len(part) > MAX_PARSED:
        raise InvalidMessage(f"{name} has more than {MAX_PARSED:,} bytes")


def check_header(text: str) -> None:
    """Check that a header has exactly one `msg_id` and one `msg_type`.

    The id may have any type, because kernels send it back unchanged; the type must be a string. A
    duplicate key is refused because parsers differ in which of the two values they use: a message
    type that is not allowed could pass a filter under the other value.

    Raises
    ------
    IgnoredMessage
        If the header is not a JSON object, lacks one of the two, has a type that is not a string,
        or has a lone surrogate, which the kernel could not repeat in the UTF-8 of its reply.
    InvalidMessage
        If the header has one of the two twice, or is too large.
    """
    check_size(text, "header")
    _check_members(text)


def _check_members(text: str) -> None:
    header = _parse_part(text, "header")
    if not isinstance(header, dict):
        raise IgnoredMessage("header is not a JSON object")
    msg_type = header.get("msg_type")
    if not isinstance(msg_type, str) or not msg_type:
        fault = "lacks" if msg_type is None else "has an empty or non-string"
        raise IgnoredMessage(f"header {fault} msg_type")
    if "msg_id" not in header:
        raise IgnoredMessage("header lacks msg_id")
    escapes = "\\" in text
    if escapes or not text.isascii():
        for name in _NAMES:
            value = header[name]
            if isinstance(value, str) and not value.isascii() and not _is_encodable(value):
                raise IgnoredMessage(f"{name} of the header contains a lone surrogate")
    if escapes or text.count('"msg_id"') != 1 or text.count('"msg_type"') != 1:
        try:
            _UNIQUE.decode(text)
        except RecursionError:  # the hook needs a little more stack than the first parse
            raise IgnoredMessage("header is nested too deeply") from None


def _parse_part(text: str, name: str) -> Any:
    """Parse one part. Kernels ignore a message with a part that is not JSON."""
    if text[:1] == "{":
        try:
            value, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            pass  # `parse` finds the reason
        else:
            if end == len(text):  # as in `parse`, without its call
                return value
    try:
        return parse(text, name)
    except MalformedFrame as error:
        raise IgnoredMessage(error.reason) from None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        for name in _NAMES:
            if keys.count(name) > 1:
                raise InvalidMessage(f"header has {name} twice")
    return found


# Slower than the parser without a hook; used only for headers that may have a duplicate key.
_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique)
