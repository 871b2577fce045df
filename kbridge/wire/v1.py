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
- JSON parts are checked, and go on as the bytes they are;
- buffers of a decoded message are views of the frame: they are not copied, and keep it alive.
"""

from __future__ import annotations

import struct

from kbridge.errors import MalformedFrame, WrongFrameType
from kbridge.wire import fields
from kbridge.wire.message import Buffer, Message
from kbridge.wire.offsets import contiguous, nbytes, read, slices

__all__ = ["SUBPROTOCOL", "decode", "encode"]

SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"

_PARTS = 5
_WORD = 8
_START = _WORD * (1 + _PARTS + 1)
_pack = struct.Struct("<7Q").pack


def encode(msg: Message) -> bytes:
    """Encode a message.

    This is the hot path of the product: each message of each kernel passes once.
    """
    channel, header, parent, metadata, content, buffers = msg
    name = channel.encode()
    if buffers:
        return _encode_with_buffers(msg)
    at1 = _START + len(name)
    at2 = at1 + len(header)
    at3 = at2 + len(parent)
    at4 = at3 + len(metadata)
    words = _pack(6, _START, at1, at2, at3, at4, at4 + len(content))
    return b"".join((words, name, header, parent, metadata, content))


def _encode_with_buffers(msg: Message) -> bytes:
    parts: list[Buffer] = [msg.channel.encode(), *msg[1:5], *map(contiguous, msg.buffers)]
    at = _WORD * (2 + len(parts))
    words = [1 + len(parts), at]
    for part in parts:
        at += nbytes(part)
        words.append(at)
    return b"".join((struct.pack(f"<{len(words)}Q", *words), *parts))


def decode(data: str | bytes) -> Message:
    """Decode a frame.

    Raises
    ------
    WrongFrameType
        If it is a text frame.
    MalformedFrame
        If its offsets, its UTF-8 or its JSON do not hold.
    InvalidMessage
        If they do, but no kernel could take the message.
    """
    if isinstance(data, str):
        raise WrongFrameType("a text frame, where this subprotocol has binary frames only")
    offsets = read(data, "<Q", _PARTS + 1)
    if offsets[-1] != len(data):
        raise MalformedFrame(f"the last offset is {offsets[-1]}, the frame ends at {len(data)}")
    name = fields.utf8(data[offsets[0] : offsets[1]], "channel")
    header = data[offsets[1] : offsets[2]]
    channel = fields.channel(name)
    fields.check_header(fields.utf8(header, "header"))
    return Message(
        channel,
        header,
        fields.object_or_empty(data[offsets[2] : offsets[3]], "parent_header"),
        fields.object_or_empty(data[offsets[3] : offsets[4]], "metadata"),
        fields.object_or_empty(data[offsets[4] : offsets[5]], "content"),
        slices(data, offsets[_PARTS:]),
    )
