"""The steps that each message of a kernel passes in Jupyter Server's class.

They are used if a subclass overrides one of the connection's methods for messages
(`kbridge.connection.hooks`). They do the same as the hub does for all other websockets, with the
same code. A step calls the next one through the connection, whose class may override it; nothing
else in kbridge calls back the object that it belongs to.
"""

from __future__ import annotations

import json
from typing import Any, Final

from jupyter_client.jsonutil import json_default
from tornado.websocket import WebSocketClosedError

from kbridge.connection.messages import (
    deserialize_parts,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)
from kbridge.flow.filters import HideTracebacks
from kbridge.flow.ratelimit import RateLimit
from kbridge.wire import v1
from kbridge.wire.message import Channel, Message
from kbridge.wire.zmq import message, serialize, split

__all__ = ["PARTS", "MessagePipeline", "legacy_frame"]

PARTS: Final = {"header": 0, "parent_header": 1, "metadata": 2, "content": 3}
"""The index of each part of a message."""


class MessagePipeline:
    """Turns messages, given as ZeroMQ parts, into frames of one websocket.

    Parameters
    ----------
    connection : ZMQChannelsWebsocketConnection
        The connection, through whose methods each message passes.
    """

    __slots__ = ("_connection", "_rate_limit")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._rate_limit: RateLimit | None = None

    def deliver(self, msg: Message) -> Any:
        """Pass a message of the hub through the connection; return what an override returns."""
        channel = self._connection.channels.get(str(msg.channel))
        if channel is None:
            return None  # a hook has detached the websocket in mid-batch
        parts = serialize(msg, self._connection.hub.signer)
        return self._connection.handle_outgoing_message(channel, parts)

    def handle(self, stream: Any, parts: list[Any]) -> None:
        """Pass a message through the steps; `parts` begins with identities and signature."""
        connection = self._connection
        if isinstance(stream, str):
            if stream not in connection.channels:
                return  # detached
            stream = connection.channels[stream]
        channel = getattr(stream, "channel", None)
        parts = list(split(parts)[2])
        msg: dict[str, Any] = {"header": None, "parent_header": None, "content": None}
        if not self._speaks_v1():
            msg = deserialize_parts(parts)
        connection._on_error(channel, msg, parts)  # noqa: SLF001  # Jupyter Server's name
        if not connection._limit_rate(channel, msg, parts):  # noqa: SLF001
            connection._on_zmq_reply(stream, parts if self._speaks_v1() else msg)  # noqa: SLF001

    def hide_traceback(self, channel: str | None, msg: dict[str, Any], parts: list[Any]) -> None:
        """Hide the traceback of an error, if `allow_tracebacks` is False."""
        manager = self._connection.multi_kernel_manager
        if getattr(manager, "allow_tracebacks", True) or channel is None:
            return
        hide = HideTracebacks(manager.traceback_replacement_message)
        verdict = hide(message(Channel(channel), parts), self._msg_type(msg, parts), 0.0)
        for hidden in verdict or ():
            parts[PARTS["content"]] = hidden.content
            if msg.get("content") is not None:
                msg["content"] = json.loads(hidden.content)

    def is_limited(self, channel: str | None, msg: dict[str, Any], parts: list[Any]) -> bool:
        """Return True to drop a message because of the rate limits; show notices of that."""
        connection = self._connection
        if not connection.limit_rate or channel != Channel.IOPUB:
            return False
        if self._rate_limit is None:
            self._rate_limit = RateLimit(
                iopub_msg_rate_limit=connection.iopub_msg_rate_limit,
                iopub_data_rate_limit=connection.iopub_data_rate_limit,
                rate_limit_window=connection.rate_limit_window,
                notice=connection.hub.notices.stderr,
                on_event=connection.log.warning,
            )
        msg_type = self._msg_type(msg, parts)
        verdict = self._rate_limit(message(Channel(channel), parts), msg_type, connection.hub.now())
        for notice in verdict or ():
            text = str(json.loads(notice.content)["text"])
            parent = connection.get_part("parent_header", msg["parent_header"], parts)
            msg["parent_header"] = parent
            connection.write_stderr(text.removesuffix("\n"), parent)
        return verdict is not None

    def write_stderr(self, text: str, parent_header: Any) -> None:
        """Show a line on stderr, in the cell that `parent_header`, bytes or a dict, names."""
        connection = self._connection
        connection.log.warning(text)
        if not isinstance(parent_header, bytes):
            parent_header = json.dumps(parent_header or {}, default=json_default).encode()
        msg = connection.hub.notices.stderr(text, parent_header)
        parts: list[Any] = list(msg[1:5])
        self._write(msg.channel, parts if self._speaks_v1() else deserialize_parts(parts))

    def write(self, stream: Any, msg: Any) -> None:
        """Write a message: the list of its parts, or, in the legacy dialect, a dict."""
        if stream.closed():
            self._connection.log.warning("A message arrived on a channel that was closed")
            self._connection.disconnect()
            return
        self._write(getattr(stream, "channel", None), msg)

    def _write(self, channel: str | None, msg: Any) -> None:
        connection = self._connection
        data: str | bytes
        if self._speaks_v1():
            data = serialize_msg_to_ws_v1(msg, channel or "")
        else:
            data = connection._reserialize_reply(msg, channel)  # noqa: SLF001
        try:
            connection.write_message(data, binary=isinstance(data, bytes))
        except WebSocketClosedError:
            connection.log.debug("The websocket was closed before a message was written")

    def _msg_type(self, msg: dict[str, Any], parts: list[Any]) -> str:
        msg["header"] = self._connection.get_part("header", msg["header"], parts)
        return str(msg["header"]["msg_type"])

    def _speaks_v1(self) -> bool:
        return bool(self._connection.subprotocol == v1.SUBPROTOCOL)


def legacy_frame(msg_or_parts: Any, channel: str | None) -> str | bytes:
    """Return a message in the legacy dialect.

    Parameters
    ----------
    msg_or_parts : dict or list of bytes
        The message, or its ZeroMQ parts.
    channel : str or None
        The channel to name in it.
    """
    msg = msg_or_parts
    if not isinstance(msg, dict):
        msg = deserialize_parts(list(split(msg)[2]))
    if channel:
        msg["channel"] = str(channel)
    if msg["buffers"]:
        return serialize_binary_message(msg)
    return json.dumps(msg, default=json_default)
