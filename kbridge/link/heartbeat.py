"""A kernel's heartbeat: pings on its hb port, and what follows from the answers.

For kernels whose process nobody here can watch. A timer and a descriptor's handler, no Task a
beat. What waits is bounded: a few pings of a few bytes, and a peer that says more than it was
asked is not listened to until the next beat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop

from kbridge.flow.heartbeat_monitor import HeartbeatMonitor
from kbridge.link.endpoints import Endpoints
from kbridge.link.sockets import configure, context

__all__ = ["Heartbeat"]

_NOBLOCK: Final = int(zmq.NOBLOCK)
_RECONNECT_MS: Final = 200
_ANSWER_BYTES: Final = 1024


class Heartbeat:
    """Ask a kernel every now and then whether it is there; begins at once.

    Parameters
    ----------
    where : callable
        Asked at each beat where the kernel listens. None, while there is none that should answer;
        what is known is then forgotten.
    interval : float
        Seconds between two beats.
    misses : int
        How many in a row may be left unanswered.
    on_lost : callable
        Told once when the kernel, which has beaten, beats no more.
    on_found : callable
        Told once when one that was lost beats again.
    at_work : callable
        Asked at each beat which request the kernel is at; empty for none. One that has never
        answered in the midst of a request is not lost while it is at one.
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
        self._monitor = HeartbeatMonitor(misses)
        self._on_lost = on_lost
        self._on_found = on_found
        self._at_work = at_work
        self._ioloop = IOLoop.current()
        self._endpoints: Endpoints | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._owed = 0  # answers that this connection may still bring
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle = self._loop.call_soon(self._beat)

    @property
    def lost(self) -> bool:
        """Whether the kernel was beating and has stopped."""
        return self._monitor.lost

    def close(self) -> None:
        """Ask no more, and tell no more; may be called twice."""
        self._closed = True
        self._timer.cancel()
        self._monitor.forget()
        self._unlink()

    def statistics(self) -> dict[str, Any]:
        """As `HeartbeatMonitor.statistics`."""
        return self._monitor.statistics()

    # -- inside -----------------------------------------------------------------------------

    def _beat(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._beat)
        endpoints = self._where()
        if endpoints != self._endpoints:
            self._unlink()
            self._monitor.forget()
            self._endpoints = endpoints
        if endpoints is None:
            return
        self._read()  # an answer that came while the loop was held up is no miss
        if self._closed:  # who was told has closed this
            return
        actions = self._monitor.tick(self._at_work())
        if actions.reconnect:
            self._unlink()
        if actions.lost:
            self._on_lost()
        if not self._closed:
            self._ping(endpoints)

    def _link(self, endpoints: Endpoints) -> None:
        assert endpoints.heartbeat is not None
        socket = context().socket(zmq.DEALER)
        try:
            configure(socket, endpoints)
            socket.reconnect_ivl = _RECONNECT_MS
            socket.maxmsgsize = _ANSWER_BYTES
            socket.connect(endpoints.address(endpoints.heartbeat))
        except zmq.ZMQError:  # nobody answers at such an address, now and at the next beat
            socket.close()
            return
        self._socket = socket
        self._owed = 0
        self._ioloop.add_handler(socket.fileno(), self._on_readable, IOLoop.READ)

    def _unlink(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            self._ioloop.remove_handler(socket.fileno())
            socket.close(linger=0)

    def _ping(self, endpoints: Endpoints) -> None:
        if self._socket is None:
            self._link(endpoints)
        if self._socket is not None:
            # The empty part is for kernels that answer with a REP.
            self._socket.send_multipart([b"", b"ping"], _NOBLOCK)
            self._owed += 1
            self._read()  # sending may swallow what the descriptor has to say

    def _on_readable(self, _fd: Any, _events: int) -> None:
        self._read()

    def _read(self) -> None:
        """Take all answers that are there, but no more than were asked for."""
        while self._socket is not None:
            try:
                self._socket.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return
            self._owed -= 1
            if self._owed < 0:
                self._unlink()
            if self._monitor.answered():
                self._on_found()  # last: it may close this
