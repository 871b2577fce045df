"""Recognizes the frames that an earlier bridge had written before it ended.

The next bridge reads the bytes of the kernel's connections again, from a position whose messages
may be in the file of the journal or not. The end of the file says which of them are: a frame that
is in the file as often as it comes again was written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["Seam"]


class Seam:
    """The frames at the end of a journal's file.

    Parameters
    ----------
    frames : iterable of bytes
        All frames from the first one on that may come again.
    """

    __slots__ = ("_written",)

    def __init__(self, frames: Iterable[bytes]) -> None:
        self._written = Counter(frames)

    def is_written(self, frame: bytes) -> bool:
        """Return True if a frame is in the file; ask once for each frame that comes again."""
        left = self._written.get(frame, 0)
        if left:
            self._written[frame] = left - 1
        return left > 0
