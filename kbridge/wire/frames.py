"""Build the websocket frames that a server sends (RFC 6455, section 5.2).

Many frames are written in one batch. A server does not mask frames, and kbridge does not fragment
messages, because their length is always known.
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
    """Return the header of an unmasked, unfragmented frame.

    Parameters
    ----------
    length : int
        Size of the payload in bytes.
    opcode : int
        One of this module's constants.
    """
    if length < 126:
        return bytes((_FIN | opcode, length))
    if length < 0x10000:
        return _pack16(_FIN | opcode, 126, length)
    return _pack64(_FIN | opcode, 127, length)


def frame(data: bytes, opcode: int) -> bytes:
    """Return the complete frame of a payload."""
    return header(len(data), opcode) + data


def start(frame: bytes) -> int:
    """Return the index of the payload in a frame that `frame` built."""
    return {126: 4, 127: 10}.get(frame[1], 2)


def payload(frame: bytes) -> bytes:
    """Return the payload of a frame that `frame` built."""
    return frame[start(frame) :]


def each(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and payload of each of several frames that `frame` built."""
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
    """Return a ping frame; the peer answers with a pong that has the same payload.

    Raises
    ------
    ValueError
        If the payload is longer than the 125 bytes that a control frame may have.
    """
    if len(data) > _CONTROL_LIMIT:
        raise ValueError(f"a ping has at most {_CONTROL_LIMIT} bytes, not {len(data)}")
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
