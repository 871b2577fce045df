"""The headers of the websocket frames that a server sends (RFC 6455, section 5.2).

Frames built here are written by the batch, many messages in one write. A server does not mask, and
none of our messages is fragmented: its length is always known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PONG",
    "TEXT",
    "close",
    "each",
    "frame",
    "header",
    "payload",
    "ping",
    "pong",
    "start",
]

TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA

_FIN = 0x80
_CONTROL_LIMIT = 125  # section 5.5
_pack16 = struct.Struct("!BBH").pack
_pack64 = struct.Struct("!BBQ").pack
_unpack16 = struct.Struct("!H").unpack_from
_unpack64 = struct.Struct("!Q").unpack_from


def header(length: int, opcode: int) -> bytes:
    """Write the header of an unmasked, unfragmented frame.

    Parameters
    ----------
    length : int
        Bytes of the payload.
    opcode : int
        One of this module's constants.
    """
    if length < 126:
        return bytes((_FIN | opcode, length))
    if length < 0x10000:
        return _pack16(_FIN | opcode, 126, length)
    return _pack64(_FIN | opcode, 127, length)


def frame(data: bytes, opcode: int) -> bytes:
    """Write a whole frame around a payload."""
    return header(len(data), opcode) + data


def start(frame: bytes) -> int:
    """Where the payload begins in what `frame` wrote."""
    return {126: 4, 127: 10}.get(frame[1], 2)


def payload(frame: bytes) -> bytes:
    """Read the payload back out of what `frame` wrote."""
    return frame[start(frame) :]


def each(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Read the opcodes and the payloads out of a run of what `frame` wrote."""
    at, end = 0, len(data)
    while at < end:
        opcode, length = data[at] & 0x0F, data[at + 1]
        start = at + 2
        if length == 126:
            (length,) = _unpack16(data, start)
            start += 2
        elif length == 127:
            (length,) = _unpack64(data, start)
            start += 8
        at = start + length
        yield opcode, data[start:at]


def ping(data: bytes) -> bytes:
    """Write a ping; the peer answers with a pong that holds the same payload.

    Raises
    ------
    ValueError
        If the payload is longer than the 125 bytes that a control frame may hold.
    """
    if len(data) > _CONTROL_LIMIT:
        raise ValueError(f"a ping holds at most {_CONTROL_LIMIT} bytes, not {len(data)}")
    return frame(data, PING)


def pong(data: bytes) -> bytes:
    """Write the answer to a ping, with the ping's payload."""
    return frame(data, PONG)


def close(code: int | None = None, reason: str | None = None) -> bytes:
    """Write a close frame.

    Parameters
    ----------
    code : int, optional
        The status code (section 7.4). Without code and reason, the payload is empty.
    reason : str, optional
        The reason; cut off after 123 bytes of UTF-8. Without a code, the code is 1000.
    """
    if code is None and reason is None:
        return frame(b"", CLOSE)
    text = (reason or "").encode()[: _CONTROL_LIMIT - 2].decode(errors="ignore").encode()
    return frame(struct.pack("!H", 1000 if code is None else code) + text, CLOSE)
