"""The websocket of a kernel: `/api/kernels/{id}/channels`."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from tornado.websocket import WebSocketHandler, WebSocketProtocol

from kbridge.connection.channels import ZMQChannelsWebsocketConnection
from kbridge.errors import HubClosed, InvalidRequest, KernelNotFound
from kbridge.link.keepalive import Keepalive
from kbridge.link.protocol import BridgeWebSocketProtocol
from kbridge.server.api.access import AccessMixin

__all__ = ["ChannelsHandler"]

_NO_UPGRADE = (
    "this address speaks websocket, and the request has no `Connection: Upgrade` and `Upgrade:"
    " websocket`. The usual cause is a proxy in front of kbridge that does not pass websockets on;"
    " for nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"
    ' proxy_set_header Connection "upgrade";'
)


class ChannelsHandler(AccessMixin, WebSocketHandler):
    """Lets a frontend talk to a kernel.

    Arguments of the URL, both optional: `session_id`, under which a client that comes back is
    given what it has missed; `since`, what it saw last (`kbridge.hub.broadcast.resume`).
    """

    connection: ZMQChannelsWebsocketConnection | None = None

    async def get(self, kernel_id: str) -> None:
        """Answer an upgrade: 404 for an unknown kernel, before anything is made for it."""
        kernels: Any = self.services.kernels
        if kernel_id not in kernels:
            raise KernelNotFound(f"no kernel has the id {kernel_id!r}")
        self._need_upgrade()
        self.connection = self.connection_class(
            parent=kernels.get_kernel(kernel_id), websocket_handler=self, config=self.app_config
        )
        await self.connection.prepare()
        await super().get()

    def _need_upgrade(self) -> None:
        """Raise `InvalidRequest` if this is not the handshake of a websocket."""
        headers = self.request.headers
        upgrade = headers.get("Upgrade", "").lower() == "websocket"
        connection = [s.strip().lower() for s in headers.get("Connection", "").split(",")]
        if not upgrade or "upgrade" not in connection:
            raise InvalidRequest(_NO_UPGRADE)
        if not headers.get("Sec-WebSocket-Key"):
            raise InvalidRequest("the websocket handshake has no Sec-WebSocket-Key")

    @property
    def connection_class(self) -> type[ZMQChannelsWebsocketConnection]:
        """The class that bridges."""
        found = self.settings.get("kernel_websocket_connection_class")
        assert found is None or issubclass(found, ZMQChannelsWebsocketConnection)
        return found or ZMQChannelsWebsocketConnection

    @property
    def app_config(self) -> Any:
        """Traitlets configuration."""
        return self.settings.get("config")

    @property
    def keepalive(self) -> Keepalive | None:
        """Who pings."""
        found = self.settings.get("kbridge_keepalive")
        assert found is None or isinstance(found, Keepalive)
        return found

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Choose the dialect."""
        assert self.connection is not None
        return self.connection.select_subprotocol(subprotocols)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """Speak RFC 6455 with the closes that it asks for."""
        usual = super().get_websocket_protocol()
        return None if usual is None else BridgeWebSocketProtocol.in_place_of(usual, self)

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Attach to the kernel; waits for nothing."""
        assert self.connection is not None
        try:
            self.connection.connect()
        except (HubClosed, InvalidRequest) as error:  # the kernel went meanwhile; no such `since`
            self.close(error.close_code, error.reason)
            return
        self.services.websockets.add(self)
        if self.keepalive is not None:
            self.keepalive.add(self)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Pass a message on; Tornado reads no further until what this returns is done."""
        if self.connection is None:
            return None
        self.connection.handle_incoming_message(message)
        room = self.connection.room()
        if room is None:
            return None
        if self.keepalive is not None:
            self.keepalive.remove(self)  # nothing is read until there is room, pongs neither
        return self._wait(room)

    async def _wait(self, room: Awaitable[None]) -> None:
        try:
            await room
        except HubClosed as error:
            self.close(error.close_code, error.reason)
        if self.keepalive is not None and self.connection is not None:
            self.keepalive.add(self)

    def on_pong(self, data: bytes) -> None:
        """Note that the peer lives, and what it has."""
        if self.connection is not None:
            self.connection.on_pong(data)
        if self.keepalive is not None:
            self.keepalive.heard(self)

    @property
    def blocked(self) -> bool:
        """Whether the peer has yet to read what was written."""
        return self.connection is not None and self.connection.blocked

    def on_progress(self) -> None:
        """Note that the peer reads, though its pongs may be behind what it has yet to read."""
        if self.keepalive is not None:
            self.keepalive.heard(self)

    def on_close(self) -> None:
        """Detach."""
        self.services.websockets.discard(self)
        if self.keepalive is not None:
            self.keepalive.remove(self)
        if self.connection is not None:
            self.connection.disconnect()
            self.connection = None
