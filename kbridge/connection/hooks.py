"""Which of a connection's methods somebody has overridden, and the slow way that these go.

A hub encodes a message once and writes it to all its websockets, so the methods through which
Jupyter Server's class passes each message are not on the way. A subclass, or an instance, that
overrides one of them is taken at its word: each message for that websocket then goes through all of
them, one by one. A websocket handler with a `write_message` of its own is asked to write each
message, for it may hide what its viewers are not to see.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

from tornado.websocket import WebSocketClosedError

from kbridge.link.interfaces import ClientLink
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

_TURN: Final = 0.02
"""Seconds for which messages are handed over before others on the event loop have their turn."""

_LOOK_AFTER: Final = 16
"""How many messages go between two looks at the clock."""

_LOST = "a message was lost in a method of a subclass"

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
    link : ClientLink
        The websocket. Nothing more is handed over while it has not written what the connection
        made of the last batch.
    deliver : callable
        Takes a message. What it raises is logged, and costs that message only. If it returns an
        awaitable, the next message waits for that.
    log : logging.Logger or adapter
        Where to say so.
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
        self._waiting: asyncio.Future[Any] | None = None  # the loop itself holds tasks but weakly

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

        Pings go out behind what came of the messages before them. A subclass's code runs here, so
        whatever it raises is caught.
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
        """Hand over the rest, after an override that is a coroutine, or the turn of others."""
        if done.cancelled() or isinstance(done.exception(), WebSocketClosedError):
            return
        if done.exception() is not None:
            self._log.error(_LOST, exc_info=done.exception())
        if not self.closed and self._hand_over(rest):
            self.on_writable()

    def abandon(self) -> None:
        """Hand over nothing more, and end a coroutine that is at work on a message."""
        if self._waiting is not None:
            self._waiting.cancel()

    def close(self, code: int, reason: str) -> None:
        """Close the websocket."""
        self._link.close(code, reason)
