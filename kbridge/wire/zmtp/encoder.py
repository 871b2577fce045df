"""Encode messages for a ZMTP peer (RFC 37, section "Framing").

The head of a frame is its flags and its size: one byte, or eight bytes if the frame is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kbridge.wire.message import Buffer
from kbridge.wire.offsets import contiguous, nbytes

__all__ = ["LARGE", "encode", "encode_large"]

LARGE: Final = 64 << 10
"""Bytes from which on `encode_large` does not copy a part."""

_MORE: Final = 1
_LONG: Final = 2
# The heads of short frames, by size: of a part that others follow, and of the last part.
_HEADS: Final = tuple(bytes((_MORE, size)) for size in range(256))
_LAST_HEADS: Final = tuple(bytes((0, size)) for size in range(256))


def _frames(parts: Sequence[Buffer]) -> list[Buffer]:
    """Return the head and the body of each part in turn."""
    frames: list[Buffer] = []
    add = frames.append
    size = 0
    for part in parts:
        if type(part) is bytes:
            size = len(part)
        else:
            part = contiguous(part)  # noqa: PLW2901
            size = nbytes(part)
        add(_HEADS[size] if size < 256 else b"\x03" + size.to_bytes(8, "big"))
        add(part)
    if frames:
        frames[-2] = _LAST_HEADS[size] if size < 256 else b"\x02" + size.to_bytes(8, "big")
    return frames


def encode(parts: Sequence[Buffer]) -> bytes:
    """Return a message as one piece of bytes. A message without parts is empty."""
    return b"".join(_frames(parts))


def encode_large(parts: Sequence[Buffer]) -> list[Buffer]:
    """Return a message as several pieces, in which parts of `LARGE` bytes or more are not copied.

    Smaller parts and the heads between large parts are joined.
    """
    pieces: list[Buffer] = []
    small: list[Buffer] = []
    for frame in _frames(parts):
        if nbytes(frame) < LARGE:
            small.append(frame)
        else:
            pieces.append(b"".join(small))
            pieces.append(frame)
            small = []
    if small:
        pieces.append(b"".join(small))
    return pieces
