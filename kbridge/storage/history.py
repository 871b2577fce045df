"""The journal of one kernel on disk, as the event loop uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kbridge.flow.batch import FrameSource
from kbridge.flow.places import Place, Stretch

__all__ = ["History", "Recovered"]


class Recovered(NamedTuple):
    """The part of a journal that an earlier process left on disk.

    Attributes
    ----------
    next_seq : int
        The sequence number after the last frame.
    appended : int
        The bytes of the journal before that number.
    records : dict of str to object
        The last value of each key that `History.record` was given, in the order in which the keys
        were set first.
    """

    next_seq: int
    appended: int
    records: dict[str, object]


class History:
    """The journal of one kernel on disk.

    All methods are called on the event loop, none waits for the disk, and none raises an `OSError`.

    Attributes
    ----------
    end : int
        The sequence number after the last frame that was written.
    offset : int
        The bytes of the journal before `end`.
    active : bool
        False while the disk fails or has no space: the memory must keep what readers need.
    recovered : Recovered or None
        The state that an earlier process left; None for a new kernel.
    """

    end: int
    offset: int
    active: bool
    recovered: Recovered | None

    @property
    def oldest(self) -> Place | None:
        """The place of a reader that wants all frames on disk; None if there are none."""
        raise NotImplementedError

    def attach(self, source: FrameSource) -> None:
        """Write the frames of `source` from now on."""
        raise NotImplementedError

    def changed(self) -> None:
        """Note that the source has new frames; they are written within 5 ms."""
        raise NotImplementedError

    def record(self, key: str, value: object | None) -> None:
        """Set what `Recovered.records` has for a key after a crash; None removes the key.

        Parameters
        ----------
        key : str
        value : object or None
            Anything that JSON can express.
        """
        raise NotImplementedError

    def holds(self, seq: int) -> bool:
        """Return True if a frame is on disk."""
        raise NotImplementedError

    def next_full(self, seq: int) -> int | None:
        """Return the first number from `seq` on that is in a run without holes on disk, or None."""
        raise NotImplementedError

    async def read(self, place: Place, max_bytes: int, horizon: int) -> Stretch | None:
        """Return the next frames from `place` on, like `Journal.read`.

        Returns
        -------
        Stretch or None
            None if the next frame is not on disk, or not before `horizon`. A stretch without frames
            has a gap: frames before `end` are missing, and no frame on disk follows.
        """
        raise NotImplementedError

    async def find(self, key: int, matches: Callable[[bytes], bool]) -> Place | None:
        """Return the place after the newest frame with that key that `matches`, or None."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Write all that the source has, and wait until that is done or fails."""
        raise NotImplementedError

    async def remove(self) -> None:
        """Remove the files; the history writes nothing from now on."""
        raise NotImplementedError
