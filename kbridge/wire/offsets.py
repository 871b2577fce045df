"""The table of offsets at the start of the binary frames of both dialects.

``count, offset * count``, all of one word size. The offsets count from the start of the frame.

Invariants:

- a table is checked against the length of its frame before it is read, so the cost is proportional
  to the bytes that were received;
- a valid table divides the frame into consecutive parts without gaps. Bytes before the first part
  are ignored.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from kbridge.errors import InvalidMessage, MalformedFrame
from kbridge.wire.message import Buffer

__all__ = ["MAX_PARTS", "contiguous", "nbytes", "read", "slices"]


MAX_PARTS = 10_000
"""Maximum number of offsets in a client's frame.

Each buffer needs several Python objects and a separate ZeroMQ frame. Without this limit, a frame of
20 MB could have five million.
"""


def read(data: bytes, word: str, minimum: int, maximum: int | None = None) -> tuple[int, ...]:
    """Read and check the table of offsets of a frame.

    Parameters
    ----------
    data : bytes
        The frame.
    word : str
        The `struct` format of one word: ``<Q`` or ``!I``.
    minimum : int
        The minimum number of offsets; at least one.
    maximum : int, optional
        The maximum number of offsets.

    Returns
    -------
    tuple of int
        The offsets, in ascending order, none inside the table, none beyond the end of the frame.

    Raises
    ------
    MalformedFrame
        If the table is invalid.
    InvalidMessage
        If it has more than `maximum` offsets.
    """
    size = len(data)
    width = struct.calcsize(word)
    if size < width:
        raise MalformedFrame(f"a frame of {size} bytes is too short for a message")
    (count,) = struct.unpack_from(word, data)
    if count < minimum:
        raise MalformedFrame(f"{count} offsets, but a message has at least {minimum}")
    start = width * (1 + count)
    if start > size:
        raise MalformedFrame(f"{count} offsets do not fit a frame of {size} bytes")
    if maximum is not None and count > maximum:
        raise InvalidMessage(f"{count:,} parts, but a message has at most {maximum:,}")
    offsets: tuple[int, ...] = struct.unpack_from(f"{word[0]}{count}{word[1]}", data, width)
    if offsets[0] < start:
        raise MalformedFrame(f"the first offset is {offsets[0]}, but the table ends at {start}")
    for index, (low, high) in enumerate(pairwise(offsets), 1):
        if high < low:
            raise MalformedFrame(f"offset {index} decreases from {low} to {high}")
    if offsets[-1] > size:
        raise MalformedFrame(f"the last offset is {offsets[-1]}, the frame ends at {size}")
    return offsets


def slices(data: bytes, offsets: tuple[int, ...]) -> tuple[Buffer, ...]:
    """Return the buffers between the offsets of a frame, as views of it.

    Empty buffers are bytes instead of views, because a frame may have one for each of its words.
    """
    view = memoryview(data)
    return tuple(view[low:high] if low < high else b"" for low, high in pairwise(offsets))


def contiguous(buffer: Buffer) -> Buffer:
    """Copy a view that is not contiguous, which `bytes.join` does not accept."""
    if isinstance(buffer, memoryview) and not buffer.c_contiguous:
        return buffer.tobytes()
    return buffer


def nbytes(buffer: Buffer) -> int:
    """Return the size in bytes; `len` of a view counts items, which may be larger than a byte."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
