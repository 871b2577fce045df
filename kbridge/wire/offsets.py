"""Tables of offsets, with which the binary frames of both dialects begin.

``count, offset * count``, all of one word size; the offsets count from the start of the frame.

Laws of this module: a table is checked against the length of its frame before it is read, so that
it costs no more than the bytes that came; a table that passes cuts the frame into parts that lie
one after the other, without gaps, in order. Bytes before the first part belong to none.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from kbridge.errors import InvalidMessage, MalformedFrame
from kbridge.wire.message import Buffer

__all__ = ["MOST", "contiguous", "nbytes", "read", "slices"]


MOST = 10_000
"""Offsets that a client's frame may have. Each buffer costs several objects here, and a message of
its own on the way to the kernel: a frame of 20 MB could have five million."""


def read(data: bytes, word: str, least: int, most: int | None = None) -> tuple[int, ...]:
    """Read and check the table of a frame.

    Parameters
    ----------
    data : bytes
        The frame.
    word : str
        One word, as `struct` writes it: ``<Q`` or ``!I``.
    least : int
        How many offsets there must be at least; one or more.
    most : int, optional
        How many there may be.

    Returns
    -------
    tuple of int
        The offsets: never falling, none inside the table, none past the frame's end.

    Raises
    ------
    MalformedFrame
        If the table is not of this kind.
    InvalidMessage
        If it has more than `most` offsets.
    """
    size = len(data)
    width = struct.calcsize(word)
    if size < width:
        raise MalformedFrame(f"a frame of {size} bytes is too short for a message")
    (count,) = struct.unpack_from(word, data)
    if count < least:
        raise MalformedFrame(f"{count} offsets, where a message has at least {least}")
    start = width * (1 + count)
    if start > size:
        raise MalformedFrame(f"{count} offsets do not fit a frame of {size} bytes")
    if most is not None and count > most:
        raise InvalidMessage(f"{count:,} parts, where a message has at most {most:,}")
    offsets: tuple[int, ...] = struct.unpack_from(f"{word[0]}{count}{word[1]}", data, width)
    if offsets[0] < start:
        raise MalformedFrame(f"the first offset is {offsets[0]}, but the table ends at {start}")
    for index, (low, high) in enumerate(pairwise(offsets), 1):
        if high < low:
            raise MalformedFrame(f"offset {index} falls from {low} to {high}")
    if offsets[-1] > size:
        raise MalformedFrame(f"the last offset is {offsets[-1]}, the frame ends at {size}")
    return offsets


def slices(data: bytes, offsets: tuple[int, ...]) -> tuple[Buffer, ...]:
    """Cut the buffers between offsets out of a frame, as views of it.

    Empty ones are not views: a frame may hold one for each of its words.
    """
    view = memoryview(data)
    return tuple(view[low:high] if low < high else b"" for low, high in pairwise(offsets))


def contiguous(buffer: Buffer) -> Buffer:
    """Copy a view whose bytes do not lie together; `bytes.join` refuses those alone."""
    if isinstance(buffer, memoryview) and not buffer.c_contiguous:
        return buffer.tobytes()
    return buffer


def nbytes(buffer: Buffer) -> int:
    """Bytes of a buffer; the length of a view counts its items, of whatever size."""
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
