"""Read frames from segment files. For threads."""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kbridge.storage.blocks import HEADER_SIZE, Block, Header
from kbridge.storage.disk import Disk
from kbridge.storage.index import ENTRY_STEP

__all__ = [
    "Chunk",
    "Found",
    "Wanted",
    "frame_at",
    "ordinals",
    "read_blocks",
    "read_chunk",
    "read_state_blocks",
]

_READ_SIZE: Final = 1024 * 1024
_KEY_SIZE: Final = 8
_REST_AFTER: Final = 64  # blocks, about a millisecond of work if they are small


class _Reader:
    """Reads the blocks of a file from a position on, in large pieces.

    Attributes
    ----------
    position : int
        The position of the next block.
    """

    __slots__ = ("_data", "_descriptor", "_disk", "_end", "_piece", "_start", "position")

    def __init__(
        self, disk: Disk, descriptor: int, position: int, end: int, piece: int = _READ_SIZE
    ) -> None:
        self._disk = disk
        self._descriptor = descriptor
        self.position = self._start = position
        self._end = end
        self._piece = piece
        self._data = b""

    def header(self) -> Header | None:
        """Return the header of the next block; None at the end, or if it is damaged."""
        if not self._load(HEADER_SIZE, ENTRY_STEP):
            return None
        return Header.parse(self._data, self.position - self._start)

    def block(self, header: Header) -> Block | None:
        """Return the next block; None if it is damaged."""
        if not self._load(header.size, self._piece):
            return None
        return Block.read(self._data, self.position - self._start)

    def skip(self, header: Header) -> None:
        """Go on to the next block."""
        self.position += header.size

    def _load(self, size: int, piece: int) -> bool:
        if self.position + size > self._end:
            return False
        if self._start + len(self._data) - self.position < size:
            piece = min(max(size, piece), self._end - self.position)
            self._data = self._disk.read_all(self._descriptor, piece, self.position)
            self._start = self.position
        return len(self._data) - (self.position - self._start) >= size


def read_blocks(disk: Disk, descriptor: int, end: int) -> Iterator[tuple[int, Block]]:
    """Yield the blocks of a file and their positions, up to `end` or to the first damaged one."""
    reader = _Reader(disk, descriptor, 0, end)
    count = 0
    while (header := reader.header()) and (block := reader.block(header)):
        yield reader.position, block
        reader.skip(header)
        count += 1
        if count % _REST_AFTER == 0:
            disk.rest()


def read_state_blocks(
    disk: Disk, descriptor: int, end: int, stop: int, small: int
) -> Generator[Block, None, bool]:
    """Yield the blocks of a full segment that have frames with state.

    The last block that has output of at most `small` bytes comes, too, at the end if it has no
    state: one frame of it is enough for a notice. Most output is thus not read.

    Parameters
    ----------
    disk : Disk
    descriptor : int
    end : int
        The size of the file.
    stop : int
        The sequence number at which to stop.
    small : int

    Returns
    -------
    bool
        True if a block is damaged; the blocks after it are not read.
    """
    reader = _Reader(disk, descriptor, 0, end)
    last: int | None = None
    count, next_seq = 0, -1
    while reader.position < end:
        header = reader.header()
        if header is None or header.sparse or next_seq not in (-1, header.first_seq):
            break
        if header.first_seq >= stop:
            end = reader.position
            break
        if header.state:
            block = reader.block(header)
            if block is None:
                break
            yield block
            if _ends_small(block, small):
                last = None
        elif reader.position + header.size > end:
            break
        elif header.frames > 1 or header.content <= small:
            last = reader.position
        next_seq = header.first_seq + header.frames
        reader.skip(header)
        count += 1
        if count % _REST_AFTER == 0:
            disk.rest()
    damaged = reader.position < end
    if last is not None:
        reader = _Reader(disk, descriptor, last, end)
        header = reader.header()
        block = None if header is None else reader.block(header)
        if block is None:
            return True
        yield block
    return damaged


def _ends_small(block: Block, small: int) -> bool:
    """Return True if the last frame without state of a block has at most `small` bytes."""
    state = set(block.state)
    last = next((i for i in reversed(range(len(block.seqs))) if i not in state), None)
    return last is not None and block.size(last) <= small


class Wanted(NamedTuple):
    """The frames that a reader wants of a segment.

    Attributes
    ----------
    sparse : bool
        The kind of the segment.
    position, block_seq : int
        The position of a block at or before the one with frame `seq`, and its first number.
    end : int
        The position after the last block that may be read.
    seq : int
        The number of the first frame.
    stop : int
        The number after the last frame.
    max_bytes : int
        The last frame is the one that reaches this size.
    """

    sparse: bool
    position: int
    block_seq: int
    end: int
    seq: int
    stop: int
    max_bytes: int


class Chunk(NamedTuple):
    """Frames that were read from a segment.

    Attributes
    ----------
    frames : list of bytes
    seqs : list of int
        The number of each frame.
    private : dict of int to int
        Index into `frames` -> the only client of the frame.
    first_offset, end_offset : int
        The bytes of the journal before the first frame, and before the end of the last one.
    position, block_seq : int
        The position of the block where the next frame is, and its first number.
    damaged : tuple of int or None
        The position of a block that cannot be read, and the number after the last frame before it.
    """

    frames: list[bytes]
    seqs: list[int]
    private: dict[int, int]
    first_offset: int
    end_offset: int
    position: int
    block_seq: int
    damaged: tuple[int, int] | None


class _Collector:
    """Collects the frames of a chunk.

    The numbers of headers are checked, because blocks are skipped without reading them: in a full
    segment, a block begins where the previous one ends; in a sparse one, not before.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.frames: list[bytes] = []
        self.seqs: list[int] = []
        self.private: dict[int, int] = {}
        self.first_offset = self.end_offset = self.nbytes = 0
        self.next_seq = wanted.block_seq  # of the next block

    def fits(self, header: Header) -> bool:
        """Return True if a block may be the next one."""
        if header.sparse != self.wanted.sparse:
            return False
        first = header.first_seq
        return first >= self.next_seq if header.sparse else first == self.next_seq

    def is_past(self, header: Header) -> bool:
        """Return True if the block, and all after it, have no frame for this chunk."""
        wanted = self.wanted
        if self.nbytes >= wanted.max_bytes or header.first_seq >= wanted.stop:
            return True
        # End between two blocks if possible: the next call would read a part of one again.
        left = wanted.max_bytes - self.nbytes
        return left * 2 <= wanted.max_bytes and header.content > left

    def is_before(self, header: Header) -> bool:
        """Return True if the block ends before the frames of this chunk."""
        return not header.sparse and header.first_seq + header.frames <= self.wanted.seq

    def take(self, block: Block) -> bool:
        """Add the wanted frames of a block; return True if the block has no more of them."""
        wanted = self.wanted
        start, stop = block.index(wanted.seq), block.index(wanted.stop)
        if start < stop:
            stop = min(stop, block.reach(start, wanted.max_bytes - self.nbytes))
            if block.size(stop - 1) > wanted.max_bytes and (self.frames or stop - start > 1):
                stop -= 1  # joining a large frame with others would copy it
            self._add(block, start, stop)
        return stop == block.header.frames

    def _add(self, block: Block, start: int, stop: int) -> None:
        if start == stop:
            return
        if not self.frames:
            self.first_offset = block.offsets[start]
        shift = len(self.frames) - start
        for index, client in block.private.items():
            if start <= index < stop:
                self.private[index + shift] = client
        frames = block.frames(start, stop)
        self.frames += frames
        self.seqs += block.seqs[start:stop]
        self.nbytes += sum(map(len, frames))
        self.end_offset = block.offsets[stop - 1] + len(frames[-1])

    def chunk(self, position: int, *, damaged: bool) -> Chunk:
        """Return the chunk; `position` is that of the next block."""
        end = self.next_seq if self.frames else min(self.next_seq, self.wanted.seq)
        return Chunk(
            *(self.frames, self.seqs, self.private, self.first_offset, self.end_offset, position),
            self.next_seq,
            (position, end) if damaged else None,
        )


def read_chunk(disk: Disk, path: Path, wanted: Wanted) -> Chunk:
    """Read frames as `Journal.read` does: a frame of more than `max_bytes` is returned alone."""
    found = _Collector(wanted)
    with disk.reading(path) as descriptor:
        piece = wanted.max_bytes + ENTRY_STEP
        reader = _Reader(disk, descriptor, wanted.position, wanted.end, piece)
        while (header := reader.header()) and found.fits(header):
            if found.is_past(header):
                # The number of a sparse block, which may be any, ends the reading: verify it.
                if wanted.sparse and not found.frames and reader.block(header) is None:
                    break
                return found.chunk(reader.position, damaged=False)
            if found.is_before(header):
                found.next_seq = header.first_seq + header.frames
            else:
                block = reader.block(header)
                if block is None:
                    break
                if not found.take(block):
                    return found.chunk(reader.position, damaged=False)
                found.next_seq = block.end_seq
            reader.skip(header)
        # The frames of the index must be in the file.
        damaged = reader.position < wanted.end or not found.frames
        return found.chunk(reader.position, damaged=damaged)


class Found(NamedTuple):
    """A frame that was found by its key: its number, the journal's bytes after it, its content."""

    seq: int
    end_offset: int
    frame: bytes


def ordinals(keys: bytes, key: int, below: int, most: int = 16) -> list[int]:
    """Return the last frames before `below` with a key: at most `most`, newest first.

    Frames are counted from the beginning of the file; `keys` has eight bytes for each.
    """
    wanted = array("q", [key]).tobytes()
    end = below * _KEY_SIZE
    found: list[int] = []
    # `bytes.rfind` searches a gigabyte per second.
    while len(found) < most and (at := keys.rfind(wanted, 0, end)) >= 0:
        if at % _KEY_SIZE == 0:
            found.append(at // _KEY_SIZE)
        end = at + _KEY_SIZE - 1  # the next match may overlap this one
    return found


def frame_at(disk: Disk, path: Path, position: int, end: int, nth: int) -> Found | None:
    """Return the `nth` frame after a position; None if it cannot be read."""
    with disk.reading(path) as descriptor:
        reader = _Reader(disk, descriptor, position, end, ENTRY_STEP)
        while header := reader.header():
            if nth >= header.frames:
                nth -= header.frames
                reader.skip(header)
                continue
            block = reader.block(header)
            if block is None:
                return None
            end_offset = block.offsets[nth] + block.size(nth)
            return Found(block.seqs[nth], end_offset, block.frames(nth, nth + 1)[0])
    return None
