"""Tunnels to kernels behind ssh: five local ports through one OpenSSH process.

Invariants:

- `start` returns when every port is forwarded, or raises an error with the output of ssh; after
  that, a tunnel that breaks is opened again, without limit, until `close`;
- no tunnel outlives this process: they are closed at exit, and if the process is killed, their ssh
  ends by itself.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from kbridge.errors import TunnelError
from kbridge.tunnel import ssh_command
from kbridge.tunnel.ssh_command import SshOptions
from kbridge.tunnel.supervisor import TunnelConfig, TunnelSupervisor
from kbridge.wire.connection_info import LOOPBACK, ConnectionInfo, parse_connection_file

__all__ = ["SshOptions", "Tunnel", "close_tunnels", "open_tunnels", "tunnel_to_kernel"]

_open: set[Tunnel] = set()


def tunnel_to_kernel(
    connection_info: Mapping[str, Any] | str, sshserver: str, sshkey: str | None = None
) -> tuple[int, int, int, int, int]:
    """Open a tunnel to a kernel (seed 000; `jupyter_client.connect.tunnel_to_kernel`).

    The tunnel is open when this function returns, is opened again if its connection breaks, and is
    closed at exit. It is in `open_tunnels`; to close it earlier, create a `Tunnel` instead.

    Parameters
    ----------
    connection_info : dict or str
        The content of a connection file, or its path. The kernel may listen on the loopback of the
        ssh server, on another host that the server reaches, or on ipc sockets of the server.
    sshserver : str
        `host`, `user@host:port`, an ssh:// URL or an alias of ssh_config.
    sshkey : str, optional
        The file of the private key, if neither ssh_config nor an agent has it.

    Returns
    -------
    (shell, iopub, stdin, hb, control) : ints
        Ports on 127.0.0.1.

    Raises
    ------
    TunnelError
        If ssh fails; the message contains the output of ssh. It is a `ConnectionError`.
    InvalidSshServer
        If the text does not name a server.
    InvalidConnectionInfo
        If the connection info lacks a port, or ssh cannot forward to its address.
    OSError
        If the connection file cannot be read.
    """
    ports = Tunnel(connection_info, sshserver, sshkey).start().ports
    return ports["shell"], ports["iopub"], ports["stdin"], ports["hb"], ports["control"]


class Tunnel:
    """A tunnel to one kernel through ssh.

    For threads: `with Tunnel(...) as tunnel`, or `start` and `close`. For asyncio:
    `async with Tunnel(...) as tunnel`, or `await Tunnel.open(...)` and `await tunnel.aclose()`.

    Parameters
    ----------
    connection_info, sshserver, sshkey
        See `tunnel_to_kernel`.
    options : SshOptions
        Additional arguments for ssh, the timeout of an attempt, and the program.
    on_change : callable, optional
        Called with True when the tunnel is up and with False when it is down, in a thread of the
        tunnel. It must not block.
    log : logging.Logger, optional
        The log for openings, failures and the output of ssh; `kbridge.tunnel` if not given.
    """

    def __init__(
        self,
        connection_info: Mapping[str, Any] | str | os.PathLike[str],
        sshserver: str,
        sshkey: str | os.PathLike[str] | None = None,
        *,
        options: SshOptions = SshOptions(),  # noqa: B008  # frozen
        on_change: Callable[[bool], object] | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        info = connection_info
        if isinstance(info, str | os.PathLike):
            info = parse_connection_file(Path(info).read_bytes(), str(info))
        self.sshserver = sshserver
        self._info: dict[str, Any] = dict(info)
        self._sshkey = Path(sshkey).expanduser() if sshkey else None
        config = TunnelConfig(
            server=sshserver,
            destination=ssh_command.server(sshserver),
            targets=ssh_command.targets(ConnectionInfo.from_connection_info(self._info)),
            sshkey=str(self._sshkey.absolute()).replace("%", "%%") if self._sshkey else None,
            options=options,
        )
        self._supervisor = TunnelSupervisor(
            config, on_change or (lambda _up: None), log or logging.getLogger("kbridge.tunnel")
        )
        self._owner = os.getpid()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "up" if self.up else "down"
        return f"<Tunnel to {self.sshserver}: {state}, {self._supervisor.ports}>"

    # -- state ------------------------------------------------------------------------------

    @property
    def ports(self) -> dict[str, int]:
        """The ports on 127.0.0.1 by channel: shell, iopub, stdin, hb, control.

        Raises
        ------
        RuntimeError
            If the tunnel was not started.
        """
        if not self._supervisor.ports:
            raise RuntimeError("a tunnel has no ports before it is started")
        return dict(self._supervisor.ports)

    @property
    def connection_info(self) -> dict[str, Any]:
        """The connection info for clients on this machine, with the keys of the kernel."""
        local = {f"{channel}_port": port for channel, port in self.ports.items()}
        return {**self._info, "transport": "tcp", "ip": LOOPBACK, **local}

    @property
    def up(self) -> bool:
        """True while all ports are forwarded."""
        return self._supervisor.up

    @property
    def closed(self) -> bool:
        """True if the tunnel was closed, or never came up."""
        return self._supervisor.closed

    @property
    def openings(self) -> int:
        """The number of times that the tunnel has come up."""
        return self._supervisor.openings

    @property
    def pid(self) -> int | None:
        """The process id of ssh; None while no ssh runs."""
        process = self._supervisor.process
        return process.pid if process else None

    def wait(self, openings: int = 1, timeout: float | None = None) -> bool:
        """Wait until the tunnel is up and has come up `openings` times.

        Returns
        -------
        bool
            False if the tunnel was closed, or `timeout` seconds have passed.
        """
        return self._supervisor.wait(openings, timeout)

    # -- for threads ------------------------------------------------------------------------

    def start(self) -> Self:
        """Open the tunnel, and return when all ports are forwarded.

        Raises
        ------
        TunnelError
            If ssh fails, or takes longer than the timeout. The tunnel is then closed.
        """
        _open.add(self)
        try:
            self._check_key()
            self._supervisor.start()
            opened = self._supervisor.wait(1)
        except BaseException:  # also KeyboardInterrupt: the caller has no tunnel to close
            self.close()
            raise
        if not opened:
            self.close()
            error = self._supervisor.error
            raise error or TunnelError(f"the ssh tunnel to {self.sshserver} is closed")
        return self

    def close(self) -> None:
        """End ssh and free the ports. May be called twice."""
        _open.discard(self)
        if self._owner == os.getpid():  # a forked child must not close the tunnel of its parent
            self._supervisor.stop()
            self._supervisor.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _check_key(self) -> None:
        if self._sshkey is None:
            return
        try:  # ssh would only warn, and then fail for another reason
            self._sshkey.open("rb").close()
        except OSError as error:
            raise TunnelError(
                f"no ssh tunnel to {self.sshserver}: the key file {self._sshkey} cannot be read: "
                f"{error.strerror}"
            ) from None

    # -- for asyncio ------------------------------------------------------------------------

    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Create and open a tunnel, with the parameters of the class and the errors of `start`."""
        return await cls(*args, **kwargs).__aenter__()

    async def aclose(self) -> None:
        """Close the tunnel without blocking the event loop."""
        self._supervisor.stop()  # before the wait, which may be cancelled
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        try:
            return await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            self._supervisor.stop()  # then `start`, which still runs in its thread, closes it
            raise

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()


def open_tunnels() -> list[Tunnel]:
    """Return the tunnels that were started and are not closed."""
    return list(_open)


@atexit.register
def close_tunnels() -> None:
    """Close all tunnels of this process."""
    for tunnel in open_tunnels():
        tunnel.close()
