"""Find the journals that an earlier process left, and repair them. For threads.

An error costs as little as possible: that of a kernel its journal, that of a segment file its
frames. Such files stay: they can perhaps be read at the next start.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from kbridge.private import prepare_directory
from kbridge.storage.disk import Disk
from kbridge.storage.files import (
    LOCKS,
    KernelFiles,
    directory_name,
    is_journal_name,
    is_own_directory,
    is_set_aside,
)
from kbridge.storage.index import Segment
from kbridge.storage.segment import dump, index_path, load, scan, segment_path
from kbridge.storage.state_log import parse

__all__ = [
    "Recovered",
    "RecoveredFiles",
    "Survey",
    "prepare",
    "recover",
    "remove_orphan",
    "survey",
]

_ABANDONED_S: Final = 24 * 3600.0
_KINDS: Final = {".full": False, ".sparse": True}
_NFS: Final = ".nfs"  # a removed file that is open somewhere


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
        Of files that cannot be read, for the log.
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
    locked : dict of str to str
        Kernel id -> why another process has its files.
    problems : list of str
        For the log.
    """

    recovered: dict[str, RecoveredFiles] = field(default_factory=dict)
    locked: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def release(self) -> None:
        """Release the locks of the files, which will not be used."""
        for found in self.recovered.values():
            found.files.unlock()


def prepare(directory: Path, keep: Collection[str]) -> tuple[list[Path], list[str]]:
    """Make the directory, and return the paths in it that no kernel in `keep` has.

    Returns
    -------
    list of Path, list of str
        Paths for `remove_orphan`, and problems for the log.

    Raises
    ------
    OSError
        If the directory cannot be used.
    """
    warning = prepare_directory(directory)
    names = {directory_name(kernel_id) for kernel_id in keep}
    entries = [entry for entry in sorted(directory.iterdir()) if entry.name not in names]
    return entries, [warning] if warning else []


def survey(disk: Disk, directory: Path, owner: str, keep: Collection[str]) -> Survey:
    """Recover the kernels in `keep`, as far as they have files."""
    found = Survey()
    for kernel_id in keep:
        files = KernelFiles(directory / directory_name(kernel_id), owner)
        try:
            if not is_own_directory(files.directory):
                continue
            files.lock()
            recovered = recover(disk, files)
            files.know()
        except BlockingIOError as error:
            found.locked[kernel_id] = str(error)
        except Exception as error:  # noqa: BLE001 - the other kernels are recovered
            files.unlock()
            found.problems.append(f"The journal of kernel {kernel_id} cannot be read: {error!r}")
        else:
            found.recovered[kernel_id] = recovered
            found.problems.extend(
                f"A part of the journal of kernel {kernel_id} cannot be read: {problem}"
                for problem in recovered.problems
            )
    return found


def recover(disk: Disk, files: KernelFiles) -> RecoveredFiles:
    """Read the files of a kernel, cut off incomplete blocks, and remove duplicates.

    Raises
    ------
    OSError
        If the directory cannot be read.
    """
    directory = files.directory
    found: list[Segment] = []
    next_number = 0
    problems: list[str] = []
    for path in sorted(directory.iterdir()):
        if not is_journal_name(path.name):
            continue
        if path.suffix == ".tmp":
            with suppress(OSError):
                disk.remove(path)
        if path.suffix not in _KINDS:
            continue
        next_number = max(next_number, int(path.stem) + 1)
        try:
            found.append(_read_segment(disk, path))
        except OSError as error:
            problems.append(f"{error.strerror or error} in {path}")
    segments = _without_duplicates(disk, directory, found)
    records: dict[str, object] = {}
    try:
        records = parse(disk.read_file(files.state_log))
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{error.strerror or error} in {files.state_log}")
    for segment in segments:
        segment.keys = None
    return RecoveredFiles(files, segments, next_number, records, problems)


def _read_segment(disk: Disk, path: Path) -> Segment:
    sparse = _KINDS[path.suffix]
    number = int(path.stem)
    size = path.lstat().st_size
    with suppress(OSError):  # the segment file has all that the index has
        if segment := load(disk, path, Segment(number, sparse=sparse), size):
            return segment
    segment = scan(disk, path, Segment(number, sparse=sparse))
    _repair(disk, path, segment, size)
    return segment


def _repair(disk: Disk, path: Path, segment: Segment, size: int) -> None:
    """Cut a file after its last complete block, and write its index; not on a disk that fails."""
    if not segment.frames:
        _remove(disk, path)
        return
    if segment.size < size:
        try:
            descriptor = disk.append(path)
            try:
                disk.truncate(descriptor, segment.size)
            finally:
                disk.close(descriptor)
        except OSError:
            segment.damaged = True  # nothing may be added to the file
            return
    with suppress(OSError):  # it only saves time
        disk.write_file(index_path(path), dump(segment))


def _without_duplicates(disk: Disk, directory: Path, found: list[Segment]) -> list[Segment]:
    """Return the segments in order, without frames that two of them have.

    A crash during a compaction leaves frames in a sparse segment and in the full one they come
    from; the full one wins. Frames whose write failed and was tried again in a new file may be in
    both; the new file wins, but a full one wins over a sparse one.
    """
    full = [segment for segment in found if not segment.sparse and segment.frames]
    kept = [*full]
    for segment in found:
        if not segment.sparse or not segment.frames:
            continue
        for other in full:  # which ends first: the sparse one has the frames after that
            if other.first_seq <= segment.first_seq < other.end_seq < segment.end_seq:
                segment.first_seq = other.end_seq
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
    with suppress(OSError):
        disk.remove(index_path(path))
        disk.remove(path)


def remove_orphan(disk: Disk, directory: Path, owner: str) -> bool:
    """Remove the directory of a kernel that has ended; return False if it may be in use.

    A directory of the user is not touched: the owner file and the names of all files show that it
    is of a journal. After an error, it is tried again at the next start.
    """
    try:
        return _remove_orphan(disk, directory, owner)
    except OSError:
        return False


def _remove_orphan(disk: Disk, directory: Path, owner: str) -> bool:
    if not LOCKS or not is_own_directory(directory):
        return False
    files = KernelFiles(directory, owner)
    found = files.owner
    if found is None or not _has_only_journal_files(directory):
        return False
    if found != owner or is_set_aside(directory.name):
        newest = max((path.lstat().st_mtime for path in directory.iterdir()), default=0.0)
        if time.time() - max(newest, directory.stat().st_mtime) < _ABANDONED_S:
            return False
    files.lock()
    files.remove(disk)
    return not os.path.lexists(directory)


def _has_only_journal_files(directory: Path) -> bool:
    return all(
        entry.name.startswith(_NFS)
        or (is_journal_name(entry.name) and stat.S_ISREG(entry.lstat().st_mode))
        for entry in directory.iterdir()
    )
