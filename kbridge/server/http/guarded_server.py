"""The HTTP server: Tornado's, with its gaps closed against those who have no token.

What Tornado leaves open by default: a client may take an hour for its headers and for ever for its
body or for reading an answer; a body is taken in whole before anybody asks for the token; one
that is too large is answered with 400 and a reset; connections are not limited. Here
`connection_limiter` decides which connections are closed, and a request is checked as soon as its
headers have arrived.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from http.client import responses
from typing import Any, Final

from tornado import httputil
from tornado.httpserver import HTTPServer
from tornado.log import access_log
from tornado.netutil import ssl_wrap_socket

from kbridge.flow.log_throttle import LogThrottle
from kbridge.link.timer import PeriodicTimer
from kbridge.server.api.services import Services
from kbridge.server.auth.access_policy import Decision
from kbridge.server.auth.request_info import asked_of
from kbridge.server.http.acceptor import Acceptor
from kbridge.server.http.connection_limiter import Guard, GuardLimits
from kbridge.server.http.header_gate import Lobby, ReadAhead
from kbridge.server.http.request_head import (
    DEFAULT_COUNT,
    GuardedStream,
    GuardedTLSStream,
    HeadLimits,
)
from kbridge.server.safe_log import log_answer

__all__ = ["STRANGERS_BODY", "GuardedServer"]

# Bytes of a body that are taken from somebody who has not shown the token.
STRANGERS_BODY: Final = 16 << 10
# Closing a socket that has unread input resets it, and a reset discards what the client has not
# read yet: the refusal. So a refused body is read on, and thrown away, up to here.
_LINGER: Final = 64 << 20
_LINGER_STRANGER: Final = 1 << 20
_DIGITS: Final = 18
# Of the loop's time, requests without the token get at most one part in so many. The first
# milliseconds of each are paid for by the lobby's toll, or by the acceptor's.
_SHARE: Final = 3
_PREPAID: Final = 0.003


class GuardedServer(HTTPServer):
    """An HTTP server that lets strangers take little.

    Parameters
    ----------
    application : httputil.HTTPServerConnectionDelegate
        What answers.
    services : Services
        Know the rules, and what a page elsewhere may read.
    limits : GuardLimits
    log : logging.Logger
    max_body_size : int
        For those who have shown the token.
    max_header_count : int
        See `HeadLimits`.
    **options
        Tornado's.
    """

    def initialize(  # type: ignore[override]
        self,
        application: httputil.HTTPServerConnectionDelegate,
        *,
        services: Services,
        limits: GuardLimits,
        log: logging.Logger,
        max_body_size: int,
        max_header_count: int = DEFAULT_COUNT,
        **options: Any,
    ) -> None:
        """Set up; Tornado's servers have no `__init__` of their own."""
        self.guard: Guard[GuardedStream] = Guard(limits)
        self._log = log
        self._throttles: dict[str, LogThrottle] = {}
        self._acceptor: Acceptor | None = None
        self._lobby: Lobby | None = None
        # Longer than the guard's own: it ends what the guard should not know of any more.
        idle = 2 * max(limits.keep_alive_timeout, limits.request_timeout)
        door = _Door(application, services, self.guard, self._proved, max_body_size)
        super().initialize(door, idle_connection_timeout=idle, **options)
        self._heads = HeadLimits(self.conn_params.max_header_size, max_header_count)
        pause = max(0.05, min(1.0, limits.request_timeout / 4))
        self._sweeper = PeriodicTimer(self._sweep, pause)

    def add_sockets(self, sockets: Sequence[socket.socket]) -> None:  # type: ignore[override]
        """Serve the connections of sockets that listen; to be called once."""
        assert self._acceptor is None
        if self.ssl_options is None and Lobby.available():
            self._lobby = Lobby(
                self.conn_params.max_header_size, self.handle_stream, self.on_hang_up
            )
        self._acceptor = Acceptor(sockets, self._connected, self._shed, self._is_crowded, self._log)
        self._sweeper.start()

    def stop(self) -> None:
        """Accept nobody any more; may be called twice."""
        if self._acceptor is not None:
            self._acceptor.stop()

    async def close_all_connections(self) -> None:
        """End what is left; websockets are not among it."""
        if self._lobby is not None:
            self._lobby.close()
        await super().close_all_connections()
        self._sweeper.stop()

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection: it has ended, or is a websocket now."""
        super().on_close(server_conn)
        self.guard.gone(server_conn.stream)

    def on_hang_up(self, stream: Any) -> None:
        """Forget a connection that has ended before its request was whole."""
        self.guard.gone(stream)

    def _connected(self, connection: socket.socket, address: Any) -> None:
        lobby, ahead, context = self._lobby, None, self.ssl_options
        stream: GuardedStream
        if context is None:
            if lobby is not None:
                connection = ahead = ReadAhead.take_over(connection)
            stream = GuardedStream(connection, max_buffer_size=self.max_buffer_size)
        else:
            try:
                wrapped = ssl_wrap_socket(
                    connection, context, server_side=True, do_handshake_on_connect=False
                )
            except OSError:  # it has hung up already
                connection.close()
                return
            stream = GuardedTLSStream(wrapped, max_buffer_size=self.max_buffer_size)
        self._watch(stream, address)
        surplus = self.guard.came(stream, time.monotonic())
        if lobby is None or ahead is None:
            self.handle_stream(stream, address)
        else:
            lobby.came(stream, ahead, address)
        self._end(
            surplus,
            "others came while it had not shown the token; see max_unauthenticated_connections",
        )

    def _watch(self, stream: GuardedStream, address: Any) -> None:
        """Limit the heads that a stream may bring, and charge for what its requests cost."""
        meter, charged = stream.meter, _PREPAID

        def on_cost() -> None:
            nonlocal charged
            surplus = _SHARE * meter.spent - charged
            gate = self._lobby or self._acceptor
            if surplus > 0 and gate is not None:
                charged += surplus
                gate.charge(surplus)

        def on_refused(status: int, message: str) -> None:
            where = address[0] if isinstance(address, tuple) else "unix socket"
            access_log.warning("%d (%s): %s", status, where, message)

        stream.limits, stream.on_refused, meter.report = self._heads, on_refused, on_cost

    def _is_crowded(self) -> bool:
        return self._lobby is not None and self._lobby.crowded

    def _proved(self, stream: GuardedStream) -> None:
        self.guard.proved(stream, time.monotonic())
        stream.meter.stop()
        if self._lobby is not None:
            self._lobby.let_in(stream)

    def _shed(self, count: int) -> int:
        oldest = self.guard.surplus(count)
        self._end(oldest, "descriptors have run out; see min_open_files_limit")
        return len(oldest)

    def _sweep(self) -> None:
        late = self.guard.overdue(time.monotonic(), lambda stream: stream.writing())
        self._end(
            late, "it sent no whole request in time; see request_timeout and keep_alive_timeout"
        )

    def _end(self, streams: list[GuardedStream], why: str) -> None:
        for stream in streams:
            self.guard.gone(stream)
            if self._lobby is not None:
                self._lobby.left(stream)
            stream.close()
            throttle = self._throttles.setdefault(why, LogThrottle())
            if count := throttle.record(time.monotonic()):
                self._log.info("closed a connection: %s (%d such)", why, count)


class _Door(httputil.HTTPServerConnectionDelegate):
    """Makes what a request passes on its way to the application."""

    def __init__(
        self,
        application: httputil.HTTPServerConnectionDelegate,
        services: Services,
        guard: Guard[GuardedStream],
        proved: Callable[[GuardedStream], None],
        max_body_size: int,
    ) -> None:
        self.application = application
        self.services = services
        self.guard = guard
        self.proved = proved
        self.max_body_size = max_body_size

    def start_request(
        self, server_conn: Any, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        stream: GuardedStream = server_conn.stream
        if not self.guard.awaits(stream, time.monotonic()):
            stream.close()
        inner = self.application.start_request(server_conn, request_conn)
        return _Request(self, stream, request_conn, inner)


class _Request(httputil.HTTPMessageDelegate):
    """One request, judged when its headers have come."""

    def __init__(
        self,
        door: _Door,
        stream: GuardedStream,
        connection: Any,
        inner: httputil.HTTPMessageDelegate,
    ) -> None:
        self._door = door
        self._stream = stream
        self._connection = connection
        self._inner = inner
        self._request: httputil.HTTPServerRequest | None = None
        self._decision = Decision()
        self._refused = False
        self._left = 0

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        door = self._door
        self._request = httputil.HTTPServerRequest(
            connection=self._connection, start_line=start_line, headers=headers
        )
        asked = asked_of(self._request, door.services.cookie_name)
        self._decision = decision = door.services.access.decide(asked)
        if decision.via is not None:
            door.proved(self._stream)
        elif start_line.version == "HTTP/1.0":
            # Tornado would answer `Connection: Keep-Alive`; the guard ends this connection.
            headers["Connection"] = "close"
        self._left = door.max_body_size if decision.via is not None else STRANGERS_BODY
        # Judged here, because Tornado answers with 400 and resets the connection.
        self._connection.set_max_body_size(sys.maxsize)
        if _claimed(headers) > self._left:
            headers.pop("Expect", None)  # nobody is to go on
            self._refuse()
            return None
        routed = self._inner.headers_received(start_line, headers)
        self._stream.meter.end()  # it began before the head was parsed
        return routed

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._left -= len(chunk)
        if self._left >= 0:
            return None if self._refused else self._inner.data_received(chunk)
        if self._refused:
            self._stream.close()
        else:
            self._inner.on_connection_close()
            self._refuse()
        return None

    def finish(self) -> None:
        if self._refused:
            self._stream.close()
            return
        self._door.guard.works(self._stream)
        if self._decision.via is None:
            self._stream.meter.begin()
        self._inner.finish()
        self._stream.meter.end()

    def on_connection_close(self) -> None:
        if not self._refused:
            self._inner.on_connection_close()

    def _refuse(self) -> None:
        """Answer at once; what comes of the body is thrown away from here on."""
        assert self._request is not None
        door, known = self._door, self._decision.via is not None
        self._refused, self._left = True, _LINGER if known else _LINGER_STRANGER
        status, message = 403, self._decision.reason
        if not message:
            status = 413
            message = (
                f"the body has more than {door.max_body_size} bytes; see KbridgeApp.max_body_size"
                if known
                else f"a body of more than {STRANGERS_BODY} bytes, and no token"
            )
        body = json.dumps({"reason": responses[status], "message": message}).encode()
        lines = [
            f"HTTP/1.1 {status} {responses[status]}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "X-Content-Type-Options: nosniff",
        ]
        cors = door.services.cors.headers(
            door.services.access, self._request.headers.get("Origin"), preflight=False
        )
        lines += [f"{name}: {value}" for name, value in cors.items()]
        log_answer(self._request, status, message)
        if self._stream.closed():  # it was made to go for another, or the client went
            return
        self._stream.write("\r\n".join([*lines, "", ""]).encode() + body)


def _claimed(headers: httputil.HTTPHeaders) -> int:
    """The length of the body; 0 where it is not said, or not in a way that Tornado will take."""
    length = headers.get("Content-Length", "")
    plain = length.isascii() and length.isdigit() and len(length) <= _DIGITS
    return int(length) if plain else 0
