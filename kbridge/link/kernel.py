"""The ZeroMQ sockets of one kernel.

One SUB and three DEALERs, whoever listens. All are drained in batches off their descriptors: no
Task and no Future a message. All are
watched by socket monitors, which tell when the kernel's side went away and when a new one has
finished its handshake. A TCP connection alone proves nothing: the near end of a tunnel accepts it
before anybody is at the far end.

The descriptor of a ZeroMQ socket is edge-triggered: it says that something happened, once, and
sending may swallow what it has to say. So the socket is asked again after each send, and after
each drain that stopped at its bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop
from zmq.utils.monitor import parse_monitor_message

from kbridge.errors import KernelError
from kbridge.link.drain import drain
from kbridge.link.endpoints import Endpoints
from kbridge.link.former import FormerSockets
from kbridge.link.interfaces import KernelEvents, RawMessage
from kbridge.link.sockets import make, new_identity
from kbridge.wire.message import Buffer, Channel

__all__ = ["KernelLink"]

_DEALERS: Final = (Channel.SHELL, Channel.CONTROL, Channel.STDIN)
# Iopub last: a hub that is told of it goes on at once, and should know all there is to know.
_WATCHED: Final = (*_DEALERS, Channel.IOPUB)
# libzmq connects anew at once, unless it has itself closed the connection: for a message that is
# larger than allowed, or bytes that are no ZMTP. Then the socket is of no use any more.
_GONE_SECONDS: Final = 2.0
_FORMER: Final = 4  # identities of the past; each takes three sockets
_BATCH_MESSAGES: Final = 400
_BATCH_BYTES: Final = 4 << 20
# A cell ends with a reply and an idle status: whoever brings one looks for the other, so that both
# go out in one write.
_BESIDE: Final = {Channel.SHELL: Channel.IOPUB, Channel.IOPUB: Channel.SHELL}
_FEW: Final = 8
_LIGHT: Final = 32 << 10

# As plain numbers: zmq's enums cost more to combine than a part takes to send.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)

_EVENTS: Final = int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)


class KernelLink:
    """Sockets to one kernel; made open.

    Parameters
    ----------
    endpoints : Endpoints
        Where the kernel listens.
    events : KernelEvents
        Who is told.
    identity : bytes
        What shell, control and stdin go by at the kernel; a new one where it is empty.
    """

    def __init__(self, endpoints: Endpoints, events: KernelEvents, identity: bytes = b"") -> None:
        self._endpoints = endpoints
        self._events = events
        self._loop = IOLoop.current()
        self._soon = asyncio.get_running_loop().call_soon
        self._later = asyncio.get_running_loop().call_later
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._former: list[FormerSockets] = []
        self._refused: set[Channel] = set()
        self._again: set[Channel] = set()
        self._light = True  # whether the last batch was
        self._monitors: dict[Channel, zmq.Socket[bytes]] = {}
        self._gone: dict[Channel, asyncio.TimerHandle] = {}
        try:
            self._open(Channel.IOPUB, make(Channel.IOPUB, endpoints))
            identity = identity or new_identity()
            for channel in _DEALERS:
                self._open(channel, make(channel, endpoints, identity))
        except zmq.ZMQError as error:
            self.close()
            raise KernelError(
                f"there is no way to the kernel's sockets: {error.strerror}"
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._sockets

    def send(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Hand a message to ZeroMQ.

        Returns
        -------
        bool
            False if the channel is full, or the link closed; `on_writable` tells when to try again.
        """
        socket = self._sockets.get(channel)
        if socket is None:
            return False
        *before, last = frames
        try:
            for frame in before:
                socket.send(frame, _MORE)
            socket.send(last, _NOBLOCK)
        except zmq.Again:  # from the first part, or not at all: a message goes whole
            self._refused.add(channel)
            self._look_again(channel)
            return False
        if _waits(socket, zmq.POLLIN) or channel in self._refused:
            self._look_again(channel)
        return True

    def drain(self) -> None:
        """Deliver all messages that have arrived, now."""
        for former in list(self._former):
            former.drain()
        for channel in list(self._sockets):
            while not self.closed and self._drain(channel):
                pass
        self._events.on_drained()

    def renew(self, identity: bytes, *, keep: bool) -> None:
        """Send requests through new sockets, under another identity.

        Parameters
        ----------
        identity : bytes
            The new identity; the kernel must not have seen it before.
        keep : bool
            True to keep receiving replies for the present identity until `drop_former`.

        Raises
        ------
        KernelError
            If the new sockets cannot be made; the present sockets stay in use.
        """
        new = self._make_dealers(identity, watched=True)
        old = {channel: self._detach(channel) for channel in _DEALERS}
        self._refused.clear()
        if keep:
            self._keep(old)
        else:
            for socket in old.values():
                socket.close(linger=0)
        for channel, socket in new.items():
            self._open(channel, socket)

    def receive_for(self, identity: bytes) -> None:
        """Also receive what the kernel sends to an identity of the past, until `drop_former`.

        Raises
        ------
        KernelError
            If there are no sockets to be had.
        """
        sockets = self._make_dealers(identity, watched=False)
        for channel, socket in sockets.items():
            socket.connect(self._endpoints.url(channel))
        self._keep(sockets)

    def drop_former(self) -> None:
        """Receive nothing more for identities of the past."""
        former, self._former = self._former, []
        for each in former:
            each.close()

    def close(self) -> None:
        """Close the sockets; may be called twice. What was not sent is not sent any more."""
        for channel in list(self._sockets):
            self._detach(channel).close(linger=0)
        self.drop_former()

    # -- inside -----------------------------------------------------------------------------

    def _keep(self, sockets: dict[Channel, zmq.Socket[bytes]]) -> None:
        self._former.append(FormerSockets(sockets, self._events))
        if len(self._former) > _FORMER:
            self._former.pop(0).close()

    def _make_dealers(self, identity: bytes, *, watched: bool) -> dict[Channel, zmq.Socket[bytes]]:
        """Return new sockets for shell, control and stdin: all of them, or none."""
        made: dict[Channel, zmq.Socket[bytes]] = {}
        opened: list[zmq.Socket[bytes]] = []
        try:
            for channel in _DEALERS:
                made[channel] = socket = make(channel, self._endpoints, identity)
                opened.append(socket)
                if watched:
                    opened.append(socket.get_monitor_socket(_EVENTS))
        except zmq.ZMQError as error:
            for each in opened:
                each.close(linger=0)
            raise KernelError(f"there are no more sockets to be had: {error.strerror}") from None
        return made

    def _open(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        self._sockets[channel] = socket
        if channel is Channel.IOPUB:
            socket.subscribe(b"")
        if channel in _WATCHED:
            self._watch(channel, socket)
        socket.connect(self._endpoints.url(channel))
        self._loop.add_handler(socket.fileno(), self._reader(channel), IOLoop.READ)
        # A socket that was never asked may keep silent about what it has.
        self._look_again(channel)

    def _detach(self, channel: Channel) -> zmq.Socket[bytes]:
        """Stop reading a socket, and give it away."""
        gone = self._gone.pop(channel, None)
        if gone is not None:
            gone.cancel()
        monitor = self._monitors.pop(channel, None)
        if monitor is not None:
            self._loop.remove_handler(monitor.fileno())
            self._sockets[channel].disable_monitor()
            monitor.close(linger=0)
        socket = self._sockets.pop(channel)
        self._loop.remove_handler(socket.fileno())
        return socket

    def _watch(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        monitor = self._monitors[channel] = socket.get_monitor_socket(_EVENTS)
        self._loop.add_handler(monitor.fileno(), self._on_monitors, IOLoop.READ)
        self._soon(self._on_monitors, None, 0)

    def _reader(self, channel: Channel) -> Callable[[Any, int], None]:
        beside = _BESIDE.get(channel)

        def on_readable(_fd: Any, _events: int) -> None:
            self._drain(channel)
            if beside is not None and self._light:
                socket = self._sockets.get(beside)
                if socket is not None and _waits(socket, zmq.POLLIN):
                    self._drain(beside, behind=True)
            self._events.on_drained()

        return on_readable

    def _drain(self, channel: Channel, *, behind: bool = False) -> bool:
        """Read one batch; whether more may wait, which is then looked after.

        `behind` another batch, which goes out first if this one is large: a small journal might
        have to forget it for this one.
        """
        socket = self._sockets.get(channel)
        if socket is None:
            return False
        batch, more = drain(socket, _BATCH_MESSAGES, _BATCH_BYTES)
        if more:  # before anybody is told: the descriptor keeps silent whatever they raise
            self._look_again(channel)
        self._light = _is_light(batch)
        if behind and not self._light:
            self._events.on_drained()
        if batch:
            self._events.on_messages(channel, batch)
        if channel in self._refused and _waits(socket, zmq.POLLOUT):
            self._refused.discard(channel)
            self._events.on_writable(channel)
        return more

    def _look_again(self, channel: Channel) -> None:
        """Drain soon, but let others have their turn first."""
        if channel not in self._again:
            self._again.add(channel)
            self._soon(self._on_turn, channel)

    def _on_turn(self, channel: Channel) -> None:
        self._again.discard(channel)
        socket = self._sockets.get(channel)
        if socket is not None and _waits(socket, zmq.POLLIN | zmq.POLLOUT):
            self._drain(channel)
            self._events.on_drained()

    def _on_monitors(self, _fd: Any, _events: int) -> None:
        for channel in _WATCHED:
            while (event := self._next_event(channel)) is not None:
                gone = self._gone.pop(channel, None)
                if gone is not None:
                    gone.cancel()
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._events.on_connected(channel)
                elif event == zmq.EVENT_DISCONNECTED:
                    # All that the old side sent was handed over before the monitor speaks.
                    self.drain()
                    self._gone[channel] = self._later(_GONE_SECONDS, self._on_gone, channel)
                    self._events.on_disconnected(channel)

    def _on_gone(self, channel: Channel) -> None:
        del self._gone[channel]
        try:
            if channel is Channel.IOPUB:
                new = make(channel, self._endpoints)
                self._detach(channel).close(linger=0)
                self._open(channel, new)
            self._events.on_gone(channel)
        except (zmq.ZMQError, KernelError):  # no descriptor is free: others may end meanwhile
            self._gone[channel] = self._later(_GONE_SECONDS, self._on_gone, channel)

    def _next_event(self, channel: Channel) -> int | None:
        monitor = self._monitors.get(channel)
        if monitor is None or not _waits(monitor, zmq.POLLIN):
            return None
        return int(parse_monitor_message(monitor.recv_multipart(_NOBLOCK))["event"])


def _is_light(batch: list[RawMessage]) -> bool:
    """Whether a batch is no more than the beginning or the end of a cell."""
    return len(batch) <= _FEW and sum(len(p) for parts in batch for p in parts) <= _LIGHT


def _waits(socket: zmq.Socket[bytes], what: int) -> bool:
    """Whether a socket has something to read, or room to write; asking also re-arms it."""
    return not socket.closed and bool(int(socket.getsockopt(zmq.EVENTS)) & what)
