"""Handlers that forward to the gateway of Jupyter Server what its own handlers do not.

With `--gateway-url`, the kernels are behind a gateway, which may be kbridge. Jupyter Server
forwards the usual requests. Its websocket to the gateway has neither binary frames nor the
arguments of the page's URL, so pages get another websocket here.

- Jupyter Server authenticates and authorizes each request first.
- A message is read when the one before it was written to the other side, so at most three messages
  of each direction are in memory.
- The end of either side ends the other with the same code.
- Pings are answered here: a client that resumes should name the last message that it received.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from tornado import web
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketHandler

from kbridge.jupyter.api import KERNEL_ID, MSG_ID, KernelApiHandler, SafeErrorsMixin
from kbridge.jupyter.gateway_requests import fetch_executions, open_channels
from kbridge.wire.closing import GOING_AWAY

__all__ = ["CHANNELS_PATH", "ROUTES", "GatewayChannelsHandler", "GatewayExecutionsHandler"]

CHANNELS_PATH: Final = "kbridge/kernels"
"""The path, instead of `api/kernels`, below which pages find the websocket of this module."""

# Codes that stand for the absence of a close frame (RFC 6455, section 7.4.1).
_NEVER_SENT: Final = frozenset({None, 1005, 1006, 1015})


class GatewayExecutionsHandler(KernelApiHandler):
    """Forwards `/api/kernels/{id}/executions` and the paths below it."""

    @web.authenticated
    @authorized
    async def get(self, kernel_id: str, msg_id: str = "") -> None:
        """List the executions of a kernel, or describe one."""
        await self._forward("GET", kernel_id, msg_id)

    async def _forward(self, method: str, kernel_id: str, msg_id: str) -> None:
        body = await fetch_executions(method, kernel_id, msg_id, self.request.query_arguments)
        if body:
            self.finish(body)
        else:
            self.set_status(204)
            self.finish()


class GatewayExecutionHandler(GatewayExecutionsHandler):
    """Forwards `/api/kernels/{id}/executions/{msg_id}`, which can be deleted, too."""

    @web.authenticated
    @authorized
    async def delete(self, kernel_id: str, msg_id: str) -> None:
        """Delete the record of an execution that has ended."""
        await self._forward("DELETE", kernel_id, msg_id)


class GatewayChannelsHandler(SafeErrorsMixin, KernelWebsocketHandler):
    """Connects the websocket of a page with one to the gateway."""

    _gateway: WebSocketClientConnection | None = None
    _relaying: asyncio.Task[None] | None = None
    _unfinished = 0  # messages that are being written to either side

    @ws_authenticated
    async def get(self, kernel_id: str) -> None:
        """Answer the handshake; returns when the websocket has been closed."""
        self._accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            await super().get(kernel_id)  # type: ignore[no-untyped-call]
        finally:
            if not self._accepted.done():
                self._accepted.set_result(False)
            self._close_gateway(None, None)

    async def pre_get(self) -> None:
        """Check that the user may execute code, then open the websocket to the gateway.

        Raises
        ------
        tornado.web.HTTPError
            403 if the user or the origin is not allowed; 400 if the request is not the handshake of
            a websocket; otherwise see `open_channels`.
        """
        allowed = await ensure_async(
            self.authorizer.is_authorized(self, self.current_user, "execute", "kernels")
        )
        if not allowed or not self.check_origin():
            raise web.HTTPError(403)
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise web.HTTPError(400, "this address speaks websocket")
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        self._gateway = await open_channels(
            self.kernel_id, self.request.query_arguments, [name.strip() for name in offered]
        )
        self._relaying = asyncio.ensure_future(self._relay(self._gateway))

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Choose what the gateway has chosen, which is the format of the messages."""
        assert self._gateway is not None
        chosen = self._gateway.selected_subprotocol
        return chosen if chosen in subprotocols else None

    async def open(self, kernel_id: str) -> None:
        """Start to forward the gateway's messages."""
        self.log.debug("Forwarding a websocket of kernel %s to the gateway", kernel_id)
        WebSocketMixin.open(self)
        self.set_nodelay(True)
        self._accepted.set_result(True)

    async def _relay(self, gateway: WebSocketClientConnection) -> None:
        """Forward the gateway's messages, and its end."""
        accepted = await self._accepted
        # Without a page, too, the closing handshake is read only behind all messages.
        while (message := await gateway.read_message()) is not None:
            if accepted:
                await self._write(self, message)
        if not accepted:
            return
        if gateway.close_code in _NEVER_SENT:
            self.close(GOING_AWAY, "the connection to the gateway was lost")
        else:
            self.close(gateway.close_code, gateway.close_reason)
        self._close_gateway(None, None)

    async def on_message(self, ws_message: str | bytes) -> None:
        """Forward a message of the page; Tornado reads the next one when this has returned."""
        if self._gateway is not None:
            await self._write(self._gateway, ws_message)

    async def _write(
        self, side: WebSocketHandler | WebSocketClientConnection, message: str | bytes
    ) -> None:
        """Write a message to one side, and wait until the operating system has accepted it."""
        self._unfinished += 1
        try:
            await side.write_message(message, isinstance(message, bytes))
        except WebSocketClosedError:
            pass  # `_relay` or `on_close` closes the other side
        finally:
            self._unfinished -= 1

    def send_ping(self) -> None:
        """Ping both sides; only a page that could have answered has to."""
        if self._unfinished:
            # The pong may be unread behind a message. TCP detects dead peers.
            self.on_pong(b"")  # type: ignore[no-untyped-call]
        super().send_ping()
        if self._gateway is not None:
            with suppress(WebSocketClosedError, StreamClosedError):
                self._gateway.ping()

    def on_close(self) -> None:
        """Close the websocket to the gateway as the page has closed its own."""
        self._close_gateway(self.close_code, self.close_reason)

    def _close_gateway(self, code: int | None, reason: str | None) -> None:
        gateway, self._gateway = self._gateway, None
        if gateway is not None:
            gateway.close(GOING_AWAY if code in _NEVER_SENT else code, reason)


ROUTES: tuple[tuple[str, type[web.RequestHandler]], ...] = (
    (rf"/api/kernels/{KERNEL_ID}/executions", GatewayExecutionsHandler),
    (rf"/api/kernels/{KERNEL_ID}/executions/{MSG_ID}", GatewayExecutionHandler),
    (rf"/{CHANNELS_PATH}/{KERNEL_ID}/channels", GatewayChannelsHandler),
)
"""The routes below the server's `base_url`."""
