"""The slow path of messages, for connections that override methods of Jupyter Server's class.

A hub encodes a message once and writes it to all its websockets, without the methods that Jupyter
Server's class calls for each message. If a subclass or an instance overrides one of these methods,
each message for that websocket passes all of them, one by one. If a websocket handler overrides
`write_message`, that method writes each message, because it may hide messages from some viewers.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

from tornado.websocket import WebSocketClosedError, WebSocketHandler

from kbridge.link.interfaces import ClientLink
from kbridge.wire import frames, v1
from kbridge.wire.dialects import Dialect
from kbridge.wire.message import Message

__all__ = [
    "INCOMING",
    "INFO",
    "OUTGOING",
    "HookedClient",
    "PongForwarder",
    "overridden",
    "passes_pongs",
    "reads_for_a_page",
    "write_through",
]

F = TypeVar("F", bound=Callable[..., Any])

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
"""The methods that a message from the kernel passes."""

INCOMING = ("handle_incoming_message",)
"""The methods that a message from the client passes."""

_TURN: Final = 0.02
"""Seconds for which messages are passed on before other work of the event loop has its turn."""

_LOOK_AFTER: Final = 16
"""Number of messages between two readings of the clock."""

_LOST = "A method of a subclass failed; the message is lost"

INFO = ("request_kernel_info", "_handle_kernel_info_reply", "_finish_kernel_info")
"""The methods that request kernel_info and take the reply."""


def overridden(connection: object, base: type, names: Iterable[str]) -> bool:
    """Return True if a connection overrides one of some methods of `base`."""
    cls = type(connection)
    own = vars(connection)
    return any(name in own or getattr(cls, name) is not getattr(base, name) for name in names)


def passes_pongs(on_pong: F) -> F:
    """Mark an `on_pong` of a handler that passes every pong to `on_pong` of its connection."""
    on_pong.passes_pongs = True  # type: ignore[attr-defined]
    return on_pong


def reads_for_a_page(handler: WebSocketHandler) -> bool:
    """Return True if the client is a browser, or a Jupyter Server in front of a browser.

    All browsers call themselves Mozilla. Jupyter Server, as the client of a gateway, opens its
    websockets with Tornado.
    """
    agent = handler.request.headers.get("User-Agent", "")
    return str(agent).startswith(("Mozilla/", "Tornado/"))


def write_through(handler: WebSocketHandler, dialect: Dialect, msg: Message) -> Any:
    """Write a message with the handler's `write_message`, which may change or hide it."""
    opcode, data = dialect.payload(msg)
    text = opcode == frames.TEXT
    return handler.write_message(data.decode() if text else data, not text)


class PongForwarder:
    """Makes a handler pass on each pong, because its own `on_pong` may not do so.

    Without pongs no message counts as delivered: a client that comes back would see the same
    messages again, and the journal would keep them.

    Parameters
    ----------
    handler : WebSocketHandler
        Its `on_pong` is replaced until `close`, unless it is marked with `passes_pongs`.
    connection
        Has the method `on_pong`, to which the pongs are passed.

    Attributes
    ----------
    taken : bool
        True if the connection got the latest pong; set by the connection.
    """

    __slots__ = ("_connection", "_handler", "_of_handler", "taken")

    def __init__(self, handler: WebSocketHandler, connection: Any) -> None:
        self.taken = False
        self._handler = handler
        self._connection = connection
        self._of_handler = handler.on_pong
        if not getattr(self._of_handler, "passes_pongs", False):
            handler.on_pong = self._on_pong  # type: ignore[method-assign]

    def _on_pong(self, data: bytes) -> Any:
        self.taken = False
        result: Any = self._of_handler(data)
        if not self.taken:
            self._connection.on_pong(data)
        return result

    def close(self) -> None:
        """Restore the handler's own method."""
        vars(self._handler).pop("on_pong", None)


class HookedClient:
    """Passes each message for a websocket to a connection (a `ClientLink`).

    Parameters
    ----------
    link : ClientLink
        The websocket. No more messages are passed on until the frames that the connection made of
        the last batch are written.
    deliver : callable
        Takes a message. An exception is logged, and only that message is lost. If it returns an
        awaitable, the next message waits for it.
    log : logging.Logger or adapter
        The logger.
    """

    __slots__ = ("_deliver", "_link", "_log", "_waiting")

    def __init__(
        self,
        link: ClientLink,
        deliver: Callable[[Message], Any],
        log: logging.Logger | logging.LoggerAdapter[Any],
    ) -> None:
        self._link = link
        self._deliver = deliver
        self._log = log
        self._waiting: asyncio.Future[Any] | None = None  # the event loop holds tasks only weakly

    @property
    def on_writable(self) -> Callable[[], None]:
        """As in `ClientLink`."""
        return self._link.on_writable

    @on_writable.setter
    def on_writable(self, told: Callable[[], None]) -> None:
        self._link.on_writable = told

    @property
    def closed(self) -> bool:
        """True if nothing can be written any longer."""
        return self._link.closed

    def write(self, data: bytes) -> bool:
        """Pass on the messages of whole v1 frames; False until their frames are written.

        Pings are written behind the frames of the messages before them. Code of a subclass runs
        here, so all its exceptions are caught.
        """
        return self._hand_over(frames.each(data))

    def _hand_over(self, rest: Iterator[tuple[int, bytes]]) -> bool:
        written = True
        until = time.monotonic() + _TURN
        for count, (opcode, payload) in enumerate(rest):
            if count % _LOOK_AFTER == _LOOK_AFTER - 1 and time.monotonic() > until:
                rest = itertools.chain([(opcode, payload)], rest)
                self._wait_for(asyncio.sleep(0), rest)
                return False
            if opcode == frames.PING:
                written = self._link.write(frames.ping(payload))
                continue
            try:
                waiting = self._deliver(v1.split(payload))
            except WebSocketClosedError:
                return False
            except Exception:  # noqa: BLE001  # somebody else's code
                self._log.exception(_LOST)
                continue
            if inspect.isawaitable(waiting):
                self._wait_for(waiting, rest)
                return False
        return written and self._link.write(b"")

    def _wait_for(self, waiting: Awaitable[Any], rest: Iterator[tuple[int, bytes]]) -> None:
        self._waiting = asyncio.ensure_future(waiting)
        self._waiting.add_done_callback(partial(self._go_on, rest))

    def _go_on(self, rest: Iterator[tuple[int, bytes]], done: asyncio.Future[Any]) -> None:
        """Pass on the rest, after a coroutine of an override or a turn of other work."""
        if done.cancelled() or isinstance(done.exception(), WebSocketClosedError):
            return
        if done.exception() is not None:
            self._log.error(_LOST, exc_info=done.exception())
        if not self.closed and self._hand_over(rest):
            self.on_writable()

    def abandon(self) -> None:
        """Pass on no more messages, and cancel a coroutine that handles one."""
        if self._waiting is not None:
            self._waiting.cancel()

    def close(self, code: int, reason: str) -> None:
        """Close the websocket."""
        self._link.close(code, reason)
