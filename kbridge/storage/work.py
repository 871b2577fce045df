"""The work of one job on the files of one kernel. For the writing thread."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kbridge.flow.batch import Batch
from kbridge.storage.blocks import BLOCK_SIZE, Block
from kbridge.storage.chunks import read_state_blocks
from kbridge.storage.disk import TRANSIENT, Disk
from kbridge.storage.files import KernelFiles, OpenFiles
from kbridge.storage.flush import Task
from kbridge.storage.index import BlockPlace, Segment
from kbridge.storage.segment import append, dump, index_path, load, scan
from kbridge.storage.state_log import StateChanges

__all__ = ["Append", "Close", "Compaction", "Work"]

_LOST_SIZE: Final = 64 * 1024  # of a frame that is kept to name the cell whose output was dropped


@dataclass(slots=True)
class Append:
    """Frames to append to a segment file.

    Attributes
    ----------
    batch : Batch
    path : Path
        The segment file.
    segment : Segment
        Its index; only for the event loop.
    size : int
        Its size before; 0 creates it.
    blocks : list of BlockPlace
        The result.
    """

    batch: Batch
    path: Path
    segment: Segment
    size: int
    blocks: list[BlockPlace] = field(default_factory=list)

    def run(self, disk: Disk, opened: OpenFiles) -> None:
        """Append the frames; after an error the file is as before."""
        try:
            descriptor = opened.get(self.path, self.size)
            self.blocks = append(disk, descriptor, self.size, self.batch)
        except BaseException:
            opened.close(self.path)
            if not self.size:
                with suppress(OSError):
                    disk.remove(self.path)
            raise


@dataclass(slots=True)
class Compaction:
    """Move the frames with state of a full segment to a sparse one.

    Attributes
    ----------
    source : Segment
        Only its size and last number are used.
    path : Path
        The file of `source`.
    target : Segment
        The sparse segment, new or to be continued.
    target_path : Path
    merged : Segment or None
        The result: the sparse segment afterwards; None if there was no frame with state.
    lost : bytes
        The last frame that was dropped; empty if it is large.
    ran : bool
        True if the source may be removed, because its frames were copied.
    damaged : bool
        True if a part of the source cannot be read, or all of it.
    error : OSError or None
        The error with which reading the source failed.
    full : bool
        True if the target cannot be continued.
    """

    source: Segment
    path: Path
    target: Segment
    target_path: Path
    merged: Segment | None = None
    lost: bytes = b""
    ran: bool = False
    damaged: bool = False
    error: OSError | None = None
    full: bool = False

    def run(self, disk: Disk) -> None:
        """Copy the frames; the file of the source stays.

        Raises
        ------
        OSError
            If a file could not be read or written; the sparse segment is as before.
        """
        size = self.target.size
        number = self.target.number
        merged = self._continued(disk, size) if size else Segment(number, sparse=True)
        if merged is None:
            self.full = True
            return
        try:
            self._copy(disk, merged)
            if merged.frames and merged.size > size:
                disk.write_file(index_path(self.target_path), dump(merged))
                merged.keys = None
                self.merged = merged
        except BaseException:
            with suppress(OSError):
                self._undo(disk, size)
            raise
        self.ran = True

    def _continued(self, disk: Disk, size: int) -> Segment | None:
        """Return the sparse segment with its keys; None if its file is not as it was left."""
        number = self.target.number
        try:
            with disk.reading(self.target_path) as descriptor:
                if disk.size(descriptor) != size:
                    return None
            merged = load(disk, self.target_path, Segment(number, sparse=True), size)
            merged = merged or scan(disk, self.target_path, Segment(number, sparse=True))
        except OSError as error:
            if error.errno in TRANSIENT:
                raise
            return None
        return merged if merged.size == size else None

    def _blocks(self, disk: Disk) -> Iterator[Block]:
        """Yield the blocks of the source that are needed; set `damaged` or `error`."""
        source = self.source
        try:
            with disk.reading(self.path) as descriptor:
                self.damaged = yield from read_state_blocks(
                    *(disk, descriptor, source.size, source.end_seq, _LOST_SIZE)
                )
        except FileNotFoundError as error:
            self.error = error
            self.damaged = True
        except OSError as error:
            self.error = error
            raise

    def _copy(self, disk: Disk, merged: Segment) -> None:
        parts = _StateFrames()
        target: int | None = None
        try:
            for block in self._blocks(disk):
                self._select(block, parts)
                if parts.nbytes >= BLOCK_SIZE:
                    target = self._write(disk, target, parts, merged)
                    parts = _StateFrames()
            if parts.frames:
                target = self._write(disk, target, parts, merged)
        finally:
            if target is not None:
                disk.close(target)

    def _select(self, block: Block, parts: _StateFrames) -> None:
        state = set(block.state)
        for index in block.state:
            frame = block.frames(index, index + 1)[0]
            seq = block.seqs[index]
            if seq < self.source.end_seq:
                parts.add(frame, seq, block.offsets[index], block.keys[index])
                if index in block.private:
                    parts.private[len(parts.frames) - 1] = block.private[index]
        last = next((i for i in reversed(range(len(block.seqs))) if i not in state), None)
        if last is not None and block.size(last) <= _LOST_SIZE:
            self.lost = block.frames(last, last + 1)[0]

    def _write(self, disk: Disk, target: int | None, parts: _StateFrames, merged: Segment) -> int:
        if target is None:
            target = disk.append_at(self.target_path, merged.size)
        batch = parts.batch()
        for block in append(disk, target, merged.size, batch):
            merged.add(block)
        assert merged.keys is not None
        merged.keys.extend(batch.keys)
        return target

    def _undo(self, disk: Disk, size: int) -> None:
        if not size:
            disk.remove(self.target_path)
            return
        descriptor = disk.append(self.target_path)
        try:
            disk.truncate(descriptor, size)
        finally:
            disk.close(descriptor)


class _StateFrames:
    """Collects frames for one sparse batch."""

    __slots__ = ("_keys", "_offsets", "_seqs", "frames", "nbytes", "private")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.private: dict[int, int] = {}
        self.nbytes = 0
        self._seqs = array("Q")
        self._offsets = array("Q")
        self._keys = array("q")

    def add(self, frame: bytes, seq: int, offset: int, key: int) -> None:
        self.frames.append(frame)
        self.nbytes += len(frame)
        self._seqs.append(seq)
        self._offsets.append(offset)
        self._keys.append(key)

    def batch(self) -> Batch:
        return Batch(
            *(self.frames, self._seqs[0], self._seqs, self._offsets, self._keys, self.private),
            [*range(len(self.frames))],
        )


@dataclass(slots=True)
class Work:
    """All work of one job on the files of one kernel.

    Attributes
    ----------
    files : KernelFiles
    opened : OpenFiles
    remove : sequence of Path
        Segment files to remove, with their indexes.
    seal : list of (Path, list of bytes)
        The indexes of segment files that are complete.
    compaction : Compaction or None
    states : StateChanges
    frames : Append or None
    set_aside : Path or None
        The result: the new name of a directory with files that were not recovered.
    """

    files: KernelFiles
    opened: OpenFiles
    remove: Sequence[Path]
    seal: Sequence[tuple[Path, list[bytes]]]
    compaction: Compaction | None
    states: StateChanges
    frames: Append | None
    set_aside: Path | None = None

    @property
    def nbytes(self) -> int:
        """The bytes to write, about."""
        nbytes = self.states.nbytes
        if self.frames is not None:
            batch = self.frames.batch
            nbytes += batch.end_offset - batch.offsets[0]
        return nbytes + (self.compaction.source.size if self.compaction is not None else 0)

    def run(self, disk: Disk) -> None:
        """Do the work.

        Raises
        ------
        OSError
            If frames or states were not written, or the frames with state not copied.
        """
        self.set_aside = self.files.claim(disk)
        try:
            self._clean(disk)
            self._write(disk)
        except OSError:
            self.files.doubt()
            raise

    def _clean(self, disk: Disk) -> None:
        for path in self.remove:
            self.opened.close(path)
            with suppress(OSError):  # it is found and removed after the next start
                disk.remove(index_path(path))
                disk.remove(path)
        for path, content in self.seal:
            self.opened.close(path.with_suffix(""))
            with suppress(OSError):  # an index only saves time
                disk.write_file(path, content)
        if self.compaction is not None:
            self.opened.close(self.compaction.path)
            self.compaction.run(disk)

    def _write(self, disk: Disk) -> None:
        states = self.states
        log, size = self.files.state_log, self.states.size
        if states.whole is not None:
            self.opened.close(log)
            disk.write_file(log, [states.whole])
        if states.values:
            disk.write_all(self.opened.get(log, size), [states.values])
            size += len(states.values)
        if self.frames is not None:
            self.frames.run(disk, self.opened)
        if states.removals:
            disk.write_all(self.opened.get(log, size), [states.removals])


class Close(Task):
    """The end of the files of a history: they are removed, or left for the next process."""

    __slots__ = ("_files", "_future", "_indexes", "_opened")

    def __init__(
        self,
        opened: OpenFiles,
        files: KernelFiles,
        indexes: list[tuple[Path, list[bytes]]] | None,
        future: asyncio.Future[None],
    ) -> None:
        self._opened = opened
        self._files = files
        self._indexes = indexes
        self._future = future

    def run(self, disk: Disk) -> None:
        """Remove the files, or write the indexes; then release the lock."""
        self._opened.close_all(self._files.directory)
        if self._indexes is None:
            self._files.remove(disk)
            return
        try:
            for path, content in self._indexes:
                disk.write_file(path, content)
        finally:
            self._files.unlock()

    def done(self, error: BaseException | None) -> None:  # noqa: ARG002
        """Set the future; after an error the next start does the rest."""
        if not self._future.done():
            self._future.set_result(None)
