"""One run of OpenSSH, from its start to its end.

Laws of this module: what was started ends with this process, however that ends; and what an ssh
has started (ProxyCommand, jump hosts) ends with that ssh.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from kbridge.errors import TunnelError

__all__ = ["SshProcess"]

# When its stdin ends, because whoever holds the other end has ended, so does ssh (which this shell
# becomes): `ssh -N` itself would not notice that we were killed.
_GUARD = """
exec 3<&0 </dev/null
{ read line <&3 || kill $$; } >/dev/null 2>&1 &
exec "$@" 3<&-
"""
_NO_SHELLS = {"nologin", "false"}
_LAST_WORDS = 1.0  # seconds for what an ssh that has ended still had to say
_WORDS = 20  # lines that are kept
_LINE = 1000  # characters that are kept of each


class SshProcess:
    """One ssh, from its start to its end.

    Parameters
    ----------
    program : str
        The ssh to run.
    args : sequence of str
        What `arguments` gave.
    timeout : float
        Seconds of `wait` until it is killed unless the ports are forwarded.
    on_ready : callable
        Told in a thread of its own, when all ports are forwarded.
    on_words : callable
        Told each line that ssh says after that, in the same thread.

    Attributes
    ----------
    pid : int
        Of ssh itself.
    ready : bool
        Whether all ports were forwarded at some time.
    late : bool
        Whether it was killed because they were not in time.

    Raises
    ------
    TunnelError
        If there is no such program.
    """

    def __init__(
        self,
        program: str,
        args: Sequence[str],
        timeout: float,
        on_ready: Callable[[], None],
        on_words: Callable[[str], None],
    ) -> None:
        if os.name != "posix":
            raise TunnelError("ssh tunnels need a POSIX system: this one has no process groups")
        ssh = shutil.which(program)
        if ssh is None:
            raise TunnelError(f"there is no program {program!r} here: install OpenSSH's client")
        self.ready = self.late = False
        self._mark = secrets.token_hex(8)
        self._words: deque[str] = deque(maxlen=_WORDS)
        self._on_ready, self._on_words = on_ready, on_words
        # ssh runs a LocalCommand when it has logged in and listens on every port, not before.
        mark = ("-o", "PermitLocalCommand=yes", "-o", f"LocalCommand=echo {self._mark}")
        # A socket, because the reader of a pipe could not be told to stop: a connection that an
        # ssh_config keeps open for jump hosts outlives this ssh and holds on to its stderr.
        self._ear, mouth = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the shell reads none of the arguments
                ["/bin/sh", "-c", _GUARD, "kbridge-tunnel", ssh, *mark, *args],
                stdin=subprocess.PIPE,
                stdout=mouth.fileno(),
                stderr=mouth.fileno(),
                env=_environment(),
                start_new_session=True,  # a Ctrl-C in our terminal is not meant for it
            )
        except OSError:
            self._ear.close()
            raise
        finally:
            mouth.close()
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._listen, name="kbridge-ssh", daemon=True)
        self._timer = threading.Timer(timeout, self._give_up)
        self._timer.daemon = True

    @property
    def words(self) -> str:
        """The last lines that it said, joined."""
        return "; ".join(self._words)

    def stop(self, *, kill: bool = False) -> None:
        """End it. Nothing happens if it has ended already."""
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def wait(self) -> int:
        """Listen to it until it has ended, end what it has started, and give its exit code."""
        try:
            self._timer.start()
            self._reader.start()
        except RuntimeError:  # no threads left
            self.stop(kill=True)
            self._reap()
            raise
        code = self._reap()
        self._reader.join(_LAST_WORDS)
        with suppress(OSError):  # nothing is there to shut where the other end is closed
            self._ear.shutdown(socket.SHUT_RD)
        self._reader.join()
        self._ear.close()
        return code

    def _reap(self) -> int:
        code = self._process.wait()
        self._timer.cancel()
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of zombies
            os.killpg(self.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        return code

    def _give_up(self) -> None:
        self.late = not self.ready
        if self.late:
            self.stop(kill=True)

    def _listen(self) -> None:
        rest = b""
        while chunk := self._ear.recv(4096):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[:_LINE]
            for line in lines:
                self._take(line.decode(errors="replace").strip())
        self._take(rest.decode(errors="replace").strip())

    def _take(self, line: str) -> None:
        if line.endswith(self._mark):  # after a banner without an end of line, perhaps
            self._timer.cancel()
            self.ready = True
            self._words.clear()
            self._on_ready()
        elif line:
            text = "".join(c if c.isprintable() else "?" for c in line[:_LINE])
            self._words.append(text)
            if self.ready:
                self._on_words(text)


def _environment() -> dict[str, str] | None:
    """Ours, with a shell that runs commands: ssh runs its LocalCommand and ProxyCommand in it."""
    if Path(os.environ.get("SHELL", "")).name in _NO_SHELLS:
        return {**os.environ, "SHELL": "/bin/sh"}
    return None
