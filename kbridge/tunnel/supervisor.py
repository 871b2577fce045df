"""Keep an ssh running: a thread that opens a tunnel, watches it and opens it again.

Laws of this module:

- the local ports stay the same from the first opening to the end;
- a first attempt that fails ends it; after that nothing does but `stop`;
- whoever listens is told up and down in turn, never twice the same.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kbridge.errors import TunnelError
from kbridge.tunnel import ssh_command
from kbridge.tunnel.ssh_process import SshProcess

__all__ = ["LOCAL", "Keeper", "Wanted"]

LOCAL = "127.0.0.1"
_PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0)  # seconds before each attempt to open it again
_LONG_PAUSE = 60.0  # where a human has to do something first: servers count failed logins
_STEADY = 5.0  # seconds: what lived shorter than that failed, and is not opened again at once
_PORT_TRIES = 3
_PATIENCE = 2.0  # seconds that ssh has to say goodbye
_KINDS = 20  # kinds of complaints that are told apart
# A server's banner may say this too, with more digits than Python makes a number of.
_TAKEN = re.compile(r"cannot listen to port: (\d{1,5})(?!\d)")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What tunnel is wanted.

    Attributes
    ----------
    name : str
        The ssh server, as the user wrote it.
    destination : sequence of str
        The same as `ssh_command.server` reads it.
    targets : mapping
        Channel -> where to, from `ssh_command.targets`.
    sshkey : str, optional
        The key's file.
    options : sequence of str
        More arguments for ssh.
    timeout : float
        Seconds for one attempt.
    program : str
        The OpenSSH client.
    """

    name: str
    destination: Sequence[str]
    targets: Mapping[str, str]
    sshkey: str | None = None
    options: Sequence[str] = ()
    timeout: float = 30.0
    program: str = "ssh"


class Keeper:
    """Keeps one tunnel open.

    Parameters
    ----------
    wanted : Wanted
        Which.
    on_change : callable
        Told True when it is up and False when it is down, in a thread of the keeper's.
    log : logging.Logger
        Where to say what happens.

    Attributes
    ----------
    ports : dict
        Channel -> local port; empty before the start.
    up : bool
        Whether all ports are forwarded now.
    openings : int
        How many times it has come up.
    fault : TunnelError or None
        Why it never came up.
    process : SshProcess or None
        The ssh of now.
    """

    def __init__(
        self, wanted: Wanted, on_change: Callable[[bool], object], log: logging.Logger
    ) -> None:
        self.ports: dict[str, int] = {}
        self.up = False
        self.openings = 0
        self.fault: TunnelError | None = None
        self.process: SshProcess | None = None
        self._wanted, self._on_change, self._log = wanted, on_change, log
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._teller: int | None = None
        self._since = 0.0
        self._complaints: set[str] = set()
        self._held: list[socket.socket] = []

    # -- for other threads ------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._closing.is_set()

    def start(self) -> None:
        """Begin, unless that has been done or it is over already."""
        with self._changed:
            if self._thread is None and not self.closed:
                # Not joined at exit: the exit's own hooks stop it.
                self._thread = threading.Thread(target=self._run, name="kbridge-tunnel")
                self._thread.daemon = True
                self._thread.start()

    def wait(self, openings: int, timeout: float | None = None) -> bool:
        """Wait until it is up for the `openings`-th time or later; False if it ends before."""

        def settled() -> bool:
            return self.closed or (self.up and self.openings >= openings)

        with self._changed:
            return self._changed.wait_for(settled, timeout) and not self.closed

    def stop(self) -> None:
        """Let it end soon."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
            if self.process is not None:
                self.process.stop()

    def join(self) -> None:
        """After `stop`: wait until its ssh has ended and its ports are free."""
        thread = self._thread
        if thread is None or threading.get_ident() in {self._teller, thread.ident}:
            return  # a listener closes the tunnel: it cannot wait for itself to return
        thread.join(_PATIENCE)
        process = self.process
        if process is not None:
            process.stop(kill=True)
        thread.join()

    # -- the keeper's own thread ------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._keep()
        finally:
            self.stop()
            for held in self._held:
                held.close()

    def _keep(self) -> None:
        failures, tries, said = 0, 0, ""
        while not self._closing.is_set():
            if not self.openings:
                tries += 1
                self._choose_ports()
            began, before = time.monotonic(), self.openings
            fault, words = self._session()
            if self._closing.is_set():
                return
            taken = self._is_taken(words)
            if not self.openings and not (taken and tries < _PORT_TRIES):
                self.fault = fault
                return
            was_up = self.openings > before
            if was_up and time.monotonic() - began >= _STEADY:
                failures = 0
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
            # Once it was up the login was right, and a channel may have been refused.
            if ssh_command.advice(words) and not taken and not was_up:
                pause = _LONG_PAUSE
            news = was_up or str(fault) != said
            self._log.log(
                logging.WARNING if news else logging.DEBUG,
                "%s; opening it again in %g s",
                fault,
                pause,
            )
            failures, said = failures + 1, str(fault)
            self._closing.wait(pause)

    def _session(self) -> tuple[TunnelError, str]:
        """Run one ssh from start to end; give why it ended, and what it said."""
        wanted = self._wanted
        args = ssh_command.arguments(
            wanted.destination,
            {self.ports[channel]: target for channel, target in wanted.targets.items()},
            sshkey=wanted.sshkey,
            options=wanted.options,
            # Before our own timeout, so that ssh tells what it was waiting for.
            connect_timeout=max(1, min(10, int(wanted.timeout) - 1)),
        )
        self._since = time.monotonic()
        try:
            process = SshProcess(
                wanted.program, args, wanted.timeout, self._on_ready, self._on_words
            )
            with self._changed:
                self.process = process
                if self.closed:
                    process.stop()
            code = process.wait()
        except TunnelError as error:
            return error, ""
        except (OSError, RuntimeError) as error:  # no processes, descriptors or threads left
            return TunnelError(f"no ssh tunnel to {wanted.name}: {error}"), ""
        with self._changed:
            self.process = None
        if process.ready:
            self._change(up=False)
        return self._verdict(process, code), process.words

    def _verdict(self, process: SshProcess, code: int) -> TunnelError:
        name, words = self._wanted.name, process.words
        what = f"the ssh tunnel to {name} was lost" if process.ready else f"no ssh tunnel to {name}"
        end = f"ssh ended with code {code}"
        if process.late:
            end = f"it was not there within {self._wanted.timeout:g} s"
        hint = ssh_command.advice(words)
        if self._is_taken(words):
            hint = "another program has taken a local port of the tunnel"
        return TunnelError(". ".join(p.rstrip(".") for p in (f"{what}: {end}", words, hint) if p))

    def _choose_ports(self) -> None:
        for held in self._held:
            held.close()
        self._held = [_hold_port() for _ in self._wanted.targets]
        numbers = [held.getsockname()[1] for held in self._held]
        self.ports = dict(zip(self._wanted.targets, numbers, strict=True))
        if sys.platform != "linux":
            for held in self._held:
                held.close()

    def _is_taken(self, words: str) -> bool:
        taken = _TAKEN.findall(words)
        return any(int(port) in self.ports.values() for port in taken)

    # -- what ssh tells, in its reader's thread ---------------------------------------------

    def _on_ready(self) -> None:
        self._complaints.clear()
        took = time.monotonic() - self._since
        self._change(up=True)
        self._log.info("ssh tunnel to %s: up after %.1f s, %s", self._wanted.name, took, self.ports)

    def _on_words(self, line: str) -> None:
        # At a kernel that is gone five sockets knock many times a second: it is told once.
        kind = _NUMBER.sub("", line)
        if kind in self._complaints or len(self._complaints) >= _KINDS:
            level = logging.DEBUG
        else:
            self._complaints.add(kind)
            level = logging.WARNING
        self._log.log(level, "ssh tunnel to %s: %s", self._wanted.name, line)

    def _change(self, *, up: bool) -> None:
        with self._changed:
            self.up = up
            self.openings += up
            self._changed.notify_all()
        self._teller = threading.get_ident()
        try:
            self._on_change(up)
        except Exception:  # noqa: BLE001 - a listener's fault must not end the tunnel
            self._log.exception("a listener of the ssh tunnel to %s failed", self._wanted.name)
        finally:
            self._teller = None


def _hold_port() -> socket.socket:
    """Bind a free port for somebody else to listen on.

    On Linux a port may be bound twice with SO_REUSEADDR as long as one listens, and ssh does set
    that: while ours is open, the system gives the port to no other program. Elsewhere it has to be
    closed before ssh starts.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((LOCAL, 0))
    return held
