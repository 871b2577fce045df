"""Decide which frames of one kernel go to which segment file, and which files are removed.

Invariants:

- frames are written in order, each once. After an error the next frames go to a new file;
- over the limit, the oldest output goes first: the oldest full segment becomes a sparse one, which
  has its frames with state. Sparse segments may use half of the limit; then the oldest is removed;
- files are removed by the job after the one that made them superfluous, so that a reader that
  finds its file missing also finds a new index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kbridge.flow.batch import Batch
from kbridge.storage.chunks import Chunk
from kbridge.storage.context import segment_size
from kbridge.storage.disk import TRANSIENT
from kbridge.storage.index import Segment, SegmentIndex, to_give_up
from kbridge.storage.segment import dump, index_path, segment_path
from kbridge.storage.work import Append, Compaction

__all__ = ["Segments"]

_ATTEMPTS: Final = 3  # to read a segment before its frames with state are given up


class Segments:
    """The segment files of one kernel.

    Parameters
    ----------
    directory : Path
    limit : int
        Bytes that the kernel may use.
    found : list of Segment
        The segments that an earlier process left, in order.
    next_number : int
        The number of the next segment file.

    Attributes
    ----------
    index : SegmentIndex
    end : int
        The sequence number after the last frame that was written.
    offset : int
        The bytes of the journal before `end`.
    superfluous : list of Path
        Segment files to remove.
    lost : tuple of int and bytes
        The end of the output that was given up last, and its last frame.
    """

    __slots__ = (
        *("_complete", "_directory", "_limit", "_next_number", "_open", "_open_path"),
        *("_segment_size", "_wanted", "end", "index", "lost", "offset", "superfluous"),
    )

    def __init__(self, directory: Path, limit: int, found: list[Segment], next_number: int) -> None:
        self.index = SegmentIndex(found)
        last = self.index.last
        self.end = last.end_seq if last else 0
        self.offset = last.end_offset if last else 0
        self.superfluous: list[Path] = []
        self.lost = (-1, b"")
        self._directory = directory
        self._limit = limit
        self._segment_size = segment_size(limit)
        self._next_number = next_number
        self._open: Segment | None = None  # the segment that is being written
        self._open_path = directory
        self._complete: list[Segment] = []  # without an index in a file
        self._wanted = False

    @property
    def open_bytes(self) -> int:
        """The size of the segment that is being written."""
        return self._open.nbytes if self._open else 0

    @property
    def too_large(self) -> bool:
        """True if a segment must be given up."""
        return bool(len(self.index)) and (self._wanted or self.index.nbytes > self._limit)

    @property
    def gives_up(self) -> bool:
        """True if a segment will be given up, or a file removed."""
        return self.too_large or bool(self.superfluous)

    def path(self, segment: Segment) -> Path:
        """Return the path of a segment file."""
        if segment is self._open:  # making a path costs as much as encoding a batch
            return self._open_path
        return segment_path(self._directory, segment.number, sparse=segment.sparse)

    # -- writing ----------------------------------------------------------------------------

    def append(self, batch: Batch) -> Append:
        """Return the work that writes a batch."""
        sparse = batch.seqs is not None
        segment = self._open
        if segment is not None and (
            segment.sparse != sparse
            or segment.size >= self._segment_size
            or (not sparse and segment.end_seq != batch.first_seq)
        ):
            self.roll()
        if self._open is None:
            segment = self._new(sparse=sparse)
            self._open_path = self.path(segment)
            self._open = segment
        return Append(batch, self._open_path, self._open, self._open.size)

    def appended(self, append: Append) -> bool:
        """Add the blocks that were written.

        Returns
        -------
        bool
            False if the segment was found damaged meanwhile: the batch must be written again.
        """
        segment, batch = append.segment, append.batch
        if segment.damaged:
            return False
        for block in append.blocks:
            if segment.frames:
                self.index.add(segment, block)
            else:
                segment.add(block)
                self.index.append(segment)
        if segment.keys is not None:
            segment.keys.extend(batch.keys)
        self.end, self.offset = batch.end_seq, batch.end_offset
        return True

    def roll(self) -> None:
        """Let the next frames begin a new segment."""
        if self._open is not None and self._open.frames:
            self._complete.append(self._open)
        self._open = None

    def take_complete(self) -> list[tuple[Path, list[bytes]]]:
        """Return the indexes of the segments that were completed: their paths and contents."""
        indexes = self._dumped(self._complete)
        for segment in self._complete:
            segment.keys = None
        self._complete.clear()
        return indexes

    def dump(self) -> list[tuple[Path, list[bytes]]]:
        """Return the indexes that were not written, at the end."""
        return self._dumped([*self.index])

    def take_superfluous(self) -> list[Path]:
        """Return the segment files to remove."""
        paths, self.superfluous = self.superfluous, []
        return paths

    # -- giving up --------------------------------------------------------------------------

    def give_up(self) -> None:
        """Let the next call of `shrink` give up a segment, even if the limit is not reached."""
        self._wanted = True

    def keep(self) -> None:
        """Cancel `give_up`."""
        self._wanted = False

    def shrink(self) -> Compaction | None:
        """Remove the oldest state over half of the limit, or return the oldest output to remove."""
        self._wanted = self._wanted and len(self.index) > 0
        while self.too_large:
            closed = [segment for segment in self.index if segment is not self._open]
            if not closed:
                self.roll()
                continue
            self._wanted = False
            oldest = to_give_up(closed, self._limit)
            if not oldest.sparse:
                return self._compaction(oldest)
            self._remove(oldest)
        self._wanted = False
        return None

    def compacted(self, compaction: Compaction) -> None:
        """Take the result of the work that `shrink` returned."""
        full, merged = compaction.source, compaction.merged
        if compaction.full:
            compaction.target.damaged = True
        error = compaction.error
        if not compaction.ran and error is not None and error.errno not in TRANSIENT:
            full.attempts += 1
            compaction.damaged = compaction.ran = full.attempts >= _ATTEMPTS
        if not compaction.ran or full not in self.index:
            return
        if merged is None:
            self._remove(full)
        else:
            old = [full]
            if compaction.target in self.index:
                old.insert(0, compaction.target)
            self.index.replace(old, merged)
            self._discard(full)
        self.lost = full.end_seq, compaction.lost

    def damaged(self, segment: Segment, chunk: Chunk | None) -> bool:
        """Give up the unreadable part of a segment; return True for the first time.

        Parameters
        ----------
        segment : Segment
        chunk : Chunk or None
            Says which part cannot be read; None: all of it.
        """
        first = not segment.damaged
        if segment not in self.index:
            return False
        if segment is self._open:
            self.roll()
        if chunk is None:
            segment.damaged = True
            self._remove(segment)
        elif chunk.damaged is not None:
            self.index.cut(segment, *chunk.damaged)
            if segment not in self.index:
                self._discard(segment)
        return first

    def clear(self) -> None:
        """Forget all segments."""
        self.index.clear()
        self._open = None
        self._complete.clear()

    def _new(self, *, sparse: bool) -> Segment:
        number = self._next_number
        self._next_number += 1
        return Segment(number, sparse=sparse)

    def _dumped(self, segments: list[Segment]) -> list[tuple[Path, list[bytes]]]:
        return [
            (index_path(self.path(segment)), dump(segment))
            for segment in segments
            if segment.keys is not None and not segment.damaged
        ]

    def _compaction(self, full: Segment) -> Compaction:
        target = self.index.before(full)
        if (
            target is None
            or not target.sparse
            or target.damaged
            or target.keys is not None
            or target.size >= self._segment_size
        ):
            target = self._new(sparse=True)
        return Compaction(full, self.path(full), target, self.path(target))

    def _remove(self, segment: Segment) -> None:
        self.index.remove(segment)
        self._discard(segment)

    def _discard(self, segment: Segment) -> None:
        self.superfluous.append(self.path(segment))
        if segment in self._complete:
            self._complete.remove(segment)
