"""One connection to one port of a kernel, with ZMTP on a plain socket of the event loop.

Properties:

- a connection that cannot be made or that breaks is made again, after 30 ms in the first 10 s, and
  later after 1 s; except after a fault of the peer;
- the event loop calls the owner when bytes have arrived, and the owner calls `read`, which receives
  once: the descriptor is level-triggered, so the rest is announced again;
- an error of sending does not end the connection, because bytes of the peer may wait to be read.
  Reading finds the end behind them;
- queued messages stay in the queue while the connection is down; see `SendQueue`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kbridge.errors import ZmtpError
from kbridge.link.holder.buffer import SharedBuffer
from kbridge.link.holder.keeper import Port
from kbridge.link.interfaces import RawMessage
from kbridge.link.zmtp.address import Address, SocketAddress, is_local
from kbridge.link.zmtp.receive import CHUNK, LONG_CHUNK, ReceiveBuffer
from kbridge.link.zmtp.send_queue import SendQueue
from kbridge.wire.message import Buffer, Channel
from kbridge.wire.offsets import nbytes
from kbridge.wire.zmtp.encoder import LARGE, encode, encode_large
from kbridge.wire.zmtp.peer import Limits, Peer, SocketType

__all__ = ["ConnectionEvents", "Target", "ZmtpConnection"]

_QUEUE_BYTES: Final = 1 << 20  # of messages that wait; an empty queue takes any message
_LIGHT: Final = 32 << 10  # bytes
_HANDSHAKE_SECONDS: Final = 30.0  # from the begin of connecting, as in libzmq
# A kernel that starts takes up to some seconds to listen, and is then wanted at once.
_EAGER_SECONDS: Final = 10.0
_FIRST_DELAY: Final = 0.03
_LAST_DELAY: Final = 1.0
_STABLE_SECONDS: Final = 1.0  # a connection that breaks earlier does not shorten the delay
# Of a silent peer on another machine: seconds until the first probe, and between two; their number.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_TCP: Final = (socket.AF_INET, socket.AF_INET6)
_NO_MEMORY: Final = (errno.ENOBUFS, errno.ENOMEM)
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


class ConnectionEvents(Protocol):
    """Callbacks to the owner of connections."""

    def on_input(self, connection: ZmtpConnection) -> None:
        """Read from a connection; called by the event loop."""

    def on_established(self, connection: ZmtpConnection, early: list[RawMessage]) -> None:
        """Note that the ZMTP handshake has succeeded; `early` are messages that came with it."""

    def on_refused(self, connection: ZmtpConnection, fault: ZmtpError) -> None:
        """Note that the handshake has failed; the owner calls `retry`, now or later."""

    def on_room(self, connection: ZmtpConnection) -> None:
        """Note that a connection that refused a message accepts messages again."""


class ZmtpConnection:
    """One connection, made by `connect`.

    Parameters
    ----------
    target : Target
        The port of the kernel.
    events : ConnectionEvents
        The owner.
    port : Port or None
        Keeps the connection while no bridge runs; None if it ends with this process.

    Attributes
    ----------
    channel : Channel
        The channel of the kernel.
    watched : bool
        True until `unwatch`: the owner reports what happens to this connection.
    ended : bool
        True if an established connection has ended; the owner calls `retry`, now or later.
    fault : ZmtpError or None
        The fault of the peer for which the connection was ended or refused.
    full : bool
        True if more bytes may wait than the last `read` has received.
    light : bool
        True if the last `read` has received as little as the beginning or the end of a cell.
    """

    __slots__ = (
        "_addresses",
        "_buffer",
        "_down_since",
        "_events",
        "_fd",
        "_loop",
        "_peer",
        "_port",
        "_queue",
        "_refused",
        "_resolving",
        "_resumed",
        "_socket",
        "_target",
        "_timer",
        "_up_since",
        "_writing",
        "channel",
        "ended",
        "fault",
        "full",
        "light",
        "watched",
    )

    def __init__(self, target: Target, events: ConnectionEvents, port: Port | None = None) -> None:
        self.channel = target.channel
        self.watched = True
        self.ended = False
        self.full = False
        self.light = True
        self.fault: ZmtpError | None = None
        self._target = target
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._queue = SendQueue()
        self._refused = False  # True if a message was refused since `on_room`
        self._socket: socket.socket | None = None
        self._fd = -1
        self._peer: Peer | None = None  # of an established connection
        self._resumed: Peer | None = None  # of one that goes on, before `start`
        self._port = port
        self._buffer: ReceiveBuffer | SharedBuffer = ReceiveBuffer()
        self._writing = False  # True if the event loop announces room
        self._addresses: deque[SocketAddress] = deque()  # those left to be tried
        self._resolving: asyncio.Future[list[SocketAddress]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._down_since = self._up_since = self._loop.time()

    # -- what the owner calls ---------------------------------------------------------------

    def connect(self) -> None:
        """Begin to connect.

        Raises
        ------
        OSError
            If the system has no descriptor for a socket.
        """
        self.ended = False
        self.fault = None
        self._addresses.clear()
        addresses = self._target.address.numeric()
        if addresses is not None:
            self._addresses.extend(addresses)
            self._try_next()
            return
        resolving = self._loop.run_in_executor(_resolvers, self._target.address.resolve)
        self._resolving = resolving
        resolving.add_done_callback(self._on_resolved)

    def retry(self) -> None:
        """Connect again, after a delay; does nothing if that is already under way."""
        if self._socket is not None or self._resolving is not None or self._timer is not None:
            return
        down = self._loop.time() - self._down_since
        delay = _FIRST_DELAY if down < _EAGER_SECONDS else _LAST_DELAY
        # Jitter: the kernels of a machine that was suspended do not all connect at once.
        delay *= 1 + random.random() / 4  # noqa: S311
        self.ended = False
        self._timer = self._loop.call_later(delay, self._on_retry)

    def unwatch(self) -> None:
        """Note that the owner reports only the messages of this connection from now on."""
        self.watched = False
        if self._port is not None:  # the connection that replaces this one is kept
            self._port = None
            self._buffer = ReceiveBuffer()

    def read(self) -> list[RawMessage]:
        """Receive once, and return the messages that are whole now.

        At the end of the connection, `ended` becomes true, and `fault` is set if that was the fault
        of the peer. The messages that are returned are valid in any case.
        """
        sock, peer = self._socket, self._peer
        self.full = False
        if sock is None or peer is None:
            return []
        place = peer.decoder.pending
        try:
            if place is None:
                data = self._buffer.receive(sock)
                count = len(data)
                self.full = count == CHUNK
                self.light = count <= _LIGHT
            else:
                count = self._buffer.receive_long(sock, place)
                self.full = count in (len(place), LONG_CHUNK)
                self.light = False
        except _WOULD_BLOCK:
            return []
        except OSError:
            count = 0
        if not count:
            self._end()
            return []
        batch = peer.feed(data) if place is None else peer.received(count)
        if peer.fault is not None:
            self.fault = peer.fault
            self._end()
        elif peer.output and not self._queue.has_command:
            # One PONG at a time, or a peer that reads nothing could fill the queue with them.
            self._queue.insert(peer.take_output())
            self._announce_room()
        return batch

    def send(self, parts: Sequence[Buffer]) -> bool:
        """Send a message, or queue it; return False if the queue is full. `on_room` follows."""
        queue = self._queue
        pieces: Sequence[Buffer]
        if sum(map(len, parts)) < LARGE:
            data = encode(parts)
            size = len(data)
            if not queue.size and self._peer is not None:
                assert self._socket is not None
                self._buffer.note_sending(True)
                try:
                    sent = self._socket.send(data)
                except OSError:  # the flush that follows, or the next read, finds out which
                    sent = 0
                if sent == size:
                    self._buffer.note_sending(False)
                else:
                    queue.append((data,), size, sent)
                    self._announce_room()
                return True
            pieces = (data,)
        else:
            pieces = encode_large(parts)
            size = sum(map(nbytes, pieces))
        if queue.size and queue.size + size > _QUEUE_BYTES:
            self._refused = True
            return False
        idle = not queue.size
        queue.append(pieces, size)
        if idle:
            self._flush()
        return True

    def close(self) -> None:
        """Close the connection and drop the queue; may be called twice."""
        self._disconnect()
        self._queue.clear()
        self._addresses.clear()
        if self._resolving is not None:
            self._resolving.remove_done_callback(self._on_resolved)
            self._resolving.cancel()
            self._resolving = None

    # -- connecting -------------------------------------------------------------------------

    def _on_retry(self) -> None:
        self._timer = None
        try:
            self.connect()
        except OSError:  # no descriptor is free now
            self.retry()

    def _on_resolved(self, resolving: asyncio.Future[list[SocketAddress]]) -> None:
        self._resolving = None
        if resolving.exception() is None:
            self._addresses.extend(resolving.result())
        try:
            self._try_next()
        except OSError:
            self.retry()

    def _try_next(self) -> None:
        """Connect to the next address; wait and begin again if there is none."""
        while self._addresses:
            family, address = self._addresses.popleft()
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            self._socket, self._fd = sock, sock.fileno()
            code = sock.connect_ex(address)
            if code in (0, errno.EINPROGRESS):
                self._timer = self._loop.call_later(_HANDSHAKE_SECONDS, self._give_up)
                self._loop.add_writer(self._fd, self._on_connected, family, address)
                return
            self._disconnect()
        self.retry()

    def _give_up(self) -> None:
        """Try the next address: this attempt has failed."""
        self._disconnect()
        try:
            self._try_next()
        except OSError:
            self.retry()

    def _on_connected(self, family: int, address: Any) -> None:
        """Begin the handshake."""
        sock = self._socket
        assert sock is not None
        self._loop.remove_writer(self._fd)
        try:
            # A socket that connects to a port in which nobody listens may meet itself, if the
            # system has chosen that port for it.
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _is_own(sock, family):
                self._give_up()
                return
            _configure(sock, family, address)
            target = self._target
            kind = SocketType.SUB if target.channel is Channel.IOPUB else SocketType.DEALER
            peer = Peer(kind, target.identity, target.limits)
            if self._port is not None:
                self._buffer = self._port.open(sock) or ReceiveBuffer()
            sock.send(peer.start())  # the first bytes, so the system has room for them
        except OSError:
            self._give_up()
            return
        self._loop.add_reader(self._fd, self._on_handshake, peer)

    def _on_handshake(self, peer: Peer) -> None:
        sock = self._socket
        assert sock is not None
        try:
            data = self._buffer.receive(sock)
        except _WOULD_BLOCK:
            return
        except OSError:
            data = b""
        if not data:
            self._give_up()
            return
        early = peer.feed(data)
        if peer.established:
            self._establish(peer)
            try:
                self._events.on_established(self, early)
            finally:
                self._flush()
        elif peer.fault is not None:
            self.fault = peer.fault
            self._disconnect()
            self._addresses.clear()
            self._events.on_refused(self, peer.fault)

    def _establish(self, peer: Peer) -> None:
        self._cancel_timer()
        self._addresses.clear()
        self._peer = peer
        self._up_since = self._loop.time()
        self._loop.add_reader(self._fd, self._events.on_input, self)
        if peer.fault is not None:  # in the messages behind the handshake
            self.fault = peer.fault
            self._end()
            return
        if peer.output:
            self._queue.insert(peer.take_output())
        if self._port is not None:
            assert self._socket is not None
            self._port.hold(self._socket, peer, self._target.identity)

    # -- going on ---------------------------------------------------------------------------

    def resume(self) -> Iterator[list[RawMessage]]:
        """Go on with the connection of an earlier bridge; yield the messages that come again.

        Nothing is received, and nothing is sent, until `start`.
        """
        port, target = self._port, self._target
        assert port is not None
        kind = SocketType.SUB if target.channel is Channel.IOPUB else SocketType.DEALER
        peer = Peer.resume(kind, target.identity, target.limits, port.minor)
        sock, self._buffer = port.resume(peer)
        sock.setblocking(False)
        self._socket, self._fd, self._resumed = sock, sock.fileno(), peer
        return self._replay(port, peer)

    def _replay(self, port: Port, peer: Peer) -> Iterator[list[RawMessage]]:
        for data in port.replay():
            rest = memoryview(data)
            while rest:
                place = peer.decoder.pending
                if place is None:
                    batch = peer.feed(bytes(rest))
                    rest = rest[:0]
                else:
                    count = min(len(place), len(rest))
                    place[:count] = rest[:count]
                    place = None
                    rest = rest[count:]
                    batch = peer.received(count)
                if batch:
                    yield batch

    def start(self) -> None:
        """Receive and send, after `resume`."""
        peer, self._resumed = self._resumed, None
        if peer is None or self._socket is None:  # closed in the meantime
            return
        self._peer = peer
        self._up_since = self._loop.time()
        self._loop.add_reader(self._fd, self._events.on_input, self)
        self._flush()

    # -- the end ----------------------------------------------------------------------------

    def _end(self) -> None:
        """End an established connection."""
        now = self._loop.time()
        if now - self._up_since >= _STABLE_SECONDS:
            self._down_since = now
        self._disconnect()
        self._queue.rewind()
        self.ended = True

    def _disconnect(self) -> None:
        """Close the socket, if there is one, and stop the timer."""
        self._cancel_timer()
        sock, self._socket, self._peer = self._socket, None, None
        if sock is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._writing = False
            port = self._port
            if port is not None and not port.leaving:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # the holder has a duplicate
                port.drop()
            sock.close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- writing ----------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send queued messages, and let the event loop announce room if there is not enough."""
        if self._peer is None:
            return
        assert self._socket is not None
        self._buffer.note_sending(True)
        try:
            done = self._queue.send(self._socket)
        except _WOULD_BLOCK:
            done = False
        except OSError as error:
            self._stop_writing()
            if error.errno in _NO_MEMORY:
                self._loop.call_later(_FIRST_DELAY, self._flush)
            else:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # reading finds the end
            return
        if not done:
            self._announce_room()
            return
        self._buffer.note_sending(False)
        self._stop_writing()
        if self._refused:
            self._refused = False
            self._events.on_room(self)

    def _announce_room(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._flush)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)


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
