"""The way of a client's messages from the frames of its websocket to the hub of the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import TYPE_CHECKING

from kbridge.connection.audit import AuditedHub
from kbridge.wire.dialects import Dialect
from kbridge.wire.fields import MAX_PARSED
from kbridge.wire.message import Message

if TYPE_CHECKING:
    from kbridge.hub.broadcast.cursor import Cursor
    from kbridge.hub.hub import Hub

__all__ = ["IncomingMessages"]


class IncomingMessages:
    """Sends the messages of one attached websocket to its kernel.

    Parameters
    ----------
    hub : Hub or AuditedHub
        The hub of the kernel.
    cursor : Cursor
        The websocket, as the hub sees it.
    dialect : Dialect
        The format of the messages.
    """

    __slots__ = ("_cursor", "_dialect", "_hub", "_stopped")

    def __init__(self, hub: Hub | AuditedHub, cursor: Cursor, dialect: Dialect) -> None:
        self._hub = hub
        self._cursor = cursor
        self._dialect = dialect
        self._stopped = False

    def take(self, frame: str | bytes) -> Awaitable[None] | None:
        """Send the message of a frame.

        Returns
        -------
        Awaitable or None
            To be awaited before the next frame is taken; it fails with the errors below. None
            while the kernel keeps up.

        Raises
        ------
        FrameError
            If the frame is not a message, or is a message that Jupyter Server or the kernel would
            ignore.
        HubClosed
            If the kernel is gone.
        """
        if len(frame) <= MAX_PARSED:
            return self._hub.submit(self._cursor, self._dialect.decode(frame))
        steps = self._dialect.decode_in_steps(frame)
        try:
            next(steps)
        except StopIteration as end:
            return self.submit(end.value)
        return self._decode_on(steps)

    def submit(self, msg: Message) -> Awaitable[None] | None:
        """Send a message; returns and raises as `take` does."""
        return self._hub.submit(self._cursor, msg)

    def stop(self) -> None:
        """Drop a large message that is being decoded."""
        self._stopped = True

    async def _decode_on(self, steps: Generator[None, None, Message]) -> None:
        """Decode the rest of a large frame, one step in each turn of the loop, and send it."""
        while True:
            await asyncio.sleep(0)
            if self._stopped:
                return
            try:
                next(steps)
            except StopIteration as end:
                room = self.submit(end.value)
                break
        if room is not None:
            await room
