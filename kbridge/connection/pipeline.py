"""The methods that Jupyter Server's class calls for each message of a kernel.

They are used if a subclass overrides one of them (`kbridge.connection.hooks`). They do the same as
the hub does for all other websockets, with the same code.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jupyter_client.jsonutil import json_default
from tornado.websocket import WebSocketClosedError

from kbridge.connection.base import BaseKernelWebsocketConnection
from kbridge.connection.messages import (
    deserialize_parts,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)
from kbridge.flow.filters import HideTracebacks
from kbridge.flow.ratelimit import RateLimit
from kbridge.hub.hub import Hub
from kbridge.wire import v1
from kbridge.wire.message import Channel
from kbridge.wire.zmq import message, split

__all__ = ["MessagePipeline"]

_PARTS = {"header": 0, "parent_header": 1, "metadata": 2, "content": 3}


class MessagePipeline(BaseKernelWebsocketConnection):
    """Turns a message, given as ZeroMQ parts, into a frame of this websocket."""

    limit_rate: Any
    iopub_msg_rate_limit: Any
    iopub_data_rate_limit: Any
    rate_limit_window: Any
    channels: Any

    _rate_limit: RateLimit | None = None

    if TYPE_CHECKING:  # defined by the subclass

        @property
        def hub(self) -> Hub: ...  # noqa: D102

        @property
        def subprotocol(self) -> str | None: ...  # noqa: D102

        def disconnect(self) -> None: ...  # type: ignore[override]  # noqa: D102

    @property
    def write_message(self) -> Any:
        """The websocket handler's `write_message`."""
        return self.websocket_handler.write_message

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """Send a message, given as ZeroMQ parts, to this websocket alone.

        The signature is not verified: the hub has verified it, and a subclass may have changed the
        parts.

        Parameters
        ----------
        stream : str or HubChannel
            The channel.
        outgoing_msg : list of bytes
            Identities, delimiter, signature, header, parent header, metadata, content, buffers.

        Raises
        ------
        KernelMessageError
            If the parts are not a message.
        """
        if isinstance(stream, str):
            if stream not in self.channels:
                return  # detached
            stream = self.channels[stream]
        channel = getattr(stream, "channel", None)
        parts = list(split(outgoing_msg)[2])
        msg: dict[str, Any] = {"header": None, "parent_header": None, "content": None}
        if not self._speaks_v1():
            msg = deserialize_parts(parts)
        self._on_error(channel, msg, parts)
        if not self._limit_rate(channel, msg, parts):
            self._on_zmq_reply(stream, parts if self._speaks_v1() else msg)

    def get_part(self, field: str, value: Any, msg_list: list[Any]) -> Any:
        """Return a part of a message: `value`, or the part in `msg_list` if `value` is None."""
        return json.loads(bytes(msg_list[_PARTS[field]])) if value is None else value

    def write_stderr(self, error_message: str, parent_header: Any) -> None:
        """Show a line on stderr to this websocket, in the cell that `parent_header` names."""
        self.log.warning(error_message)
        if isinstance(parent_header, bytes):
            parent = parent_header
        else:
            parent = json.dumps(parent_header or {}, default=json_default).encode()
        msg = self.hub.notices.stderr(error_message, parent)
        parts: list[Any] = list(msg[1:5])
        if self._speaks_v1():
            self._write(serialize_msg_to_ws_v1(parts, msg.channel))
        else:
            self._write(self._reserialize_reply(deserialize_parts(parts), msg.channel))

    def _on_error(self, channel: str | None, msg: dict[str, Any], msg_list: list[Any]) -> None:
        """Hide the traceback of an error, if `allow_tracebacks` is False."""
        manager = self.multi_kernel_manager
        if getattr(manager, "allow_tracebacks", True) or channel is None:
            return
        hide = HideTracebacks(manager.traceback_replacement_message)
        verdict = hide(message(Channel(channel), msg_list), self._msg_type(msg, msg_list), 0.0)
        for hidden in verdict or ():
            msg_list[_PARTS["content"]] = hidden.content
            if msg.get("content") is not None:
                msg["content"] = json.loads(hidden.content)

    def _limit_rate(self, channel: str | None, msg: dict[str, Any], msg_list: list[Any]) -> bool:
        """Return True to drop a message because of the rate limits."""
        if not self.limit_rate or channel != Channel.IOPUB:
            return False
        if self._rate_limit is None:
            self._rate_limit = RateLimit(
                iopub_msg_rate_limit=self.iopub_msg_rate_limit,
                iopub_data_rate_limit=self.iopub_data_rate_limit,
                rate_limit_window=self.rate_limit_window,
                notice=self.hub.notices.stderr,
                on_event=self.log.warning,
            )
        msg_type = self._msg_type(msg, msg_list)
        verdict = self._rate_limit(message(Channel(channel), msg_list), msg_type, self.hub.now())
        for notice in verdict or ():
            text = str(json.loads(notice.content)["text"])
            msg["parent_header"] = self.get_part("parent_header", msg["parent_header"], msg_list)
            self.write_stderr(text.removesuffix("\n"), msg["parent_header"])
        return verdict is not None

    def _msg_type(self, msg: dict[str, Any], msg_list: list[Any]) -> str:
        msg["header"] = self.get_part("header", msg["header"], msg_list)
        return str(msg["header"]["msg_type"])

    def _on_zmq_reply(self, stream: Any, msg_list: Any) -> None:
        """Write a message: the list of its parts, or, in the legacy dialect, a dict."""
        if stream.closed():
            self.log.warning("A message arrived on a channel that was closed")
            self.disconnect()
            return
        channel = getattr(stream, "channel", None)
        if self._speaks_v1():
            self._write(serialize_msg_to_ws_v1(msg_list, channel or ""))
        else:
            self._write(self._reserialize_reply(msg_list, channel))

    def _reserialize_reply(self, msg_or_list: Any, channel: str | None = None) -> str | bytes:
        """Return a message in the legacy dialect.

        Parameters
        ----------
        msg_or_list : dict or list of bytes
            The message, or its ZeroMQ parts.
        channel : str, optional
            The channel to name in it.
        """
        msg = msg_or_list
        if not isinstance(msg, dict):
            msg = deserialize_parts(list(split(msg)[2]))
        if channel:
            msg["channel"] = str(channel)
        if msg["buffers"]:
            return serialize_binary_message(msg)
        return json.dumps(msg, default=json_default)

    def _speaks_v1(self) -> bool:
        return self.subprotocol == v1.SUBPROTOCOL

    def _write(self, data: str | bytes) -> None:
        try:
            self.write_message(data, binary=isinstance(data, bytes))
        except WebSocketClosedError:
            self.log.debug("The websocket was closed before a message was written")
