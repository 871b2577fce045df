"""Which of a connection's methods somebody has overridden, and the slow way that these go.

A hub encodes a message once and writes it to all its websockets, so the methods through which
Jupyter Server's class passes each message are not on the way. A subclass, or an instance, that
overrides one of them is taken at its word: each message for that websocket then goes through all of
them, one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from tornado.websocket import WebSocketClosedError

from kbridge.link.client import StreamClient
from kbridge.wire import frames, v1
from kbridge.wire.message import Message

__all__ = ["INCOMING", "INFO", "OUTGOING", "HookedClient", "overridden"]

OUTGOING = (
    "handle_outgoing_message",
    "get_part",
    "write_message",
    "write_stderr",
    "_limit_rate",
    "_on_error",
    "_on_zmq_reply",
    "_reserialize_reply",
)
"""What a message from the kernel passes."""

INCOMING = ("handle_incoming_message",)
"""What a message from the client passes."""

INFO = ("request_kernel_info", "_handle_kernel_info_reply", "_finish_kernel_info")
"""What asks for kernel_info, and what takes it."""


def overridden(connection: object, base: type, names: Iterable[str]) -> bool:
    """Whether a connection has its own idea of some methods of `base`."""
    cls = type(connection)
    own = vars(connection)
    return any(name in own or getattr(cls, name) is not getattr(base, name) for name in names)


class HookedClient:
    """A websocket each of whose messages is handed to a connection (a `ClientLink`).

    Parameters
    ----------
    link : StreamClient
        The websocket. Nothing more is handed over while it has not written what the connection
        made of the last batch.
    deliver : callable
        Takes a message. What it raises is logged, and costs that message only.
    log : logging.Logger or adapter
        Where to say so.
    """

    __slots__ = ("_deliver", "_link", "_log")

    def __init__(
        self,
        link: StreamClient,
        deliver: Callable[[Message], None],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._link = link
        self._deliver = deliver
        self._log = log

    @property
    def on_writable(self) -> Callable[[], None]:
        """As in `ClientLink`."""
        return self._link.on_writable

    @on_writable.setter
    def on_writable(self, told: Callable[[], None]) -> None:
        self._link.on_writable = told

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._link.closed

    def write(self, data: bytes) -> bool:
        """Hand over the messages of whole v1 frames; False while what came of them is not written.

        A subclass's code runs here, so whatever it raises is caught.
        """
        for payload in frames.payloads(data):
            try:
                self._deliver(v1.split(payload))
            except WebSocketClosedError:
                return False
            except Exception:  # noqa: BLE001  # somebody else's code
                self._log.exception("a message was lost in a method of a subclass")
        return self._link.write(b"")

    def close(self, code: int, reason: str) -> None:
        """Close the websocket."""
        self._link.close(code, reason)
