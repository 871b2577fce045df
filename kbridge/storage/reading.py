"""Read the frames of one kernel from its segments, in the reading threads.

A reader is a `Place`, as for the memory of a journal. Where the last frames of a segment were read
is remembered, so that reading goes on there; any other place needs a search of at most 64 KiB of
the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from kbridge.flow.places import Gap, Place, Stretch
from kbridge.storage.chunks import Chunk, Found, Wanted, frame_at, ordinals, read_chunk
from kbridge.storage.context import RETRY_INTERVAL, StoreContext
from kbridge.storage.disk import TRANSIENT
from kbridge.storage.index import Segment, SegmentIndex
from kbridge.storage.segment import keys_of, segment_path

__all__ = ["FrameReader", "Loaded", "full_stretch", "gap_before", "sparse_stretch"]

_PAUSE_S: Final = 0.1  # after an error that says nothing about the file
_ATTEMPTS: Final = 20
_RECENT: Final = 64  # readers whose position in a file is remembered


class Loaded(NamedTuple):
    """The result of reading a segment.

    Attributes
    ----------
    chunk : Chunk or None
        None if the file could not be read.
    error : OSError or None
        The reason; None if the segment was given up meanwhile. A `FileNotFoundError` lasts; after
        another error the segment may be readable later.
    """

    chunk: Chunk | None
    error: OSError | None = None


class FrameReader:
    """Reads the frames of one kernel.

    Parameters
    ----------
    index : SegmentIndex
        Only read.
    directory : Path
    context : StoreContext
    """

    __slots__ = ("_context", "_directory", "_failed", "_index", "_recent")

    def __init__(self, index: SegmentIndex, directory: Path, context: StoreContext) -> None:
        self._index = index
        self._directory = directory
        self._context = context
        self._failed: dict[
            int, tuple[float, OSError]
        ] = {}  # segment -> when and how reading failed
        # Sequence number -> segment, and position and first number of its block.
        self._recent: dict[int, tuple[int, int, int]] = {}

    async def load(self, segment: Segment, first: int, stop: int, max_bytes: int) -> Loaded:
        """Read frames of a segment, from number `first` to at most `stop - 1`.

        A file that could not be read is left alone for 10 s.
        """
        now = asyncio.get_running_loop().time()
        if (failed := self._failed.get(segment.number)) is not None:
            if now - failed[0] < RETRY_INTERVAL:
                return Loaded(None, failed[1])
            del self._failed[segment.number]
        entry = segment.entry_of_seq(first)
        block = segment.positions[entry], segment.seqs[entry]
        number, *recent = self._recent.pop(first, (-1, 0, 0))
        if number == segment.number:
            block = max(block, (recent[0], recent[1]))
        wanted = Wanted(segment.sparse, *block, segment.size, first, stop, max_bytes)
        work = partial(read_chunk, self._context.disk, self._path(segment), wanted)
        for attempt in range(_ATTEMPTS):
            try:
                chunk = await self._context.readers.call(work)
            except OSError as error:
                if segment not in self._index:
                    return Loaded(None)
                if error.errno not in TRANSIENT or attempt == _ATTEMPTS - 1:
                    self._failed[segment.number] = now, error
                    return Loaded(None, error)
                await asyncio.sleep(_PAUSE_S)
                continue
            if chunk.frames:
                block = chunk.position, chunk.block_seq
                self._recent[chunk.seqs[-1] + 1] = segment.number, *block
                if len(self._recent) > _RECENT:
                    del self._recent[next(iter(self._recent))]
            return Loaded(chunk)
        return Loaded(None)

    async def find(self, key: int, matches: Callable[[bytes], bool]) -> Found | None:
        """Return the newest frame with that key that `matches`; None if there is none."""
        for _ in range(_ATTEMPTS):
            try:
                return await self._find(key, matches)
            except FileNotFoundError:
                continue  # a segment was given up meanwhile
            except OSError:
                break
        return None

    async def _find(self, key: int, matches: Callable[[bytes], bool]) -> Found | None:
        disk, call = self._context.disk, self._context.readers.call
        for segment in reversed([*self._index]):
            path = self._path(segment)
            below = segment.frames
            if segment.keys is None:
                keys = await call(partial(keys_of, disk, path, segment.number, segment.sparse))
            else:
                keys = segment.keys.tobytes()
            while below:
                hits = await call(partial(ordinals, keys, key, below))
                for hit in hits:
                    entry = segment.entry_of_ordinal(hit)
                    if entry < 0:
                        continue
                    place = segment.positions[entry], segment.size, hit - segment.ordinals[entry]
                    found = await call(partial(frame_at, disk, path, *place))
                    if found and found.seq < segment.end_seq and matches(found.frame):
                        return found
                below = hits[-1] if hits else 0
        return None

    def _path(self, segment: Segment) -> Path:
        return segment_path(self._directory, segment.number, sparse=segment.sparse)


def full_stretch(chunk: Chunk, gap: Gap | None) -> Stretch:
    """Return the stretch of a reader that read a chunk of a full segment."""
    stop = chunk.seqs[-1] + 1
    end = Place(stop, stop, chunk.end_offset)
    return Stretch(chunk.frames, chunk.private, chunk.end_offset - chunk.first_offset, end, gap)


def sparse_stretch(place: Place, chunk: Chunk) -> Stretch:
    """Return the stretch of a reader that read a chunk of a sparse segment."""
    nbytes = sum(map(len, chunk.frames))
    end = Place(
        chunk.seqs[-1] + 1,
        -1 if place.frames < 0 else place.frames + len(chunk.frames),
        -1 if place.nbytes < 0 else place.nbytes + nbytes,
    )
    return Stretch(chunk.frames, chunk.private, nbytes, end, None, chunk.seqs)


def gap_before(place: Place, seq: int, offset: int, lost: bytes) -> Gap | None:
    """Return the gap between a reader and frame `seq`; None if the reader has missed nothing."""
    if place.frames >= seq:
        return None
    return Gap(
        0 if place.frames < 0 else seq - place.frames,
        0 if place.nbytes < 0 else offset - place.nbytes,
        lost,
    )
