"""CPU and memory of the process trees of kernels. Everything here blocks: call it in a thread.

The trees are read again every few seconds only, and on Linux without a look at the processes of
other programs. psutil is imported with the first measurement, which keeps the start fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["ProcessMeter", "Usage"]

_TREES: Final = 5.0  # seconds for which the list of a tree's processes is used
_LARGEST: Final = 500  # processes of one tree that are measured


@dataclass(frozen=True, slots=True)
class Usage:
    """The use of resources by one process tree.

    Attributes
    ----------
    cpu : float or None
        CPU time per time since the last measurement: 1.0 is one core. None in the first one.
    memory : int
        Bytes of resident memory; memory that processes share counts for each of them.
    processes : int
        The number of processes.
    """

    cpu: float | None
    memory: int
    processes: int


class _Tree:
    """The processes of one kernel."""

    def __init__(self, root: int, *, alone: bool) -> None:
        self.root = root
        self._alone = alone
        self._processes: dict[int, Any] = {}
        self._times: dict[int, float] = {}
        self._measured: float | None = None
        self._found = float("-inf")

    def measure(self, now: float) -> Usage | None:
        """Return the usage; None if the process has ended."""
        import psutil  # type: ignore[import-untyped]

        if now - self._found >= _TREES:
            self._find()
            self._found = now
        times: dict[int, float] = {}
        memory, spent = 0, 0.0
        for pid, process in self._processes.items():
            try:
                with process.oneshot():
                    cpu = process.cpu_times()
                    memory += process.memory_info().rss
            except (psutil.Error, OSError):
                continue
            times[pid] = cpu.user + cpu.system
            spent += times[pid] - self._times.get(pid, times[pid])
        before, self._measured, self._times = self._measured, now, times
        if not times:
            return None
        passed = now - before if before is not None else 0.0
        return Usage(max(0.0, spent / passed) if passed > 0 else None, memory, len(times))

    def _find(self) -> None:
        import psutil

        known, self._processes = self._processes, {}
        for pid in [self.root] if self._alone else _family(self.root):
            try:
                process = known.get(pid)
                if process is None or not process.is_running():  # another one has the number now
                    process = psutil.Process(pid)
                self._processes[pid] = process
            except (psutil.Error, OSError, ValueError):  # the number may be of another machine
                continue


class ProcessMeter:
    """Measures the process trees of kernels.

    Parameters
    ----------
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trees: dict[str, _Tree] = {}

    def measure(self, pids: Mapping[str, int], alone: Collection[str] = ()) -> dict[str, Usage]:
        """Return the usage of each process tree that still has a process.

        Parameters
        ----------
        pids : mapping of str to int
            The process at the root of each tree, by a name that stays the same.
        alone : collection of str
            The names of processes that are measured without their descendants.
        """
        for name in self._trees.keys() - pids.keys():
            del self._trees[name]
        found: dict[str, Usage] = {}
        for name, pid in pids.items():
            tree = self._trees.get(name)
            if tree is None or tree.root != pid:
                tree = self._trees[name] = _Tree(pid, alone=name in alone)
            usage = tree.measure(self._clock())
            if usage is not None:
                found[name] = usage
        return found


def _family(root: int) -> list[int]:
    """Return a process and its descendants."""
    found = [root]
    for pid in found:  # grows
        if len(found) < _LARGEST:
            found += [child for child in _children(pid) if child not in found]
    return found[:_LARGEST]


def _children(pid: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        texts = [(task / "children").read_text() for task in tasks]
    except OSError:  # not Linux, or the process has ended
        return listed_children(pid)
    return [int(child) for text in texts for child in text.split()]


def listed_children(pid: int) -> list[int]:
    """Find them in the list of all processes."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except (psutil.Error, ValueError):
        return []
