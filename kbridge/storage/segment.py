"""Segment files and their indexes. For threads.

The file `NUMBER.full` or `NUMBER.sparse` has the blocks. When the next file begins, a file with the
suffix `.idx` is written beside it, with its `Segment` and the keys of all its frames. It only saves
time: if it is missing or damaged, the segment file is read instead.
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from typing import Final

from xxhash import xxh3_64_digest

from kbridge.flow.batch import Batch
from kbridge.storage.blocks import encode, split
from kbridge.storage.chunks import read_blocks
from kbridge.storage.disk import Disk
from kbridge.storage.index import BlockPlace, Segment

__all__ = ["append", "dump", "index_path", "keys_of", "load", "scan", "segment_path"]

_INDEX_MAGIC: Final = b"KBX1"
_INDEX: Final = Struct("<4sIQQQQQQQ")
_CHECKSUM_SIZE: Final = 8
_KEY_SIZE: Final = 8


def segment_path(directory: Path, number: int, *, sparse: bool) -> Path:
    """Return the path of a segment file."""
    return directory / f"{number:08d}.{'sparse' if sparse else 'full'}"


def index_path(path: Path) -> Path:
    """Return the path of the index of a segment file."""
    return path.with_name(path.name + ".idx")


# -- writing --------------------------------------------------------------------------------


def append(disk: Disk, descriptor: int, size: int, batch: Batch) -> list[BlockPlace]:
    """Append a batch to a file of `size` bytes; after an error, the file has that size again."""
    blocks: list[BlockPlace] = []
    buffers: list[bytes] = []
    position = size
    for part in split(batch):
        block = encode(part)
        nbytes = sum(map(len, block))
        blocks.append(
            BlockPlace(
                *(position, nbytes, len(part.frames)),
                *(part.first_seq, part.offsets[0], part.end_seq, part.end_offset),
            )
        )
        buffers += block
        position += nbytes
    try:
        disk.write_all(descriptor, buffers)
    except OSError:
        disk.truncate(descriptor, size)
        raise
    return blocks


def dump(segment: Segment) -> list[bytes]:
    """Return the content of the index of a segment, whose keys must be in memory."""
    assert segment.keys is not None
    content = b"".join(
        (
            _INDEX.pack(
                *(_INDEX_MAGIC, len(segment.positions), segment.size, segment.frames),
                *(segment.first_seq, segment.first_offset, segment.end_seq, segment.end_offset),
                segment.sparse,
            ),
            segment.ordinals.tobytes(),
            segment.seqs.tobytes(),
            segment.positions.tobytes(),
            segment.keys.tobytes(),
        )
    )
    return [content, xxh3_64_digest(content)]


# -- reading --------------------------------------------------------------------------------


def scan(disk: Disk, path: Path, segment: Segment, *, before: int | None = None) -> Segment:
    """Read a segment file whose index is missing, up to its first damaged block.

    Parameters
    ----------
    disk : Disk
    path : Path
    segment : Segment
        A new one with the number and the kind of the file.
    before : int or None
        Stop at the first block whose first number is not below this one.

    Returns
    -------
    Segment
        `segment`; its `size` is the position after the last block that can be read.
    """
    keys = segment.keys
    assert keys is not None
    with disk.reading(path) as descriptor:
        for position, block in read_blocks(disk, descriptor, disk.size(descriptor)):
            header = block.header
            first = header.first_seq
            in_order = first >= segment.end_seq if segment.sparse else first == segment.end_seq
            if header.sparse != segment.sparse or (segment.frames and not in_order):
                break
            if before is not None and first >= before:
                break
            end_offset = block.offsets[-1] + block.size(header.frames - 1)
            segment.add(
                BlockPlace(
                    *(position, header.size, header.frames, first, header.first_offset),
                    *(block.end_seq, end_offset),
                )
            )
            keys.extend(block.keys)
    return segment


def load(disk: Disk, path: Path, segment: Segment, size: int) -> Segment | None:
    """Read the index of a segment file.

    Parameters
    ----------
    disk : Disk
    path : Path
        The segment file.
    segment : Segment
        A new one with the number and the kind of the file.
    size : int
        The size of the segment file.

    Returns
    -------
    Segment or None
        None if the index is missing, damaged, or about a file of another size.
    """
    try:
        data = disk.read_file(index_path(path))
    except FileNotFoundError:
        return None
    content = data[:-_CHECKSUM_SIZE]
    if len(content) < _INDEX.size or xxh3_64_digest(content) != data[-_CHECKSUM_SIZE:]:
        return None
    magic, entries, segment.size, segment.frames, *numbers, sparse = _INDEX.unpack_from(content)
    if (magic, segment.size, bool(sparse)) != (_INDEX_MAGIC, size, segment.sparse):
        return None
    segment.first_seq, segment.first_offset, segment.end_seq, segment.end_offset = numbers
    at = _INDEX.size
    assert segment.keys is not None
    for column in (segment.ordinals, segment.seqs, segment.positions, segment.keys):
        items = segment.frames if column is segment.keys else entries
        column.frombytes(content[at : at + items * _KEY_SIZE])
        at += items * _KEY_SIZE
    return segment


def keys_of(disk: Disk, path: Path, number: int, sparse: bool) -> bytes:
    """Return the keys of all frames of a segment file, eight bytes each."""
    with disk.reading(path) as descriptor:
        size = disk.size(descriptor)
    segment = load(disk, path, Segment(number, sparse=sparse), size)
    if segment is None:
        segment = scan(disk, path, Segment(number, sparse=sparse))
    assert segment.keys is not None
    return segment.keys.tobytes()
