"""The format of a block: some frames of a journal, with their numbers and a checksum.

A segment file is a sequence of blocks. A block is a header and a body. The numbers of the header
are little endian. The tables of the body are in the byte order of the machine, because files do not
move between machines, and so that arrays are written and read without a loop.

======== ======================================================================================
header   magic `KBJ1`; kind (0 full, 1 sparse); 3 zero bytes; u32 number of frames, of frames
         for one client, and of frames with state; u64 sequence number of the first frame; u64
         bytes of the journal before it; u64 length of the body; u64 checksum
body     u64 bytes of the journal before each frame; i64 key of each frame; in a sparse block,
         u64 sequence number of each frame and u64 length of each frame; (u64, u64) index and
         client of each frame for one client; u32 index of each frame with state; the frames
======== ======================================================================================

The frames of a full block have consecutive numbers. The checksum is xxh3_64 of the rest of the
header and of the body. A block has at most 256 KiB of frames, or one frame.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from struct import Struct
from typing import Final, NamedTuple

from xxhash import xxh3_64

from kbridge.flow.batch import Batch

__all__ = ["BLOCK_SIZE", "HEADER_SIZE", "Block", "Header", "encode", "split"]

BLOCK_SIZE: Final = 256 * 1024
"""Bytes of frames in a block, except that a larger frame is alone in its block."""

_MAGIC: Final = b"KBJ1"
_FULL, _SPARSE = 0, 1
_HEADER: Final = Struct("<4sB3xIIIQQQ")
_CHECKSUM: Final = Struct("<Q")
_PAIR: Final = Struct("=QQ")
_SUMMED: Final = _HEADER.size  # bytes of the header before the checksum
HEADER_SIZE: Final = _SUMMED + _CHECKSUM.size
# Frames that are larger on average are written from where they are, the others are copied together:
# a system call takes at most 1024 buffers, and each one costs as much as copying a kilobyte.
_COPY_BELOW: Final = 16 * 1024


class Header(NamedTuple):
    """The header of a block."""

    sparse: bool
    frames: int
    private: int
    state: int
    first_seq: int
    first_offset: int
    length: int
    checksum: int

    @property
    def size(self) -> int:
        """The size of the block with its header in bytes."""
        return HEADER_SIZE + self.length

    @classmethod
    def parse(cls, data: bytes, at: int) -> Header | None:
        """Return the header at an index; None if there is none, or only a part of one."""
        if len(data) - at < HEADER_SIZE:
            return None
        magic, kind, *numbers = _HEADER.unpack_from(data, at)
        if magic != _MAGIC or kind not in (_FULL, _SPARSE):
            return None
        header = cls._make((kind == _SPARSE, *numbers, *_CHECKSUM.unpack_from(data, at + _SUMMED)))
        return header if header.frames and header.length >= header.tables else None

    @property
    def content(self) -> int:
        """The size of the frames in bytes."""
        return self.length - self.tables

    @property
    def tables(self) -> int:
        """The size of the tables before the frames in bytes."""
        per_frame = 32 if self.sparse else 16
        return self.frames * per_frame + self.private * _PAIR.size + self.state * 4


def split(batch: Batch) -> Iterator[Batch]:
    """Cut a batch into batches for one block each."""
    frames, offsets = batch.frames, batch.offsets
    count = len(frames)
    if batch.seqs is None:
        starts: Sequence[int] = offsets
        if batch.end_offset - offsets[0] <= BLOCK_SIZE:
            yield batch
            return
    else:  # the bytes between the frames do not count
        starts = [0, *accumulate(map(len, frames))]
    start = 0
    while start < count:
        # The last frame that begins inside the block may end outside; then the next block has it.
        limit = starts[start] + BLOCK_SIZE
        stop = bisect_left(starts, limit + 1, start + 1, count)
        if stop < count or starts[stop - 1] + len(frames[-1]) > limit:
            stop = max(stop - 1, start + 1)
        yield _part(batch, start, stop)
        start = stop


def _part(batch: Batch, start: int, stop: int) -> Batch:
    seqs = None if batch.seqs is None else batch.seqs[start:stop]
    state = batch.state
    return Batch(
        batch.frames[start:stop],
        batch.first_seq + start if seqs is None else seqs[0],
        seqs,
        batch.offsets[start:stop],
        batch.keys[start:stop],
        {i - start: client for i, client in batch.private.items() if start <= i < stop},
        [i - start for i in state[bisect_left(state, start) : bisect_left(state, stop)]],
    )


def encode(batch: Batch) -> list[bytes]:
    """Return the block with the frames of a batch, as buffers to write one after the other."""
    frames, private = batch.frames, batch.private
    tables = [batch.offsets.tobytes(), batch.keys.tobytes()]
    if batch.seqs is not None:
        tables += [batch.seqs.tobytes(), array("Q", map(len, frames)).tobytes()]
    if private:
        tables += [_PAIR.pack(*item) for item in private.items()]
    if batch.state:
        tables.append(array("I", batch.state).tobytes())
    nbytes = sum(map(len, frames))
    length = nbytes + sum(map(len, tables))
    if nbytes < _COPY_BELOW * len(frames):
        body = [b"".join([*tables, *frames])]
    else:
        body = [b"".join(tables), *frames]
    header = _HEADER.pack(
        *(_MAGIC, _FULL if batch.seqs is None else _SPARSE, len(frames), len(private)),
        *(len(batch.state), batch.first_seq, batch.offsets[0], length),
    )
    checksum = xxh3_64(header)
    for part in body:
        checksum.update(part)
    return [header + _CHECKSUM.pack(checksum.intdigest()), *body]


class Block:
    """A block that was read and whose checksum is correct.

    Attributes
    ----------
    header : Header
    seqs : sequence of int
        The sequence number of each frame.
    offsets : array of int
        The bytes of the journal before each frame.
    keys : array of int
        The key of each frame.
    private : dict of int to int
        Index of a frame -> the only client of the frame.
    state : array of int
        Indices of the frames with state.
    """

    __slots__ = (
        "_data",
        "_ends",
        "_starts",
        "header",
        "keys",
        "offsets",
        "private",
        "seqs",
        "state",
    )

    def __init__(self, header: Header, data: bytes, at: int) -> None:
        self.header = header
        self._data = data
        count = header.frames
        position = at + HEADER_SIZE

        def table(code: str, items: int) -> array[int]:
            nonlocal position
            numbers = array(code)
            end = position + items * numbers.itemsize
            numbers.frombytes(data[position:end])
            position = end
            return numbers

        self.offsets = table("Q", count)
        self.keys = table("q", count)
        self.seqs: Sequence[int]
        if header.sparse:
            self.seqs = table("Q", count)
            lengths = table("Q", count)
        else:
            self.seqs = range(header.first_seq, header.first_seq + count)
        pairs = table("Q", 2 * header.private)
        self.private = dict(zip(pairs[::2], pairs[1::2], strict=True))
        self.state = table("I", header.state)
        if header.sparse:
            ends = [*accumulate(lengths, initial=position)]
        else:
            shift = position - header.first_offset
            ends = [offset + shift for offset in self.offsets]
            ends.append(at + header.size)
        self._starts, self._ends = ends[:-1], ends[1:]

    @classmethod
    def read(cls, data: bytes, at: int) -> Block | None:
        """Return the block at an index; None if it is damaged or not complete."""
        header = Header.parse(data, at)
        if header is None or len(data) - at < header.size:
            return None
        view = memoryview(data)
        checksum = xxh3_64(view[at : at + _SUMMED])
        checksum.update(view[at + HEADER_SIZE : at + header.size])
        return cls(header, data, at) if checksum.intdigest() == header.checksum else None

    @property
    def end_seq(self) -> int:
        """The sequence number after the last frame."""
        return self.seqs[-1] + 1

    def index(self, seq: int) -> int:
        """Return the index of the first frame whose number is at least `seq`."""
        return bisect_left(self.seqs, seq)

    def size(self, index: int) -> int:
        """Return the size of a frame in bytes."""
        return self._ends[index] - self._starts[index]

    def reach(self, start: int, nbytes: int) -> int:
        """Return the index after the frame with which `nbytes` are reached from `start` on."""
        return min(
            bisect_left(self._ends, self._starts[start] + nbytes, start) + 1, len(self._ends)
        )

    def frames(self, start: int, stop: int) -> list[bytes]:
        """Return the frames from index `start` to `stop - 1`."""
        slices = map(slice, self._starts[start:stop], self._ends[start:stop])
        return [*map(self._data.__getitem__, slices)]
