"""Find the journals that an earlier process left, and repair them. For threads."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kbridge.private import prepare_directory
from kbridge.storage.disk import Disk
from kbridge.storage.files import KernelFiles, directory_name
from kbridge.storage.index import Segment
from kbridge.storage.segment import dump, index_path, load, scan, segment_path
from kbridge.storage.state_log import parse

__all__ = ["RecoveredFiles", "Survey", "recover", "survey"]

_ABANDONED_S: Final = 24 * 3600.0
_KINDS: Final = {".full": False, ".sparse": True}


@dataclass(frozen=True)
class RecoveredFiles:
    """The files of one kernel.

    Attributes
    ----------
    files : KernelFiles
        Locked.
    segments : list of Segment
        Without keys.
    next_number : int
        The number of the next segment file.
    records : dict of str to object
        The state log.
    problems : list of str
        Of files that are damaged, for the log.
    """

    files: KernelFiles
    segments: list[Segment]
    next_number: int
    records: dict[str, object]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """The result of `survey`.

    Attributes
    ----------
    recovered : dict of str to RecoveredFiles
        Kernel id -> its files.
    removed : int
        The number of directories of kernels that have ended.
    problems : list of str
        For the log.
    """

    recovered: dict[str, RecoveredFiles]
    removed: int
    problems: list[str]


def survey(disk: Disk, directory: Path, owner: str, keep: Collection[str]) -> Survey:
    """Recover the kernels in `keep`; remove the directories of kernels that have ended.

    Raises
    ------
    OSError
        If the directory cannot be used.
    """
    names = {directory_name(kernel_id): kernel_id for kernel_id in keep}
    problems = []
    if warning := prepare_directory(directory):
        problems.append(warning)
    recovered = {}
    removed = 0
    for entry in sorted(directory.iterdir()):
        if entry.is_symlink() or not entry.is_dir():
            continue
        files = KernelFiles(entry, owner)
        kernel_id = names.get(entry.name)
        try:
            if kernel_id is None:
                removed += _remove_orphan(files, owner)
                continue
            files.lock()
            recovered[kernel_id] = recover(disk, files)
            problems += recovered[kernel_id].problems
        except OSError as error:
            files.unlock()
            if kernel_id is not None:
                problems.append(f"The journal of kernel {kernel_id} cannot be read: {error}")
    return Survey(recovered, removed, problems)


def recover(disk: Disk, files: KernelFiles) -> RecoveredFiles:
    """Read the files of a kernel, cut off incomplete blocks, and remove duplicates.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    """
    directory = files.directory
    found: list[Segment] = []
    next_number = 0
    problems: list[str] = []
    for path in sorted(directory.iterdir()):
        if path.suffix == ".tmp":
            disk.remove(path)
        if path.suffix not in _KINDS or not path.stem.isdecimal():
            continue
        next_number = max(next_number, int(path.stem) + 1)
        found.append(_read_segment(disk, path))
    segments = _without_duplicates(disk, directory, found)
    records: dict[str, object] = {}
    with suppress(FileNotFoundError):
        records = parse(disk.read_file(files.state_log))
    for segment in segments:
        segment.keys = None
    return RecoveredFiles(files, segments, next_number, records, problems)


def _read_segment(disk: Disk, path: Path) -> Segment:
    sparse = _KINDS[path.suffix]
    number = int(path.stem)
    size = path.stat().st_size
    if segment := load(disk, path, Segment(number, sparse=sparse), size):
        return segment
    segment = scan(disk, path, Segment(number, sparse=sparse))
    _repair(disk, path, segment, size)
    return segment


def _repair(disk: Disk, path: Path, segment: Segment, size: int) -> None:
    """Cut a file after its last complete block, and write its index."""
    if not segment.frames:
        _remove(disk, path)
        return
    if segment.size < size:
        descriptor = disk.append(path)
        try:
            disk.truncate(descriptor, segment.size)
        finally:
            disk.close(descriptor)
    disk.write_file(index_path(path), dump(segment))


def _without_duplicates(disk: Disk, directory: Path, found: list[Segment]) -> list[Segment]:
    """Return the segments in order, without frames that two of them have.

    A crash during a compaction leaves frames in a sparse segment and in the full one they come
    from; the full one wins. Frames whose write failed and was tried again in a new file may be in
    both; the new file wins.
    """
    full = [segment for segment in found if not segment.sparse and segment.frames]
    kept = [*full]
    for segment in found:
        if not segment.sparse or not segment.frames:
            continue
        overlap = [
            other.first_seq
            for other in full
            if other.first_seq < segment.end_seq and segment.first_seq < other.end_seq
        ]
        if overlap:
            path = segment_path(directory, segment.number, sparse=True)
            shorter = Segment(segment.number, sparse=True)
            if segment.first_seq < min(overlap):
                scan(disk, path, shorter, before=min(overlap))
            _repair(disk, path, shorter, segment.size)
            segment = shorter  # noqa: PLW2901
        if segment.frames:
            kept.append(segment)
    kept.sort(key=lambda segment: (segment.first_seq, segment.number))
    segments: list[Segment] = []
    for segment in kept:
        while segments and segments[-1].first_seq >= segment.first_seq:
            old = segments.pop()
            _remove(disk, segment_path(directory, old.number, sparse=old.sparse))
        if segments:
            segments[-1].end_seq = min(segments[-1].end_seq, segment.first_seq)
        segments.append(segment)
    return segments


def _remove(disk: Disk, path: Path) -> None:
    disk.remove(index_path(path))
    disk.remove(path)


def _remove_orphan(files: KernelFiles, owner: str) -> bool:
    """Remove the directory of a kernel that has ended; return False if it may be in use."""
    directory = files.directory
    if files.owner != owner:
        newest = max((path.stat().st_mtime for path in directory.iterdir()), default=0.0)
        if time.time() - max(newest, directory.stat().st_mtime) < _ABANDONED_S:
            return False
    files.lock()
    files.remove()
    return True
