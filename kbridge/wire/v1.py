"""The dialect ``v1.kernel.websocket.jupyter.org``: one binary frame a message.

::

    u64  count              how many offsets follow, little-endian like them
    u64  offset * count     from the start of the frame; the last one is the end of the frame
    ...  channel, header, parent_header, metadata, content, buffers

(jupyter_server docs, "WebSocket kernel wire protocols"). Every encoder in use, @jupyterlab/services
and jupyter_server among them, writes the end as an offset too, so a message without buffers has
six.

Laws of this module:

- the client's numbers are believed only after they are checked against the bytes that came;
- JSON parts are checked, and go on as the bytes they are; large ones are not parsed;
- buffers of a decoded message are views of the frame: they are not copied, and keep it alive.
"""

from __future__ import annotations

import struct

from kbridge.errors import WrongFrameType
from kbridge.wire import fields, frames
from kbridge.wire.message import Buffer, Channel, Message
from kbridge.wire.offsets import MOST, contiguous, nbytes, read, slices

__all__ = ["SUBPROTOCOL", "decode", "encode", "encode_frame", "header_of", "split"]

SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"

_PARTS = 5
_WORD = 8
_START = _WORD * (1 + _PARTS + 1)
_pack = struct.Struct("<7Q").pack
_header_at = struct.Struct("<2Q").unpack_from
_NAMES = {channel: channel.encode() for channel in Channel}


def encode(msg: Message) -> bytes:
    """Encode a message: the payload of a websocket frame."""
    return frames.payload(encode_frame(msg))


def encode_frame(msg: Message) -> bytes:
    """Encode a message as a whole websocket frame, as a server sends it.

    This is the hot path of the product: each message of each kernel passes once, and is copied
    once.
    """
    channel, header, parent, metadata, content, buffers = msg
    if buffers:
        size, pieces = _pieces_with_buffers(msg)
        return b"".join((frames.header(size, frames.BINARY), *pieces))
    name = _NAMES[channel]
    at1 = _START + len(name)
    at2 = at1 + len(header)
    at3 = at2 + len(parent)
    at4 = at3 + len(metadata)
    end = at4 + len(content)
    offsets = _pack(6, _START, at1, at2, at3, at4, end)
    head = frames.header(end, frames.BINARY)
    return b"".join((head, offsets, name, header, parent, metadata, content))


def _pieces_with_buffers(msg: Message) -> tuple[int, tuple[Buffer, ...]]:
    parts: list[Buffer] = [_NAMES[msg.channel], *msg[1:5], *map(contiguous, msg.buffers)]
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
        If its offsets or its UTF-8 do not hold.
    IgnoredMessage
        If they do, but the kernel would ignore the message; `kbridge.wire.fields` says when.
    InvalidMessage
        If the header is ambiguous.
    """
    if isinstance(data, str):
        raise WrongFrameType("a text frame, where this subprotocol has binary frames only")
    msg = split(data, MOST)
    fields.check_size(msg.header, "header")
    fields.check_header(fields.utf8(msg.header, "header"))
    fields.check_size(msg.parent_header, "parent_header")
    return msg._replace(
        parent_header=fields.json_or_empty(msg.parent_header, "parent_header"),
        metadata=fields.json_or_empty(msg.metadata, "metadata"),
        content=fields.json_or_empty(msg.content, "content"),
    )


def header_of(frame: bytes) -> bytes:
    """Read the message's header out of what `encode_frame` wrote, and nothing else."""
    start = frames.start(frame)
    begin, end = _header_at(frame, start + 2 * _WORD)
    return frame[start + begin : start + end]


def split(data: bytes, most: int | None = None) -> Message:
    """Take a payload apart by its offsets, and leave the JSON parts unread.

    Bytes behind the last offset belong to no part, and are passed over as in jupyter_server.

    Parameters
    ----------
    data : bytes
        The payload.
    most : int, optional
        Offsets that it may have.

    Raises
    ------
    MalformedFrame
        If the offsets or the channel's UTF-8 do not hold.
    IgnoredMessage
        If there is no such channel.
    InvalidMessage
        If there are too many offsets.
    """
    offsets = read(data, "<Q", _PARTS + 1, most)
    return Message(
        fields.channel(fields.utf8(data[offsets[0] : offsets[1]], "channel")),
        data[offsets[1] : offsets[2]],
        data[offsets[2] : offsets[3]],
        data[offsets[3] : offsets[4]],
        data[offsets[4] : offsets[5]],
        slices(data, offsets[_PARTS:]),
    )
