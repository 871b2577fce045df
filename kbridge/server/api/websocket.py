"""The websocket of a kernel: `/api/kernels/{id}/channels`."""

from __future__ import annotations

from typing import Any

from kbridge import tornado
from kbridge.connection.channels import ZMQChannelsWebsocketConnection
from kbridge.errors import Forbidden, InvalidRequest, KernelNotFound
from kbridge.kernels.users import User
from kbridge.link.client import close_for
from kbridge.server.api.access import AccessMixin
from kbridge.server.api.pass_on import find_remote, pass_websocket

__all__ = ["ChannelsHandler"]

_NO_UPGRADE = (
    "this address speaks websocket, and the request has no `Connection: Upgrade` and `Upgrade:"
    " websocket`. The usual cause is a proxy in front of kbridge that does not pass websockets on;"
    " for nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"
    ' proxy_set_header Connection "upgrade";'
)


class ChannelsHandler(AccessMixin, tornado.ChannelsHandler):
    """The handler of `kbridge.tornado`, behind the access control of the server.

    Arguments of the URL, all optional: `session_id`, under which a client that reconnects receives
    the messages that it has missed; `since`, the last message that it received
    (`kbridge.hub.broadcast.resume`); `parents`, the requests whose messages it wants
    (`kbridge.flow.selection`).
    """

    for_replicas = True

    async def get(self, kernel_id: str) -> None:
        """Answer the handshake; `AccessMixin.prepare` has authorized the request already.

        Raises
        ------
        KernelNotFound
            If no kernel has this id, or the user may not reach it.
        InvalidRequest
            If the request is not the handshake of a websocket.
        """
        kernels: Any = self.services.kernels
        remote = await find_remote(self, kernel_id)
        if remote is not None:
            self._need_upgrade()
            if await pass_websocket(self, remote):
                return
        self.check_reach(kernel_id)
        if kernel_id not in kernels:
            raise KernelNotFound(f"no kernel has the id {kernel_id!r}")
        self._need_upgrade()
        await self.accept(self._connection_to(kernels.get_kernel(kernel_id)))

    def _need_upgrade(self) -> None:
        headers = self.request.headers
        upgrade = headers.get("Upgrade", "").lower() == "websocket"
        connection = [s.strip().lower() for s in headers.get("Connection", "").split(",")]
        if not upgrade or "upgrade" not in connection:
            raise InvalidRequest(_NO_UPGRADE)
        if not headers.get("Sec-WebSocket-Key"):
            raise InvalidRequest("the websocket handshake has no Sec-WebSocket-Key")

    def _connection_to(self, kernel: Any) -> ZMQChannelsWebsocketConnection:
        """Return the connection, of the class and with the configuration that the settings name."""
        cls = self.settings.get("kernel_websocket_connection_class")
        assert cls is None or issubclass(cls, ZMQChannelsWebsocketConnection)
        return (cls or ZMQChannelsWebsocketConnection)(
            parent=kernel, websocket_handler=self, config=self.settings.get("config")
        )

    def open(self, *args: str, **kwargs: str) -> None:
        """Attach to the kernel, and let the end of the server find the websocket."""
        self.services.websockets.add(self)
        self.keep_checking(self)
        super().open(*args, **kwargs)

    def on_close(self) -> None:
        """Detach from the kernel."""
        self.services.websockets.discard(self)
        self.stop_checking(self)
        super().on_close()

    def still_allowed(self, user: User) -> bool:
        """Return True if a user may still reach the kernel."""
        if user == self.user:
            return True
        try:
            return user.may_reach_kernel(self.services.kernels.model(self.path_args[0]))
        except KernelNotFound:  # it ends, or another replica takes it
            return user.admin

    def end_access(self, error: Forbidden) -> None:
        """Close the websocket."""
        close_for(self, error)
