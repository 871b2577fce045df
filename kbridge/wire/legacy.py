"""The dialect without a subprotocol: JSON in text frames, binary frames for messages with buffers.

A text frame is a JSON object of the parts. A binary frame is

::

    u32  count              number of offsets; all numbers are big-endian
    u32  offset * count     from the start of the frame: start of the JSON and of each buffer
    ...  JSON, buffers

(jupyter_server docs, "WebSocket kernel wire protocols"). The last buffer ends with the frame.

Invariants:

- parts are inserted into the text and cut out of it; their JSON is not changed;
- clients may omit everything that jupyter_server lets them omit, and a little more: the channel
  (default: shell), the parent, metadata, content, and buffers;
- numbers from the client are checked against the length of the frame before they are used.
"""

from __future__ import annotations

import codecs
import json
import re
import struct
from collections.abc import Generator, Iterator
from json.encoder import encode_basestring_ascii as quote

from kbridge.errors import (
    IgnoredMessage,
    InvalidMessage,
    KernelMessageError,
    MalformedFrame,
)
from kbridge.wire import fields
from kbridge.wire.message import Buffer, Channel, Message
from kbridge.wire.offsets import MAX_PARTS, contiguous, nbytes, read, slices
from kbridge.wire.outline import MAX_MEMBERS, outline

__all__ = ["decode", "decode_in_steps", "encode", "encode_binary", "encode_json"]

_WORD = 4
_BLOCK = 1 << 20  # bytes or characters to decode or encode at once
_LIMIT = 1 << 32
_KEYS = frozenset(("header", "parent_header", "metadata", "content", "channel", "buffers"))
_skip_space = re.compile(r"[ \t\n\r]*").match
# A key without escapes, up to its value. Keys with escapes are parsed with the JSON decoder.
_plain_key = re.compile(r'"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*').match
_read = json.JSONDecoder().raw_decode


def encode(msg: Message) -> str | bytes:
    """Encode a message: as str if it has no buffers, otherwise as bytes.

    Raises
    ------
    KernelMessageError
        If a part is not UTF-8, or a buffer starts beyond the 4 GiB that an offset can express.
    """
    return encode_binary(msg) if msg.buffers else encode_json(msg).decode()


def encode_json(msg: Message) -> bytes:
    """Encode a message without its buffers as the payload of a text frame.

    The keys and their order are those of jupyter_server.

    Raises
    ------
    KernelMessageError
        If a part is not UTF-8; a browser would close the websocket because of it.
    """
    return _splice(msg, b', "buffers": []')


def encode_binary(msg: Message) -> bytes:
    """Encode a message with its buffers, as the payload of a binary frame.

    Raises
    ------
    KernelMessageError
        If a part is not UTF-8, or a buffer starts beyond the 4 GiB that an offset can express.
    """
    parts: list[Buffer] = [_splice(msg, b""), *map(contiguous, msg.buffers)]
    at = _WORD * (1 + len(parts))
    words = [len(parts)]
    for part in parts:
        words.append(at)
        at += nbytes(part)
    if words[-1] >= _LIMIT:
        raise KernelMessageError("the legacy dialect cannot express buffers of more than 4 GiB")
    return b"".join((struct.pack(f"!{len(words)}I", *words), *parts))


def _splice(msg: Message, buffers: bytes) -> bytes:
    channel, header, parent, metadata, content, _ = msg
    text = b"".join(
        (
            b'{"header": ',
            header,
            b', "msg_id": ',
            quote(msg.msg_id).encode(),
            b', "msg_type": ',
            quote(msg.msg_type).encode(),
            b', "parent_header": ',
            parent or fields.EMPTY,
            b', "metadata": ',
            metadata or fields.EMPTY,
            b', "content": ',
            content or fields.EMPTY,
            buffers,
            b', "channel": "',
            channel.encode(),
            b'"}',
        )
    )
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            raise KernelMessageError("a part of a kernel's message is not valid UTF-8") from None
    return text


def decode(data: str | bytes) -> Message:
    """Decode a frame.

    Raises
    ------
    MalformedFrame
        If the offsets, the UTF-8 or the JSON are invalid.
    IgnoredMessage
        If the frame is valid, but a kernel would ignore the message; see `kbridge.wire.fields`.
    InvalidMessage
        If the text is not a message, has buffers, or the header is ambiguous.
    """
    steps = decode_in_steps(data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            msg: Message = end.value
            return msg


def decode_in_steps(data: str | bytes) -> Generator[None, None, Message]:
    """Decode a frame as `decode` does; a generator that yields between steps of a millisecond.

    If a frame has more than `fields.MAX_PARSED` characters of JSON, its parts of that size are not
    parsed; the kernel validates them.
    """
    if isinstance(data, str):
        text = data
        buffers: tuple[Buffer, ...] = ()
    else:
        offsets = (*read(data, "!I", 1, MAX_PARTS), len(data))
        text = yield from _utf8(memoryview(data)[offsets[0] : offsets[1]])
        buffers = slices(data, offsets[1:])
    if len(text) <= fields.MAX_PARSED:
        members = _members(text)
    else:
        members = yield from _large_members(text)
    if isinstance(data, str):
        listed = members.get("buffers", "null")  # an empty list, object or null counts as none
        if len(listed) > fields.MAX_PARSED or fields.parse(listed, "buffers"):
            raise InvalidMessage("buffers in a text frame, which cannot have any")
    channel = _channel(members)
    if "header" not in members:
        raise InvalidMessage("the message has no header")
    fields.check_header(members["header"])
    return Message(
        channel,
        fields.encodable(members["header"], "header"),
        (yield from _part(members, "parent_header")),
        (yield from _part(members, "metadata")),
        (yield from _content(members)),
        buffers,
    )


def _channel(members: dict[str, str]) -> Channel:
    text = members.get("channel", "null")
    fields.check_size(text, "channel")
    name = fields.parse(text, "channel")
    if not isinstance(name, str | None):
        raise IgnoredMessage("channel is not a string")
    return Channel.SHELL if name is None else fields.channel(name)


def _part(members: dict[str, str], name: str) -> Generator[None, None, bytes]:
    text = members.get(name, "null")
    if text == "null":
        return fields.EMPTY
    if name == "parent_header":
        fields.check_size(text, name)
    return (yield from _encode(text, name))


def _content(members: dict[str, str]) -> Generator[None, None, bytes]:
    """Cut out the content. A string is parsed as JSON again, as jupyter_client's Session does."""
    text = members.get("content", "null")
    if not text.startswith('"'):
        return (yield from _part(members, "content"))
    inner = yield from _encode(fields.parse(text, "content"), "content")
    return fields.json_or_empty(inner, "content")


def _encode(text: str, name: str) -> Generator[None, None, bytes]:
    if len(text) <= _BLOCK:
        return fields.encodable(text, name)
    blocks = []
    for at in range(0, len(text), _BLOCK):
        yield
        blocks.append(fields.encodable(text[at : at + _BLOCK], name))
    return b"".join(blocks)


def _utf8(raw: memoryview) -> Generator[None, None, str]:
    if len(raw) <= _BLOCK:
        return fields.utf8(raw, "JSON of the frame")
    decoder = codecs.getincrementaldecoder("utf-8")()
    texts = []
    try:
        for at in range(0, len(raw), _BLOCK):
            yield
            texts.append(decoder.decode(raw[at : at + _BLOCK], at + _BLOCK >= len(raw)))
    except UnicodeDecodeError:
        raise MalformedFrame("JSON of the frame is not valid UTF-8") from None
    return "".join(texts)


def _large_members(text: str) -> Generator[None, None, dict[str, str]]:
    """Cut out the members as `_members` does, but in steps; parse only small ones."""
    if not text.startswith("{", _space(text)):
        raise InvalidMessage("the message is not a JSON object")
    try:
        found = yield from outline(text, _KEYS)
    except RecursionError:
        raise MalformedFrame("the message is nested too deeply") from None
    except ValueError:
        raise MalformedFrame("the message is not valid JSON") from None
    members = {}
    for key, (start, end) in found.items():
        members[key] = part = text[start:end]
        if len(part) <= fields.MAX_PARSED:
            fields.parse(part, key)
    return members


def _members(text: str) -> dict[str, str]:
    """Cut the members of a message out of a JSON object, each as unparsed JSON.

    Raises
    ------
    MalformedFrame
        If the text is not JSON.
    InvalidMessage
        If the JSON is not an object, or has more than `MAX_MEMBERS` members.
    """
    at = _space(text)
    if not text.startswith("{", at):
        fields.parse(text, "the message")
        raise InvalidMessage("the message is not a JSON object")
    found: dict[str, str] = {}
    try:
        for count, (key, start, end) in enumerate(_walk(text, at)):
            if count >= MAX_MEMBERS:
                raise InvalidMessage(f"the message has more than {MAX_MEMBERS:,} members")
            if key in _KEYS:
                found[key] = text[start:end]
    except RecursionError:
        raise MalformedFrame("the message is nested too deeply") from None
    except ValueError:
        raise MalformedFrame("the message is not valid JSON") from None
    return found


def _walk(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Yield key, start and end of the value of each member of the object at `at`.

    Raises ValueError if the text has anything besides this object, or a member is not JSON.
    """
    at = _space(text, at + 1)
    more = not text.startswith("}", at)
    while more:
        if plain := _plain_key(text, at):
            key, start = plain[1], plain.end()
        else:
            key, colon = _read(text, at)
            if not isinstance(key, str) or not text.startswith(":", colon := _space(text, colon)):
                raise ValueError
            start = _space(text, colon + 1)
        _, end = _read(text, start)
        yield key, start, end
        at = _space(text, end)
        more = text.startswith(",", at)
        if more:
            at = _space(text, at + 1)
    if not text.startswith("}", at) or _space(text, at + 1) != len(text):
        raise ValueError


def _space(text: str, at: int = 0) -> int:
    """Return the end of the white space at `at`."""
    found = _skip_space(text, at)
    assert found is not None  # the pattern also matches an empty text
    return found.end()
