"""The values that readers of a journal exchange with it: places, stretches of frames, and gaps.

A journal is a list of runs. A *full* run has consecutive sequence numbers. A *sparse* run has the
frames with state that remain of dropped output. A reader in front of a sparse run reads that run
first; a reader in front of a full run, which has not read all frames before it, is told of the gap.
The oldest runs may be on disk only; the laws are the same there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

__all__ = ["ON_DISK", "Gap", "Place", "Stored", "Stretch", "stop_of"]


class Gap(NamedTuple):
    """The frames that a cursor has missed.

    `messages` and `nbytes` count frames and their bytes; 0 if the number is unknown. `last_lost` is
    the last dropped frame, whose parent header names the cell.
    """

    messages: int
    nbytes: int
    last_lost: bytes


class Place(NamedTuple):
    """The position of a cursor.

    `seq` is the sequence number that it reads next. `frames` and `nbytes` count the frames before
    it that it has read, and their bytes; -1 if the number is unknown. The cursor has missed nothing
    while `frames == seq`.
    """

    seq: int
    frames: int
    nbytes: int


class Stretch(NamedTuple):
    """Consecutive frames, as read by `Journal.read`.

    Attributes
    ----------
    frames : list of bytes
        The frames, for all audiences.
    private : dict of int to int
        Index into `frames` -> the only client of the frame. Usually empty.
    nbytes : int
        Size of `frames` in bytes.
    end : Place
        The position after the last frame.
    gap : Gap or None
        The frames that are missing before the first frame.
    seqs : sequence of int or None
        The sequence numbers of frames of a sparse run; None if they are consecutive and end before
        `end.seq`.
    """

    frames: list[bytes]
    private: dict[int, int]
    nbytes: int
    end: Place
    gap: Gap | None = None
    seqs: Sequence[int] | None = None

    @property
    def first_seq(self) -> int:
        """The sequence number of the first frame; that of the end if there are no frames."""
        return self.end.seq - len(self.frames) if self.seqs is None else self.seqs[0]

    def frames_for(self, client: int) -> list[bytes]:
        """Return the frames that `client` may read."""
        if not self.private:
            return self.frames
        get = self.private.get
        return [f for i, f in enumerate(self.frames) if get(i, client) == client]

    def before(self, seq: int) -> Stretch | None:
        """Return the frames of a sparse run before a sequence number; None if there are none."""
        seqs = self.seqs
        assert seqs is not None, "only sparse runs are cut"
        count = bisect_left(seqs, seq)
        if count == len(seqs):
            return self
        if not count:
            return None
        rest = self.frames[count:]
        nbytes = self.nbytes - sum(map(len, rest))
        end = Place(
            seqs[count - 1] + 1,
            -1 if self.end.frames < 0 else self.end.frames - len(rest),
            -1 if self.end.nbytes < 0 else self.end.nbytes - self.nbytes + nbytes,
        )
        private = {i: client for i, client in self.private.items() if i < count}
        return Stretch(self.frames[:count], private, nbytes, end, self.gap, seqs[:count])


ON_DISK: Final = Stretch([], {}, 0, Place(-1, -1, -1))
"""The result of `Journal.read` if the next frames are only on disk."""


def stop_of(offsets: Sequence[int], start: int, stop: int, after: int, max_bytes: int) -> int:
    """Return the index after the last frame of a stretch.

    The stretch ends with the frame that reaches `max_bytes`, or before index `stop`. A frame of
    more than `max_bytes` is alone in it, because joining it with other frames would copy it.

    Parameters
    ----------
    offsets : sequence of int
        The bytes before each frame.
    start : int
        The index of the first frame.
    stop : int
        Above `start`.
    after : int
        The bytes before the frame at `stop`, which may be missing in `offsets`.
    max_bytes : int
    """
    limit = offsets[start] + max_bytes
    if after <= limit:
        return stop
    found = bisect_left(offsets, limit, start + 1, stop)
    last = found - 1
    if last > start and (after if found == stop else offsets[found]) - offsets[last] > max_bytes:
        return last
    return found


class Stored(Protocol):
    """The frames of a journal that are on disk, as the journal sees them; nothing here waits."""

    @property
    def oldest(self) -> Place | None:
        """The place before the oldest frame; None if there are no frames."""
        ...

    @property
    def end(self) -> int:
        """The sequence number after the last frame; 0 if there are no frames."""
        ...

    def holds(self, seq: int) -> bool:
        """Return True if the frame is there."""
        ...

    def next_full(self, seq: int) -> int | None:
        """Return the first number from `seq` on that is in a full run; None if there is none."""
        ...
