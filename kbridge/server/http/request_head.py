"""Limits on request heads, and the CPU time that unauthenticated requests use.

Tornado takes 28 ms to parse 8,000 headers and longer for as many cookies, before the token is
checked. So the parts of a head are counted before it is parsed; a head with too many parts or bytes
is refused at once, on the stream. The CPU time of each request is measured on its stream, so that a
client that causes much of it waits longer for the next request.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http.client import responses
from typing import Any, Final

from tornado import httputil
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

__all__ = [
    "DEFAULT_COUNT",
    "GuardedStream",
    "GuardedTLSStream",
    "HeadLimits",
    "Meter",
    "fault_of",
    "meter_of",
]

# A refused client may still be sending: closing at once would reset the connection, and a reset
# discards the reply.
_LINGER: Final = 1 << 20
_CHUNK: Final = 64 << 10
DEFAULT_COUNT: Final = 256


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Limits on the head of a request.

    Parameters
    ----------
    size : int
        The maximum number of bytes.
    count : int
        The maximum number of headers, of cookies, and of parameters in the URL, each.
    """

    size: int = 64 << 10
    count: int = DEFAULT_COUNT


def fault_of(head: bytes, limits: HeadLimits) -> tuple[int, str] | None:
    """Return the HTTP status and the reason to refuse a head; None if it may be parsed."""
    if len(head) > limits.size:
        setting = f"{limits.size} bytes; see KbridgeApp.max_header_size"
        return 431, f"the head of the request has more than {setting}"
    setting = f"more than {limits.count} %s; see KbridgeApp.max_header_count"
    # The first line, and the empty one at the end.
    if head.count(b"\n") > limits.count + 2:
        return 431, f"the request has {setting % 'headers'}"
    if head.count(b"&", 0, head.find(b"\n")) >= limits.count:
        return 414, f"the URL has {setting % 'parameters'}"
    most = head.count(b";") + head.count(b"\n")
    if most > limits.count and _cookies(head) > limits.count:
        return 431, f"the request has {setting % 'cookies'}"
    return None


def _cookies(head: bytes) -> int:
    lines = (line for line in head.split(b"\n") if line[:7].lower() == b"cookie:")
    return sum(line.count(b";") + 1 for line in lines)


class Meter:
    """Measures the CPU time of the requests on one connection.

    Attributes
    ----------
    spent : float
        Seconds so far.
    report : callable or None
        Called whenever `spent` has grown.
    stopped : bool
        True once the client has shown the token.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        self.stopped = False
        self.report: Callable[[], None] | None = None
        self._began: float | None = None

    def begin(self) -> None:
        """Start to measure; nothing may be awaited until `end`."""
        self._began = time.thread_time()

    def end(self) -> None:
        """Add the time since `begin`, if that was called."""
        if self._began is not None:
            self.spent += time.thread_time() - self._began
            self._began = None
            if self.report is not None:
                self.report()

    def stop(self) -> None:
        """Stop measuring, because the client has shown the token."""
        self._began = self.report = None
        self.stopped = True


class GuardedStream(IOStream):
    """A stream that refuses request heads beyond the limits.

    Attributes
    ----------
    plain : bool
        True if data is written to the socket unencrypted.
    limits : HeadLimits
    meter : Meter
    on_refused : callable
        Called with the status and the reason when a head is refused.
    """

    plain = True
    limits = HeadLimits()
    on_refused: Callable[[int, str], None] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        self.meter = Meter()
        super().__init__(*args, **options)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read a request head; Tornado reads nothing else with this method."""
        del regex, max_bytes
        if (fault := self._fault_ahead()) is not None:
            return self._refused(*fault)
        # The same end as Tornado's, or one byte too many: Tornado's own limit closes the
        # connection without a reply.
        found = super().read_until_regex(
            rb"\n\r?\n|\A[\s\S]{%d}" % (self.limits.size + 1), max_bytes=None
        )
        assert isinstance(found, asyncio.Future)
        if found.done():  # the head is parsed in this turn of the loop
            return self._checked(found, metered=True)
        checked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_found(found: asyncio.Future[bytes]) -> None:
            self._copy(self._checked(found, metered=False), checked)

        found.add_done_callback(on_found)
        return checked

    def _copy(self, source: asyncio.Future[bytes], target: asyncio.Future[bytes]) -> None:
        def copy(source: asyncio.Future[bytes]) -> None:
            if target.done():
                return
            if source.cancelled():
                target.cancel()
            elif (error := source.exception()) is not None:
                target.set_exception(error)
            else:
                target.set_result(source.result())

        if source.done():
            copy(source)
        else:
            source.add_done_callback(copy)

    def _checked(self, found: asyncio.Future[bytes], *, metered: bool) -> asyncio.Future[bytes]:
        if found.cancelled() or found.exception() is not None:
            return found
        fault = fault_of(found.result(), self.limits)
        if fault is None:
            if metered:
                self.meter.begin()
            return found
        return self._refused(*fault)

    def _fault_ahead(self) -> tuple[int, str] | None:
        """Check a head that the header gate has read; ten times faster than searching its end."""
        ahead: bytearray | None = getattr(self.socket, "ahead", None)
        if not ahead:
            return None
        ends = [end for end in (ahead.find(b"\n\r\n"), ahead.find(b"\n\n")) if end >= 0]
        return fault_of(bytes(ahead[: min(ends, default=len(ahead))]), self.limits)

    def _refused(self, status: int, message: str) -> asyncio.Future[bytes]:
        if self.on_refused is not None:
            self.on_refused(status, message)
        return asyncio.ensure_future(self._refuse(status, message))

    async def _refuse(self, status: int, message: str) -> bytes:
        body = json.dumps({"reason": responses[status], "message": message}).encode()
        lines = (
            f"HTTP/1.1 {status} {responses[status]}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "X-Content-Type-Options: nosniff",
        )
        await self.write("\r\n".join([*lines, "", ""]).encode() + body)
        if self.plain:  # the client sees the end of the reply although it continues to send
            self.socket.shutdown(socket.SHUT_WR)
        left = _LINGER
        while left > 0:  # `request_timeout` ends this, too
            left -= len(await self.read_bytes(min(left, _CHUNK), partial=True))
        self.close()
        raise StreamClosedError


class GuardedTLSStream(GuardedStream, SSLIOStream):
    """A `GuardedStream` over TLS."""

    plain = False


def meter_of(request: httputil.HTTPServerRequest) -> Meter | None:
    """Return the meter of a request's connection; None if it has none, or the meter is stopped."""
    stream = getattr(request.connection, "stream", None)
    if not isinstance(stream, GuardedStream) or stream.meter.stopped:
        return None
    return stream.meter
