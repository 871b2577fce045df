"""Finds the places between websocket frames in a stream of bytes (RFC 6455, section 5.2).

A program that copies the bytes of a websocket does not read the frames. It must know where one ends
before it may add a frame itself: a close frame.
"""

from __future__ import annotations

import struct
from typing import Final

from kbridge.wire.frames import CLOSE

__all__ = ["FrameEdges"]

_MASK: Final = 0x80
_MASK_BYTES: Final = 4
_unpack16 = struct.Struct("!H").unpack_from
_unpack64 = struct.Struct("!Q").unpack_from


class FrameEdges:
    """The position in a stream of frames, masked or not.

    Attributes
    ----------
    closing : bool
        True once a close frame has begun: no frame may follow it.
    """

    __slots__ = ("_left", "_start", "closing")

    def __init__(self) -> None:
        self._start = b""  # of a header that is not complete
        self._left = 0  # bytes of the current frame's payload, and of its mask
        self.closing = False

    @property
    def at_edge(self) -> bool:
        """True between two frames."""
        return not self._left and not self._start

    def skip(self, data: bytes) -> None:
        """Go on behind `data`."""
        left = self._left
        if left > len(data):  # the middle of a large frame
            self._left = left - len(data)
            return
        at = left
        if self._start:
            data = self._start + data
            self._start, at = b"", 0
        while at < len(data):
            at = self._next(data, at)
        self._left = at - len(data)

    def skip_frame(self, data: bytes) -> int:
        """Go on to the end of the current frame, at most behind `data`.

        Returns
        -------
        int
            The number of bytes that belong to the frame. `at_edge` is True if it is complete.
        """
        if self.at_edge:
            return 0
        kept, self._start = self._start, b""
        data = kept + data
        end = self._next(data, 0) if kept else self._left
        self._left = max(end - len(data), 0)
        return min(end, len(data)) - len(kept)

    def _next(self, data: bytes, at: int) -> int:
        """Return the end of the frame that begins at `at`; store a header that is not complete."""
        size = len(data)
        if size - at < 2:
            self._start = data[at:]
            return size
        length = data[at + 1]
        end = at + 2 + (_MASK_BYTES if length & _MASK else 0)
        length &= _MASK - 1
        if length == 126:
            if size - at < 4:
                self._start = data[at:]
                return size
            length = _unpack16(data, at + 2)[0] + 2
        elif length == 127:
            if size - at < 10:
                self._start = data[at:]
                return size
            length = _unpack64(data, at + 2)[0] + 8
        if data[at] & 0x0F == CLOSE:
            self.closing = True
        return end + length
