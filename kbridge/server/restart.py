"""A restart within the process: the program is started again, with the same command line.

The process stays, so that systemd, Docker or a terminal still supervise it. The program before
leaves its kernels and their connections (`kbridge.link.holder`), and passes on the sockets that it
listens on. Clients that connect in between wait in the queues of these sockets.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from kbridge.errors import Conflict, SetupError
from kbridge.hub.settings import HubSettings
from kbridge.kernels.interface import Kernel
from kbridge.kernels.lifecycle.processes import open_pidfd
from kbridge.link.choice import ENDS_WITH_PYZMQ, LinkKind
from kbridge.link.holder.client import is_supported

__all__ = [
    "ADVICE",
    "check_losses",
    "check_successors",
    "inherited_sockets",
    "installed_version",
    "no_holder",
    "pass_sockets",
    "reap_inherited",
    "start_again",
]

ADVICE: Final = "`kbridge restart --force` restarts all the same"

_VARIABLE: Final = "KBRIDGE_SOCKETS"
_TIMEOUT: Final = 60.0
_NAMED: Final = 5  # kernels whose ids are shown
# The package that the program itself has imported: `-P` leaves out the working directory.
_CHECK: Final = """\
import sys
sys.path.append(sys.argv[1])
import kbridge.server.cli.serve, kbridge.server.cli.app
from kbridge.server.restart import inherited_sockets
print(kbridge.__version__)
"""


def no_holder(settings: HubSettings) -> str:
    """Return why the connections to kernels end with this process; empty if they may stay."""
    if not is_supported():
        return "connections to kernels outlive a server on Linux only"
    if not settings.journal_dir:
        return "journal_dir is empty"
    if settings.link == LinkKind.PYZMQ:
        return ENDS_WITH_PYZMQ
    return ""


def check_losses(kernels: Collection[Kernel], settings: HubSettings, *, registry: bool) -> None:
    """Check that a restart loses nothing.

    Parameters
    ----------
    kernels : collection of Kernel
        The kernels in use.
    settings : HubSettings
    registry : bool
        True if the next program finds the kernels again.

    Raises
    ------
    Conflict
        If something would be lost; the reason says what, and why.
    """
    ending = [] if registry else [k.kernel_id for k in kernels if not k.outlives_server]
    if ending:
        raise Conflict(
            f"a restart would end {_names(ending)}, because the server has no registry"
            f" (registry_url). {ADVICE}"
        )
    cut = [k.kernel_id for k in kernels if not k.connections_stay]
    if cut:
        reason = no_holder(settings) or (
            "their connections are encrypted, lead through a tunnel, or use an old protocol, or"
            " their journals cannot be written"
        )
        raise Conflict(
            f"output, replies and input requests of {_names(cut)} during a restart would be lost:"
            f" {reason}. {ADVICE}"
        )
    _check_waiting(kernels)


def _check_waiting(kernels: Collection[Kernel]) -> None:
    waiting = [k.kernel_id for k in kernels if k.hub is not None and k.hub.waiting_requests]
    if waiting:
        raise Conflict(
            f"requests that wait for {_names(waiting)} would be lost: a kernel that is not ready"
            f" has not received them. Try again when it is ready. {ADVICE}"
        )


def check_successors(kernels: Collection[Kernel], kept: Sequence[str]) -> None:
    """Check that a restart of a replica loses nothing: it gives its kernels to the others first.

    Parameters
    ----------
    kernels : collection of Kernel
        The kernels in use.
    kept : sequence of str
        The ids of the kernels that no other replica can take.

    Raises
    ------
    Conflict
        If something would be lost; the reason says what, and why.
    """
    if kept:
        raise Conflict(
            f"output, replies and input requests of {_names(kept)} during a restart would be lost:"
            " no other replica of the cluster can take over. Start another one first, on the"
            f" machine of the kernels. {ADVICE}"
        )
    _check_waiting(kernels)


def _names(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:_NAMED]) + ", ..." * (len(ids) > _NAMED)
    return f"{len(ids)} kernel{'s' * (len(ids) > 1)} ({shown})"


def installed_version() -> str:
    """Return the version of kbridge that would be started now; blocks for a second.

    Raises
    ------
    Conflict
        If it cannot be imported, so that the present program had better go on.
    SetupError
        If this system cannot replace the program of a process.
    """
    if os.name == "nt":
        raise SetupError("a server on Windows cannot be restarted; stop it, and start it again")
    package = Path(__file__).parents[2]
    command = [sys.executable, "-P", "-c", _CHECK, str(package)]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Conflict(f"the installed kbridge cannot be started: {error}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Conflict(f"the installed kbridge cannot be imported: {last}")
    return done.stdout.strip()


def pass_sockets(address: str, sockets: Sequence[socket.socket]) -> None:
    """Let the next program of this process have listening sockets, which may be closed now.

    Parameters
    ----------
    address : str
        `ServerConfig.address`: with other settings, the next program does not use the sockets.
    sockets : sequence of socket.socket
    """
    fds = [os.dup(sock.fileno()) for sock in sockets]
    for fd in fds:
        os.set_inheritable(fd, True)
    os.environ[_VARIABLE] = json.dumps({"pid": os.getpid(), "address": address, "fds": fds})


def inherited_sockets(address: str) -> list[socket.socket]:
    """Return the listening sockets of the program before, for the same settings; perhaps none."""
    passed = _passed()
    os.environ.pop(_VARIABLE, None)
    if passed is None:
        return []
    sockets = [socket.socket(fileno=fd) for fd in passed["fds"]]
    for sock in sockets:
        sock.set_inheritable(False)
        sock.setblocking(False)
    if passed["address"] == address:
        return sockets
    for sock in sockets:
        sock.close()
    return []


def _passed() -> dict[str, Any] | None:
    """Return what the program before has passed on; None in any other process."""
    text = os.environ.get(_VARIABLE, "")
    passed: dict[str, Any] | None = json.loads(text) if text else None
    # Programs that a server has started have its environment, too.
    return passed if passed is not None and passed["pid"] == os.getpid() else None


def reap_inherited() -> None:
    """Let the event loop reap the processes that the program before has started.

    They are children of this process, but not known to `subprocess`: those that end would stay as
    zombies. Does nothing in a program that was not started by `start_again`, or without pidfds.
    """
    if _passed() is None:
        return
    import psutil  # type: ignore[import-untyped]

    loop = asyncio.get_running_loop()
    for child in psutil.Process().children():
        fd = open_pidfd(child.pid)
        if fd is not None:
            loop.add_reader(fd, _reap, loop, fd)


def _reap(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    loop.remove_reader(fd)
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)  # type: ignore[attr-defined, unused-ignore]
    os.close(fd)


def start_again(log: logging.Logger) -> NoReturn:
    """Replace the program of this process; exit with 1 if that fails."""
    _run_exit_hooks()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    except OSError as error:
        log.critical(
            "%s cannot be started again: %s. Kernels keep running; start kbridge again on the same"
            " address",
            sys.executable,
            error,
        )
    sys.exit(1)


def _run_exit_hooks() -> None:
    """Close tunnels and flush logs: `exec` does not call the hooks of `atexit`.

    The processes of ssh tunnels would otherwise stay, and the next program opens others.
    """
    tunnels = sys.modules.get("kbridge.tunnel.tunnel")
    if tunnels is not None:  # otherwise there are none
        tunnels.close_tunnels()
    logging.shutdown()
