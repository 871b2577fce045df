"""Which HTTP connections may stay: decisions about connections, without a connection.

Laws of this module:

- nothing here knows Tornado, a socket or a clock: keys and times in, keys to be closed out;
- until a client has shown the token, its connection may be closed to make room for another, and
  has one short time for all that it has to say; who was let in is never closed for a stranger;
- a connection for which the server itself still works is not late.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, TypeVar

__all__ = ["Guard", "GuardLimits"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """What strangers may take.

    Parameters
    ----------
    strangers : int
        Connections that may be open at once whose clients have not shown the token.
    request_timeout : float
        Seconds that such a client has, from its connection's first moment to the end of its
        request.
    keep_alive_timeout : float
        Seconds that a client which has shown the token may take for its next request.
    """

    strangers: int = 512
    request_timeout: float = 30.0
    keep_alive_timeout: float = 300.0


@dataclass(slots=True)
class _State:
    since: float | None  # when the client's time began; None while the server works
    served: int = 0


class Guard(Generic[K]):
    """The HTTP connections of one server.

    Parameters
    ----------
    limits : GuardLimits
    """

    def __init__(self, limits: GuardLimits) -> None:
        self.limits = limits
        # In the order of their coming, so that the oldest comes first.
        self._strangers: dict[K, _State] = {}
        self._known: dict[K, _State] = {}

    def statistics(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {"strangers": len(self._strangers), "known": len(self._known)}

    def came(self, key: K, now: float) -> list[K]:
        """Take a new connection.

        Returns
        -------
        list
            Those to be closed for it, the oldest.
        """
        self._strangers[key] = _State(now)
        return self.surplus(len(self._strangers) - self.limits.strangers)

    def surplus(self, count: int) -> list[K]:
        """The oldest `count` strangers, fewer where there are no more."""
        return list(islice(self._strangers, max(count, 0)))

    def awaits(self, key: K, now: float) -> bool:
        """Note that the next request is awaited; False where the connection has to end instead.

        A stranger has one request a connection: what it costs to be a nuisance is to connect.
        """
        state = self._state(key)
        if state is None:  # closed while its last answer was written
            return False
        if state.served and key in self._strangers:
            return False
        if state.served:
            state.since = now
        return True

    def proved(self, key: K, now: float) -> None:
        """Note that the client has shown the token."""
        state = self._strangers.pop(key, None)
        if state is not None:
            state.since = now
            self._known[key] = state

    def works(self, key: K) -> None:
        """Note that the request has come whole: from here on, the time is the server's."""
        state = self._state(key)
        if state is not None:
            state.since = None
            state.served += 1

    def gone(self, key: K) -> None:
        """Forget a connection; may be called twice."""
        self._strangers.pop(key, None)
        self._known.pop(key, None)

    def overdue(self, now: float, unread: Callable[[K], bool]) -> list[K]:
        """Those whose time is over.

        Parameters
        ----------
        now : float
            Seconds, monotonic.
        unread : callable
            Whether an answer waits for its client to read it: that counts as the client's time.
        """
        late = []
        for key, state in chain(self._strangers.items(), self._known.items()):
            if state.since is None:
                state.since = now if unread(key) else None
            elif now - state.since > self._patience(key):
                late.append(key)
        return late

    def _patience(self, key: K) -> float:
        stranger = key in self._strangers
        return self.limits.request_timeout if stranger else self.limits.keep_alive_timeout

    def _state(self, key: K) -> _State | None:
        return self._strangers.get(key) or self._known.get(key)
