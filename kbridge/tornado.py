"""A Tornado handler for the websocket of a kernel.

::

    class Channels(ChannelsHandler):
        def authorize(self) -> bool:
            return self.get_secure_cookie("user") is not None

    kernels = AsyncMultiKernelManager()
    hubs = HubTable()
    app = Application(
        [(r"/kernels/([^/]+)/channels", Channels, {"get_kernel": kernels.get_kernel})],
        hubs=hubs,
    )

`examples/embed.py` is a complete program.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from tornado.web import HTTPError
from tornado.websocket import WebSocketHandler, WebSocketProtocol

from kbridge.connection.channels import HUBS, ZMQChannelsWebsocketConnection
from kbridge.connection.hooks import passes_pongs
from kbridge.errors import HubClosed, KbridgeError, SetupError
from kbridge.hub.table import HubTable
from kbridge.link.client import bridge_protocol, close_for
from kbridge.link.keepalive import Keepalive

__all__ = ["ChannelsHandler"]

KEEPALIVE = "kbridge_keepalive"
"""The key in Tornado's settings under which an application keeps its `Keepalive`."""


class ChannelsHandler(WebSocketHandler):
    """Connects a websocket to a kernel.

    The handler negotiates the subprotocol, passes messages both ways, stops reading while the
    kernel does not keep up, processes acknowledgements, and closes the websocket with a code that
    names the cause. A client that reconnects with the same `session_id` in the URL continues where
    it stopped; see docs/websocket.md.

    The settings of the application must have `hubs`, a `kbridge.HubTable`.
    `websocket_max_message_size` and `websocket_ping_interval` mean the same as for Tornado's
    handler; a client that has not answered by the next ping is disconnected, unless it is still
    reading earlier messages.

    A subclass overrides `get_kernel`, `authorize`, or both; or the route passes functions under
    these names. An override of another method of Tornado's (`open`, `on_close`, ...) must call the
    method of this class.

    Parameters
    ----------
    get_kernel : callable, optional
        Called with the groups of the route's pattern, as `get_kernel` is.
    authorize : callable, optional
        Called with the handler; returns what `authorize` returns.

    Attributes
    ----------
    connection : ZMQChannelsWebsocketConnection or None
        The connection to the kernel; None before the handshake and after the end.
    """

    connection: ZMQChannelsWebsocketConnection | None = None

    _get_kernel: Callable[..., Any] | None = None
    _authorize: Callable[[ChannelsHandler], Any] | None = None

    def initialize(
        self,
        get_kernel: Callable[..., Any] | None = None,
        authorize: Callable[[ChannelsHandler], bool | Awaitable[bool]] | None = None,
    ) -> None:
        """Take the arguments of the route."""
        self._get_kernel = get_kernel
        self._authorize = authorize

    # -- for subclasses to override ---------------------------------------------------------

    def authorize(self) -> bool | Awaitable[bool]:
        """Return True if this request may use the kernel; may be a coroutine.

        Called before `get_kernel`, for each websocket. The arguments of the URL are in `path_args`
        and `path_kwargs`. Anything but True ends the request with status 403; raise
        `tornado.web.HTTPError` to choose another status. Unless overridden, every request is
        authorized that Tornado's `prepare` and `check_origin` let through.
        """
        return True if self._authorize is None else self._authorize(self)

    def get_kernel(self, *args: Any, **kwargs: Any) -> Any:
        """Return the kernel that a URL names; may be a coroutine.

        Parameters
        ----------
        *args, **kwargs
            The groups of the route's pattern.

        Returns
        -------
        jupyter_client.KernelManager
            Or another `traitlets.config.Configurable` that has a `kernel_id` and the method
            `get_connection_info()`. None, or a `KeyError`, if there is no such kernel: the request
            then ends with status 404.
        """
        if self._get_kernel is None:
            raise SetupError(
                f"{type(self).__name__} cannot find kernels: override get_kernel(), or pass"
                " {'get_kernel': function} as the third element of the route"
            )
        return self._get_kernel(*args, **kwargs)

    def create_connection(self, kernel: Any) -> ZMQChannelsWebsocketConnection:
        """Return the connection between this websocket and a kernel; not yet attached."""
        return ZMQChannelsWebsocketConnection(parent=kernel, websocket_handler=self)

    # -- what Tornado calls -----------------------------------------------------------------

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Answer the handshake.

        Raises
        ------
        tornado.web.HTTPError
            400 if the request is not a handshake, 403 if it is not authorized or comes from
            another origin, 404 if there is no such kernel.
        SetupError
            If the application has no `hubs`, or no way to find kernels.
        """
        if not isinstance(self.settings.get(HUBS), HubTable):
            raise SetupError(
                f"{type(self).__name__} needs a HubTable in the application's settings:"
                f" Application(..., {HUBS}=kbridge.HubTable())"
            )
        self.check_handshake()
        if await _result(self.authorize()) is not True:
            raise HTTPError(403)
        try:
            kernel = await _result(self.get_kernel(*args, **kwargs))
        except KeyError as error:
            raise HTTPError(404) from error
        if kernel is None:
            raise HTTPError(404)
        await self.accept(self.create_connection(kernel))

    async def accept(self, connection: ZMQChannelsWebsocketConnection) -> None:
        """Complete the handshake, and serve the websocket until it is closed.

        Parameters
        ----------
        connection : ZMQChannelsWebsocketConnection
            The connection to the kernel, not yet attached.
        """
        self.connection = connection
        await connection.prepare()
        await super().get(*self.path_args, **self.path_kwargs)

    def check_handshake(self) -> None:
        """Check the request before it reaches `authorize` and `get_kernel`.

        Tornado checks the same, but only after these: a page of another origin could make a browser
        that is logged in start kernels, or tell by the status which kernels there are.

        Raises
        ------
        tornado.web.HTTPError
            400 if the request is not the handshake of a websocket, 403 if `check_origin` refuses
            its origin.
        """
        headers = self.request.headers
        connection = [part.strip().lower() for part in headers.get("Connection", "").split(",")]
        if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in connection:
            raise HTTPError(400, reason="Not a WebSocket handshake")
        origin = headers.get("Origin", headers.get("Sec-Websocket-Origin"))
        if origin is not None and not self.check_origin(origin):
            raise HTTPError(403, reason="Cross origin websockets not allowed")

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Choose the dialect of the websocket from what the client offers."""
        assert self.connection is not None
        return self.connection.select_subprotocol(subprotocols)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        """Return kbridge's protocol object, or Tornado's if messages are compressed."""
        return bridge_protocol(super().get_websocket_protocol(), self)

    @property
    def ping_interval(self) -> float:
        """Return 0: `keepalive` sends the pings, for all websockets from one timer."""
        return 0

    @cached_property
    def keepalive(self) -> Keepalive | None:
        """The timer that pings the websockets of the application; None without pings."""
        if KEEPALIVE not in self.settings:
            interval = self.settings.get("websocket_ping_interval")
            self.settings[KEEPALIVE] = Keepalive(interval) if interval else None
        found = self.settings[KEEPALIVE]
        assert found is None or isinstance(found, Keepalive)
        return found

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Attach the websocket to the kernel; requests wait until the kernel is ready."""
        assert self.connection is not None
        try:
            self.connection.connect()
        except KbridgeError as error:  # the kernel has ended, or `since` is not a place
            close_for(self, error)
            return
        if self.keepalive is not None:
            self.keepalive.add(self)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Send a message to the kernel.

        Returns
        -------
        Awaitable or None
            Tornado reads nothing more from the websocket until it is done. An override must return
            what this method returns.
        """
        if self.connection is None:
            return None
        handled = self.connection.handle_incoming_message(message)
        if handled is None or not inspect.isawaitable(handled):
            handled = self.connection.pending  # an override may drop what it has to return
        if handled is None:
            return None
        if self.keepalive is not None:
            self.keepalive.remove(self)  # while nothing is read, pongs are not read either
        return self._wait(handled)

    async def _wait(self, handled: Awaitable[None]) -> None:
        try:
            await handled
        except HubClosed as error:
            close_for(self, error)
        if self.keepalive is not None and self.connection is not None:
            self.keepalive.add(self)

    @passes_pongs
    def on_pong(self, data: bytes) -> None:
        """Note that the peer is alive, and process its acknowledgement."""
        if self.connection is not None:
            self.connection.on_pong(data)
        if self.keepalive is not None:
            self.keepalive.heard(self)

    @property
    def blocked(self) -> bool:
        """True while the peer has not read all written data."""
        return self.connection is not None and self.connection.blocked

    def on_progress(self) -> None:
        """Note that the peer reads, although its pongs may be late."""
        if self.keepalive is not None:
            self.keepalive.heard(self)

    def on_close(self) -> None:
        """Detach the websocket from the kernel."""
        if self.keepalive is not None:
            self.keepalive.remove(self)
        if self.connection is not None:
            self.connection.disconnect()
            self.connection = None


async def _result(value: Any) -> Any:
    """Return a value, or what an awaitable returns."""
    return await value if inspect.isawaitable(value) else value
