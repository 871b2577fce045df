"""Connect to one port of a kernel, and shake hands: attempts, one after another.

A name may have several addresses. They are tried in order; the owner decides when to begin again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kbridge.errors import ZmtpError
from kbridge.link.holder.buffer import SharedBuffer
from kbridge.link.holder.keeper import Port
from kbridge.link.interfaces import RawMessage
from kbridge.link.zmtp.address import Address, SocketAddress, is_local
from kbridge.link.zmtp.receive import ReceiveBuffer
from kbridge.wire.message import Channel
from kbridge.wire.zmtp.peer import Limits, Peer, SocketType

__all__ = ["Connector", "ConnectorEvents", "Target"]

_HANDSHAKE_SECONDS: Final = 30.0  # from the begin of connecting, as in libzmq
# Of a silent peer on another machine: seconds until the first probe, and between two; their number.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_TCP: Final = (socket.AF_INET, socket.AF_INET6)
_WOULD_BLOCK: Final = (BlockingIOError, InterruptedError)


# Not the executor of the event loop: a name server that does not answer would hold up other work.
_resolvers: Final = ThreadPoolExecutor(2, "kbridge-resolver")


@dataclass(frozen=True, slots=True)
class Target:
    """The port that a connection connects to, and what it says of itself.

    Attributes
    ----------
    channel : Channel
        The channel of the kernel.
    address : Address
        The address of the channel's port.
    identity : bytes
        The identity of this side; iopub has none.
    limits : Limits
        The maximum sizes of the messages that the kernel may send.
    """

    channel: Channel
    address: Address
    identity: bytes
    limits: Limits

    @property
    def socket_type(self) -> SocketType:
        """The type of this side's socket."""
        return SocketType.SUB if self.channel is Channel.IOPUB else SocketType.DEALER


class ConnectorEvents(Protocol):
    """Callbacks to the owner of a `Connector`, which calls none within `start`."""

    def on_established(
        self,
        sock: socket.socket,
        peer: Peer,
        buffer: ReceiveBuffer | SharedBuffer,
        early: list[RawMessage],
    ) -> None:
        """Take over a socket; `early` are messages that came with the handshake."""

    def on_failed(self) -> None:
        """Note that no address could be connected to, or no descriptor is free."""

    def on_refused(self, fault: ZmtpError) -> None:
        """Note that the peer does not speak ZMTP, or another ZMTP."""


class Connector:
    """Makes connections to one port of a kernel.

    Parameters
    ----------
    target : Target
        The port of the kernel.
    events : ConnectorEvents
        The owner.
    port : Port or None
        Keeps the connection while no bridge runs; None if it ends with this process.
    """

    __slots__ = (
        "_addresses",
        "_buffer",
        "_events",
        "_fd",
        "_loop",
        "_port",
        "_resolving",
        "_sock",
        "_target",
        "_timer",
    )

    def __init__(self, target: Target, events: ConnectorEvents, port: Port | None) -> None:
        self._target = target
        self._events = events
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._addresses: deque[SocketAddress] = deque()  # those left to be tried
        self._resolving: asyncio.Future[list[SocketAddress]] | None = None
        self._sock: socket.socket | None = None
        self._fd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._buffer: ReceiveBuffer | SharedBuffer = ReceiveBuffer()

    @property
    def busy(self) -> bool:
        """True while an attempt is under way."""
        return self._sock is not None or self._resolving is not None

    def start(self) -> bool:
        """Begin to connect; return False if no address can be connected to.

        Raises
        ------
        OSError
            If the system has no descriptor for a socket.
        """
        self._addresses.clear()
        addresses = self._target.address.numeric()
        if addresses is not None:
            self._addresses.extend(addresses)
            return self._try_next()
        resolving = self._loop.run_in_executor(_resolvers, self._target.address.resolve)
        self._resolving = resolving
        resolving.add_done_callback(self._on_resolved)
        return True

    def release_port(self) -> None:
        """Do not keep the connections from now on."""
        self._port = None
        self._buffer = ReceiveBuffer()

    def stop(self) -> None:
        """End the attempt, if one is under way."""
        self._give_up()
        self._addresses.clear()
        if self._resolving is not None:
            self._resolving.remove_done_callback(self._on_resolved)
            self._resolving.cancel()
            self._resolving = None

    # -- one address after another ----------------------------------------------------------

    def _on_resolved(self, resolving: asyncio.Future[list[SocketAddress]]) -> None:
        self._resolving = None
        if resolving.exception() is None:
            self._addresses.extend(resolving.result())
        self._go_on()

    def _try_next(self) -> bool:
        """Connect to the next address; return False if there is none."""
        while self._addresses:
            family, address = self._addresses.popleft()
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            self._sock, self._fd = sock, sock.fileno()
            code = sock.connect_ex(address)
            if code in (0, errno.EINPROGRESS):
                self._timer = self._loop.call_later(_HANDSHAKE_SECONDS, self._fail)
                self._loop.add_writer(self._fd, self._on_connected, family, address)
                return True
            self._give_up()
        return False

    def _fail(self) -> None:
        """Try the next address: this attempt has failed."""
        self._give_up()
        self._go_on()

    def _go_on(self) -> None:
        try:
            under_way = self._try_next()
        except OSError:  # no descriptor is free now
            under_way = False
        if not under_way:
            self._events.on_failed()

    def _give_up(self) -> None:
        """Close the socket of the attempt."""
        sock = self._release()
        if sock is not None:
            if self._port is not None and not self._port.leaving:
                self._port.drop()
            sock.close()

    def _release(self) -> socket.socket | None:
        """End the attempt, and return its socket."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        return sock

    # -- one attempt ------------------------------------------------------------------------

    def _on_connected(self, family: int, address: Any) -> None:
        """Begin the handshake."""
        sock = self._sock
        assert sock is not None
        self._loop.remove_writer(self._fd)
        try:
            # A socket that connects to a port in which nobody listens may meet itself, if the
            # system has chosen that port for it.
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _is_own(sock, family):
                self._fail()
                return
            _configure(sock, family, address)
            target = self._target
            peer = Peer(target.socket_type, target.identity, target.limits)
            self._buffer = (self._port and self._port.open(sock)) or ReceiveBuffer()
            sock.send(peer.start())  # the first bytes, so the system has room for them
        except OSError:
            self._fail()
            return
        self._loop.add_reader(self._fd, self._on_handshake, peer)

    def _on_handshake(self, peer: Peer) -> None:
        assert self._sock is not None
        try:
            data = self._buffer.receive(self._sock)
        except _WOULD_BLOCK:
            return
        except OSError:
            data = b""
        if not data:
            self._fail()
            return
        early = peer.feed(data)
        if peer.established:
            sock = self._release()
            assert sock is not None
            self._addresses.clear()
            self._events.on_established(sock, peer, self._buffer, early)
        elif peer.fault is not None:
            self._addresses.clear()
            self._give_up()
            self._events.on_refused(peer.fault)


def _is_own(sock: socket.socket, family: int) -> bool:
    """Return True if a TCP socket is connected to itself."""
    return family in _TCP and sock.getsockname() == sock.getpeername()


def _configure(sock: socket.socket, family: int, address: Any) -> None:
    """Set the options of a TCP socket."""
    if family not in _TCP:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if is_local(family, address):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # the system's defaults otherwise
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
