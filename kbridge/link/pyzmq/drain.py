"""Read messages from a ZeroMQ socket in batches.

Asking a socket whether a message has more parts (`RCVMORE`) costs more than reading a part. But a
Jupyter message has a known shape: at most one identity, the delimiter, a signature, four JSON
objects, then buffers. So the parts are read in the expectation of that shape, and only the last
JSON part is asked whether more follows. This takes a third of the time of `recv_multipart`.

A message of another shape is read part by part up to its end, and handed on unchanged; the parser
rejects it. If a message is too short, the first parts of the next message are read as if they
belonged to it. This is noticed, because a topic or a delimiter then stands in the place of a JSON
object. The parts from the last delimiter on are then treated as the beginning of the next message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import zmq

from kbridge.link.interfaces import RawMessage
from kbridge.wire.zmq import DELIMITER

__all__ = ["drain"]

_NOBLOCK: Final = int(zmq.NOBLOCK)
_Recv: TypeAlias = Callable[..., bytes]


def drain(
    socket: zmq.Socket[bytes], max_messages: int, max_bytes: int
) -> tuple[list[RawMessage], bool]:
    """Read whole messages until the socket is empty, or a limit is reached.

    Parameters
    ----------
    socket : zmq.Socket
        A SUB or DEALER.
    max_messages, max_bytes : int
        The limits; the message that exceeds `max_bytes` is the last one.

    Returns
    -------
    batch : list of list of bytes or memoryview
        The parts of each message.
    more : bool
        True if a limit was reached. If False, the socket is empty, and its descriptor will announce
        the next message.
    """
    batch: list[RawMessage] = []
    add = batch.append
    recv: _Recv = socket.recv
    nbytes = 0
    parts: RawMessage = []
    try:
        while len(batch) < max_messages and nbytes < max_bytes:
            first = recv(_NOBLOCK)
            parts = [first]
            if first == DELIMITER:
                shape = 1
            else:
                shape = 2
                parts.append(recv(_NOBLOCK))
                if parts[1] != DELIMITER:
                    _read_to_end(socket, parts)
                    add(parts)
                    parts = []
                    continue
            parts.append(recv(_NOBLOCK))  # signature
            parts.append(header := recv(_NOBLOCK))
            parts.append(parent := recv(_NOBLOCK))
            parts.append(metadata := recv(_NOBLOCK))
            last = socket.recv(_NOBLOCK, copy=False)
            content = last.bytes
            parts.append(content)
            if not (
                header[:1] == b"{"
                and parent[:1] == b"{"
                and metadata[:1] == b"{"
                and content[:1] == b"{"
            ):
                parts = _resync(socket, parts, shape, more=last.more)
            elif last.more:
                nbytes += _read_buffers(socket, parts)
            nbytes += len(content)
            add(parts)
            parts = []
    except zmq.Again:
        if parts:
            add(parts)
        return batch, False
    return batch, True


def _read_buffers(socket: zmq.Socket[bytes], parts: RawMessage) -> int:
    """Append the buffers without copying them, and return their size in bytes."""
    nbytes = 0
    more = True
    while more:
        frame = socket.recv(_NOBLOCK, copy=False)
        parts.append(frame.buffer)
        nbytes += len(frame)
        more = frame.more
    return nbytes


def _read_to_end(socket: zmq.Socket[bytes], parts: RawMessage) -> None:
    """Append the remaining parts of the current message."""
    while socket.getsockopt(zmq.RCVMORE):
        parts.append(socket.recv(_NOBLOCK))


def _resync(socket: zmq.Socket[bytes], parts: RawMessage, shape: int, *, more: bool) -> RawMessage:
    """Separate a message that was too short from the next one.

    If the parts contain the delimiter of the next message, that message begins there, and the parts
    before it are dropped.
    """
    if more:
        _read_to_end(socket, parts)
    for i in range(len(parts) - 1, shape - 1, -1):
        if parts[i] == DELIMITER:
            return parts[i:]
    return parts
