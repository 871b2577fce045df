"""What both dialects ask of a client's message before it may go on to a kernel.

The measure is Jupyter Server: a message that it hands to the kernel goes to the kernel, and a
message that it or the kernel ignores raises `IgnoredMessage`. Only a message that would be unsafe
or ambiguous closes the websocket: text that is not UTF-8, a header that names its type twice.

Laws of this module:

- a check either passes or raises one of the `FrameError` family, whatever the bytes are;
- a reason names the fault and fits a close frame (123 bytes of UTF-8, RFC 6455 section 5.5);
- nothing is changed: what passes goes on as the bytes that came;
- no more than `LARGEST_PARSED` bytes of JSON are parsed at once, since nothing interrupts the
  parser: a larger header is refused, a larger content is the kernel's to judge.

What Python's parser takes passes, `NaN` among it: kernels written in Python take it too, and a
bridge that refused what the kernel behind it accepts would break clients that work today.
"""

from __future__ import annotations

import json
from typing import Any

from kbridge.errors import IgnoredMessage, InvalidMessage, MalformedFrame
from kbridge.wire.message import Buffer, Channel

__all__ = [
    "EMPTY",
    "LARGEST_PARSED",
    "channel",
    "check_header",
    "check_size",
    "encodable",
    "json_or_empty",
    "parse",
    "utf8",
]

EMPTY = b"{}"

LARGEST_PARSED = 1 << 16
"""Bytes of JSON that are parsed at once: 3 ms of small numbers."""

_NAMES = ("msg_id", "msg_type")
_CHANNELS = {str(name): name for name in Channel}


def channel(name: str) -> Channel:
    """Look a channel up by its name.

    Raises
    ------
    IgnoredMessage
        If no kernel has a channel of that name.
    """
    found = _CHANNELS.get(name)
    if found is None:
        # ascii(): a reason is counted in bytes, and what a stranger sends is not echoed raw.
        raise IgnoredMessage(f"unknown channel {ascii(name[:24])[:60]}")
    return found


def utf8(raw: Buffer, what: str) -> str:
    """Decode a part that must be UTF-8.

    Raises
    ------
    MalformedFrame
        If it is not; the reason begins with `what`.
    """
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise MalformedFrame(f"{what} is not valid UTF-8") from None


def encodable(text: str, what: str) -> bytes:
    """Encode text as UTF-8, which text with a lone surrogate has no form in.

    Raises
    ------
    MalformedFrame
        If it has none; the reason begins with `what`.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MalformedFrame(f"{what} holds a lone surrogate") from None


def parse(text: str, what: str) -> Any:
    """Parse a part that must be JSON.

    Raises
    ------
    MalformedFrame
        If it is not, is nested deeper than the parser's stack, or holds a number with more digits
        than Python converts (`sys.set_int_max_str_digits`); the reason begins with `what`.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise MalformedFrame(f"{what} is nested too deeply") from None
    except ValueError:
        raise MalformedFrame(f"{what} is not valid JSON") from None


def json_or_empty(raw: bytes, what: str) -> bytes:
    """Check a part that must be JSON, and take ``null`` or nothing for an empty object.

    Clients write ``null``, or nothing at all, for the parent of a request that has none and for
    metadata or content they did not set; kernels take neither. Other values that are not objects
    are the kernel's to judge.

    Raises
    ------
    MalformedFrame
        If it is not UTF-8.
    IgnoredMessage
        If it is not JSON.
    """
    if raw in (EMPTY, b""):
        return EMPTY
    if len(raw) > LARGEST_PARSED:
        return raw
    return EMPTY if _parse_part(utf8(raw, what), what) is None else raw


def check_size(part: str | bytes, what: str) -> None:
    """Check that a part that is read for each message is not too large for that.

    Raises
    ------
    InvalidMessage
        If it has more than `LARGEST_PARSED` bytes or characters.
    """
    if len(part) > LARGEST_PARSED:
        raise InvalidMessage(f"{what} has more than {LARGEST_PARSED:,} bytes")


def check_header(text: str) -> None:
    """Check that a header names its message and its type, each once.

    The id may be of any type, as kernels send it back as they got it; the type must be a string. A
    key that comes twice is refused because parsers differ in which of the two they take: a type
    that is not allowed could pass a filter under the other one's name.

    Raises
    ------
    IgnoredMessage
        If it is not a JSON object, lacks one of the two, has a type that is not a string, or holds
        half a character, which the kernel's reply could not repeat in UTF-8.
    InvalidMessage
        If it repeats one of the two, or is too large.
    """
    check_size(text, "header")
    header = _parse_part(text, "header")
    if not isinstance(header, dict):
        raise IgnoredMessage("header is not a JSON object")
    msg_type = header.get("msg_type")
    if not isinstance(msg_type, str) or not msg_type:
        fault = "lacks" if msg_type is None else "has an empty or non-string"
        raise IgnoredMessage(f"header {fault} msg_type")
    if "msg_id" not in header:
        raise IgnoredMessage("header lacks msg_id")
    for name in _NAMES:
        value = header[name]
        if isinstance(value, str) and not value.isascii() and not _is_encodable(value):
            raise IgnoredMessage(f"{name} of the header holds a lone surrogate")
    if "\\" in text or text.count('"msg_id"') != 1 or text.count('"msg_type"') != 1:
        try:
            _UNIQUE.decode(text)
        except RecursionError:  # the hook needs a little more stack than the first reading
            raise IgnoredMessage("header is nested too deeply") from None


def _parse_part(text: str, what: str) -> Any:
    """Parse one part; a kernel ignores a message with a part that is not JSON."""
    try:
        return parse(text, what)
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


# Slower than the parser without a hook: for headers in which a key could hide.
_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique)
