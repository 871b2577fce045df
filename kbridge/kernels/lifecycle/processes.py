"""Processes that are not our children: looked at, waited for and signalled like a `Popen`.

Invariant: nothing here ever signals another process than the one that was meant. A process id is
given anew when its process has gone; so each is held by a pidfd where there is one (Linux), and
known by the time of its start everywhere.
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
    "birth",
    "boot_of",
    "commands",
    "find_command",
    "namespace",
    "same_birth",
    "signal_process",
    "state_of",
]

# Only a parent learns how its child ended.
EXIT_UNKNOWN: Final = 255
_LOOK_SECONDS: Final = 0.05
_LINUX: Final = sys.platform == "linux"
# The inode of the pid namespace that a machine starts with (PROC_PID_INIT_INO in linux/proc_ns.h).
_FIRST_NAMESPACE: Final = str(0xEFFFFFFC)
_STATE, _STARTTIME = 0, 19  # fields of /proc/PID/stat behind the name, see proc_pid_stat(5)


class ProcessState(Enum):
    """The state of a process that was recorded with the result of `birth`."""

    RUNNING = "running"
    GONE = "gone"
    # The process may run, but this process cannot see it: it is in another pid namespace (a
    # container) or on another machine, or /proc is not readable.
    HIDDEN = "hidden"


def birth(pid: int) -> str:
    """Return when and where a process was started: boot, pid namespace and start time.

    Only for comparison, see `state_of`. Empty if no such process runs (a zombie does not), or if
    processes cannot be looked at. On Linux the start is not a time of day, because that changes
    when the clock is set.
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


def state_of(pid: int, born: str) -> ProcessState:
    """Return whether the process with this id and `birth` runs, as far as can be seen from here.

    Births of two parts (boot and start time) were written by earlier versions; they are taken
    for births in this pid namespace if a process matches, or if this one is the machine's own.
    """
    if pid <= 0:
        return ProcessState.GONE
    if not born:
        return ProcessState.HIDDEN
    if same_birth(birth(pid), born):
        return ProcessState.RUNNING
    if not _LINUX:
        return ProcessState.GONE
    boot, namespace, _ = _parts(born)
    here = _namespace()
    if not _proc_is_ours() or not here:
        return ProcessState.HIDDEN
    if boot == _boot() and namespace:
        return ProcessState.GONE if namespace == here else ProcessState.HIDDEN
    # Another boot: the machine was restarted if neither process runs in a container. Containers
    # on two machines may share a directory and a host name.
    outermost = here == _FIRST_NAMESPACE and namespace in ("", here)
    return ProcessState.GONE if outermost else ProcessState.HIDDEN


def boot_of(born: str) -> bool:
    """Return True if a process of that birth can still run: not if the machine was restarted."""
    return not _LINUX or _parts(born)[0] in ("", _boot())


def same_birth(one: str, other: str) -> bool:
    """Return True if two births are of one process, given that the process ids are equal."""
    if not one or not other:
        return False
    (boot, namespace, start), (boot2, namespace2, start2) = _parts(one), _parts(other)
    places = {namespace, namespace2} - {""}
    return (boot, start) == (boot2, start2) and len(places) <= 1


def _parts(born: str) -> tuple[str, str, str]:
    boot, _, rest = born.partition("/")
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
    """Identify a namespace of this process, empty where the system has none or does not tell.

    Only to be compared. A process id means something in its own pid namespace alone: containers
    have one each, and in all of them some process has the id 1.

    Parameters
    ----------
    kind : str
        A name in /proc/self/ns, such as `pid` or `net`.
    """
    if not _LINUX:
        return ""
    try:
        # The number alone is given anew after a start of the machine.
        return f"{_boot()}/{Path('/proc/self/ns', kind).stat().st_ino}"
    except OSError:  # some sandboxes hide it
        return ""


def signal_process(pid: int, born: str, number: int) -> None:
    """Send a signal to one process, and to no other that has its id now.

    Parameters
    ----------
    pid : int
        In this pid namespace.
    born : str
        Its `birth`.
    number : int
        The signal.

    Raises
    ------
    ProcessLookupError
        If that process has gone.
    """
    fd = _pidfd(pid)
    try:
        if not same_birth(birth(pid), born):  # looked at while it is held
            raise ProcessLookupError(f"process {pid} has gone")
        if fd is not None:
            signal.pidfd_send_signal(fd, number)  # type: ignore[attr-defined, unused-ignore]
        else:
            os.kill(pid, number)
    finally:
        if fd is not None:
            os.close(fd)


def commands() -> dict[int, list[str]]:
    """The command lines of the processes that a server of ours may have started, by process id.

    Those of other users are not: anybody may run a program under the command line of a kernel of
    ours, and wait to be sent what is meant for that. Nor is who leads no session: what a kernel
    has forked goes by the kernel's own command line, and may outlive it.
    """
    import psutil

    return {p.pid: p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"]) if _ours(p)}


def _ours(process: Any) -> bool:
    if sys.platform == "win32":
        return True
    import psutil

    try:
        return os.getsid(process.pid) == process.pid and bool(process.uids().real == os.getuid())
    except (OSError, psutil.Error):  # it has gone meanwhile, or is none of our business
        return False


def find_command(argv: Sequence[str], among: dict[int, list[str]]) -> int:
    """The process that was started with these arguments, 0 where there is none or several.

    The program itself may be shown otherwise: found on PATH, or behind its interpreter.
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
    """What `subprocess.Popen` is for a child, for a process that somebody else has started.

    Signals go to its process group where it leads one, as jupyter_client's launcher has it.

    Parameters
    ----------
    pid : int
        The process.
    born : str
        Its `birth`.

    Attributes
    ----------
    returncode : int or None
        None while it runs, then EXIT_UNKNOWN.

    Raises
    ------
    ProcessLookupError
        If that process has gone, whoever has its id now.
    """

    stdin = stdout = stderr = None
    win32_interrupt_event = None
    _fd: int | None = None

    def __init__(self, pid: int, born: str) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._born = born
        # First held, then looked at: thus what was looked at is what is held.
        self._fd = _pidfd(pid)
        if not same_birth(birth(pid), born):
            self.close()
            raise ProcessLookupError(f"process {pid} has gone")
        self._leads = hasattr(os, "getpgid") and os.getpgid(pid) == pid

    def poll(self) -> int | None:
        """Return None while it runs."""
        if self.returncode is None and not self._runs():
            self.returncode = EXIT_UNKNOWN
            self.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Block until it has ended.

        Raises
        ------
        TimeoutError
            If it runs on for `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"process {self.pid} runs on")
            if self._fd is not None:
                _ended(self._fd, left)
            else:
                time.sleep(_LOOK_SECONDS)
        return EXIT_UNKNOWN

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens where it has ended."""
        if self.poll() is not None:
            return
        try:
            if self._leads:
                # While its leader lives, a group's number is given to nobody else.
                os.killpg(self.pid, number)
            elif self._fd is not None:
                signal.pidfd_send_signal(self._fd, number)  # type: ignore[attr-defined, unused-ignore]
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def close(self) -> None:
        """Hold it no longer; may be called twice."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _runs(self) -> bool:
        if self._fd is not None:
            return not _ended(self._fd, 0)
        return same_birth(birth(self.pid), self._born)

    def __del__(self) -> None:
        self.close()


def _pidfd(pid: int) -> int | None:
    open_pidfd = getattr(os, "pidfd_open", None)
    try:
        return int(open_pidfd(pid)) if open_pidfd is not None else None
    except OSError:  # gone already, or an old kernel: its birth will tell
        return None


def _ended(fd: int, timeout: float | None) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)  # what a pidfd says when its process has ended
    return bool(poller.poll(None if timeout is None else timeout * 1000))
