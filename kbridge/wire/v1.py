"""The dialect ``v1.kernel.websocket.jupyter.org``: one binary frame per message.

::

    u64  count              number of offsets; all numbers are little-endian
    u64  offset * count     from the start of the frame; the last one is the end of the frame
    ...  channel, header, parent_header, metadata, content, buffers

(jupyter_server docs, "WebSocket kernel wire protocols"). All encoders, including
@jupyterlab/services and jupyter_server, also write the end as an offset, so a message without
buffers has six offsets.

Invariants:

- numbers from the client are checked against the length of the frame before they are used;
- JSON parts are checked but not changed; large parts are not parsed;
- buffers of a decoded message are views of the frame: they are not copied and keep it alive.
"""

from __future__ import annotations

import struct

from kbridge.errors import WrongFrameType
from kbridge.wire import fields, frames
from kbridge.wire.message import Buffer, Channel, Message
from kbridge.wire.offsets import MAX_PARTS, contiguous, nbytes, read, slices

__all__ = [
    "CHANNELS",
    "NAMES",
    "SUBPROTOCOL",
    "decode",
    "encode",
    "encode_frame",
    "encode_texts",
    "envelope",
    "has_buffers",
    "header_of",
    "split",
]

SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"

_PARTS = 5
_WORD = 8
_START = _WORD * (1 + _PARTS + 1)
_pack = struct.Struct("<7Q").pack
# The header of a frame of 126 to 65,535 bytes (see `frames.header`), and the offsets.
_pack_usual = struct.Struct("<HH7Q").pack
_USUAL = 0x7E82
_table_at = struct.Struct("<7Q").unpack_from
_count_at = struct.Struct("<Q").unpack_from
_header_at = struct.Struct("<2Q").unpack_from
_envelope_at = struct.Struct("<4Q").unpack_from
_new = tuple.__new__  # the constructor of a NamedTuple takes twice the time
NAMES = {channel: channel.encode() for channel in Channel}
CHANNELS = {name: channel for channel, name in NAMES.items()}


def encode(msg: Message) -> bytes:
    """Return the payload of the websocket frame of a message."""
    return frames.payload(encode_frame(msg))


def encode_frame(msg: Message) -> bytes:
    """Return the complete websocket frame of a message, as a server sends it.

    This is the hot path: each message of each kernel is encoded once, and copied once.
    """
    channel, header, parent, metadata, content, buffers = msg
    if buffers:
        size, pieces = _pieces_with_buffers(msg)
        return b"".join((frames.header(size, frames.BINARY), *pieces))
    name = NAMES[channel]
    at1 = _START + len(name)
    at2 = at1 + len(header)
    at3 = at2 + len(parent)
    at4 = at3 + len(metadata)
    end = at4 + len(content)
    if 126 <= end < 0x10000:
        size = end >> 8 | (end & 0xFF) << 8  # big-endian, unlike the offsets
        head = _pack_usual(_USUAL, size, 6, _START, at1, at2, at3, at4, end)
        return b"".join((head, name, header, parent, metadata, content))
    offsets = _pack(6, _START, at1, at2, at3, at4, end)
    head = frames.header(end, frames.BINARY)
    return b"".join((head, offsets, name, header, parent, metadata, content))


def encode_texts(messages: list[Message]) -> list[bytes]:
    """Return `encode_frame` of each message; faster for short messages on iopub."""
    pack, name = _pack_usual, NAMES[Channel.IOPUB]
    at1 = _START + len(name)
    encoded: list[bytes] = []
    for msg in messages:
        channel, header, parent, metadata, content, buffers = msg
        at2 = at1 + len(header)
        at3 = at2 + len(parent)
        at4 = at3 + len(metadata)
        end = at4 + len(content)
        if buffers or not 126 <= end < 0x10000 or channel is not Channel.IOPUB:
            encoded.append(encode_frame(msg))
            continue
        size = end >> 8 | (end & 0xFF) << 8
        head = pack(_USUAL, size, 6, _START, at1, at2, at3, at4, end)
        encoded.append(b"".join((head, name, header, parent, metadata, content)))
    return encoded


def _pieces_with_buffers(msg: Message) -> tuple[int, tuple[Buffer, ...]]:
    parts: list[Buffer] = [NAMES[msg.channel], *msg[1:5], *map(contiguous, msg.buffers)]
    at = _WORD * (2 + len(parts))
    words = [1 + len(parts), at]
    for part in parts:
        at += nbytes(part)
        words.append(at)
    return at, (struct.pack(f"<{len(words)}Q", *words), *parts)


def decode(data: str | bytes) -> Message:
    """Decode a frame.

    Raises
    ------
    WrongFrameType
        If it is a text frame.
    MalformedFrame
        If the offsets or the UTF-8 are invalid.
    IgnoredMessage
        If the frame is valid, but a kernel would ignore the message; see `kbridge.wire.fields`.
    InvalidMessage
        If the header is ambiguous.
    """
    if isinstance(data, str):
        raise WrongFrameType("a text frame, but this subprotocol has only binary frames")
    return fields.checked(split(data, MAX_PARTS))


def header_of(frame: bytes) -> bytes:
    """Return the header of the message in a frame that `encode_frame` wrote."""
    start = frames.start(frame)
    begin, end = _header_at(frame, start + 2 * _WORD)
    return frame[start + begin : start + end]


def has_buffers(frame: bytes) -> bool:
    """Return True if the message in a frame that `encode_frame` wrote has buffers."""
    count: int = _count_at(frame, frames.start(frame))[0]
    return count > _PARTS + 1


def envelope(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """Return channel, header and parent header of the message in a frame of `encode_frame`."""
    start = frames.start(frame)
    begin, at1, at2, at3 = _envelope_at(frame, start + _WORD)
    return (
        frame[start + begin : start + at1],
        frame[start + at1 : start + at2],
        frame[start + at2 : start + at3],
    )


def split(data: bytes, maximum: int | None = None) -> Message:
    """Split a payload by its offsets, without parsing the JSON parts.

    Bytes after the last offset are ignored, as in jupyter_server.

    Parameters
    ----------
    data : bytes
        The payload.
    maximum : int, optional
        The maximum number of offsets.

    Raises
    ------
    MalformedFrame
        If the offsets or the UTF-8 of the channel are invalid.
    IgnoredMessage
        If the channel does not exist.
    InvalidMessage
        If there are too many offsets.
    """
    if len(data) >= _START:
        count, at, at1, at2, at3, at4, end = _table_at(data)
        if count == _PARTS + 1 and _START <= at <= at1 <= at2 <= at3 <= at4 <= end <= len(data):
            name = data[at:at1]  # the usual frame: without buffers
            channel = CHANNELS.get(name) or fields.channel(fields.utf8(name, "channel"))
            parts = (channel, data[at1:at2], data[at2:at3], data[at3:at4], data[at4:end], ())
            return _new(Message, parts)
    offsets = read(data, "<Q", _PARTS + 1, maximum)
    name = data[offsets[0] : offsets[1]]
    return Message(
        CHANNELS.get(name) or fields.channel(fields.utf8(name, "channel")),
        data[offsets[1] : offsets[2]],
        data[offsets[2] : offsets[3]],
        data[offsets[3] : offsets[4]],
        data[offsets[4] : offsets[5]],
        slices(data, offsets[_PARTS:]) if len(offsets) > _PARTS + 1 else (),
    )
