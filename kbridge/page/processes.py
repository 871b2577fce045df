"""CPU and memory of the process trees of kernels. Everything here blocks: call it in a thread.

The trees are read again every few seconds only, and on Linux without a look at the processes of
other programs. Elsewhere, one list of all processes serves all trees. psutil is imported with the
first measurement, which keeps the start fast.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["ProcessMeter", "Usage"]

_TREES: Final = 5.0  # seconds for which the list of a tree's processes is used
_LARGEST: Final = 500  # processes of one tree that are measured
_LISTS: Final = Path("/proc/thread-self/children")


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

    def measure(self, now: float, children: _Children) -> Usage | None:
        """Return the usage; None if the process has ended."""
        import psutil  # type: ignore[import-untyped]

        if now - self._found >= _TREES:
            self._find(children)
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

    def _find(self, children: _Children) -> None:
        import psutil

        known, self._processes = self._processes, {}
        for pid in [self.root] if self._alone else _family(self.root, children):
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
    direct : bool, optional
        True if Linux lists the children of a process (CONFIG_PROC_CHILDREN); None to look it up.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, direct: bool | None = None
    ) -> None:
        self._clock = clock
        self._direct = _LISTS.exists() if direct is None else direct
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
        children = _Children(direct=self._direct)
        found: dict[str, Usage] = {}
        for name, pid in pids.items():
            tree = self._trees.get(name)
            if tree is None or tree.root != pid:
                tree = self._trees[name] = _Tree(pid, alone=name in alone)
            usage = tree.measure(self._clock(), children)
            if usage is not None:
                found[name] = usage
        return found


class _Children:
    """Finds the children of processes in one measurement."""

    def __init__(self, *, direct: bool) -> None:
        self._direct = direct
        self._listed: dict[int, list[int]] | None = None

    def of(self, pid: int) -> list[int]:
        """Return the children of a process; none if it has ended."""
        if self._direct:
            return _read_children(pid)
        if self._listed is None:
            self._listed = _list_children()
        return self._listed.get(pid, [])


def _family(root: int, children: _Children) -> list[int]:
    """Return a process and its descendants."""
    found, known = [root], {root}
    for pid in found:  # grows
        if len(found) >= _LARGEST:
            break
        new = [child for child in children.of(pid) if child not in known]
        known.update(new)
        found += new
    return found[:_LARGEST]


def _read_children(pid: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # the process has ended
        return []
    found: list[int] = []
    for task in tasks:
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # the thread has ended
            continue
    return found


def _list_children() -> dict[int, list[int]]:
    """Return the children of all processes."""
    import psutil

    known = [each.info for each in psutil.process_iter(["pid", "ppid", "create_time"])]
    created = {each["pid"]: each["create_time"] or 0.0 for each in known}
    found: defaultdict[int, list[int]] = defaultdict(list)
    for each in known:
        # On Windows, the number of a parent that has ended may belong to a younger process.
        if created[each["pid"]] >= created.get(each["ppid"], 0.0):
            found[each["ppid"]].append(each["pid"])
    return found
