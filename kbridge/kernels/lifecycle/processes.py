"""Processes that are not children of this one: inspected, awaited and signalled like a `Popen`.

Invariant: a signal never reaches another process than the intended one. The operating system reuses
a process id once its process has ended. So each process is held by a pidfd on Linux, and identified
by the time of its start everywhere.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final

__all__ = [
    "EXIT_UNKNOWN",
    "AdoptedProcess",
    "ProcessState",
    "commands",
    "find_command",
    "namespace",
    "open_pidfd",
    "same_boot",
    "same_process",
    "signal_process",
    "start_id",
    "state_of",
]

# The exit code of a process that is not a child: only a parent learns how its child ended.
EXIT_UNKNOWN: Final = 255
_LOOK_SECONDS: Final = 0.05
_LINUX: Final = sys.platform == "linux"
# The inode of the pid namespace that a machine starts with (PROC_PID_INIT_INO in linux/proc_ns.h).
_FIRST_NAMESPACE: Final = str(0xEFFFFFFC)
_STATE, _STARTTIME = 0, 19  # fields of /proc/PID/stat behind the name, see proc_pid_stat(5)


class ProcessState(Enum):
    """The state of a process that was recorded with its `start_id`."""

    RUNNING = "running"
    GONE = "gone"
    # The process may run, but this process cannot see it: it is in another pid namespace (a
    # container) or on another machine, or /proc is not readable.
    HIDDEN = "hidden"


def start_id(pid: int) -> str:
    """Return a text that identifies a process: boot, pid namespace and start time.

    Use it for comparison only, see `state_of`. The text is empty if no such process runs (a zombie
    does not), or if processes cannot be inspected. On Linux the start time is not a time of day,
    because that changes when the clock is set.
    """
    if _LINUX:
        if not _proc_is_ours():
            return ""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return ""
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[_STATE] in (b"Z", b"X"):
            return ""
        return f"{_boot()}/{_namespace()}/{int(fields[_STARTTIME])}"
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"/{process.create_time():.2f}"
    except psutil.Error:
        return ""


def state_of(pid: int, recorded: str) -> ProcessState:
    """Return the state of a process, as far as this process can see it.

    Parameters
    ----------
    pid : int
        The process id.
    recorded : str
        The `start_id` of the process. Those of two parts (boot and start time) were written by
        earlier versions; they count as those of this pid namespace if a process matches, or if
        this pid namespace is the machine's first.
    """
    if pid <= 0:
        return ProcessState.GONE
    if not recorded:
        return ProcessState.HIDDEN
    if same_process(start_id(pid), recorded):
        return ProcessState.RUNNING
    if not _LINUX:
        return ProcessState.GONE
    boot, namespace, _ = _parts(recorded)
    here = _namespace()
    if not _proc_is_ours() or not here:
        return ProcessState.HIDDEN
    if boot == _boot() and namespace:
        return ProcessState.GONE if namespace == here else ProcessState.HIDDEN
    # Another boot: the machine was restarted if neither process runs in a container. Containers
    # on two machines may share a directory and a host name.
    outermost = here == _FIRST_NAMESPACE and namespace in ("", here)
    return ProcessState.GONE if outermost else ProcessState.HIDDEN


def same_boot(recorded: str) -> bool:
    """Return False if the machine was restarted since a `start_id` was recorded."""
    return not _LINUX or _parts(recorded)[0] in ("", _boot())


def same_process(one: str, other: str) -> bool:
    """Return True if two `start_id` are of one process, given that the process ids are equal."""
    if not one or not other:
        return False
    (boot, namespace, start), (boot2, namespace2, start2) = _parts(one), _parts(other)
    places = {namespace, namespace2} - {""}
    return (boot, start) == (boot2, start2) and len(places) <= 1


def _parts(recorded: str) -> tuple[str, str, str]:
    boot, _, rest = recorded.partition("/")
    namespace, _, start = rest.rpartition("/")
    return boot, namespace, start


def _namespace() -> str:
    """Return the inode of this process's pid namespace, empty if it cannot be read."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return ""


def _proc_is_ours() -> bool:
    """Return True if /proc shows this pid namespace: not after `unshare --pid` without a mount."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115
    except OSError:
        return False


def namespace(kind: str = "pid") -> str:
    """Return a text that identifies a namespace of this process; empty if it is unknown.

    Use it for comparison only. A process id is valid in its pid namespace only: each container has
    one, and in each of them some process has the id 1.

    Parameters
    ----------
    kind : str
        A name in /proc/self/ns, such as `pid` or `net`.
    """
    if not _LINUX:
        return ""
    try:
        # The number alone is not unique: the machine uses it again after a restart.
        return f"{_boot()}/{Path('/proc/self/ns', kind).stat().st_ino}"
    except OSError:  # some sandboxes hide it
        return ""


def signal_process(pid: int, recorded: str, number: int) -> None:
    """Send a signal to a process, but not to another process that has its id now.

    Parameters
    ----------
    pid : int
        In this pid namespace.
    recorded : str
        Its `start_id`.
    number : int
        The signal.

    Raises
    ------
    ProcessLookupError
        If that process has ended.
    """
    fd = open_pidfd(pid)
    try:
        if not same_process(start_id(pid), recorded):  # compared while the pidfd holds it
            raise ProcessLookupError(f"process {pid} has ended")
        if fd is not None:
            signal.pidfd_send_signal(fd, number)  # type: ignore[attr-defined, unused-ignore]
        else:
            os.kill(pid, number)
    finally:
        if fd is not None:
            os.close(fd)


def commands() -> dict[int, list[str]]:
    """Return the command lines of processes that a server may have started, by process id.

    Processes of other users are left out: anybody can run a program under the command line of a
    kernel, to receive its signals and requests. Processes that do not lead a session are left out,
    too: a fork of a kernel has the kernel's command line, and may outlive it.
    """
    import psutil

    return {p.pid: p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"]) if _ours(p)}


def _ours(process: Any) -> bool:
    if sys.platform == "win32":
        return True
    import psutil

    try:
        return os.getsid(process.pid) == process.pid and bool(process.uids().real == os.getuid())
    except (OSError, psutil.Error):  # it has ended, or this process may not inspect it
        return False


def find_command(argv: Sequence[str], among: dict[int, list[str]]) -> int:
    """Return the id of the process with these arguments; 0 if there is none, or several.

    The program itself is not compared: it may be shown with its path, or after its interpreter.
    """
    arguments = list(argv[1:])
    if not arguments:
        return 0
    found = [pid for pid, command in among.items() if command[-len(arguments) :] == arguments]
    return found[0] if len(found) == 1 else 0


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # some sandboxes hide it
        return ""


class AdoptedProcess:
    """The interface of `subprocess.Popen` for a process that another program started.

    Signals go to its process group if it leads one, as with jupyter_client's launcher.

    Parameters
    ----------
    pid : int
        The process id.
    recorded : str
        The `start_id` of the process.

    Attributes
    ----------
    returncode : int or None
        None while the process runs, then EXIT_UNKNOWN.

    Raises
    ------
    ProcessLookupError
        If that process has ended, even if another process has its id now.
    """

    stdin = stdout = stderr = None
    win32_interrupt_event = None
    _fd: int | None = None

    def __init__(self, pid: int, recorded: str) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._recorded = recorded
        # Opened before the comparison: so the process that is compared is the one that is held.
        self._fd = open_pidfd(pid)
        if not same_process(start_id(pid), recorded):
            self.close()
            raise ProcessLookupError(f"process {pid} has ended")
        self._leads = hasattr(os, "getpgid") and os.getpgid(pid) == pid

    def poll(self) -> int | None:
        """Return None while the process runs, else `returncode`."""
        if self.returncode is None and not self._runs():
            self.returncode = EXIT_UNKNOWN
            self.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Block until the process has ended.

        Raises
        ------
        TimeoutError
            If it still runs after `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"process {self.pid} still runs")
            if self._fd is not None:
                _ended(self._fd, left)
            else:
                time.sleep(_LOOK_SECONDS)
        return EXIT_UNKNOWN

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if self.poll() is not None:
            return
        try:
            if self._leads:
                # The number of a group is not reused while its leader runs.
                os.killpg(self.pid, number)
            elif self._fd is not None:
                signal.pidfd_send_signal(self._fd, number)  # type: ignore[attr-defined, unused-ignore]
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def close(self) -> None:
        """Release the pidfd. May be called twice."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _runs(self) -> bool:
        if self._fd is not None:
            return not _ended(self._fd, 0)
        return same_process(start_id(self.pid), self._recorded)

    def __del__(self) -> None:
        self.close()


def open_pidfd(pid: int) -> int | None:
    """Return a file descriptor that holds a process, see pidfd_open(2).

    Returns None if the process has ended, or the system has no pidfds. The caller closes it.
    """
    pidfd_open = getattr(os, "pidfd_open", None)  # Linux only
    try:
        return int(pidfd_open(pid)) if pidfd_open is not None else None
    except OSError:  # ended already, or an old Linux
        return None


def _ended(fd: int, timeout: float | None) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)  # a pidfd is readable once its process has ended
    return bool(poller.poll(None if timeout is None else timeout * 1000))
