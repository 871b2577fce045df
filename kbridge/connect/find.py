"""Find connection files by a part of their names."""

from __future__ import annotations

import glob
import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from jupyter_core.paths import jupyter_runtime_dir

from kbridge.errors import ConnectionFileNotFound

__all__ = ["find_connection_file", "locate"]


def find_connection_file(
    filename: str = "kernel-*.json",
    path: str | Sequence[str] | None = None,
    profile: str | None = None,
) -> str:
    """Find a connection file by its name, by a glob, or by a part of its name (seed 000).

    Parameters
    ----------
    filename : str
        First tried as a name; then as a glob if it contains a ``*``, otherwise as a part of a name.
        If several files match, the one that was read last is used.
    path : str or list of str, optional
        The directories to search; if not given, the working directory and Jupyter's runtime
        directory.
    profile : str, optional
        Ignored, with a warning: IPython had profiles before Jupyter.

    Returns
    -------
    str
        The absolute path of the file.

    Raises
    ------
    ConnectionFileNotFound
        If no file matches; an OSError. The message lists the directories and similar names.
    """
    if profile is not None:
        warnings.warn(f"Jupyter has no profiles. profile={profile} has been ignored.", stacklevel=2)
    if path is None:
        path = [".", jupyter_runtime_dir()]
    directories = [path] if isinstance(path, str | os.PathLike) else list(path)
    wanted = filename.strip("\"'")
    exact = locate(wanted, directories)
    if exact is not None:
        return exact
    pattern = _expanded(wanted) if "*" in wanted else f"*{wanted}*"
    newest: tuple[tuple[int, int], str] | None = None
    for directory in map(_expanded, directories):
        for name in glob.iglob(pattern, root_dir=directory):  # noqa: PTH207 - takes absolute ones
            found = _absolute(Path(directory, name))
            with suppress(OSError):  # it was removed in the meantime
                status = Path(found).stat()
                read = ((status.st_atime_ns, status.st_mtime_ns), found)
                if stat.S_ISREG(status.st_mode) and (newest is None or read > newest):
                    newest = read
    if newest is None:
        raise ConnectionFileNotFound(_not_found(wanted, directories))
    return newest[1]


def locate(filename: str, directories: Iterable[str]) -> str | None:
    """Return the absolute path of a file with exactly this name; ``~`` and ``$`` are expanded."""
    for directory in directories:
        candidate = Path(_expanded(directory), _expanded(filename))
        if candidate.is_file():
            return _absolute(candidate)
    return None


def _not_found(wanted: str, directories: Sequence[str]) -> str:
    import difflib

    names: set[str] = set()
    places = []
    for place in dict.fromkeys(_absolute(Path(_expanded(one))) for one in directories):
        try:
            names.update(path.name for path in Path(place).iterdir() if path.suffix == ".json")
            places.append(place)
        except OSError as error:
            places.append(f"{place} ({error.strerror})")
    where = ", ".join(places) or "no directory at all"
    near = difflib.get_close_matches(Path(wanted).name, sorted(names), n=3, cutoff=0.4)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return f"Could not find {wanted!r}; searched: {where}{hint}"


def _expanded(path: str) -> str:
    # Path.expanduser raises an error if the user does not exist; here it is a file name then.
    return os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111


def _absolute(path: Path) -> str:
    return os.path.normpath(path.absolute())
