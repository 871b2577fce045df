"""Run OpenSSH's client once, from its start to its end.

Invariants:

- the ssh process ends when this process ends, even if this process is killed;
- everything that ssh has started (ProxyCommand, jump hosts) ends with it;
- no thread is started: the caller's thread reads the output, waits for the end and keeps the
  timeout, all in `SshProcess.output`.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from kbridge.errors import TunnelError

__all__ = ["SshProcess"]

# `ssh -N` does not notice that its parent was killed. So this shell, which becomes ssh, leaves a
# child that kills ssh when its stdin ends, that is, when the process with the other end has ended.
_GUARD: Final = """
exec 3<&0 </dev/null
{ read line <&3 || kill $$; } >/dev/null 2>&1 &
exec "$@" 3<&-
"""
_NO_SHELLS: Final = {"nologin", "false"}
_DRAIN_TIMEOUT: Final = 1.0  # seconds to read the rest of the output of an ssh that has ended
_POLL_INTERVAL: Final = 0.1  # seconds between two checks of a process where pidfds do not exist
_TAIL_LINES: Final = 20
_LINE_LIMIT: Final = 1000  # characters of a line that are kept


class SshProcess:
    """One ssh process.

    Parameters
    ----------
    program : str
        The ssh to run.
    args : sequence of str
        The result of `ssh_command.arguments`.
    timeout : float
        Seconds after which ssh is killed unless all ports are forwarded.

    Attributes
    ----------
    pid : int
        The process id of ssh itself.
    ready : bool
        True once all ports were forwarded.
    timed_out : bool
        True if ssh was killed because of `timeout`.

    Raises
    ------
    TunnelError
        If the program does not exist, or this system has no process groups.
    OSError
        If no process or no file descriptor is left.
    """

    def __init__(self, program: str, args: Sequence[str], timeout: float) -> None:
        if os.name != "posix":
            raise TunnelError("ssh tunnels need a POSIX system: this one has no process groups")
        ssh = shutil.which(program)
        if ssh is None:
            raise TunnelError(f"there is no program {program!r} here: install OpenSSH's client")
        self.ready = self.timed_out = False
        self._timeout = timeout
        self._ready_marker = secrets.token_hex(8)
        self._lines = _Lines()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        # ssh runs a LocalCommand after it has logged in and listens on every port, not before.
        marker = ("-o", "PermitLocalCommand=yes", "-o", f"LocalCommand=echo {self._ready_marker}")
        # A socket, not a pipe, because reading needs a timeout: a connection that an ssh_config
        # keeps open for jump hosts outlives this ssh and keeps its stderr open.
        self._read_end, write_end = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the shell reads none of the arguments
                ["/bin/sh", "-c", _GUARD, "kbridge-tunnel", ssh, *marker, *args],
                stdin=subprocess.PIPE,
                stdout=write_end.fileno(),
                stderr=write_end.fileno(),
                env=_environment(),
                start_new_session=True,  # Ctrl-C in our terminal must not reach it
            )
        except OSError:
            self._read_end.close()
            raise
        finally:
            write_end.close()
        self.pid = self._process.pid

    @property
    def stderr_tail(self) -> str:
        """The last lines of output since the start or since `ready`, joined by semicolons."""
        return "; ".join(self._tail)

    @property
    def returncode(self) -> int | None:
        """The exit code of ssh; None while it runs."""
        return self._process.returncode

    def stop(self, *, kill: bool = False) -> None:
        """Send SIGTERM, or SIGKILL, to ssh from any thread; nothing happens if it has ended."""
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def output(self) -> Generator[str, None, None]:
        """Read the output until ssh has ended, and end what it has started.

        Yields
        ------
        str
            An empty string when all ports are forwarded, then each line that ssh prints.
        """
        try:
            yield from self._read_until_exit()
            self._clean_up()
            yield from self._read_rest()
        finally:
            self._clean_up()
            self._read_end.close()

    def _read_until_exit(self) -> Iterator[str]:
        deadline = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector, _exit_descriptor(self.pid) as exited:
            selector.register(self._read_end, selectors.EVENT_READ)
            if exited is not None:
                selector.register(exited, selectors.EVENT_READ)
            while self._process.poll() is None:
                left = None if self.ready or self.timed_out else deadline - time.monotonic()
                if left is not None and left <= 0:
                    self.timed_out = True
                    self.stop(kill=True)
                    continue
                if exited is None:
                    left = min(left or _POLL_INTERVAL, _POLL_INTERVAL)
                for key, _ in selector.select(left):
                    if key.fileobj is self._read_end:
                        chunk = self._read_end.recv(4096)
                        if not chunk:  # ssh has closed its stdout and stderr
                            selector.unregister(self._read_end)
                        for line in self._lines.add(chunk):
                            yield from self._process_line(line)

    def _read_rest(self) -> Iterator[str]:
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        chunk = b"first"
        with suppress(OSError):  # TimeoutError: another process keeps the other end open
            while chunk and (left := deadline - time.monotonic()) > 0:
                self._read_end.settimeout(left)
                chunk = self._read_end.recv(4096)
                for line in self._lines.add(chunk):
                    yield from self._process_line(line)
        yield from self._process_line(self._lines.rest())

    def _process_line(self, line: str) -> Iterator[str]:
        # A banner without a newline may precede the marker.
        if not self.ready and line.endswith(self._ready_marker):
            self.ready = True
            self._tail.clear()
            yield ""
        elif line:
            text = "".join(c if c.isprintable() else "?" for c in line[:_LINE_LIMIT])
            self._tail.append(text)
            if self.ready:
                yield text

    def _clean_up(self) -> None:
        if self._process.poll() is None:  # the reader of the output has failed
            self.stop(kill=True)
        self._process.wait()
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for zombies
                os.killpg(self.pid, signal.SIGKILL)
            self._process.stdin.close()


class _Lines:
    """Splits a stream of bytes into lines, of which it keeps the beginning."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, chunk: bytes) -> list[str]:
        """Return the lines that end in a chunk."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[:_LINE_LIMIT]
        return [line.decode(errors="replace").strip() for line in lines]

    def rest(self) -> str:
        """Return the last line, which has no newline."""
        return self._rest.decode(errors="replace").strip()


@contextmanager
def _exit_descriptor(pid: int) -> Iterator[int | None]:
    """Open a descriptor that is readable when a process has ended; None if there is no such."""
    descriptor: int | None = None
    with suppress(AttributeError, OSError):  # only Linux has it, and sandboxes forbid it
        descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _environment() -> dict[str, str] | None:
    """Return our environment with a shell that runs commands: ssh runs LocalCommand in it."""
    if Path(os.environ.get("SHELL", "")).name in _NO_SHELLS:
        return {**os.environ, "SHELL": "/bin/sh"}
    return None
