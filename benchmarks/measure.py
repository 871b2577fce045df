"""Read the CPU time, memory and descriptors of processes from /proc (proc(5)). Linux only.

CPU time is the sum over the threads of one process. Child processes are not counted: the CPU time
of a kernel is not a cost of the bridge.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from typing import Self

PAGE = os.sysconf("SC_PAGE_SIZE")


class BenchmarkError(RuntimeError):
    """A measurement could not be taken."""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of the living threads of a process, in seconds (nanosecond clock)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue  # the thread has ended
    return total / 1e9


def rss(pid: int) -> int:
    """Return the resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def memory(field: str) -> int:
    """Return a field of /proc/meminfo in bytes, such as MemFree."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise BenchmarkError(f"/proc/meminfo does not have {field}")


def descriptors(pid: int) -> int:
    """Return the number of file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def open_files(pid: int) -> int:
    """Return the number of file descriptors of a process that are regular files."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += stat.S_ISREG(entry.stat().st_mode)
        except FileNotFoundError:
            continue  # it was closed
    return found


def children(pid: int) -> list[int]:
    """Return the ids of the processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # the process has ended
            # The name is in parentheses and may contain any character; the fields follow the last
            # one.
            if int(fields.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def settle(pid: int, quiet: float = 0.3, timeout: float = 60.0) -> None:
    """Wait until a process has used less than 5 % of one core for `quiet` seconds.

    Raises
    ------
    BenchmarkError
        If it was still busy after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        before = cpu_seconds(pid)
        time.sleep(quiet)
        if cpu_seconds(pid) - before < 0.05 * quiet:
            return
    raise BenchmarkError(f"process {pid} did not come to rest in {timeout} s")


def percentile(values: list[float], percent: float) -> float:
    """Return the nearest-rank percentile of the values, which must not be empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class PeakRss:
    """Measures the highest resident memory of a process in a `with` block, sampled every 20 ms."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.before = self.peak = rss(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, rss(self.pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """The difference between the peak and the start in bytes."""
        return self.peak - self.before
