"""The server's side of a websocket handshake (RFC 6455, section 4.2), with a Tornado handler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from tornado.iostream import IOStream
from tornado.websocket import WebSocketHandler, WebSocketProtocol13

__all__ = ["answer", "flush", "switch"]

_SECONDS: Final = 5.0  # for the peer to read the answer


def answer(handler: WebSocketHandler) -> tuple[IOStream, str | None] | None:
    """Answer the handshake that a handler has received.

    Tornado's handler has checked the method, the `Upgrade` and `Connection` headers, the origin and
    the version.

    Returns
    -------
    (stream, subprotocol) or None
        The stream of the connection, to which the answer may not be completely written, and the
        subprotocol that the handler has selected. None if the request was refused with 400.
    """
    headers = handler.request.headers
    key = headers.get("Sec-WebSocket-Key")
    if not key or not headers.get("Host"):
        handler.set_status(400)
        handler.finish("Missing/Invalid WebSocket headers")
        return None
    header = headers.get("Sec-WebSocket-Protocol", "")
    offered = [name.strip() for name in header.split(",")] if header else []
    chosen = handler.select_subprotocol(offered)
    found = {"Sec-WebSocket-Accept": WebSocketProtocol13.compute_accept_value(key)}
    if chosen:
        assert chosen in offered, "a subprotocol that was not offered"
        found["Sec-WebSocket-Protocol"] = chosen
    return switch(handler, found), chosen


def switch(handler: WebSocketHandler, headers: Mapping[str, str]) -> IOStream:
    """Send the answer that changes the protocol.

    Parameters
    ----------
    handler : WebSocketHandler
        The handler of the handshake.
    headers : mapping of str to str
        The headers `Sec-WebSocket-*` of the answer.

    Returns
    -------
    IOStream
        The stream of the connection, as of `answer`.
    """
    handler.clear_header("Content-Type")
    handler.set_status(101)
    handler.set_header("Upgrade", "websocket")
    handler.set_header("Connection", "Upgrade")
    for name, value in headers.items():
        handler.set_header(name, value)
    handler.finish()
    return handler.detach()


async def flush(stream: IOStream) -> None:
    """Wait until the answer is written.

    Raises
    ------
    StreamClosedError
        If the connection has ended.
    TimeoutError
        If the peer has not read the answer after 5 s.
    """
    async with asyncio.timeout(_SECONDS):
        while stream.writing():
            await stream.write(b"")
