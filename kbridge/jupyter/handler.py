"""Adapts Jupyter Server's websocket handler to kbridge, one websocket at a time.

Jupyter Server's handler stays in use, with its authorization, log and pings. These methods are
replaced on the instance before the websocket opens:

- `get_websocket_protocol`, so that frames are read by kbridge's reader, and invalid ones close the
  websocket with the code of the fault;
- `on_message`, so that nothing more is read while the kernel does not keep up;
- `send_ping`, so that a client that reads slowly is not taken for dead.

(`on_pong` is replaced by the connection itself when it attaches.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketHandler, WebSocketProtocol

from kbridge.connection.channels import ZMQChannelsWebsocketConnection
from kbridge.errors import HubClosed
from kbridge.link.client import bridge_protocol, close_for

__all__ = ["adapt_handler"]

_PONG_INTERVAL: Final = 10.0  # seconds


def adapt_handler(handler: WebSocketHandler, connection: ZMQChannelsWebsocketConnection) -> None:
    """Replace methods of a handler; to be called before its websocket opens."""
    make_protocol = handler.get_websocket_protocol
    on_message = handler.on_message
    send_ping = handler.send_ping  # type: ignore[attr-defined]  # Jupyter Server's WebSocketMixin

    def get_websocket_protocol() -> WebSocketProtocol | None:
        return bridge_protocol(make_protocol(), handler)

    def on_message_and_wait(message: str | bytes) -> Awaitable[None] | None:
        handled = on_message(message)
        pending = connection.pending  # Jupyter Server's on_message drops it
        return handled if pending is None else _wait(handler, pending)

    def on_progress() -> None:
        handler.last_pong = IOLoop.current().time()  # type: ignore[attr-defined]

    def send_ping_unless_blocked() -> None:
        if connection.blocked:
            on_progress()  # the client cannot have read the last ping; TCP detects dead peers
        send_ping()

    handler.get_websocket_protocol = get_websocket_protocol  # type: ignore[method-assign]
    handler.on_message = on_message_and_wait  # type: ignore[method-assign]
    handler.on_progress = on_progress  # type: ignore[attr-defined]  # called by the connection
    handler.send_ping = send_ping_unless_blocked  # type: ignore[attr-defined]


async def _wait(handler: Any, room: Awaitable[None]) -> None:
    """Wait until the kernel takes more requests, while the client counts as alive."""
    waiting = asyncio.ensure_future(room)
    ping_timeout = getattr(handler, "ping_timeout", 0) / 1000 or _PONG_INTERVAL
    try:
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=min(_PONG_INTERVAL, ping_timeout / 3))
            # While nothing is read, pongs are not read either.
            handler.last_pong = IOLoop.current().time()
        waiting.result()
    except HubClosed as error:
        close_for(handler, error)
    finally:
        waiting.cancel()
