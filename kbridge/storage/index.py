"""The segments of one kernel: which frames are in which file, and where.

Invariants:

- segments are in the order of their numbers, which do not overlap. A *full* segment has all frames
  from its first to its last number, a *sparse* one only frames with state, which survived when
  output was dropped;
- a full segment that begins where the previous one ends belongs to the same *run*. Between runs,
  frames are missing;
- a segment has an entry for a block of its file when at least 64 KiB lie between two entries.
  Finding a block thus needs a search in memory, and at most 64 KiB of the file;
- only the segment that is being written has the keys of its frames in memory.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

__all__ = ["ENTRY_STEP", "BlockPlace", "Segment", "SegmentIndex", "to_give_up"]

ENTRY_STEP: Final = 64 * 1024
"""Bytes of a segment file between two entries."""

_KEY_SIZE: Final = 8  # in the file with the keys of a segment


class BlockPlace(NamedTuple):
    """A block in a segment file.

    Attributes
    ----------
    position : int
        The position in the file.
    size : int
        Its bytes in the file.
    frames : int
        The number of its frames.
    first_seq, first_offset : int
        The number of the first frame, and the bytes of the journal before it.
    end_seq, end_offset : int
        The number after the last frame, and the bytes of the journal before its end.
    """

    position: int
    size: int
    frames: int
    first_seq: int
    first_offset: int
    end_seq: int
    end_offset: int


class Segment:
    """One segment file.

    Attributes
    ----------
    number : int
        Names the file; numbers rise in the order in which the files were made.
    sparse : bool
        True if it has frames with state only, with any numbers.
    damaged : bool
        True if the end of the file cannot be read.
    attempts : int
        The number of times that reading all of it failed.
    size : int
        Bytes of the file that may be read.
    lost : int
        Bytes of the file that cannot be read.
    frames : int
        The number of frames.
    first_seq, first_offset : int
        The number of the first frame, and the bytes of the journal before it.
    end_seq, end_offset : int
        The number after the last frame, and the bytes of the journal before its end.
    keys : array of int or None
        The keys of all frames while the file is being written, None later.
    ordinals, seqs, positions : array of int
        Of the entries: the number of frames in the file before the block, its first number, and its
        position in the file.
    """

    __slots__ = (
        *(
            "attempts",
            "damaged",
            "end_offset",
            "end_seq",
            "first_offset",
            "first_seq",
            "frames",
            "keys",
        ),
        *("lost", "number", "ordinals", "positions", "seqs", "size", "sparse"),
    )

    def __init__(self, number: int, *, sparse: bool) -> None:
        self.number = number
        self.sparse = sparse
        self.damaged = False
        self.size = self.lost = self.frames = self.attempts = 0
        self.first_seq = self.first_offset = self.end_seq = self.end_offset = 0
        self.keys: array[int] | None = array("q")
        self.ordinals = array("Q")
        self.seqs = array("Q")
        self.positions = array("Q")

    @property
    def nbytes(self) -> int:
        """The size of the segment file and of the file with its keys."""
        return self.size + self.lost + self.frames * _KEY_SIZE

    def add(self, block: BlockPlace) -> None:
        """Add the next block of the file; the caller adds the keys."""
        if not self.frames:
            self.first_seq, self.first_offset = block.first_seq, block.first_offset
        if not self.positions or block.position - self.positions[-1] >= ENTRY_STEP:
            self.ordinals.append(self.frames)
            self.seqs.append(block.first_seq)
            self.positions.append(block.position)
        self.frames += block.frames
        self.size = block.position + block.size
        self.end_seq, self.end_offset = block.end_seq, block.end_offset

    def entry_of_seq(self, seq: int) -> int:
        """Return the index of the last entry whose block begins at or before a number."""
        return max(bisect_right(self.seqs, seq) - 1, 0)

    def entry_of_ordinal(self, ordinal: int) -> int:
        """Return the index of the last entry whose block begins at or before a frame."""
        return bisect_right(self.ordinals, ordinal) - 1

    def cut(self, position: int, seq: int) -> None:
        """Give up the file from a position on; the last readable frame is the one before `seq`."""
        entries = bisect_left(self.positions, position)
        for column in (self.ordinals, self.seqs, self.positions):
            del column[entries:]
        self.lost += self.size - position
        self.size = position
        self.end_seq = min(self.end_seq, seq) if entries else self.first_seq
        self.damaged = True


class SegmentIndex:
    """The segments of one kernel, oldest first."""

    __slots__ = ("_segments", "nbytes")

    def __init__(self, segments: list[Segment]) -> None:
        self._segments = segments
        self.nbytes = sum(segment.nbytes for segment in segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def last(self) -> Segment | None:
        """The newest segment."""
        return self._segments[-1] if self._segments else None

    @property
    def oldest(self) -> int | None:
        """The number of the oldest frame; None if there are no frames."""
        return self._segments[0].first_seq if self._segments else None

    def at(self, seq: int) -> Segment | None:
        """Return the segment with the first frame from a number on; None if there is none."""
        # A kernel has at most a few dozen segments.
        return next((each for each in self._segments if each.end_seq > seq), None)

    def holds(self, seq: int) -> bool:
        """Return True if a frame is in a file; only frames with state may be asked for."""
        segment = self.at(seq)
        return segment is not None and segment.first_seq <= seq

    def next_full(self, seq: int) -> int | None:
        """Return the first number from `seq` on that a full segment has; None if none has."""
        return next(
            (
                max(seq, each.first_seq)
                for each in self._segments
                if not each.sparse and each.end_seq > seq
            ),
            None,
        )

    def append(self, segment: Segment) -> None:
        """Add a segment that has a block."""
        self._segments.append(segment)
        self.nbytes += segment.nbytes

    def add(self, segment: Segment, block: BlockPlace) -> None:
        """Add a block to a segment of this index."""
        self.nbytes -= segment.nbytes
        segment.add(block)
        self.nbytes += segment.nbytes

    def remove(self, segment: Segment) -> None:
        """Remove a segment."""
        self._segments.remove(segment)
        self.nbytes -= segment.nbytes

    def cut(self, segment: Segment, position: int, seq: int) -> None:
        """Call `Segment.cut`, and remove the segment if it is empty then."""
        self.nbytes -= segment.nbytes
        segment.cut(position, seq)
        self.nbytes += segment.nbytes
        if segment.end_seq <= segment.first_seq:
            self.remove(segment)

    def replace(self, old: list[Segment], new: Segment) -> None:
        """Put a segment in the place of consecutive ones."""
        at = self._segments.index(old[0])
        self._segments[at : at + len(old)] = [new]
        self.nbytes += new.nbytes - sum(segment.nbytes for segment in old)

    def clear(self) -> None:
        """Remove all segments."""
        self._segments.clear()
        self.nbytes = 0

    def before(self, segment: Segment) -> Segment | None:
        """Return the segment before another one."""
        at = self._segments.index(segment)
        return self._segments[at - 1] if at else None


def to_give_up(segments: Sequence[Segment], limit: int) -> Segment:
    """Return the segment to give up first: the oldest output, but sparse ones over half the limit.

    Parameters
    ----------
    segments : sequence of Segment
        At least one, oldest first.
    limit : int
        The bytes that the kernel may use.
    """
    sparse = [segment for segment in segments if segment.sparse]
    full = next((segment for segment in segments if not segment.sparse), None)
    if full is None or (sparse and sum(each.nbytes for each in sparse) > limit // 2):
        return sparse[0]
    return full
