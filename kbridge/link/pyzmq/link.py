"""The ZeroMQ sockets of one kernel.

There are one SUB and three DEALERs, however many clients listen. All are drained in batches from
handlers of their descriptors, without a Task or a Future for each message. Socket monitors report
when the kernel has disconnected and when a handshake has succeeded. A TCP connection alone proves
nothing: the near end of a tunnel accepts it before the far end is connected.

The descriptor of a ZeroMQ socket is edge-triggered: it announces an event once, and sending may
consume the announcement. So the socket is asked again after each send, and after each drain that
stopped at its limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop
from zmq.utils.monitor import parse_monitor_message

from kbridge.errors import KernelError
from kbridge.link.endpoints import Endpoints, new_identity
from kbridge.link.interfaces import KernelEvents, RawMessage
from kbridge.link.pyzmq.drain import drain
from kbridge.link.pyzmq.former import FormerSockets
from kbridge.link.pyzmq.sockets import make
from kbridge.wire.message import Buffer, Channel

__all__ = ["KernelLink", "PyzmqLink"]

_DEALERS: Final = (Channel.SHELL, Channel.CONTROL, Channel.STDIN)
# Iopub last: a hub acts on its events at once, and needs the events of the other channels first.
_WATCHED: Final = (*_DEALERS, Channel.IOPUB)
# libzmq reconnects at once, unless it has closed the connection itself, because a message was too
# large or the bytes were not ZMTP. The socket is then unusable.
_GONE_SECONDS: Final = 2.0
_FORMER: Final = 4  # former identities; each needs three sockets
_BATCH_MESSAGES: Final = 400
_BATCH_BYTES: Final = 4 << 20
# A cell ends with a reply and an idle status. When one of them is read, the channel of the other is
# read as well, so that both are sent to clients in one write.
_BESIDE: Final = {Channel.SHELL: Channel.IOPUB, Channel.IOPUB: Channel.SHELL}
_FEW: Final = 8
_LIGHT: Final = 32 << 10

# Plain numbers: combining the enums of zmq takes longer than sending a part.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)

_EVENTS: Final = int(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)


class PyzmqLink:
    """The sockets to one kernel, open from the start.

    Parameters
    ----------
    endpoints : Endpoints
        The addresses of the kernel.
    events : KernelEvents
        The object to notify.
    identity : bytes
        The identity of shell, control and stdin at the kernel; a new one if empty.
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
        self._light = True  # True if the last batch was
        self._delivered = False  # True if messages were delivered since `on_drained`
        self._monitors: dict[Channel, zmq.Socket[bytes]] = {}
        self._gone: dict[Channel, asyncio.TimerHandle] = {}
        self._reporting: Iterator[None] | None = None  # of events, while messages come first
        try:
            self._open(Channel.IOPUB, make(Channel.IOPUB, endpoints))
            identity = identity or new_identity()
            for channel in _DEALERS:
                self._open(channel, make(channel, endpoints, identity))
        except zmq.ZMQError as error:
            self.close()
            raise KernelError(f"cannot connect to the kernel's sockets: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """True after `close` was called."""
        return not self._sockets

    def send(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Send a message.

        Returns
        -------
        bool
            False if the channel's queue is full, or the link is closed; `on_writable` follows.
        """
        socket = self._sockets.get(channel)
        if socket is None:
            return False
        *before, last = frames
        try:
            for frame in before:
                socket.send(frame, _MORE)
            socket.send(last, _NOBLOCK)
        except zmq.Again:  # for the first part only: ZeroMQ queues whole messages
            self._refused.add(channel)
            self._look_again(channel)
            return False
        if _waits(socket, zmq.POLLIN) or channel in self._refused:
            self._look_again(channel)
        return True

    def drain(self) -> None:
        """Deliver all messages that have arrived, now."""
        for _ in self._slices():
            pass
        self._report_drained()

    def drain_slices(self) -> Generator[None, None, None]:
        """Deliver all messages that have arrived, one batch in each step."""
        for _ in self._slices():
            self._report_drained()
            yield
        self._report_drained()

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
        """Also receive messages for a former identity, until `drop_former`.

        Raises
        ------
        KernelError
            If the sockets cannot be created.
        """
        sockets = self._make_dealers(identity, watched=False)
        for channel, socket in sockets.items():
            socket.connect(self._endpoints.url(channel))
        self._keep(sockets)

    def drop_former(self) -> None:
        """Stop receiving for former identities."""
        former, self._former = self._former, []
        for each in former:
            each.close()

    def close(self) -> None:
        """Close the sockets and drop queued messages; may be called twice."""
        for channel in list(self._sockets):
            self._detach(channel).close(linger=0)
        self.drop_former()

    # -- inside -----------------------------------------------------------------------------

    def _keep(self, sockets: dict[Channel, zmq.Socket[bytes]]) -> None:
        self._former.append(FormerSockets(sockets, self._events))
        if len(self._former) > _FORMER:
            self._former.pop(0).close()

    def _make_dealers(self, identity: bytes, *, watched: bool) -> dict[Channel, zmq.Socket[bytes]]:
        """Return new sockets for shell, control and stdin; close all of them if one fails."""
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
            raise KernelError(f"cannot create more sockets: {error.strerror}") from None
        return made

    def _open(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        self._sockets[channel] = socket
        if channel is Channel.IOPUB:
            socket.subscribe(b"")
        if channel in _WATCHED:
            self._watch(channel, socket)
        socket.connect(self._endpoints.url(channel))
        self._loop.add_handler(socket.fileno(), self._reader(channel), IOLoop.READ)
        # Its descriptor may not announce messages before the socket was asked once.
        self._look_again(channel)

    def _detach(self, channel: Channel) -> zmq.Socket[bytes]:
        """Stop reading a socket and return it, still open."""
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
            if beside is not None and self._light and self._is_waiting(beside):
                self._drain(beside, behind=True)
            self._report_drained()

        return on_readable

    def _drain(self, channel: Channel, *, behind: bool = False) -> bool:
        """Read one batch; return True if more may wait, which is then read in a later turn.

        `behind` is True if another batch was just delivered. It is written out first if this one is
        large, because a small journal might evict it in favour of this one.
        """
        socket = self._sockets.get(channel)
        if socket is None:
            return False
        batch, more = drain(socket, _BATCH_MESSAGES, _BATCH_BYTES)
        if more:  # first, because a callback may raise, and the descriptor stays silent
            self._look_again(channel)
        self._light = _is_light(batch)
        if behind and not self._light:
            self._report_drained()
        if batch:
            self._delivered = True
            self._events.on_messages(channel, batch)
        if channel in self._refused and _waits(socket, zmq.POLLOUT):
            self._refused.discard(channel)
            self._events.on_writable(channel)
        return more

    def _slices(self) -> Iterator[None]:
        """Deliver all messages that have arrived; yield between two batches."""
        for former in list(self._former):
            for _ in former.slices():
                self._delivered = True
                yield
        for channel in list(self._sockets):
            while self._is_waiting(channel) and self._drain(channel):
                yield

    def _look_again(self, channel: Channel) -> None:
        """Drain in a later turn of the loop."""
        if channel not in self._again:
            self._again.add(channel)
            self._soon(self._on_turn, channel)

    def _on_turn(self, channel: Channel) -> None:
        self._again.discard(channel)
        socket = self._sockets.get(channel)
        if socket is not None and _waits(socket, zmq.POLLIN | zmq.POLLOUT):
            self._drain(channel)
            self._report_drained()

    def _is_waiting(self, channel: Channel) -> bool:
        """Return True if messages of a channel wait to be read."""
        socket = self._sockets.get(channel)
        return socket is not None and _waits(socket, zmq.POLLIN)

    def _report_drained(self) -> None:
        if self._delivered:
            self._delivered = False
            self._events.on_drained()

    def _on_monitors(self, _fd: Any, _events: int) -> None:
        if self._reporting is None:
            self._reporting = self._report_events()
            self._go_on()

    def _go_on(self) -> None:
        """Report events of the monitors, until messages must be delivered before the next one."""
        reporting = self._reporting
        if reporting is None:
            return
        try:
            next(reporting)
        except BaseException as error:
            self._reporting = None
            if not isinstance(error, StopIteration):
                raise
        else:
            self._soon(self._go_on)

    def _report_events(self) -> Iterator[None]:
        """Report all events of the monitors; yield between two batches of messages."""
        for channel in _WATCHED:
            while (event := self._next_event(channel)) is not None:
                gone = self._gone.pop(channel, None)
                if gone is not None:
                    gone.cancel()
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._events.on_connected(channel)
                elif event == zmq.EVENT_DISCONNECTED:
                    # The kernel's last messages have arrived before the monitor's event.
                    yield from self.drain_slices()
                    if channel not in self._monitors:  # closed in the meantime
                        return
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
        except (zmq.ZMQError, KernelError):  # no descriptor is free now; try again later
            self._gone[channel] = self._later(_GONE_SECONDS, self._on_gone, channel)

    def _next_event(self, channel: Channel) -> int | None:
        monitor = self._monitors.get(channel)
        if monitor is None or not _waits(monitor, zmq.POLLIN):
            return None
        return int(parse_monitor_message(monitor.recv_multipart(_NOBLOCK))["event"])


KernelLink = PyzmqLink
"""The former name."""


def _is_light(batch: list[RawMessage]) -> bool:
    """Return True if a batch is as small as the beginning or the end of a cell."""
    return len(batch) <= _FEW and sum(len(p) for parts in batch for p in parts) <= _LIGHT


def _waits(socket: zmq.Socket[bytes], what: int) -> bool:
    """Return True if a socket has one of these events; asking also re-arms the descriptor."""
    return not socket.closed and bool(int(socket.getsockopt(zmq.EVENTS)) & what)
