"""The class that bridges one websocket to one kernel, as jupyter_server's of the same name.

It is thin: the kernel's sockets, its journal and its state belong to the kernel's hub, and a
websocket is a cursor there. What stands here is configuration, and the names that Jupyter Server's
users know.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Awaitable
from typing import Any, ClassVar

from jupyter_client.jsonutil import json_default
from tornado.websocket import WebSocketHandler
from traitlets import Any as AnyTrait
from traitlets import Bool, Dict, Float, Instance, Integer, Unicode
from traitlets.config import Config

from kbridge.connection.base import BaseKernelWebsocketConnection
from kbridge.connection.streams import HubChannel
from kbridge.errors import FrameError, HubClosed
from kbridge.hub.clients import Attachment
from kbridge.hub.hub import Hub
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.client import StreamClient
from kbridge.wire.dialects import Dialect, select
from kbridge.wire.message import Channel
from kbridge.wire.zmq import parse

__all__ = ["HUBS", "ZMQChannelsWebsocketConnection"]

HUBS = "hubs"
"""The key in Tornado's settings under which an application keeps its `HubTable`."""

_FIELDS = {"header": 0, "parent_header": 1, "metadata": 2, "content": 3}
_DEFAULTS = HubSettings()


class ZMQChannelsWebsocketConnection(BaseKernelWebsocketConnection):
    """Bridges a websocket to a kernel.

    A server makes one for each websocket, with the kernel's manager as `parent`. The traits are
    read once, when the kernel's hub is made.
    """

    limit_rate = Bool(
        _DEFAULTS.limit_rate,
        config=True,
        help=(
            "Whether to limit the rate of iopub messages; see iopub_msg_rate_limit,"
            " iopub_data_rate_limit and rate_limit_window."
        ),
    )
    iopub_msg_rate_limit = Float(
        _DEFAULTS.iopub_msg_rate_limit,
        config=True,
        help="Messages a second on iopub above which output is limited; 0 for no limit.",
    )
    iopub_data_rate_limit = Float(
        _DEFAULTS.iopub_data_rate_limit,
        config=True,
        help="Bytes a second of stream output above which output is limited; 0 for no limit.",
    )
    rate_limit_window = Float(
        _DEFAULTS.rate_limit_window,
        config=True,
        help="Seconds over which the two rates are measured.",
    )
    journal_limit = Integer(
        _DEFAULTS.journal_limit,
        config=True,
        help=(
            "Bytes of a kernel's output that are held for websockets that have yet to read them."
            " Beyond it, the oldest output is dropped, and a marker says so."
        ),
    )
    history_limit = Integer(
        _DEFAULTS.history_limit,
        config=True,
        help="Bytes of a kernel's output that are kept once every websocket has read them.",
    )
    resume_timeout = Float(
        _DEFAULTS.resume_timeout,
        config=True,
        help="Seconds for which output is held for a client that went away and may come back.",
    )
    request_limit = Integer(
        _DEFAULTS.request_limit,
        config=True,
        help=(
            "Bytes of requests that are held for a kernel that is not ready or does not read,"
            " before the websockets that they come from are not read any more."
        ),
    )

    websocket_handler = Instance(WebSocketHandler, help="The websocket.")
    channels = Dict({}, help="The kernel's channels by name, while connected.")
    kernel_info_channel = AnyTrait(
        None, allow_none=True, help="Unused: kernel_info is asked for once a hub."
    )
    session_key = Unicode("", help="Kernel id and session id: whose websocket this is.")

    _open_sockets: ClassVar[weakref.WeakSet[ZMQChannelsWebsocketConnection]] = weakref.WeakSet()

    _hub: Hub | None = None
    _attachment: Attachment | None = None
    _dialect: Dialect | None = None

    # -- settings ---------------------------------------------------------------------------

    @classmethod
    def hub_settings(cls, config: Config | None = None, manager: Any = None) -> HubSettings:
        """The settings of the hubs that a configuration asks for.

        Parameters
        ----------
        config : Config, optional
            Traitlets configuration.
        manager : optional
            The manager of all kernels, whose `allowed_message_types`, `allow_tracebacks`,
            `traceback_replacement_message` and `kernel_info_timeout` count, as in Jupyter Server.
        """
        one = cls(config=config or Config())
        chosen: dict[str, Any] = {
            name: getattr(one, name)
            for name in (
                "limit_rate",
                "iopub_msg_rate_limit",
                "iopub_data_rate_limit",
                "rate_limit_window",
                "journal_limit",
                "history_limit",
                "resume_timeout",
                "request_limit",
            )
        }
        for name in ("allow_tracebacks", "traceback_replacement_message", "kernel_info_timeout"):
            if hasattr(manager, name):
                chosen[name] = getattr(manager, name)
        if one.trait_has_value("kernel_info_timeout"):  # set for this class: it goes before
            chosen["kernel_info_timeout"] = one.kernel_info_timeout
        chosen["allowed_message_types"] = tuple(getattr(manager, "allowed_message_types", ()))
        return HubSettings(**chosen)

    # -- who is who -------------------------------------------------------------------------

    @property
    def hub(self) -> Hub:
        """The kernel's hub, made where there is none yet.

        Raises
        ------
        HubClosed
            If the application has no table of hubs.
        """
        if self._hub is None:
            hubs = self.websocket_handler.settings.get(HUBS)
            if not isinstance(hubs, HubTable):
                raise HubClosed(f"the application's settings have no {HUBS!r}")
            kernel = self.kernel_manager
            self._hub = hubs.get(self.kernel_id) or hubs.open(
                self.kernel_id, kernel.get_connection_info()
            )
        return self._hub

    @property
    def session_id(self) -> str:
        """The id under which the client can come back; empty where it gave none."""
        if self.trait_has_value("session"):
            return str(self.session.session)
        return str(self.websocket_handler.get_query_argument("session_id", ""))

    @property
    def subprotocol(self) -> str | None:
        """The websocket subprotocol that was agreed on, None for the legacy dialect."""
        return self._dialect.subprotocol if self._dialect else None

    @property
    def write_message(self) -> Any:
        """The websocket handler's `write_message`."""
        return self.websocket_handler.write_message

    def select_subprotocol(self, offered: list[str]) -> str | None:
        """Choose the dialect, and what to answer to a client that offers subprotocols."""
        self._dialect = select(offered, self.kernel_ws_protocol)
        return self._dialect.subprotocol

    # -- life -------------------------------------------------------------------------------

    @classmethod
    async def close_all(cls) -> None:
        """Disconnect every websocket."""
        for connection in list(cls._open_sockets):
            connection.disconnect()

    async def prepare(self) -> None:
        """Do what comes before the websocket opens: nothing that could take time."""
        self.session_key = f"{self.kernel_id}:{self.session_id}"

    def create_stream(self) -> None:
        """Name the kernel's channels; their sockets are the hub's."""
        self.channels = {str(c): HubChannel(self.hub, c) for c in Channel}

    def connect(self) -> asyncio.Future[None]:  # type: ignore[override]  # a Future, as in jupyter_server
        """Attach the websocket to the kernel.

        Returns
        -------
        Future
            Done. A websocket is open at once: until the kernel is ready, its requests wait.
        """
        handler = self.websocket_handler
        protocol = handler.ws_connection
        stream = getattr(protocol, "stream", None)
        assert protocol is not None, "connect before the websocket was accepted"
        assert stream is not None, "connect before the websocket was accepted"
        if self._dialect is None:
            self.select_subprotocol([])
        assert self._dialect is not None
        self.create_stream()
        link = StreamClient(stream, handler.close, lambda: protocol.server_terminated)
        self._attachment = self.hub.attach(link, self._dialect, self.session_id)
        self._open_sockets.add(self)
        self._notify("notify_connect")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def disconnect(self) -> None:  # type: ignore[override]  # at once, as in jupyter_server
        """Detach the websocket; may be called twice."""
        attachment, self._attachment = self._attachment, None
        if attachment is None or self._hub is None:
            return
        self._hub.detach(attachment)
        self._open_sockets.discard(self)
        for channel in self.channels.values():
            channel.close()
        self._notify("notify_disconnect")

    def close(self) -> None:
        """Detach the websocket."""
        self.disconnect()

    def nudge(self) -> asyncio.Future[bool]:
        """Wait until the kernel is ready.

        Returns
        -------
        Future
            True once its hub has seen it answer on a working subscription, False if it was given
            up on.
        """
        return asyncio.ensure_future(self.hub.wait_ready())

    # -- messages ---------------------------------------------------------------------------

    def handle_incoming_message(self, incoming_msg: str | bytes) -> Awaitable[None] | None:
        """Send what came over the websocket to the kernel.

        A frame that is no message closes this websocket, with the code and the reason of the
        fault, and nothing that follows it is looked at.

        Returns
        -------
        Awaitable or None
            What to await before reading on, where the kernel does not keep up.
        """
        if self._attachment is None or self._hub is None:
            return None
        try:
            msg = self._attachment.dialect.decode(incoming_msg)
            return self._hub.submit(self._attachment, msg)
        except (FrameError, HubClosed) as error:
            self.log.warning("websocket of kernel %s closed: %s", self.kernel_id, error.reason)
            self.disconnect()
            self.websocket_handler.close(error.close_code, error.reason)
            return None

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """Send a message, given as it comes over ZeroMQ, to this websocket alone.

        Parameters
        ----------
        stream : str or HubChannel
            The channel.
        outgoing_msg : list of bytes
            Identities, delimiter, signature and parts.

        Raises
        ------
        KernelMessageError
            If it is no message, or not signed with the kernel's key.
        """
        if self._attachment is None:
            return
        channel = Channel(getattr(stream, "channel", stream))
        self.hub.tell(self._attachment, parse(channel, outgoing_msg, self.hub.signer))

    def get_part(self, field: str, value: Any, msg_list: list[bytes]) -> Any:
        """A part of a message: `value`, or what `msg_list` holds of it where that is None."""
        return json.loads(msg_list[_FIELDS[field]]) if value is None else value

    def request_kernel_info(self) -> asyncio.Future[dict[str, Any]]:
        """Ask the kernel for its kernel_info.

        Returns
        -------
        Future
            The content of the reply. TimeoutError after `kernel_info_timeout` seconds.
        """

        async def ask() -> dict[str, Any]:
            reply = await self.hub.request(
                "kernel_info_request", {}, timeout=self.kernel_info_timeout
            )
            content: dict[str, Any] = json.loads(reply.content)
            return content

        return asyncio.ensure_future(ask())

    def write_stderr(self, error_message: str, parent_header: Any) -> None:
        """Show a line on stderr to this websocket, in the cell that `parent_header` names."""
        self.log.warning(error_message)
        if self._attachment is not None:
            parent = json.dumps(parent_header or {}, default=json_default).encode()
            self.hub.tell(self._attachment, self.hub.notices.stderr(error_message, parent))

    def on_kernel_restarted(self) -> None:
        """Tell this websocket that its kernel was restarted."""
        self.log.warning("kernel %s restarted", self.kernel_id)
        self._send_status_message("restarting")

    def on_restart_failed(self) -> None:
        """Tell this websocket that its kernel is dead."""
        self.log.error("kernel %s could not be restarted", self.kernel_id)
        self._send_status_message("dead")

    def _send_status_message(self, status: str) -> None:
        if self._attachment is not None:
            self.hub.tell(self._attachment, self.hub.notices.status(status))

    def _notify(self, what: str) -> None:
        notify = getattr(self.multi_kernel_manager, what, None)
        if notify is not None:
            notify(self.kernel_id)
