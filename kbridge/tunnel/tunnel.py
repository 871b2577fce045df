"""Ways to a kernel behind ssh: five local ports through one OpenSSH process.

Laws of this module:

- `start` returns when every port is forwarded, or raises with ssh's own words; after that only
  `close` ends a tunnel, and until then it is opened again, however often that takes;
- no tunnel outlives this process: at exit they are closed, and where there is no exit (SIGKILL)
  their ssh ends by itself.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from kbridge.errors import TunnelError
from kbridge.tunnel import ssh_command
from kbridge.tunnel.supervisor import LOCAL, Keeper, Wanted
from kbridge.wire.connection_info import ConnectionInfo, parse_connection_file

__all__ = ["Tunnel", "TunnelError", "close_tunnels", "open_tunnels", "tunnel_to_kernel"]

_open: set[Tunnel] = set()


def tunnel_to_kernel(
    connection_info: Mapping[str, Any] | str, sshserver: str, sshkey: str | None = None
) -> tuple[int, int, int, int, int]:
    """Reach a kernel through ssh (seed 000; `jupyter_client.connect.tunnel_to_kernel`).

    The tunnel is open when this returns, comes back when its connection dies, and is closed at
    exit. `open_tunnels` has it; who wants to close it earlier had better make a `Tunnel`.

    Parameters
    ----------
    connection_info : dict or str
        What a connection file holds, or its path. The kernel may listen on the ssh server's
        loopback, on another host behind it, or on ipc sockets there.
    sshserver : str
        `host`, `user@host:port`, an ssh:// URL or an alias of ssh_config.
    sshkey : str, optional
        File with the key to log in with, where neither ssh_config nor an agent has it.

    Returns
    -------
    (shell, iopub, stdin, hb, control) : ints
        Ports on 127.0.0.1.

    Raises
    ------
    TunnelError
        If there is no way through; a `ConnectionError` that shows ssh's own words.
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
    """A way to one kernel through ssh.

    For threads: `with Tunnel(...) as tunnel`, or `start` and `close`. For asyncio:
    `async with Tunnel(...) as tunnel`, or `await Tunnel.open(...)` and `await tunnel.aclose()`.

    Parameters
    ----------
    connection_info, sshserver, sshkey
        See `tunnel_to_kernel`.
    options : sequence of str
        More arguments for ssh; where both set the same thing, they win.
    timeout : float
        Seconds until an attempt to open it is given up.
    program : str
        The OpenSSH client.
    on_change : callable, optional
        Told True when the tunnel is up and False when it is down, in a thread of the tunnel's; it
        must not block.
    log : logging.Logger, optional
        Where to say what happens.
    """

    def __init__(
        self,
        connection_info: Mapping[str, Any] | str | os.PathLike[str],
        sshserver: str,
        sshkey: str | os.PathLike[str] | None = None,
        *,
        options: Sequence[str] = (),
        timeout: float = 30.0,
        program: str = "ssh",
        on_change: Callable[[bool], object] | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        info = connection_info
        if isinstance(info, str | os.PathLike):
            info = parse_connection_file(Path(info).read_bytes(), str(info))
        self.sshserver = sshserver
        self._info: dict[str, Any] = dict(info)
        self._sshkey = Path(sshkey).expanduser() if sshkey else None
        wanted = Wanted(
            sshserver,
            ssh_command.server(sshserver),
            ssh_command.targets(ConnectionInfo.from_connection_info(self._info)),
            str(self._sshkey.absolute()).replace("%", "%%") if self._sshkey else None,
            tuple(options),
            timeout,
            program,
        )
        self._keeper = Keeper(
            wanted, on_change or (lambda _up: None), log or logging.getLogger("kbridge.connect")
        )
        self._owner = os.getpid()

    def __repr__(self) -> str:
        keeper = self._keeper
        state = "closed" if keeper.closed else "up" if keeper.up else "down"
        return f"<Tunnel to {self.sshserver}: {state}, {keeper.ports}>"

    # -- what there is ----------------------------------------------------------------------

    @property
    def ports(self) -> dict[str, int]:
        """Channel (shell, iopub, stdin, hb, control) -> port on 127.0.0.1.

        Raises
        ------
        RuntimeError
            Before it is started.
        """
        if not self._keeper.ports:
            raise RuntimeError("a tunnel has no ports before it is started")
        return dict(self._keeper.ports)

    @property
    def connection_info(self) -> dict[str, Any]:
        """What a client on this machine connects with: a connection file's contents, keys too."""
        local = {f"{channel}_port": port for channel, port in self.ports.items()}
        return {**self._info, "transport": "tcp", "ip": LOCAL, **local}

    @property
    def up(self) -> bool:
        """Whether all ports are forwarded now."""
        return self._keeper.up

    @property
    def closed(self) -> bool:
        """Whether it was closed, or never came up."""
        return self._keeper.closed

    @property
    def openings(self) -> int:
        """How many times it has come up."""
        return self._keeper.openings

    @property
    def pid(self) -> int | None:
        """The ssh process of now; None between two."""
        process = self._keeper.process
        return process.pid if process else None

    def wait(self, openings: int = 1, timeout: float | None = None) -> bool:
        """Wait until it is up, and has come up `openings` times.

        Returns
        -------
        bool
            False if it was closed, or `timeout` seconds have passed.
        """
        return self._keeper.wait(openings, timeout)

    # -- its life, for threads --------------------------------------------------------------

    def start(self) -> Self:
        """Open it, and return when all ports are forwarded.

        Raises
        ------
        TunnelError
            If that fails, or takes longer than the timeout. The tunnel is closed then.
        """
        _open.add(self)
        try:
            self._look_at_key()
            self._keeper.start()
            opened = self._keeper.wait(1)
        except BaseException:  # an impatient user: nobody would be left to close it
            self.close()
            raise
        if not opened:
            self.close()
            raise self._keeper.fault or TunnelError(f"the ssh tunnel to {self.sshserver} is closed")
        return self

    def close(self) -> None:
        """End its ssh and free its ports. May be called twice."""
        _open.discard(self)
        if self._owner == os.getpid():  # the end of a fork of ours is not the tunnel's
            self._keeper.stop()
            self._keeper.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _look_at_key(self) -> None:
        if self._sshkey is None:
            return
        try:  # ssh would warn, and then fail for another reason
            self._sshkey.open("rb").close()
        except OSError as error:
            raise TunnelError(
                f"no ssh tunnel to {self.sshserver}: the key file {self._sshkey} cannot be read: "
                f"{error.strerror}"
            ) from None

    # -- its life, for asyncio --------------------------------------------------------------

    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a tunnel and open it; takes what the class takes, raises what `start` raises."""
        return await cls(*args, **kwargs).__aenter__()

    async def aclose(self) -> None:
        """Close it without blocking the event loop."""
        self._keeper.stop()  # even if the wait for it is cancelled
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        try:
            return await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            self._keeper.stop()  # and the thread that waits for it closes it
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
