"""The connection of a page's kernel websocket to the gateway of Jupyter Server.

Jupyter Server loses a websocket to its gateway when the page leaves before that websocket is open:
it cancels the future that would give it. The websocket then stays open, with nobody who reads from
it. To the gateway, the session of the page is still connected, so it does not send the session's
input requests to the page after a reload.

JupyterLab leaves that early each time it connects: it offers a subprotocol, which Jupyter Server
does not choose in front of a gateway. Chromium then closes the websocket, and JupyterLab opens
another one without it.
"""

from __future__ import annotations

from asyncio import Future

from jupyter_server.gateway.connections import GatewayWebSocketConnection
from tornado.websocket import WebSocketClientConnection

__all__ = ["GatewayConnection"]


class GatewayConnection(GatewayWebSocketConnection):
    """Jupyter Server's connection; it also closes a websocket that opens when the page has left."""

    async def connect(self) -> None:
        """Open a websocket to the gateway, unless the page has left since the last attempt."""
        if not self.disconnected:
            await super().connect()  # type: ignore[no-untyped-call]

    def disconnect(self) -> None:  # type: ignore[override]
        """Close the websocket to the gateway, now or when it opens."""
        self.disconnected = True
        if self.ws is not None:
            self.ws.close()
        elif self.ws_future is not None:
            self.ws_future.add_done_callback(_close)


def _close(opening: Future[WebSocketClientConnection]) -> None:
    if opening.exception() is None:
        opening.result().close()
