"""Pings to the heartbeat port of a kernel whose process cannot be watched from this machine.

A timer and a handler for a descriptor do the work, without a Task for each ping. Memory is bounded:
only a few pings of a few bytes wait, and a peer that sends more answers than there were pings is
disconnected until the next tick.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop

from kbridge.flow.heartbeat_monitor import HeartbeatMonitor
from kbridge.link.endpoints import Endpoints
from kbridge.link.pyzmq.sockets import configure, context

__all__ = ["Heartbeat"]

_NOBLOCK: Final = int(zmq.NOBLOCK)
_RECONNECT_MS: Final = 200
_ANSWER_BYTES: Final = 1024


class Heartbeat:
    """Pings a kernel at regular intervals; starts at once.

    Parameters
    ----------
    where : callable
        Returns the endpoints of the kernel; called at each tick. None if no kernel should answer
        now; the state of the heartbeat is then reset.
    interval : float
        Seconds between two ticks.
    misses : int
        Number of consecutive unanswered pings after which the kernel is lost.
    on_lost : callable
        Called once when a kernel that has answered before no longer answers.
    on_found : callable
        Called once when a lost kernel answers again.
    at_work : callable
        Returns the request that the kernel is executing, empty if none; called at each tick. A
        kernel that has never answered while busy is not lost while it is busy.

    Attributes
    ----------
    monitor : HeartbeatMonitor
        Decides whether the kernel is lost.
    """

    def __init__(
        self,
        where: Callable[[], Endpoints | None],
        *,
        interval: float,
        misses: int,
        on_lost: Callable[[], None],
        on_found: Callable[[], None],
        at_work: Callable[[], str] = str,
    ) -> None:
        self._where = where
        self._interval = interval
        self.monitor = HeartbeatMonitor(misses)
        self._on_lost = on_lost
        self._on_found = on_found
        self._at_work = at_work
        self._ioloop = IOLoop.current()
        self._endpoints: Endpoints | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._owed = 0  # pings on this connection that are not answered yet
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle = self._loop.call_soon(self._tick)

    @property
    def lost(self) -> bool:
        """True if the kernel has answered before and no longer does."""
        return self.monitor.lost

    def close(self) -> None:
        """Stop; no callback is called afterwards. May be called twice."""
        self._closed = True
        self._timer.cancel()
        self.monitor.forget()
        self._disconnect()

    # -- inside -----------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._tick)
        endpoints = self._where()
        if endpoints != self._endpoints:
            self._disconnect()
            self.monitor.forget()
            self._endpoints = endpoints
        if endpoints is None:
            return
        self._read()  # an answer that has arrived while the loop was busy is not a miss
        if self._closed:  # by a callback
            return
        actions = self.monitor.tick(self._at_work())
        if actions.reconnect:
            self._disconnect()
        if actions.lost:
            self._on_lost()
        if not self._closed:
            self._ping(endpoints)

    def _connect(self, endpoints: Endpoints) -> None:
        assert endpoints.heartbeat is not None
        socket = context().socket(zmq.DEALER)
        try:
            configure(socket, endpoints)
            socket.reconnect_ivl = _RECONNECT_MS
            socket.maxmsgsize = _ANSWER_BYTES
            socket.connect(endpoints.address(endpoints.heartbeat))
        except zmq.ZMQError:  # an invalid address counts as one that does not answer
            socket.close()
            return
        self._socket = socket
        self._owed = 0
        self._ioloop.add_handler(socket.fileno(), self._on_readable, IOLoop.READ)

    def _disconnect(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            self._ioloop.remove_handler(socket.fileno())
            socket.close(linger=0)

    def _ping(self, endpoints: Endpoints) -> None:
        if self._socket is None:
            self._connect(endpoints)
        if self._socket is not None:
            # The empty part is for kernels that answer with a REP socket.
            self._socket.send_multipart([b"", b"ping"], _NOBLOCK)
            self._owed += 1
            self._read()  # sending may consume the descriptor's event

    def _on_readable(self, _fd: Any, _events: int) -> None:
        self._read()

    def _read(self) -> None:
        """Read all answers that have arrived, but not more than there were pings."""
        while self._socket is not None:
            try:
                self._socket.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return
            self._owed -= 1
            if self._owed < 0:
                self._disconnect()
            if self.monitor.answered():
                self._on_found()  # last, because it may close this object
