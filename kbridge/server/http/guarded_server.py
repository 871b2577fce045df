"""Tornado's HTTP server, with limits for clients that have not shown the token.

By default Tornado lets a client take an hour to send its headers, and any time to send its body or
to read a reply; it reads a whole body before the token is checked; it answers a body that is too
large with 400 and a reset; it does not limit connections. This module puts together the parts that
do better, in the order in which a connection passes them: `acceptor`, `admission`, `header_gate`,
Tornado's parser, and `request_gate`. Each calls only parts behind it, and `connection_limiter`.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Any

from tornado import httputil
from tornado.httpserver import HTTPServer

from kbridge.link.timer import PeriodicTimer
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.http.acceptor import Acceptor, acceptor_rate
from kbridge.server.http.admission import Admission
from kbridge.server.http.connection_limiter import ConnectionLimiter, ConnectionLimits
from kbridge.server.http.header_gate import HeaderGate
from kbridge.server.http.request_gate import RequestGate
from kbridge.server.http.request_head import GuardedStream, HeadLimits

__all__ = ["GuardedServer"]


class GuardedServer(HTTPServer):
    """An HTTP server that limits unauthenticated clients.

    Parameters
    ----------
    application : httputil.HTTPServerConnectionDelegate
        Answers the requests.
    auth : Authenticator
    limits : ConnectionLimits
    heads : HeadLimits
    max_body_size : int
        The maximum size of a body from an authenticated client, in bytes.
    log : logging.Logger
    **options
        Tornado's own options.
    """

    def initialize(  # type: ignore[override]
        self,
        application: httputil.HTTPServerConnectionDelegate,
        *,
        auth: Authenticator,
        limits: ConnectionLimits,
        heads: HeadLimits = HeadLimits(),  # noqa: B008  # frozen
        max_body_size: int,
        log: logging.Logger,
        **options: Any,
    ) -> None:
        """Set up; Tornado's servers do not have an `__init__`."""
        self.limiter: ConnectionLimiter[GuardedStream] = ConnectionLimiter(limits)
        self._log = log
        self._acceptor: Acceptor | None = None
        self._gate: HeaderGate | None = None
        if options.get("ssl_options") is None and HeaderGate.available():
            self._gate = HeaderGate(heads.size, self, self.limiter)
        # Longer than the limiter's timeouts: a fallback for connections that it does not know.
        idle = 2 * max(limits.keep_alive_timeout, limits.request_timeout)
        super().initialize(
            RequestGate(application, auth, self.limiter, self._gate, max_body_size),
            idle_connection_timeout=idle,
            max_header_size=heads.size,
            **options,
        )
        self._rate = acceptor_rate()
        entries = self._gate.entries if self._gate is not None else self._rate
        self._admission = Admission(self, self.limiter, self._gate, entries, heads, log)
        pause = max(0.05, min(1.0, limits.request_timeout / 4))
        self._timer = PeriodicTimer(self._admission.close_expired, pause)

    def add_sockets(self, sockets: Sequence[socket.socket]) -> None:  # type: ignore[override]
        """Serve the connections of listening sockets; may be called once."""
        assert self._acceptor is None
        self._acceptor = Acceptor(sockets, self._admission, self._rate, self._log)
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
