"""One connection to one port of a kernel, with ZMTP on a plain socket of the event loop.

Properties:

- a connection that cannot be made or that breaks is made again, after 30 ms in the first 10 s, and
  later after 1 s; except after a fault of the peer;
- the event loop calls the owner when bytes have arrived, and the owner calls `read`, which handles
  one slice of them: the descriptor is level-triggered, so the rest is announced again;
- bytes behind a full slice are received at once, and announced by the backlog. Long parts
  are received into the object that will be delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator
from typing import Final, Protocol

from kbridge.errors import ZmtpError
from kbridge.link.holder.buffer import SharedBuffer
from kbridge.link.holder.keeper import Port
from kbridge.link.interfaces import RawMessage
from kbridge.link.zmtp.backlog import Backlog
from kbridge.link.zmtp.connecting import Connector, Target
from kbridge.link.zmtp.late_reader import late_reader
from kbridge.link.zmtp.receive import CHUNK, ReceiveBuffer
from kbridge.link.zmtp.writing import Writer
from kbridge.wire.message import Channel
from kbridge.wire.zmtp.peer import Peer

__all__ = ["ConnectionEvents", "ZmtpConnection"]

_LIGHT: Final = 32 << 10  # bytes
# A kernel that starts takes up to some seconds to listen, and is then wanted at once.
_EAGER_SECONDS: Final = 10.0
_FIRST_DELAY: Final = 0.03
_LAST_DELAY: Final = 1.0
_STABLE_SECONDS: Final = 1.0  # a connection that breaks earlier does not shorten the delay
_WOULD_BLOCK: Final = (BlockingIOError, InterruptedError)


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
    writer : Writer
        Sends messages.
    watched : bool
        True until `unwatch`: the owner reports what happens to this connection.
    ended : bool
        True if an established connection has ended; the owner calls `retry`, now or later.
    fault : ZmtpError or None
        The fault of the peer for which the connection was ended or refused.
    full : bool
        True if more bytes may wait than the last `read` has received: it has received some, but as
        many as it asked for, or a part of a message.
    light : bool
        True if the last `read` has received as little as the beginning or the end of a cell.
    early : bool
        Set by the owner after a `read` that the event loop has not announced. The next announcement
        may be about the same bytes, and is ignored: bytes that still wait are announced again.
    """

    __slots__ = (
        "_backlog",
        "_buffer",
        "_connector",
        "_down_since",
        "_events",
        "_fd",
        "_loop",
        "_peer",
        "_port",
        "_resumed",
        "_socket",
        "_target",
        "_timer",
        "_up_since",
        "channel",
        "early",
        "ended",
        "fault",
        "full",
        "light",
        "watched",
        "writer",
    )

    def __init__(self, target: Target, events: ConnectionEvents, port: Port | None = None) -> None:
        self.channel = target.channel
        self.writer = Writer(self)
        self.watched = True
        self.ended = False
        self.full = False
        self.light = True
        self.early = False
        self.fault: ZmtpError | None = None
        self._target = target
        self._events = events
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._connector = Connector(target, self, port)
        self._timer: asyncio.TimerHandle | None = None
        self._down_since = self._up_since = self._loop.time()
        # Of an established connection:
        self._socket: socket.socket | None = None
        self._fd = -1
        self._buffer: ReceiveBuffer | SharedBuffer = ReceiveBuffer()
        self._peer: Peer | None = None
        self._backlog: Backlog | None = None
        self._resumed: Peer | None = None  # of one that goes on, before `start`

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
        if not self._connector.start():
            self.retry()

    def retry(self) -> None:
        """Connect again, after a delay; does nothing if that is already under way."""
        if self._socket is not None or self._connector.busy or self._timer is not None:
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
            self._connector.release_port()
            self._buffer = self.writer.buffer = ReceiveBuffer()
            if self._backlog is not None:
                self._backlog.buffer = self._buffer

    def read(self) -> list[RawMessage]:
        """Receive once, and return messages that are whole now.

        At the end of the connection, `ended` becomes true, and `fault` is set if that was the fault
        of the peer. The messages that are returned are valid in any case.
        """
        sock, peer, backlog = self._socket, self._peer, self._backlog
        self.full = False
        if sock is None or peer is None or backlog is None:
            return []
        decoder = peer.decoder
        place = decoder.pending
        backlog.reads += 1
        try:
            with backlog.lock:
                if backlog.size or decoder.more:
                    count = -1
                elif place is None:
                    data = self._buffer.receive(sock)
                    count = len(data)
                    self.light = count <= _LIGHT
                else:
                    count = self._buffer.receive_long(sock, place)
                    self.full = True  # the part is not whole, or others may follow
                    self.light = False
        except _WOULD_BLOCK:
            return []
        except OSError:
            count = 0
        if count <= 0:
            if count:
                return self._read_backlog(peer, backlog)
            self._end()
            return []
        if place is not None:
            batch = peer.received(count)
        else:
            batch = peer.feed(data)
            if count == CHUNK or decoder.more:
                self._receive_more(peer, backlog)
            elif not batch:
                self.full = True  # at the end of its ring, a shared buffer receives less
        if peer.fault is not None or peer.output:
            self._react(peer)
        return batch

    @property
    def arrived(self) -> int:
        """The number of bytes that have arrived, decoded or not."""
        peer, backlog = self._peer, self._backlog
        return 0 if peer is None or backlog is None else peer.taken + backlog.waiting

    def read_before(self, position: int) -> Iterator[list[RawMessage]]:
        """Read until this number of `arrived` bytes is decoded; yield what each read returns.

        A read that gets nothing is the last one: the system may have counted a byte that cannot be
        received, such as one that a unix socket was sent out of band. The event loop may read
        between two steps, and may even begin another connection, which has other positions.
        """
        peer = self._peer
        while peer is not None and self._peer is peer:
            taken, more = peer.taken, peer.decoder.more
            if taken >= position and not more:
                return
            yield self.read()
            if peer.taken == taken and not more:
                return

    def close(self) -> None:
        """Close the connection and drop the queue; may be called twice."""
        self._disconnect()
        self.writer.clear()
        self._connector.stop()

    # -- reading what could not be handled at once ------------------------------------------

    def _read_backlog(self, peer: Peer, backlog: Backlog) -> list[RawMessage]:
        """Return messages of bytes that were received before."""
        decoder = peer.decoder
        self.light = False
        place = decoder.pending
        if decoder.more:
            batch = peer.feed(b"")
        elif place is None:
            batch = peer.feed(backlog.take())
        else:
            batch = peer.received(backlog.take_into(place))
        self._receive_more(peer, backlog, long=place is not None)
        if peer.fault is not None or peer.output:
            self._react(peer)
        return batch

    def _receive_more(self, peer: Peer, backlog: Backlog, *, long: bool = False) -> None:
        """Receive the bytes behind those that were decoded last: a part of a `long` part, or not.

        PUB counts messages, so long parts are not urgent. The event loop receives them into their
        place, which needs a copy less.
        """
        decoder = peer.decoder
        self.full = True
        if not long and decoder.pending is None:
            backlog.collect()
        if backlog.size or decoder.more:
            backlog.announce()

    def _react(self, peer: Peer) -> None:
        """Answer the peer, or end the connection after its fault."""
        if peer.fault is not None:
            self.fault = peer.fault
            self._end()
        elif not self.writer.answering:
            # One PONG at a time, or a peer that reads nothing could fill the queue with them.
            self.writer.answer(peer.take_output())

    # -- events (ConnectorEvents, WriterEvents, BacklogEvents) ------------------------------

    def on_failed(self) -> None:
        """Try again later."""
        self.retry()

    def on_refused(self, fault: ZmtpError) -> None:
        """Leave it to the owner to try again."""
        self.fault = fault
        self._events.on_refused(self, fault)

    def on_established(
        self,
        sock: socket.socket,
        peer: Peer,
        buffer: ReceiveBuffer | SharedBuffer,
        early: list[RawMessage],
    ) -> None:
        """Receive and send from now on."""
        self._socket, self._fd, self._buffer = sock, sock.fileno(), buffer
        self._begin(sock, peer)
        if peer.fault is not None:  # in the messages behind the handshake
            self.fault = peer.fault
            self._end()
        else:
            if peer.output:
                self.writer.insert(peer.take_output())
            if self._port is not None:
                self._port.hold(sock, peer, self._target.identity)
        try:
            self._events.on_established(self, early)
        finally:
            self.writer.flush()

    def on_room(self) -> None:
        """Pass it on."""
        self._events.on_room(self)

    def on_backlog(self) -> None:
        """Let the owner read."""
        self._events.on_input(self)

    def _on_readable(self) -> None:
        """Let the owner read, unless it has just done so."""
        if self.early:
            self.early = False
        else:
            self._events.on_input(self)

    def _on_retry(self) -> None:
        self._timer = None
        try:
            self.connect()
        except OSError:  # no descriptor is free now
            self.retry()

    # -- begin and end ----------------------------------------------------------------------

    def resume(self) -> Iterator[list[RawMessage]]:
        """Go on with the connection of an earlier bridge; yield the messages that come again.

        Nothing else is yielded, and nothing is sent, until `start`. But the bytes behind those that
        come again are received from now on, because a PUB would drop them in that time.
        """
        port, target = self._port, self._target
        assert port is not None
        peer = Peer.resume(target.socket_type, target.identity, target.limits, port.minor)
        sock, self._buffer = port.resume(peer)
        sock.setblocking(False)
        self._socket, self._fd, self._resumed = sock, sock.fileno(), peer
        self._receive_in_advance(sock, silent=True)
        return (batch for data in port.replay() for batch in peer.feed_all(data))

    def start(self) -> None:
        """Deliver and send, after `resume`."""
        peer, self._resumed = self._resumed, None
        if peer is None or self._socket is None:  # closed in the meantime
            return
        self._begin(self._socket, peer)
        self.writer.flush()

    def _receive_in_advance(self, sock: socket.socket, *, silent: bool) -> Backlog:
        """Receive while the event loop is late, from now on."""
        self._backlog = backlog = Backlog(sock, self._buffer, self, silent=silent)
        if self.channel is Channel.IOPUB:  # a PUB drops output; a ROUTER has few replies
            late_reader.add(backlog)
        return backlog

    def _begin(self, sock: socket.socket, peer: Peer) -> None:
        """Let the event loop announce the bytes of the peer."""
        self._peer = peer
        backlog = self._backlog or self._receive_in_advance(sock, silent=False)
        self._up_since = self._loop.time()
        self.early = False
        self.writer.open(sock, self._buffer)
        self._loop.add_reader(self._fd, self._on_readable)
        backlog.start()
        if peer.decoder.more:
            backlog.announce()

    def _end(self) -> None:
        """End an established connection."""
        now = self._loop.time()
        if now - self._up_since >= _STABLE_SECONDS:
            self._down_since = now
        self._disconnect()
        self.ended = True

    def _disconnect(self) -> None:
        """Close the socket, if there is one, and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._peer = None
        sock, self._socket = self._socket, None
        if sock is None:
            return
        backlog, self._backlog = self._backlog, None
        try:
            self._loop.remove_reader(self._fd)
            self.writer.close()
            port = self._port
            if port is not None and not port.leaving:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # the holder has a duplicate
                port.drop()
        finally:  # nobody else closes them
            if backlog is None:
                sock.close()
            else:
                late_reader.remove(backlog)
                backlog.close()
