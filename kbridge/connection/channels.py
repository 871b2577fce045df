"""The class that connects one websocket to one kernel; Jupyter Server has one of the same name.

The kernel's sockets, journal and state belong to the kernel's hub, where a websocket is a cursor.
This module has the configuration, and the names that users of Jupyter Server know.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Awaitable
from concurrent.futures import Future
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from tornado.web import HTTPError
from tornado.websocket import WebSocketHandler
from traitlets import Any as AnyTrait
from traitlets import Dict, Instance, List, Unicode, default
from traitlets.config import Config

from kbridge.connection import info, settings
from kbridge.connection.audit import AUDIT, AuditedHub, caller_of
from kbridge.connection.base import BaseKernelWebsocketConnection
from kbridge.connection.hooks import (
    INCOMING,
    INFO,
    OUTGOING,
    HookedClient,
    PongForwarder,
    overridden,
    reads_for_a_page,
    write_through,
)
from kbridge.connection.incoming import IncomingMessages
from kbridge.connection.info import _ensure_future, is_current
from kbridge.connection.pipeline import PARTS, MessagePipeline, legacy_frame
from kbridge.connection.streams import HubChannel
from kbridge.errors import FrameError, HubClosed, IgnoredMessage, InvalidRequest
from kbridge.flow.selection import parse_parents
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.client import client_link
from kbridge.link.interfaces import ClientLink
from kbridge.wire.dialects import V1, Dialect, select
from kbridge.wire.message import Channel, Message
from kbridge.wire.zmq import serialize

if TYPE_CHECKING:
    from kbridge.hub.broadcast.cursor import Cursor
    from kbridge.hub.hub import Hub

__all__ = ["HUBS", "ZMQChannelsWebsocketConnection"]

HUBS = "hubs"
"""The key in Tornado's settings under which an application keeps its `HubTable`."""


class ZMQChannelsWebsocketConnection(BaseKernelWebsocketConnection):
    """Connects a websocket to a kernel.

    A server makes one for each websocket, with the kernel's manager as `parent`. The traits are
    read once, when the first hub is made.

    A subclass may override any method. If it overrides one of `kbridge.connection.hooks.OUTGOING`,
    the kernel's messages pass these methods one by one, as in jupyter_server and as slowly.
    """

    limit_rate = settings.limit_rate
    rate_limit_policy = settings.rate_limit_policy
    iopub_msg_rate_limit = settings.iopub_msg_rate_limit
    iopub_data_rate_limit = settings.iopub_data_rate_limit
    rate_limit_window = settings.rate_limit_window
    journal_limit = settings.journal_limit
    burst_limit = settings.burst_limit
    history_limit = settings.history_limit
    journal_dir = settings.journal_dir
    journal_disk_limit = settings.journal_disk_limit
    journal_disk_total = settings.journal_disk_total
    journal_disk_reserve = settings.journal_disk_reserve
    acknowledge = settings.acknowledge
    resume_timeout = settings.resume_timeout
    request_limit = settings.request_limit
    kernel_message_limit = settings.kernel_message_limit
    link = settings.link

    websocket_handler = Instance(WebSocketHandler, help="The websocket.")
    channels = Dict({}, help="The kernel's channels by name, while connected.")
    since = Unicode(
        help="The last message that the client saw, from the argument `since` of its URL."
    )
    parents = List(
        Unicode(),
        help=(
            "The requests whose messages the client wants, from the argument `parents` of its URL;"
            " empty for all messages."
        ),
    )
    session_key = Unicode("", help="The kernel id and the session id of this websocket.")

    kernel_info_channel = AnyTrait(
        None,
        allow_none=True,
        help="Where a subclass may keep a socket; closed when the websocket is detached.",
    )

    _open_sockets: ClassVar[weakref.WeakSet[ZMQChannelsWebsocketConnection]] = weakref.WeakSet()

    _close_future = Instance(Future, help="Done once the websocket is detached.")
    _kernel_info_future = Instance(Future, help="The content of the first kernel_info_reply.")

    _hub: Hub | None = None
    _cursor: Cursor | None = None
    _dialect: Dialect | None = None
    _incoming: IncomingMessages | None = None
    _pending: asyncio.Future[None] | None = None
    _pongs: PongForwarder | None = None

    @default("journal_dir")
    def _default_journal_dir(self) -> str:
        return settings.default_journal_dir()

    @default("_close_future")
    def _default_close_future(self) -> Future[None]:
        return Future()

    @default("_kernel_info_future")
    def _default_kernel_info_future(self) -> Future[dict[str, Any]]:
        return Future()

    @default("since")
    def _default_since(self) -> str:
        return str(self.websocket_handler.get_query_argument("since", ""))

    @default("parents")
    def _default_parents(self) -> list[str]:
        try:
            return list(parse_parents(self.websocket_handler.get_query_arguments("parents")))
        except InvalidRequest as error:
            raise HTTPError(400, error.reason, reason=error.reason) from error

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
        hooked = overridden(one, ZMQChannelsWebsocketConnection, OUTGOING)
        return settings.hub_settings(one, manager, hooked=hooked)

    # -- who is who -------------------------------------------------------------------------

    @cached_property
    def _pipeline(self) -> MessagePipeline:
        return MessagePipeline(self)

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

        Raises
        ------
        tornado.web.HTTPError
            400 if the argument `parents` is not valid.
        """
        self.session_key = f"{self.kernel_id}:{self.session_id}"
        self.since = self._default_since()
        self.parents = self._default_parents()
        if self._overrides(OUTGOING + INCOMING + INFO):
            # Overrides may parse messages with the session, so it needs the kernel's key.
            self.session.key = getattr(self.kernel_manager, "session", self.session).key
        if self._overrides(INFO):
            await self.request_kernel_info()

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
        spoken = self._dialect
        assert spoken is not None
        link, dialect = self._link()
        self.create_stream()
        cursor = self.hub.attach(
            link,
            dialect,
            self.session_id,
            self.since,
            verbatim=isinstance(link, HookedClient),
            paced=reads_for_a_page(self.websocket_handler),
            listener=self,
            parents=self.parents,
        )
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        if self.trait_has_value("_close_future") and self._close_future.done():
            self.hub.detach(cursor)  # a hook has already detached it while handling a message
            return done
        self._cursor = cursor
        self._incoming = IncomingMessages(self._audited_hub(), cursor, spoken)
        self._pongs = PongForwarder(self.websocket_handler, self)
        self._open_sockets.add(self)
        self._notify("notify_connect")
        if self._overrides(("nudge",)):
            done = asyncio.ensure_future(self.nudge())
        return done

    def _audited_hub(self) -> Hub | AuditedHub:
        """Return the hub, behind the audit log if that is on."""
        handler = self.websocket_handler
        audit = handler.settings.get(AUDIT)
        if audit is None:
            return self.hub
        return AuditedHub(self.hub, audit, caller_of(handler, self.kernel_id, self.session_id))

    def _link(self) -> tuple[ClientLink, Dialect]:
        """Return the link to the websocket for the hub, and the format of its frames."""
        handler = self.websocket_handler
        assert self._dialect is not None
        link = client_link(handler)
        if self._overrides(OUTGOING):
            return HookedClient(link, self._pipeline.deliver, self.log), V1
        if overridden(handler, WebSocketHandler, ("write_message",)):
            write = partial(write_through, handler, self._dialect)
            return HookedClient(link, write, self.log), V1
        return link, self._dialect

    def disconnect(self) -> None:  # type: ignore[override]  # at once, as in jupyter_server
        """Detach the websocket; may be called twice, and for one that was never attached."""
        self._forget_kernel_info()
        self._open_sockets.discard(self)
        channels, self.channels = self.channels, {}
        for channel in channels.values():
            channel.close()
        cursor, self._cursor = self._cursor, None
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.stop()
        if cursor is not None and self._hub is not None:
            if self._pongs is not None:
                self._pongs.close()
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
        if self._incoming is None:
            return None
        try:
            return self._wait_for(self._incoming.take(incoming_msg))
        except (FrameError, HubClosed) as error:
            self._refuse(error)
            return None

    def _wait_for(self, handled: Awaitable[None] | None) -> asyncio.Future[None] | None:
        if handled is None:
            return None
        self._pending = asyncio.ensure_future(self._finish(handled))
        return self._pending

    async def _finish(self, handled: Awaitable[None]) -> None:
        try:
            await handled
        except FrameError as error:  # of a large frame
            self._refuse(error)

    def _refuse(self, error: FrameError | HubClosed) -> None:
        """Close the websocket because of an invalid frame; only count an ignored message."""
        if isinstance(error, IgnoredMessage):
            self.hub.ignored.record(error.reason)
            return
        fields = {"kernel_id": self.kernel_id, "session": self.session_id}
        self.log.warning(
            "websocket of kernel %s closed: %s", self.kernel_id, error.reason, extra=fields
        )
        self.disconnect()
        self.websocket_handler.close(error.close_code, error.reason)

    def on_pong(self, data: bytes) -> None:
        """Take the payload of a pong, which may acknowledge frames.

        A websocket handler may call it, but need not: `connect` arranges that every pong gets here.
        """
        if self._pongs is not None:
            self._pongs.taken = True
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
        return None if self._incoming is None else self._wait_for(self._incoming.submit(msg))

    # -- the steps of each message, if a subclass overrides one (`hooks.OUTGOING`) ------------

    @property
    def write_message(self) -> Any:
        """The websocket handler's `write_message`."""
        return self.websocket_handler.write_message

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """Send a message, given as ZeroMQ parts, to this websocket alone.

        The signature is not verified: the hub has verified it, and a subclass may have changed the
        parts. Raises `KernelMessageError` if the parts are not a message.
        """
        self._pipeline.handle(stream, outgoing_msg)

    def get_part(self, field: str, value: Any, msg_list: list[Any]) -> Any:
        """Return a part of a message: `value`, or the part in `msg_list` if `value` is None."""
        return json.loads(bytes(msg_list[PARTS[field]])) if value is None else value

    def write_stderr(self, error_message: str, parent_header: Any) -> None:
        """Show a line on stderr to this websocket, in the cell that `parent_header` names."""
        self._pipeline.write_stderr(error_message, parent_header)

    def _on_error(self, channel: str | None, msg: dict[str, Any], msg_list: list[Any]) -> None:
        """Hide the traceback of an error, if `allow_tracebacks` is False."""
        self._pipeline.hide_traceback(channel, msg, msg_list)

    def _limit_rate(self, channel: str | None, msg: dict[str, Any], msg_list: list[Any]) -> bool:
        """Return True to drop a message because of the rate limits."""
        return self._pipeline.is_limited(channel, msg, msg_list)

    def _on_zmq_reply(self, stream: Any, msg_list: Any) -> None:
        """Write a message: the list of its parts, or, in the legacy dialect, a dict."""
        self._pipeline.write(stream, msg_list)

    def _reserialize_reply(self, msg_or_list: Any, channel: str | None = None) -> str | bytes:
        """Return a message, given as a dict or as ZeroMQ parts, in the legacy dialect."""
        return legacy_frame(msg_or_list, channel)

    # -- kernel_info ------------------------------------------------------------------------

    def nudge(self) -> asyncio.Future[Any]:
        """Wait until the kernel is ready; True if that is proven, False after the timeout."""
        return asyncio.ensure_future(self.hub.wait_ready())

    def request_kernel_info(self) -> asyncio.Future[dict[str, Any]]:
        """Ask for kernel_info; the result is empty after `kernel_info_timeout` without a reply."""
        return asyncio.ensure_future(self._ask_for_kernel_info())

    async def _ask_for_kernel_info(self) -> dict[str, Any]:
        reply = await info.ask(self.hub, self.kernel_info_timeout, self.log)
        if reply is None:
            self._finish_kernel_info({})
            return {}
        self._handle_kernel_info_reply(serialize(reply, self.hub.signer))
        content: dict[str, Any] = json.loads(reply.content)
        return content

    def _handle_kernel_info_reply(self, msg: list[Any]) -> None:
        """Take a kernel_info_reply, given as ZeroMQ parts."""
        content = info.read_reply(msg)
        if content is None:
            self.log.error(
                "Kernel %s answered kernel_info_request with another message", self.kernel_id
            )
        self._finish_kernel_info(content or {})

    def _finish_kernel_info(self, info: dict[str, Any]) -> None:
        """Take the content of a kernel_info_reply, and end the wait for it.

        Messages of an older protocol are translated by the hub, for all its websockets.
        """
        version = info.get("protocol_version")
        if version and not is_current(version):
            self.log.debug("Kernel %s uses protocol %s", self.kernel_id, version)
        if not self._kernel_info_future.done():
            self._kernel_info_future.set_result(info)

    def _forget_kernel_info(self) -> None:
        """End the wait for kernel_info: the websocket is being detached."""
        channel, self.kernel_info_channel = self.kernel_info_channel, None
        if channel is not None and not channel.closed():
            channel.close()
        if self.trait_has_value("_kernel_info_future") and not self._kernel_info_future.done():
            self._kernel_info_future.set_result({})

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
