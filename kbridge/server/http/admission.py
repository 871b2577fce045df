"""Admits new connections: wraps them in streams, limits these, and makes room by closing others.

`connection_limiter` decides which connections are closed. A new connection passes the header gate,
if there is one, and then belongs to Tornado's server.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any, Final

from tornado.httpserver import HTTPServer
from tornado.log import access_log
from tornado.netutil import ssl_wrap_socket

from kbridge.flow.log_throttle import LogThrottle
from kbridge.flow.token_bucket import TokenBucket
from kbridge.server.http.connection_limiter import ConnectionLimiter
from kbridge.server.http.header_gate import HeaderGate, ReadAhead
from kbridge.server.http.request_head import GuardedStream, GuardedTLSStream, HeadLimits

__all__ = ["Admission"]

# Unauthenticated requests get at most one part in so many of the loop's time. The first
# milliseconds of each are covered by the rate of the header gate, or of the acceptor.
_SHARE: Final = 3
_PREPAID: Final = 0.003


class Admission:
    """Admits the new connections of one server.

    Parameters
    ----------
    server : HTTPServer
        Serves the connections.
    limiter : ConnectionLimiter
    gate : HeaderGate or None
        Holds connections until the head of their request is complete; None with TLS.
    entries : TokenBucket
        The rate of new requests or connections, charged for the CPU time of unauthenticated ones.
    heads : HeadLimits
        Limits on the request heads of each stream.
    log : logging.Logger
    """

    def __init__(
        self,
        server: HTTPServer,
        limiter: ConnectionLimiter[GuardedStream],
        gate: HeaderGate | None,
        entries: TokenBucket,
        heads: HeadLimits,
        log: logging.Logger,
    ) -> None:
        self._server = server
        self._limiter = limiter
        self._gate = gate
        self._entries = entries
        self._heads = heads
        self._log = log
        self._throttles: dict[str, LogThrottle] = {}

    @property
    def busy(self) -> bool:
        """True if complete requests wait, which a new connection should not push out."""
        return self._gate is not None and self._gate.busy

    def admit(self, connection: socket.socket, address: Any) -> None:
        """Start to serve a new connection; if there are too many, close the oldest."""
        server, gate, ahead = self._server, self._gate, None
        stream: GuardedStream
        if server.ssl_options is None:
            if gate is not None:
                connection = ahead = ReadAhead.take_over(connection)
            stream = GuardedStream(connection, max_buffer_size=server.max_buffer_size)
        else:
            try:
                wrapped = ssl_wrap_socket(
                    connection, server.ssl_options, server_side=True, do_handshake_on_connect=False
                )
            except OSError:  # the client has closed the connection already
                connection.close()
                return
            stream = GuardedTLSStream(wrapped, max_buffer_size=server.max_buffer_size)
        self._watch(stream, address)
        surplus = self._limiter.opened(stream, time.monotonic())
        if gate is None or ahead is None:
            server.handle_stream(stream, address)
        else:
            gate.add(stream, ahead, address)
        self._close(
            surplus, "too many unauthenticated connections; see max_unauthenticated_connections"
        )

    def close_oldest(self, count: int) -> int:
        """Close the oldest unauthenticated connections; return how many were closed."""
        oldest = self._limiter.oldest(count)
        self._close(oldest, "out of file descriptors; see min_open_files_limit")
        return len(oldest)

    def close_expired(self) -> None:
        """Close the connections whose time is over."""
        late = self._limiter.expired(time.monotonic(), GuardedStream.writing)
        self._close(late, "no complete request in time; see request_timeout and keep_alive_timeout")

    def _watch(self, stream: GuardedStream, address: Any) -> None:
        """Limit the request heads of a stream, and charge for the CPU time of its requests."""
        meter, charged = stream.meter, _PREPAID

        def on_cost() -> None:
            nonlocal charged
            surplus = _SHARE * meter.spent - charged
            if surplus > 0:
                charged += surplus
                self._entries.charge(surplus)

        def on_refused(status: int, message: str) -> None:
            where = address[0] if isinstance(address, tuple) else "unix socket"
            access_log.warning("%d (%s): %s", status, where, message)

        stream.limits, stream.on_refused, meter.report = self._heads, on_refused, on_cost

    def _close(self, streams: list[GuardedStream], reason: str) -> None:
        for stream in streams:
            self._limiter.closed(stream)
            if self._gate is not None:
                self._gate.discard(stream)
            stream.close()
            throttle = self._throttles.setdefault(reason, LogThrottle())
            if count := throttle.record(time.monotonic()):
                self._log.info("closed %d connections: %s", count, reason)
