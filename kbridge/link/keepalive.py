"""Pings for all websockets from one timer: a timer and a Task each would cost memory each."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from tornado.websocket import WebSocketClosedError

from kbridge.link.timer import PeriodicTimer

__all__ = ["Keepalive", "Pinged"]

_AT_ONCE: Final = 50  # websockets that are pinged without a break: half a millisecond


class Pinged(Protocol):
    """A websocket (Tornado's handler)."""

    def ping(self, data: bytes = b"") -> None:
        """Send a ping."""
        ...

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin the closing handshake."""
        ...

    @property
    def blocked(self) -> bool:
        """Whether the peer has yet to read what was written, and so cannot have read the ping."""
        ...


class Keepalive:
    """Pings websockets, and closes those that have not answered by the next ping.

    One that has yet to read what is before the ping is let be, for a page may be busy for minutes:
    closed, it would come back for the same again. Whether its machine is still there, TCP finds
    out.

    Parameters
    ----------
    interval : float
        Seconds between two pings, and so what a dead peer costs at the most twice over.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._silent: dict[Pinged, bool] = {}
        self._round: deque[Pinged] = deque()  # who is yet to be pinged
        self._timer = PeriodicTimer(self.beat, interval, jitter=0.1)

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._timer.start()

    def stop(self) -> None:
        """End; may be called twice."""
        self._timer.stop()
        self._round.clear()

    def add(self, websocket: Pinged) -> None:
        """Look after a websocket."""
        self._silent[websocket] = False

    def remove(self, websocket: Pinged) -> None:
        """Look after it no more."""
        self._silent.pop(websocket, None)

    def heard(self, websocket: Pinged) -> None:
        """Note that its peer lives."""
        if websocket in self._silent:
            self._silent[websocket] = False

    def beat(self) -> None:
        """Begin a round, unless one is under way."""
        if not self._round:
            self._round.extend(self._silent)
            self._go_on()

    def _go_on(self) -> None:
        """Ping some websockets, and go on in the loop's next turn if there are more."""
        for _ in range(min(_AT_ONCE, len(self._round))):
            self._ping(self._round.popleft())
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
