"""Pings for all websockets from one timer; a timer and a Task for each would cost memory."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, Protocol

from tornado.websocket import WebSocketClosedError

from kbridge.link.timer import PeriodicTimer

__all__ = ["Keepalive", "Pinged"]

_AT_ONCE: Final = 50  # websockets that are pinged in one turn of the loop: half a millisecond


class Pinged(Protocol):
    """A websocket, as its Tornado handler shows it."""

    def ping(self, data: bytes = b"") -> None:
        """Send a ping."""
        ...

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin the closing handshake."""
        ...

    @property
    def blocked(self) -> bool:
        """True while the peer has not read all written data, and so may not have read the ping."""
        ...


class Keepalive:
    """Pings websockets, and closes those that have not answered by the next ping.

    A websocket whose peer has not read the data before the ping is not closed. A page may be busy
    for minutes, and if it was disconnected, it would reconnect and get the same data again. TCP
    detects that the peer's machine has gone.

    The timer runs only while there are websockets: a program that has closed them need not stop it,
    and may continue in another event loop.

    Parameters
    ----------
    interval : float
        Seconds between two pings. A dead peer is noticed after at most two intervals.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._silent: dict[Pinged, bool] = {}
        self._round: deque[Pinged] = deque()  # the websockets to ping in this round
        self._timer = PeriodicTimer(self.beat, interval, jitter=0.1)

    def stop(self) -> None:
        """Stop until the next `add`; may be called twice."""
        self._timer.stop()
        self._round.clear()

    def add(self, websocket: Pinged) -> None:
        """Ping a websocket from now on; needs a running event loop."""
        self._silent[websocket] = False
        self._timer.start()

    def remove(self, websocket: Pinged) -> None:
        """Stop pinging a websocket."""
        self._silent.pop(websocket, None)
        if not self._silent:
            self._timer.stop()

    def heard(self, websocket: Pinged) -> None:
        """Note that the peer of a websocket is alive."""
        if websocket in self._silent:
            self._silent[websocket] = False

    def beat(self) -> None:
        """Start a round of pings, unless one is in progress."""
        if not self._round:
            self._round.extend(self._silent)
            self._go_on()

    def _go_on(self) -> None:
        """Ping some websockets, and continue in the loop's next turn if there are more."""
        for _ in range(min(_AT_ONCE, len(self._round))):
            websocket = self._round.popleft()
            try:
                self._ping(websocket)
            except Exception:  # of a handler's method: the other websockets need their pings
                logging.getLogger("kbridge.link").exception("cannot ping a websocket")
        if self._round:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _ping(self, websocket: Pinged) -> None:
        silent = self._silent.get(websocket)
        if silent is None or (silent and websocket.blocked):
            return
        if silent:
            self.remove(websocket)
            websocket.close(1011, "no answer to a ping")
            return
        self._silent[websocket] = True
        try:
            websocket.ping(b"")
        except WebSocketClosedError:
            self.remove(websocket)
