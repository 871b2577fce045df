"""Tornado's HTTP server, with limits for clients that have not shown the token.

By default Tornado lets a client take an hour to send its headers, and any time to send its body or
to read a reply; it reads a whole body before the token is checked; it answers a body that is too
large with 400 and a reset; it does not limit connections. Here `connection_limiter` decides which
connections are closed, and `request_gate` checks a request as soon as its headers have arrived.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from typing import Any, Final

from tornado import httputil
from tornado.httpserver import HTTPServer
from tornado.log import access_log
from tornado.netutil import ssl_wrap_socket

from kbridge.flow.log_throttle import LogThrottle
from kbridge.link.timer import PeriodicTimer
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.http.acceptor import Acceptor
from kbridge.server.http.connection_limiter import ConnectionLimiter, ConnectionLimits
from kbridge.server.http.header_gate import HeaderGate, ReadAhead
from kbridge.server.http.request_gate import RequestGate
from kbridge.server.http.request_head import (
    DEFAULT_COUNT,
    GuardedStream,
    GuardedTLSStream,
    HeadLimits,
)

__all__ = ["GuardedServer"]

# Unauthenticated requests get at most one part in so many of the loop's time. The first
# milliseconds of each are covered by the rate of the header gate, or of the acceptor.
_SHARE: Final = 3
_PREPAID: Final = 0.003


class GuardedServer(HTTPServer):
    """An HTTP server that limits unauthenticated clients.

    Parameters
    ----------
    application : httputil.HTTPServerConnectionDelegate
        Answers the requests.
    auth : Authenticator
    limits : ConnectionLimits
    log : logging.Logger
    max_body_size : int
        The maximum size of a body from an authenticated client, in bytes.
    max_header_count : int
        See `HeadLimits`.
    **options
        Tornado's own options.
    """

    def initialize(  # type: ignore[override]
        self,
        application: httputil.HTTPServerConnectionDelegate,
        *,
        auth: Authenticator,
        limits: ConnectionLimits,
        log: logging.Logger,
        max_body_size: int,
        max_header_count: int = DEFAULT_COUNT,
        **options: Any,
    ) -> None:
        """Set up; Tornado's servers do not have an `__init__`."""
        self.limiter: ConnectionLimiter[GuardedStream] = ConnectionLimiter(limits)
        self._log = log
        self._throttles: dict[str, LogThrottle] = {}
        self._acceptor: Acceptor | None = None
        self._gate: HeaderGate | None = None
        # Longer than the limiter's timeouts: a fallback for connections that it does not know.
        idle = 2 * max(limits.keep_alive_timeout, limits.request_timeout)
        gate = RequestGate(application, auth, self, max_body_size)
        super().initialize(gate, idle_connection_timeout=idle, **options)
        self._heads = HeadLimits(self.conn_params.max_header_size, max_header_count)
        pause = max(0.05, min(1.0, limits.request_timeout / 4))
        self._timer = PeriodicTimer(self._close_expired, pause)

    def add_sockets(self, sockets: Sequence[socket.socket]) -> None:  # type: ignore[override]
        """Serve the connections of listening sockets; may be called once."""
        assert self._acceptor is None
        if self.ssl_options is None and HeaderGate.available():
            self._gate = HeaderGate(self.conn_params.max_header_size, self)
        self._acceptor = Acceptor(sockets, self, self._log)
        self._timer.start()

    def stop(self) -> None:
        """Accept no more connections; a second call has no effect."""
        if self._acceptor is not None:
            self._acceptor.stop()

    async def close_all_connections(self) -> None:
        """Close all HTTP connections; websockets are not among them."""
        if self._gate is not None:
            self._gate.close()
        await super().close_all_connections()
        self._timer.stop()

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection that was closed or became a websocket."""
        super().on_close(server_conn)
        self.limiter.closed(server_conn.stream)

    # -- events of the acceptor --

    def connected(self, connection: socket.socket, address: Any) -> None:
        """Start to serve a new connection."""
        gate, ahead, context = self._gate, None, self.ssl_options
        stream: GuardedStream
        if context is None:
            if gate is not None:
                connection = ahead = ReadAhead.take_over(connection)
            stream = GuardedStream(connection, max_buffer_size=self.max_buffer_size)
        else:
            try:
                wrapped = ssl_wrap_socket(
                    connection, context, server_side=True, do_handshake_on_connect=False
                )
            except OSError:  # the client has closed the connection already
                connection.close()
                return
            stream = GuardedTLSStream(wrapped, max_buffer_size=self.max_buffer_size)
        self._watch(stream, address)
        surplus = self.limiter.opened(stream, time.monotonic())
        if gate is None or ahead is None:
            self.handle_stream(stream, address)
        else:
            gate.add(stream, ahead, address)
        self._close(
            surplus, "too many unauthenticated connections; see max_unauthenticated_connections"
        )

    def close_oldest(self, count: int) -> int:
        """Close the oldest unauthenticated connections; return how many were closed."""
        oldest = self.limiter.oldest(count)
        self._close(oldest, "out of file descriptors; see min_open_files_limit")
        return len(oldest)

    def is_busy(self) -> bool:
        """True if complete requests wait, which a new connection should not push out."""
        return self._gate is not None and self._gate.busy

    # -- events of the header gate --

    def head_complete(self, stream: Any, address: Any) -> None:
        """Let Tornado serve a connection whose request head is complete."""
        self.handle_stream(stream, address)

    def hung_up(self, stream: Any) -> None:
        """Forget a connection that the client closed before its request head was complete."""
        self.limiter.closed(stream)

    # -- events of the request gate --

    def next_request(self, stream: GuardedStream) -> None:
        """Wait for the next request, or close the connection."""
        if not self.limiter.next_request(stream, time.monotonic()):
            stream.close()

    def authenticated(self, stream: GuardedStream) -> None:
        """Record that the client has shown the token."""
        self.limiter.authenticated(stream, time.monotonic())
        stream.meter.stop()
        if self._gate is not None:
            self._gate.mark_authenticated(stream)

    def request_complete(self, stream: GuardedStream) -> None:
        """Record that the whole request has arrived."""
        self.limiter.request_complete(stream)

    def _watch(self, stream: GuardedStream, address: Any) -> None:
        """Limit the request heads of a stream, and charge for the CPU time of its requests."""
        meter, charged = stream.meter, _PREPAID

        def on_cost() -> None:
            nonlocal charged
            surplus = _SHARE * meter.spent - charged
            gate = self._gate or self._acceptor
            if surplus > 0 and gate is not None:
                charged += surplus
                gate.charge(surplus)

        def on_refused(status: int, message: str) -> None:
            where = address[0] if isinstance(address, tuple) else "unix socket"
            access_log.warning("%d (%s): %s", status, where, message)

        stream.limits, stream.on_refused, meter.report = self._heads, on_refused, on_cost

    def _close_expired(self) -> None:
        late = self.limiter.expired(time.monotonic(), lambda stream: stream.writing())
        self._close(late, "no complete request in time; see request_timeout and keep_alive_timeout")

    def _close(self, streams: list[GuardedStream], reason: str) -> None:
        for stream in streams:
            self.limiter.closed(stream)
            if self._gate is not None:
                self._gate.discard(stream)
            stream.close()
            throttle = self._throttles.setdefault(reason, LogThrottle())
            if count := throttle.record(time.monotonic()):
                self._log.info("closed %d connections: %s", count, reason)
