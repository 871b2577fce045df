"""Checks a request as soon as its headers have arrived, before its body is read."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable
from http.client import responses
from typing import Any, Final

from tornado import httputil

from kbridge.server.auth.access_policy import Decision
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.http.connection_limiter import ConnectionLimiter
from kbridge.server.http.header_gate import HeaderGate
from kbridge.server.http.request_head import GuardedStream
from kbridge.server.safe_log import log_answer

__all__ = ["UNAUTHENTICATED_BODY", "RequestGate"]

UNAUTHENTICATED_BODY: Final = 16 << 10
"""The maximum size of a body from an unauthenticated client, in bytes."""

# Closing a socket with unread input resets the connection, and a reset discards what the client
# has not read yet: the refusal. So a refused body is read and discarded, up to these sizes.
_LINGER: Final = 64 << 20
_LINGER_UNAUTHENTICATED: Final = 1 << 20
_DIGITS: Final = 18


class RequestGate(httputil.HTTPServerConnectionDelegate):
    """Stands between Tornado's HTTP parser and the application.

    Parameters
    ----------
    application : httputil.HTTPServerConnectionDelegate
    auth : Authenticator
    limiter : ConnectionLimiter
    header_gate : HeaderGate or None
    max_body_size : int
        The maximum size of a body from an authenticated client, in bytes.
    """

    def __init__(
        self,
        application: httputil.HTTPServerConnectionDelegate,
        auth: Authenticator,
        limiter: ConnectionLimiter[GuardedStream],
        header_gate: HeaderGate | None,
        max_body_size: int,
    ) -> None:
        self.application = application
        self.auth = auth
        self.limiter = limiter
        self.header_gate = header_gate
        self.max_body_size = max_body_size

    def start_request(
        self, server_conn: Any, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Return the delegate for the next request on a connection."""
        stream: GuardedStream = server_conn.stream
        if not self.limiter.next_request(stream, time.monotonic()):
            stream.close()
        inner = self.application.start_request(server_conn, request_conn)
        return _GatedRequest(self, stream, request_conn, inner)


class _GatedRequest(httputil.HTTPMessageDelegate):
    """One request."""

    def __init__(
        self,
        gate: RequestGate,
        stream: GuardedStream,
        connection: Any,
        inner: httputil.HTTPMessageDelegate,
    ) -> None:
        self._gate = gate
        self._stream = stream
        self._connection = connection
        self._inner = inner
        self._request: httputil.HTTPServerRequest | None = None
        self._decision = Decision()
        self._refused = False
        self._left = 0  # bytes of the body that may still arrive

    @property
    def _authenticated(self) -> bool:
        return self._decision.auth_method is not None

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        gate = self._gate
        self._request = httputil.HTTPServerRequest(
            connection=self._connection, start_line=start_line, headers=headers
        )
        lookup = gate.auth.lookup(self._request)
        if lookup is None:
            return self._route(start_line, headers)
        return self._route_after(lookup, start_line, headers)

    async def _route_after(
        self,
        lookup: Awaitable[None],
        start_line: httputil.RequestStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        self._stream.meter.end()
        await lookup
        self._stream.meter.begin()
        routed = self._route(start_line, headers)
        if routed is not None:
            await routed

    def _route(
        self, start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        gate = self._gate
        assert self._request is not None
        self._decision = gate.auth.decide(self._request)
        if self._authenticated:
            gate.limiter.authenticated(self._stream, time.monotonic())
            self._stream.meter.stop()
            if gate.header_gate is not None:
                gate.header_gate.mark_authenticated(self._stream)
        elif start_line.version == "HTTP/1.0":
            # Tornado would answer `Connection: Keep-Alive`, but the connection will be closed.
            headers["Connection"] = "close"
        self._left = gate.max_body_size if self._authenticated else UNAUTHENTICATED_BODY
        # Checked here instead, because Tornado answers with 400 and resets the connection.
        self._connection.set_max_body_size(sys.maxsize)
        if _content_length(headers) > self._left:
            headers.pop("Expect", None)  # the client must not be told to continue
            self._refuse()
            return None
        routed = self._inner.headers_received(start_line, headers)
        if not self._authenticated:
            self._stream.meter.end()  # began before the head was parsed
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
        self._gate.limiter.request_complete(self._stream)
        if self._authenticated:
            self._inner.finish()
            return
        self._stream.meter.begin()
        self._inner.finish()
        self._stream.meter.end()

    def on_connection_close(self) -> None:
        if not self._refused:
            self._inner.on_connection_close()

    def _refuse(self) -> None:
        """Reply at once; the rest of the body is discarded."""
        assert self._request is not None
        gate, known = self._gate, self._authenticated
        self._refused, self._left = True, _LINGER if known else _LINGER_UNAUTHENTICATED
        status, message = 403, self._decision.reason
        if message and self._decision.problem:
            status, message = 503, self._decision.problem
        if not message:
            status = 413
            message = (
                f"the body has more than {gate.max_body_size} bytes; see KbridgeApp.max_body_size"
                if known
                else f"the body has more than {UNAUTHENTICATED_BODY} bytes, and there is no token"
            )
        body = json.dumps({"reason": responses[status], "message": message}).encode()
        lines = [
            f"HTTP/1.1 {status} {responses[status]}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "X-Content-Type-Options: nosniff",
        ]
        cors = gate.auth.cors.headers(
            gate.auth.policy, self._request.headers.get("Origin"), preflight=False
        )
        lines += [f"{name}: {value}" for name, value in cors.items()]
        log_answer(self._request, status, message)
        if self._stream.closed():  # by the server, to make room, or by the client
            return
        self._stream.write("\r\n".join([*lines, "", ""]).encode() + body)


def _content_length(headers: httputil.HTTPHeaders) -> int:
    """Return the announced length of the body; 0 if absent or not valid for Tornado either."""
    length = headers.get("Content-Length", "")
    plain = length.isascii() and length.isdigit() and len(length) <= _DIGITS
    return int(length) if plain else 0
