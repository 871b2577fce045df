"""The type of the file system that an SQLite file is on.

SQLite's write-ahead log needs memory that all programs share. On a network file system, programs of
several machines share the file, but not the memory, and the file can be damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["file_system_of", "shares_memory"]

_MOUNTS: Final = Path("/proc/self/mountinfo")
# File systems of Linux that one machine uses at a time.
_LOCAL: Final = {
    *("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs"),
    *("reiserfs", "tmpfs", "xfs", "zfs"),
}
# The characters that the list of mounts escapes, the backslash last.
_ESCAPED: Final = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}


def shares_memory(path: Path) -> bool:
    """Return True if all programs that can open a file share memory that they map from it.

    False if that is not known: on other systems than Linux, too.
    """
    return file_system_of(path) in _LOCAL


def file_system_of(path: Path, mounts: Path = _MOUNTS) -> str:
    """Return the type of the file system of a file, as `mount` shows it; empty if not known.

    Parameters
    ----------
    path : Path
        The file, which need not exist.
    mounts : Path
        The list of mounts, see proc_pid_mountinfo(5).
    """
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
        place = path.resolve()
    except (OSError, RuntimeError):
        return ""
    longest, found = -1, ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = _point(fields.split(" ")[4])
        # The mount that is listed last hides others at its place.
        if len(point.parts) >= longest and place.is_relative_to(point):
            longest, found = len(point.parts), rest.partition(" ")[0]
    return found


def _point(text: str) -> Path:
    for escape, character in _ESCAPED.items():
        text = text.replace(escape, character)
    return Path(text)
