"""The class that connects one websocket to one kernel; Jupyter Server has one of the same name.

The kernel's sockets, journal and state belong to the kernel's hub, where a websocket is a cursor.
This module has the configuration, and the names that users of Jupyter Server know.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Generator
from concurrent.futures import Future
from typing import Any, ClassVar

from tornado.websocket import WebSocketHandler
from traitlets import Dict, Instance, Unicode, default
from traitlets.config import Config

from kbridge.connection.hooks import INCOMING, INFO, OUTGOING, HookedClient, overridden
from kbridge.connection.info import KernelInfo, _ensure_future
from kbridge.connection.pipeline import MessagePipeline
from kbridge.connection.settings import ConnectionSettings
from kbridge.connection.streams import HubChannel
from kbridge.errors import FrameError, HubClosed, IgnoredMessage
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.hub import Hub
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.client import client_link
from kbridge.link.interfaces import ClientLink
from kbridge.wire import frames
from kbridge.wire.dialects import V1, Dialect, select
from kbridge.wire.fields import MAX_PARSED
from kbridge.wire.message import Channel, Message
from kbridge.wire.zmq import serialize

__all__ = ["HUBS", "ZMQChannelsWebsocketConnection"]

HUBS = "hubs"
"""The key in Tornado's settings under which an application keeps its `HubTable`."""


class ZMQChannelsWebsocketConnection(ConnectionSettings, MessagePipeline, KernelInfo):
    """Connects a websocket to a kernel.

    A server makes one for each websocket, with the kernel's manager as `parent`. The traits are
    read once, when the first hub is made.

    A subclass may override any method. If it overrides one of `kbridge.connection.hooks.OUTGOING`,
    the kernel's messages pass these methods one by one, as in jupyter_server and as slowly.
    """

    websocket_handler = Instance(WebSocketHandler, help="The websocket.")
    channels = Dict({}, help="The kernel's channels by name, while connected.")
    since = Unicode(
        help="The last message that the client saw, from the argument `since` of its URL."
    )
    session_key = Unicode("", help="The kernel id and the session id of this websocket.")

    _open_sockets: ClassVar[weakref.WeakSet[ZMQChannelsWebsocketConnection]] = weakref.WeakSet()

    _close_future = Instance(Future, help="Done once the websocket is detached.")

    _hub: Hub | None = None
    _cursor: Cursor | None = None
    _dialect: Dialect | None = None
    _pending: asyncio.Future[None] | None = None
    _pong_taken = False

    @default("_close_future")
    def _default_close_future(self) -> Future[None]:
        return Future()

    @default("since")
    def _default_since(self) -> str:
        return str(self.websocket_handler.get_query_argument("since", ""))

    # -- settings ---------------------------------------------------------------------------

    @classmethod
    def hub_settings(
        cls,
        config: Config | None = None,
        manager: Any = None,
        connection: ZMQChannelsWebsocketConnection | None = None,
    ) -> HubSettings:
        """Return the settings of hubs for a configuration.

        Parameters
        ----------
        config : Config, optional
            Traitlets configuration.
        manager : optional
            The manager of all kernels, whose `allowed_message_types`, `allow_tracebacks`,
            `traceback_replacement_message` and `kernel_info_timeout` are used, as in Jupyter
            Server.
        connection : optional
            A connection whose traits are used instead of the configuration.
        """
        one = connection or cls(config=config or Config())
        chosen: dict[str, Any] = {
            name: getattr(one, name) for name in ConnectionSettings.HUB_SETTINGS
        }
        for name in ("allow_tracebacks", "traceback_replacement_message", "kernel_info_timeout"):
            if hasattr(manager, name):
                chosen[name] = getattr(manager, name)
        if one.trait_has_value("kernel_info_timeout"):  # set for this class: it goes before
            chosen["kernel_info_timeout"] = one.kernel_info_timeout
        for name in ("allowed_message_types", "untracked_message_types"):
            chosen[name] = tuple(getattr(manager, name, ()))
        if not getattr(manager, "buffer_offline_messages", True):
            chosen["resume_timeout"] = 0.0
        if overridden(one, ZMQChannelsWebsocketConnection, OUTGOING):
            # Each websocket has its own say about limits and tracebacks.
            chosen["limit_rate"], chosen["allow_tracebacks"] = False, True
        return HubSettings(**chosen)

    # -- who is who -------------------------------------------------------------------------

    @property
    def hub(self) -> Hub:
        """The kernel's hub; it is made if there is none.

        Raises
        ------
        HubClosed
            If the application has no table of hubs.
        """
        if self._hub is None:
            self._hub = self._open_hub()
        return self._hub

    def _open_hub(self) -> Hub:
        hubs = self.websocket_handler.settings.get(HUBS)
        if not isinstance(hubs, HubTable):
            raise HubClosed(f"the application's settings have no {HUBS!r}")
        return hubs.open(self.kernel_id, self.kernel_manager.get_connection_info())

    @property
    def session_id(self) -> str:
        """The session id of the client, with which it can resume; empty if it gave none."""
        if self.trait_has_value("session"):
            return str(self.session.session)
        return str(self.websocket_handler.get_query_argument("session_id", ""))

    @property
    def subprotocol(self) -> str | None:
        """The websocket subprotocol in use; None for the legacy dialect."""
        if self._dialect is None:
            chosen = getattr(self.websocket_handler, "selected_subprotocol", None)
            return chosen if isinstance(chosen, str) else None
        return self._dialect.subprotocol

    def select_subprotocol(self, offered: list[str]) -> str | None:
        """Choose the dialect; return the subprotocol for the reply to the client."""
        self._dialect = select(offered, self.kernel_ws_protocol)
        return self._dialect.subprotocol

    def _overrides(self, names: tuple[str, ...]) -> bool:
        return overridden(self, ZMQChannelsWebsocketConnection, names)

    # -- life -------------------------------------------------------------------------------

    @classmethod
    async def close_all(cls) -> None:
        """Disconnect every websocket."""
        for connection in list(cls._open_sockets):
            connection.disconnect()
            await _ensure_future(connection._close_future)  # noqa: SLF001  # our own

    async def prepare(self) -> None:
        """Prepare the connection before the websocket opens, without waiting for the kernel.

        The kernel is asked for kernel_info only if a method that takes the reply is overridden.
        """
        self.session_key = f"{self.kernel_id}:{self.session_id}"
        self.since = self._default_since()
        if self._overrides(OUTGOING + INCOMING + INFO):
            # Overrides may take messages apart with the session: it needs the kernel's key.
            self.session.key = getattr(self.kernel_manager, "session", self.session).key
        if self._overrides(INFO):
            await self.request_kernel_info()

    def _reads_for_a_page(self) -> bool:
        """Return True if the client is a browser, or a Jupyter Server in front of a browser.

        All browsers call themselves Mozilla. Jupyter Server, as the client of a gateway, opens its
        websockets with Tornado.
        """
        agent = self.websocket_handler.request.headers.get("User-Agent", "")
        return str(agent).startswith(("Mozilla/", "Tornado/"))

    def create_stream(self) -> None:
        """Make the channels of this websocket; their sockets belong to the hub."""
        self.channels = {str(c): HubChannel(self.hub, c, self._submit) for c in Channel}

    def connect(self) -> asyncio.Future[Any]:  # type: ignore[override]  # a Future, as in jupyter_server
        """Attach the websocket to the kernel.

        Returns
        -------
        Future
            A future that is done: a websocket is open at once, and its requests wait until the
            kernel is ready. If `nudge` is overridden, the future that it returns.
        """
        if self._dialect is None:
            self.select_subprotocol([self.subprotocol or ""])
        link, dialect = self._link()
        self.create_stream()
        cursor = self.hub.attach(
            link,
            dialect,
            self.session_id,
            self.since,
            verbatim=isinstance(link, HookedClient),
            paced=self._reads_for_a_page(),
            listener=self,
        )
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        if self.trait_has_value("_close_future") and self._close_future.done():
            self.hub.detach(cursor)  # a hook has detached it already, on what it was given
            return done
        self._cursor = cursor
        self._receive_pongs()
        self._open_sockets.add(self)
        self._notify("notify_connect")
        if self._overrides(("nudge",)):
            done = asyncio.ensure_future(self.nudge())
        return done

    def _link(self) -> tuple[ClientLink, Dialect]:
        """Return the link to the websocket for the hub, and the format of its frames."""
        handler = self.websocket_handler
        assert self._dialect is not None
        link = client_link(handler)
        if self._overrides(OUTGOING):
            return HookedClient(link, self._deliver, self.log), V1
        if overridden(handler, WebSocketHandler, ("write_message",)):
            return HookedClient(link, self._write_through_handler, self.log), V1
        return link, self._dialect

    def disconnect(self) -> None:  # type: ignore[override]  # at once, as in jupyter_server
        """Detach the websocket; may be called twice, and for one that was never attached."""
        self._forget_kernel_info()
        self._open_sockets.discard(self)
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.close()
        cursor, self._cursor = self._cursor, None
        if cursor is not None and self._hub is not None:
            vars(self.websocket_handler).pop("on_pong", None)  # see `_receive_pongs`
            self._hub.detach(cursor)
            if isinstance(cursor.link, HookedClient):
                cursor.link.abandon()
            self._notify("notify_disconnect")
        if not self._close_future.done():
            self._close_future.set_result(None)

    def close(self) -> None:
        """Detach the websocket."""
        self.disconnect()

    # -- messages ---------------------------------------------------------------------------

    def handle_incoming_message(self, incoming_msg: str | bytes) -> Awaitable[None] | None:
        """Send the message of a websocket frame to the kernel.

        A frame that is not a message closes the websocket, with the code and the reason of the
        error. A message that Jupyter Server or the kernel would ignore is counted and dropped.

        Returns
        -------
        Awaitable or None
            The caller must await it before it reads the next message; None while the kernel keeps
            up. It fails with HubClosed if the kernel goes away.
        """
        if self._cursor is None or self._dialect is None:
            return None
        try:
            if len(incoming_msg) > MAX_PARSED:
                return self._handle_large(self._dialect.decode_in_steps(incoming_msg))
            return self._submit(self._dialect.decode(incoming_msg))
        except (FrameError, HubClosed) as error:
            self._refuse(error)
            return None

    def _handle_large(self, steps: Generator[None, None, Message]) -> asyncio.Future[None] | None:
        """Decode a large frame, in later turns of the event loop if one step is not enough."""
        try:
            next(steps)
        except StopIteration as end:
            return self._submit(end.value)
        self._pending = asyncio.ensure_future(self._decode_on(steps))
        return self._pending

    async def _decode_on(self, steps: Generator[None, None, Message]) -> None:
        """Decode the rest of a frame, submit its message, and wait until more may be read."""
        try:
            while True:
                await asyncio.sleep(0)
                if self._cursor is None:
                    return
                try:
                    next(steps)
                except StopIteration as end:
                    room = self.hub.submit(self._cursor, end.value)
                    break
        except (FrameError, HubClosed) as error:
            self._refuse(error)
            return
        if room is not None:
            await room

    def _refuse(self, error: FrameError | HubClosed) -> None:
        """Close the websocket because of an invalid frame; only count an ignored message."""
        if isinstance(error, IgnoredMessage):
            self.hub.ignored.record(error.reason)
            return
        self.log.warning("websocket of kernel %s closed: %s", self.kernel_id, error.reason)
        self.disconnect()
        self.websocket_handler.close(error.close_code, error.reason)

    def _receive_pongs(self) -> None:
        """Make the handler pass on each pong, because its own `on_pong` may not do so.

        Without pongs no message counts as delivered: a client that comes back would see the same
        messages again, and the journal would keep them.
        """
        handler = self.websocket_handler
        of_handler = handler.on_pong
        if getattr(of_handler, "passes_pongs", False):
            return

        def on_pong(data: bytes) -> Any:
            self._pong_taken = False
            result: Any = of_handler(data)
            if not self._pong_taken:
                self.on_pong(data)
            return result

        handler.on_pong = on_pong  # type: ignore[method-assign]

    def on_pong(self, data: bytes) -> None:
        """Take the payload of a pong, which may acknowledge frames.

        A websocket handler may call it, and need not: `connect` arranges that every pong gets here.
        """
        self._pong_taken = True
        if self._cursor is not None:
            self.hub.on_pong(self._cursor, data)

    @property
    def blocked(self) -> bool:
        """True while the client has not read all written data."""
        return self._cursor is not None and self._cursor.blocked

    @property
    def pending(self) -> asyncio.Future[None] | None:
        """The future to await before the next message is read; None if it may be read at once.

        `handle_incoming_message` returns the same. This property is for handlers whose messages
        pass code that drops that: Jupyter Server's own `on_message`, or a subclass that overrides
        `handle_incoming_message`.
        """
        if self._pending is not None and self._pending.done():
            self._pending = None
        return self._pending

    def _submit(self, msg: Message) -> asyncio.Future[None] | None:
        if self._cursor is None:
            return None
        waits = self.hub.submit(self._cursor, msg)
        if waits is None:
            return None
        self._pending = asyncio.ensure_future(waits)
        return self._pending

    def _deliver(self, msg: Message) -> Any:
        channel = self.channels.get(str(msg.channel))
        if channel is None:
            return None  # a hook has detached the websocket in mid-batch
        # A coroutine, where an override is one.
        deliver: Any = self.handle_outgoing_message
        return deliver(channel, serialize(msg, self.hub.signer))

    def _write_through_handler(self, msg: Message) -> Any:
        """Write a message with the handler's `write_message`, which may change or hide it."""
        assert self._dialect is not None
        opcode, data = self._dialect.payload(msg)
        text = opcode == frames.TEXT
        return self.websocket_handler.write_message(data.decode() if text else data, not text)

    # -- the kernel's life ------------------------------------------------------------------

    def on_kernel_restarted(self) -> None:
        """Send `restarting` to the clients; called after a restart that no client asked for."""
        self.log.debug("kernel %s restarted", self.kernel_id)
        self._send_status_message("restarting")

    def on_restart_failed(self) -> None:
        """Send `dead` to the clients; called when the kernel could not be restarted."""
        self.log.debug("kernel %s could not be restarted", self.kernel_id)
        self._send_status_message("dead")

    def _send_status_message(self, status: str) -> None:
        """Send a status in the name of the kernel to all its websockets.

        Sending the same status twice in a row has no effect.
        """
        if self._cursor is not None:
            self.hub.announce(status, source=self._cursor)

    def on_status(self, status: str) -> None:
        """Take a kernel status that the bridge announces (`kbridge.hub.events.StatusListener`)."""
        if status == "restarting":
            self.on_kernel_restarted()
        elif status == "dead":
            self.on_restart_failed()

    def _notify(self, what: str) -> None:
        notify = getattr(self.multi_kernel_manager, what, None)
        if notify is not None:
            notify(self.kernel_id)
