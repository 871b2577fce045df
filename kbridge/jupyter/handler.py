"""What Jupyter Server's websocket handler lacks, given to it one websocket at a time.

Its handler stays, with its authorization, its log and its pings. What a bridge needs of it beyond
that are three methods of Tornado's, set on the instance before the websocket opens:

- `get_websocket_protocol`, so that frames are read by our reader, and faults closed with their
  codes;
- `on_message`, so that nothing more is read while the kernel does not keep up;
- `on_pong`, so that what has arrived is known; and `send_ping`, so that who reads slowly is not
  taken for dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from tornado.ioloop import IOLoop
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from kbridge.connection.channels import ZMQChannelsWebsocketConnection
from kbridge.errors import HubClosed
from kbridge.link.protocol import BridgeWebSocketProtocol

__all__ = ["equip"]

_PONG_INTERVAL: Final = 10.0  # seconds


def equip(handler: WebSocketHandler, connection: ZMQChannelsWebsocketConnection) -> None:
    """Give a handler what it lacks; before its websocket opens."""
    make_protocol = handler.get_websocket_protocol
    on_message = handler.on_message
    on_pong = handler.on_pong
    usual_ping = handler.send_ping  # type: ignore[attr-defined]  # a mixin's

    def get_websocket_protocol() -> WebSocketProtocol | None:
        return _ours(handler, make_protocol())

    def on_message_and_wait(message: str | bytes) -> Awaitable[None] | None:
        handled = on_message(message)
        room = connection.room()
        return handled if room is None else _wait(handler, room)

    def on_pong_and_acknowledge(data: bytes) -> None:
        on_pong(data)
        connection.on_pong(data)

    def on_progress() -> None:
        handler.last_pong = IOLoop.current().time()  # type: ignore[attr-defined]  # a mixin's

    def send_ping() -> None:
        if connection.blocked:
            on_progress()  # it cannot have read the last one; its being there is TCP's business
        usual_ping()

    handler.get_websocket_protocol = get_websocket_protocol  # type: ignore[method-assign]
    handler.on_message = on_message_and_wait  # type: ignore[method-assign]
    handler.on_pong = on_pong_and_acknowledge  # type: ignore[method-assign]
    handler.on_progress = on_progress  # type: ignore[attr-defined]  # for the connection
    handler.send_ping = send_ping  # type: ignore[attr-defined]


def _ours(handler: Any, usual: WebSocketProtocol | None) -> WebSocketProtocol | None:
    if type(usual) is not WebSocketProtocol13 or usual.params.compression_options is not None:
        return usual
    return BridgeWebSocketProtocol.in_place_of(usual, handler)


async def _wait(handler: Any, room: Awaitable[None]) -> None:
    waiting = asyncio.ensure_future(room)
    patience = getattr(handler, "ping_timeout", 0) / 1000 or _PONG_INTERVAL
    try:
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=min(_PONG_INTERVAL, patience / 3))
            # Pongs are not read either meanwhile, and it is not the peer that keeps silent.
            handler.last_pong = IOLoop.current().time()
        waiting.result()
    except HubClosed as error:
        handler.close(error.close_code, error.reason)
    finally:
        waiting.cancel()
