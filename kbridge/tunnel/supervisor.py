"""Keep one ssh tunnel open: a thread that starts ssh, watches it and starts it again.

Invariants:

- the local ports stay the same from the first opening to the end;
- if the first attempt fails, the supervisor ends; after a success only `stop` ends it;
- `on_change` is called with True and False in turn, never with the same value twice.

This is one thread, not an asyncio task, because a tunnel must work for callers without an event
loop (`tunnel_to_kernel` is a plain function), and must survive the end of the loop that opened it.
A private loop would need the same thread, and on Python 3.11 asyncio adds a thread for each child
process.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from kbridge.errors import TunnelError
from kbridge.tunnel import ssh_command
from kbridge.tunnel.ssh_process import SshProcess
from kbridge.wire.connection_info import LOOPBACK

__all__ = ["TunnelConfig", "TunnelSupervisor"]

_DELAYS: Final = (0.0, 0.5, 1.0, 2.0, 4.0)  # seconds before each attempt to open it again
_LONG_DELAY: Final = 60.0  # if a human has to act first: servers count failed logins
_STABLE_AFTER: Final = 5.0  # seconds; a tunnel that ends sooner counts as a failed attempt
_PORT_ATTEMPTS: Final = 3
_STOP_TIMEOUT: Final = 2.0  # seconds between SIGTERM and SIGKILL
_MAX_KINDS: Final = 20  # different lines of ssh that are logged as warnings while it is up
# The banner of a server may contain this text, too, with more digits than int() accepts.
_PORT_TAKEN: Final = re.compile(r"cannot listen to port: (\d{1,5})(?!\d)")
_NUMBER: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelConfig:
    """The two ends of a tunnel, and the options of its ssh.

    Attributes
    ----------
    server : str
        The ssh server, as the user wrote it.
    destination : sequence of str
        The result of `ssh_command.server` for it.
    targets : mapping
        Channel -> remote address, the result of `ssh_command.targets`.
    sshkey : str, optional
        The file of the private key.
    options : SshOptions
    """

    server: str
    destination: Sequence[str]
    targets: Mapping[str, str]
    options: ssh_command.SshOptions
    sshkey: str | None = None


class TunnelSupervisor:
    """Keeps one tunnel open.

    Parameters
    ----------
    config : TunnelConfig
        The tunnel.
    on_change : callable
        Called with True when the tunnel is up and with False when it is down, in the thread of the
        supervisor.
    log : logging.Logger
        The log for openings, failures and the output of ssh.

    Attributes
    ----------
    ports : dict
        Channel -> local port; empty before the start.
    up : bool
        True while all ports are forwarded.
    openings : int
        The number of times that the tunnel has come up.
    error : TunnelError or None
        The reason if it never came up.
    process : SshProcess or None
        The ssh that runs now.
    """

    def __init__(
        self, config: TunnelConfig, on_change: Callable[[bool], object], log: logging.Logger
    ) -> None:
        self.ports: dict[str, int] = {}
        self.up = False
        self.openings = 0
        self.error: TunnelError | None = None
        self.process: SshProcess | None = None
        self._config, self._on_change, self._log = config, on_change, log
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._started_at = 0.0
        self._logged_kinds: set[str] = set()
        self._reserved: list[socket.socket] = []

    # -- for other threads ------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True if it has ended, or is about to end."""
        return self._closing.is_set()

    def start(self) -> None:
        """Start the thread, unless it was started or stopped before."""
        with self._changed:
            if self._thread is None and not self.closed:
                # A daemon, because threads that are not are joined before atexit hooks stop this.
                self._thread = threading.Thread(target=self._run, name="kbridge-tunnel")
                self._thread.daemon = True
                self._thread.start()

    def wait(self, openings: int, timeout: float | None = None) -> bool:
        """Wait until the tunnel is up and has come up `openings` times; False if it ends first."""

        def settled() -> bool:
            return self.closed or (self.up and self.openings >= openings)

        with self._changed:
            return self._changed.wait_for(settled, timeout) and not self.closed

    def stop(self) -> None:
        """Make the supervisor end soon."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
            if self.process is not None:
                self.process.stop()

    def join(self) -> None:
        """After `stop`: wait until ssh has ended and the ports are free.

        Returns at once in the thread of the supervisor, where `on_change` may close the tunnel.
        """
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join(_STOP_TIMEOUT)
        process = self.process
        if process is not None:
            process.stop(kill=True)
        thread.join()

    # -- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._supervise()
        finally:
            self.stop()
            for reserved in self._reserved:
                reserved.close()

    def _supervise(self) -> None:
        failures, attempts, last_message = 0, 0, ""
        while not self._closing.is_set():
            if not self.openings:
                attempts += 1
                self._choose_ports()
            started, openings = time.monotonic(), self.openings
            error, output = self._run_ssh()
            if self._closing.is_set():
                return
            port_taken = self._is_port_taken(output)
            if not self.openings and not (port_taken and attempts < _PORT_ATTEMPTS):
                self.error = error
                return
            was_up = self.openings > openings
            if was_up and time.monotonic() - started >= _STABLE_AFTER:
                failures = 0
            delay = _DELAYS[min(failures, len(_DELAYS) - 1)]
            # If it was up, the login has worked, and the advice is about a refused channel.
            if ssh_command.advice(output) and not port_taken and not was_up:
                delay = _LONG_DELAY
            is_news = was_up or str(error) != last_message
            self._log.log(
                logging.WARNING if is_news else logging.DEBUG,
                "%s; opening it again in %g s",
                error,
                delay,
            )
            failures, last_message = failures + 1, str(error)
            self._closing.wait(delay)

    def _run_ssh(self) -> tuple[TunnelError, str]:
        """Run ssh once; return why it ended, and the end of its output."""
        config = self._config
        args = ssh_command.arguments(
            config.destination,
            {self.ports[channel]: target for channel, target in config.targets.items()},
            sshkey=config.sshkey,
            options=config.options.arguments,
            # Shorter than our own timeout, so that ssh can say what it was waiting for.
            connect_timeout=max(1, min(10, int(config.options.timeout) - 1)),
        )
        self._started_at = time.monotonic()
        try:
            process = SshProcess(config.options.program, args, config.options.timeout)
            try:
                self._follow(process)
            finally:
                with self._changed:
                    self.process = None
                if self.up:
                    self._set_up(False)
        except TunnelError as error:
            return error, ""
        except OSError as error:  # no processes or descriptors are left
            return TunnelError(f"no ssh tunnel to {config.server}: {error}"), ""
        return self._error_of(process), process.stderr_tail

    def _follow(self, process: SshProcess) -> None:
        with closing(process.output()) as output:
            with self._changed:
                self.process = process
                if self.closed:
                    process.stop()
            for line in output:
                if line:
                    self._log_line(line)
                else:
                    self._on_ready()

    def _error_of(self, process: SshProcess) -> TunnelError:
        server, output = self._config.server, process.stderr_tail
        event = f"the ssh tunnel to {server} was lost"
        if not process.ready:
            event = f"no ssh tunnel to {server}"
        cause = f"ssh ended with code {process.returncode}"
        if process.timed_out:
            cause = f"it was not up within {self._config.options.timeout:g} s"
        hint = ssh_command.advice(output)
        if self._is_port_taken(output):
            hint = "another program has taken a local port of the tunnel"
        sentences = (f"{event}: {cause}", output, hint)
        return TunnelError(". ".join(s.rstrip(".") for s in sentences if s))

    def _choose_ports(self) -> None:
        for reserved in self._reserved:
            reserved.close()
        self._reserved = [_reserve_port() for _ in self._config.targets]
        ports = [reserved.getsockname()[1] for reserved in self._reserved]
        self.ports = dict(zip(self._config.targets, ports, strict=True))
        if sys.platform != "linux":
            for reserved in self._reserved:
                reserved.close()

    def _is_port_taken(self, output: str) -> bool:
        return any(int(port) in self.ports.values() for port in _PORT_TAKEN.findall(output))

    def _on_ready(self) -> None:
        self._logged_kinds.clear()
        seconds = time.monotonic() - self._started_at
        self._set_up(True)
        self._log.info(
            "ssh tunnel to %s: up after %.1f s, %s", self._config.server, seconds, self.ports
        )

    def _log_line(self, line: str) -> None:
        # Five sockets of a client reconnect many times per second to a kernel that has ended, and
        # ssh reports each attempt: a line is a warning once, whatever its numbers are.
        kind = _NUMBER.sub("", line)
        level = logging.DEBUG
        if kind not in self._logged_kinds and len(self._logged_kinds) < _MAX_KINDS:
            self._logged_kinds.add(kind)
            level = logging.WARNING
        self._log.log(level, "ssh tunnel to %s: %s", self._config.server, line)

    def _set_up(self, up: bool) -> None:
        with self._changed:
            self.up = up
            self.openings += up
            self._changed.notify_all()
        try:
            self._on_change(up)
        except Exception:  # noqa: BLE001 - a fault of the listener must not end the tunnel
            self._log.exception("on_change of the ssh tunnel to %s failed", self._config.server)


def _reserve_port() -> socket.socket:
    """Bind a free port that ssh is going to listen on.

    On Linux two sockets with SO_REUSEADDR may be bound to one port as long as only one listens, and
    ssh sets that option. While this socket is open, the system gives the port to no other program.
    On other systems it has to be closed before ssh starts.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((LOOPBACK, 0))
    return reserved
