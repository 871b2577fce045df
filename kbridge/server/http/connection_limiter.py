"""Decides which HTTP connections are closed, and when.

Invariants:

- Nothing here knows Tornado, a socket or a clock. Keys and times go in; keys of connections to
  close come out.
- Until a client has shown the token, its connection may be closed to make room for a new one, and
  the whole request has one short time limit. An authenticated connection is never closed for an
  unauthenticated one.
- A connection is not late while the server itself works on its request.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, TypeVar

__all__ = ["ConnectionLimiter", "ConnectionLimits"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on HTTP connections.

    Parameters
    ----------
    unauthenticated : int
        The maximum number of open connections whose clients have not shown the token.
    request_timeout : float
        Seconds that an unauthenticated client has, from connecting to the end of its request.
    keep_alive_timeout : float
        Seconds that an authenticated client has to send its next request.
    """

    unauthenticated: int = 512
    request_timeout: float = 30.0
    keep_alive_timeout: float = 300.0


@dataclass(slots=True)
class _Connection:
    since: float | None  # when the client's time began; None while the server works
    served: int = 0


class ConnectionLimiter(Generic[K]):
    """Tracks the HTTP connections of one server.

    Parameters
    ----------
    limits : ConnectionLimits
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        # In the order of connecting, so that the oldest comes first.
        self._unauthenticated: dict[K, _Connection] = {}
        self._authenticated: dict[K, _Connection] = {}

    @property
    def unauthenticated_connections(self) -> int:
        """The number of open connections whose clients have not shown the token."""
        return len(self._unauthenticated)

    @property
    def authenticated_connections(self) -> int:
        """The number of open connections whose clients have shown the token."""
        return len(self._authenticated)

    def opened(self, key: K, now: float) -> list[K]:
        """Add a new connection.

        Returns
        -------
        list
            The oldest connections, which must be closed to stay within the limit.
        """
        self._unauthenticated[key] = _Connection(now)
        return self.oldest(len(self._unauthenticated) - self.limits.unauthenticated)

    def oldest(self, count: int) -> list[K]:
        """Return the oldest unauthenticated connections, at most `count`."""
        return list(islice(self._unauthenticated, max(count, 0)))

    def next_request(self, key: K, now: float) -> bool:
        """Start to wait for the next request on a connection.

        Returns
        -------
        bool
            False if the connection must be closed instead: an unauthenticated client gets one
            request per connection, so that each further attempt costs it a new one.
        """
        connection = self._find(key)
        if connection is None:  # closed while its last reply was written
            return False
        if connection.served and key in self._unauthenticated:
            return False
        if connection.served:
            connection.since = now
        return True

    def authenticated(self, key: K, now: float) -> None:
        """Record that the client has shown the token."""
        connection = self._unauthenticated.pop(key, None)
        if connection is not None:
            connection.since = now
            self._authenticated[key] = connection

    def request_complete(self, key: K) -> None:
        """Record that the whole request has arrived; from here on the server works."""
        connection = self._find(key)
        if connection is not None:
            connection.since = None
            connection.served += 1

    def closed(self, key: K) -> None:
        """Forget a connection; a second call has no effect."""
        self._unauthenticated.pop(key, None)
        self._authenticated.pop(key, None)

    def expired(self, now: float, unread: Callable[[K], bool]) -> list[K]:
        """Return the connections whose time is over.

        Parameters
        ----------
        now : float
            Seconds, monotonic.
        unread : callable
            Returns True if the client of a connection has not read its whole reply yet; that time
            counts as the client's.
        """
        late = []
        for key, connection in chain(self._unauthenticated.items(), self._authenticated.items()):
            if connection.since is None:
                connection.since = now if unread(key) else None
            elif now - connection.since > self._timeout(key):
                late.append(key)
        return late

    def _timeout(self, key: K) -> float:
        if key in self._unauthenticated:
            return self.limits.request_timeout
        return self.limits.keep_alive_timeout

    def _find(self, key: K) -> _Connection | None:
        return self._unauthenticated.get(key) or self._authenticated.get(key)
