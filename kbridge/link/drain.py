"""Read what waits on a ZeroMQ socket, a batch at a time.

Asking a socket whether the message goes on (`RCVMORE`) costs more than reading a part. A Jupyter
message has a known shape, though: at most one identity, the delimiter, a signature, four JSON
objects, then buffers. So its parts are read on the expectation of that shape, and only the last
JSON part is asked whether more follows: a third of the time of `recv_multipart`.

What comes out of shape is read on with care, part by part, up to the end of a message, and handed
on as it is: the parser refuses it. A message that ends early cannot merge with the one behind it
unnoticed, because then a topic or a delimiter stands where a JSON object must; the parts from the
last delimiter on are taken up again as the message that they begin.
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
    """Read whole messages until none waits, or a bound is reached.

    Parameters
    ----------
    socket : zmq.Socket
        A SUB or DEALER.
    max_messages, max_bytes : int
        After how many to stop; the one that reaches `max_bytes` is the last.

    Returns
    -------
    batch : list of list of bytes or memoryview
        The parts of each message.
    more : bool
        Whether a bound ended it. If not, nothing waits, and the descriptor will tell of the next.
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
    """Append the buffers, uncopied, and return their bytes."""
    nbytes = 0
    more = True
    while more:
        frame = socket.recv(_NOBLOCK, copy=False)
        parts.append(frame.buffer)
        nbytes += len(frame)
        more = frame.more
    return nbytes


def _read_to_end(socket: zmq.Socket[bytes], parts: RawMessage) -> None:
    """Append the rest of the message whose last part was just read."""
    while socket.getsockopt(zmq.RCVMORE):
        parts.append(socket.recv(_NOBLOCK))


def _resync(socket: zmq.Socket[bytes], parts: RawMessage, shape: int, *, more: bool) -> RawMessage:
    """Tell apart what was read over the end of a message that was too short.

    The delimiter of the next message, if one was met, says where that one begins; the parts before
    it are of no use to anybody.
    """
    if more:
        _read_to_end(socket, parts)
    for i in range(len(parts) - 1, shape - 1, -1):
        if parts[i] == DELIMITER:
            return parts[i:]
    return parts
