"""DEALER sockets under a former identity, which receive replies that are still due.

A kernel addresses replies and input requests to the identity that sent the request. If that
identity is not in use any more (the bridge was killed, or its sockets were replaced), these sockets
receive the messages for it. They send nothing but the bytes of their handshake.

A kernel's ROUTER may ignore them: until it has processed the disconnection of the former peer, it
still knows the identity, and then ignores a second peer of that name for good. So nothing may
depend on these sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop

from kbridge.link.interfaces import KernelEvents
from kbridge.link.pyzmq.drain import drain
from kbridge.wire.message import Channel

__all__ = ["FormerSockets"]

_BATCH_MESSAGES: Final = 400
_BATCH_BYTES: Final = 4 << 20


class FormerSockets:
    """Read the DEALERs of one former identity until closed.

    Parameters
    ----------
    sockets : mapping
        The connected DEALER of each channel; this object closes them.
    events : KernelEvents
        Receives the messages, as from the link that sends requests.
    """

    def __init__(self, sockets: Mapping[Channel, zmq.Socket[bytes]], events: KernelEvents) -> None:
        self._sockets = dict(sockets)
        self._events = events
        self._loop = IOLoop.current()
        self._soon = asyncio.get_running_loop().call_soon
        for channel, socket in self._sockets.items():
            self._loop.add_handler(socket.fileno(), self._reader(channel), IOLoop.READ)
            # Its descriptor may not announce messages before the socket was asked once.
            self._soon(self._read, channel)

    def slices(self) -> Iterator[None]:
        """Deliver all messages that have arrived; yield after each batch."""
        for channel in list(self._sockets):
            while self._drain(channel):
                yield
            yield

    def close(self) -> None:
        """Close the sockets; may be called twice."""
        sockets, self._sockets = self._sockets, {}
        for socket in sockets.values():
            self._loop.remove_handler(socket.fileno())
            socket.close(linger=0)

    def _reader(self, channel: Channel) -> Callable[[Any, int], None]:
        return lambda _fd, _events: self._read(channel)

    def _read(self, channel: Channel) -> None:
        if self._drain(channel):
            self._soon(self._read, channel)
        self._events.on_drained()

    def _drain(self, channel: Channel) -> bool:
        socket = self._sockets.get(channel)
        if socket is None:
            return False
        batch, more = drain(socket, _BATCH_MESSAGES, _BATCH_BYTES)
        if batch:
            self._events.on_messages(channel, batch)
        return more
