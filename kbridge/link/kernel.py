"""The ZeroMQ sockets of one kernel.

One SUB and three DEALERs, whoever listens. All are drained in batches off their descriptors: no
Task and no Future a message. The iopub subscription is watched by a socket monitor, which tells
when the kernel's side went away and when a new one has shaken hands.

The descriptor of a ZeroMQ socket is edge-triggered: it says that something happened, once, and
sending may swallow what it has to say. So the socket is asked again after each send, and after
each drain that stopped at its bound.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop
from zmq.utils.monitor import parse_monitor_message

from kbridge.errors import KernelError
from kbridge.link.drain import drain
from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import KernelEvents, RawMessage
from kbridge.link.sockets import configure, context
from kbridge.wire.message import Buffer, Channel

__all__ = ["KernelLink", "new_identity"]

_DEALERS: Final = (Channel.SHELL, Channel.CONTROL, Channel.STDIN)
_BATCH_MESSAGES: Final = 400
_BATCH_BYTES: Final = 4 << 20
# Requests that ZeroMQ may hold for a kernel that does not read. Small, because they are counted
# in messages and not in bytes: what is behind them waits where bytes are counted.
_SEND_HWM: Final = 64
# A cell ends with a reply and an idle status: whoever brings one looks for the other, so that both
# go out in one write.
_BESIDE: Final = {Channel.SHELL: Channel.IOPUB, Channel.IOPUB: Channel.SHELL}
_RECONNECT_MS: Final = 30
_FEW: Final = 8
_LIGHT: Final = 32 << 10

# As plain numbers: zmq's enums cost more to combine than a part takes to send.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


def new_identity() -> bytes:
    """An identity that no other peer of a kernel has.

    One for shell, control and stdin: a kernel sends its input requests to the identity that sent
    the execute request. Random, because of two peers with one identity the second evicts the first.
    """
    return b"kbridge-" + secrets.token_hex(12).encode()


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
        identity = identity or new_identity()
        self._events = events
        self._loop = IOLoop.current()
        self._soon = asyncio.get_running_loop().call_soon
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._refused: set[Channel] = set()
        self._again: set[Channel] = set()
        self._light = True  # whether the last batch was
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            for channel in Channel:
                socket = context().socket(zmq.SUB if channel is Channel.IOPUB else zmq.DEALER)
                self._sockets[channel] = socket
                self._configure(socket, endpoints)
                if channel is Channel.IOPUB:
                    socket.subscribe(b"")
                    self._watch(socket)
                else:
                    socket.identity = identity
                socket.connect(endpoints.url(channel))
                self._loop.add_handler(socket.fileno(), self._reader(channel), IOLoop.READ)
        except zmq.ZMQError as error:
            self.close()
            raise KernelError(
                f"there is no way to the kernel's sockets: {error.strerror}"
            ) from None
        except BaseException:
            self.close()
            raise
        # A socket that was never asked may keep silent about what it has.
        self._soon(self._on_monitor, None, 0)
        for channel in Channel:
            self._look_again(channel)

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
        """Tell all that has arrived, now."""
        for channel in list(self._sockets):
            while not self.closed and self._drain(channel):
                pass
        self._events.on_drained()

    def close(self) -> None:
        """Close the sockets; may be called twice. What was not sent is not sent any more."""
        if self._monitor is not None:
            self._loop.remove_handler(self._monitor.fileno())
            self._sockets[Channel.IOPUB].disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        sockets, self._sockets = self._sockets, {}
        for socket in sockets.values():
            self._loop.remove_handler(socket.fileno())
            socket.close(linger=0)

    # -- inside -----------------------------------------------------------------------------

    @staticmethod
    def _configure(socket: zmq.Socket[bytes], endpoints: Endpoints) -> None:
        configure(socket, endpoints)
        socket.rcvhwm = 0  # a SUB that is not drained loses messages; we always drain
        socket.sndhwm = _SEND_HWM
        socket.reconnect_ivl = _RECONNECT_MS

    def _watch(self, socket: zmq.Socket[bytes]) -> None:
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._monitor = socket.get_monitor_socket(events)
        self._loop.add_handler(self._monitor.fileno(), self._on_monitor, IOLoop.READ)

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

    def _on_monitor(self, _fd: Any, _events: int) -> None:
        while self._monitor is not None and _waits(self._monitor, zmq.POLLIN):
            event = parse_monitor_message(self._monitor.recv_multipart(_NOBLOCK))["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._events.on_connected()
            elif event == zmq.EVENT_DISCONNECTED:
                # All that the old side sent was handed over before the monitor speaks.
                self.drain()
                self._events.on_disconnected()


def _is_light(batch: list[RawMessage]) -> bool:
    """Whether a batch is no more than the beginning or the end of a cell."""
    return len(batch) <= _FEW and sum(len(p) for parts in batch for p in parts) <= _LIGHT


def _waits(socket: zmq.Socket[bytes], what: int) -> bool:
    """Whether a socket has something to read, or room to write; asking also re-arms it."""
    return not socket.closed and bool(int(socket.getsockopt(zmq.EVENTS)) & what)
