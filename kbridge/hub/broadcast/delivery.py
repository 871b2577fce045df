"""What is owed to each websocket, written out: one journal, many cursors.

Each call of `Delivery.pump` writes one chunk, so that its caller decides whose turn is next.
"""

from __future__ import annotations

from typing import Final

from kbridge.hub.broadcast.acks import Acknowledgements
from kbridge.hub.broadcast.client_sessions import Attachment
from kbridge.hub.broadcast.rendering import Renderer
from kbridge.wire import v1
from kbridge.wire.message import Message

__all__ = ["Delivery"]

_JOINED: Final = 64 << 10
"""Largest write, in bytes, to which a ping is appended instead of being written separately."""

_COST: Final = 16 << 10
"""Fixed cost per write, as the number of bytes that could be written in the same time."""


class Delivery:
    """Writes a journal to its readers.

    Parameters
    ----------
    acks : Acknowledgements
        Asks websockets which frames have arrived.
    renderer : Renderer
        Reads the journal and renders it.

    Attributes
    ----------
    work : int
        Total work so far: the bytes read, plus a fixed number of bytes per write.
    """

    def __init__(self, acks: Acknowledgements, renderer: Renderer) -> None:
        self._acks = acks
        self._renderer = renderer
        self.work = 0
        # What was last written with a ping behind it, the ping, and both.
        self._pinged = (b"", b"", b"")

    def forget(self) -> None:
        """Drop the data cached for readers at the same place; call when all readers had a turn."""
        self._renderer.forget()
        self._pinged = (b"", b"", b"")

    def pump(self, attachment: Attachment) -> bool:
        """Write the next chunk that is owed to a websocket.

        Returns
        -------
        bool
            True if more can be written: the websocket is not blocked, does not have to acknowledge
            first, and has not received everything.
        """
        if attachment.blocked or attachment.link.closed:
            return False
        if self._acks.full(attachment):
            attachment.lags = True
            return False
        portion = self._renderer.next(attachment)
        if portion is None:
            attachment.lags = False
            return False
        data, end, nbytes = portion
        self.work += nbytes + _COST
        if data:
            attachment.place = end
            self._write(attachment, data)
        else:
            nothing_under_way = attachment.delivered == attachment.place
            attachment.place = end
            if nothing_under_way:
                attachment.delivered = end
        # Looked at now, because a hook may have made the kernel speak.
        if end.seq >= self._renderer.stop(attachment):
            attachment.lags = attachment.blocked
            return False
        return not attachment.blocked

    def say(self, attachment: Attachment, messages: list[Message]) -> None:
        """Write to a websocket that was just attached what the journal does not hold."""
        frames = [v1.encode_frame(msg) for msg in messages]
        data = self._renderer.join(frames, attachment.dialect)
        if data and not attachment.link.closed:
            self._write(attachment, data)

    def ask(self, attachment: Attachment) -> None:
        """Ask a websocket what has arrived of all that was written, where that is due."""
        if not attachment.blocked and not attachment.link.closed:
            ping = self._acks.ask(attachment)
            if ping:
                self._write(attachment, ping)

    def written(self, attachment: Attachment) -> None:
        """Note that the last write to a websocket has gone out."""
        attachment.blocked = False
        self._acks.written(attachment)
        attachment.lags = True

    def _write(self, attachment: Attachment, data: bytes) -> None:
        joined = len(data) <= _JOINED
        if joined:
            data = self._with_ping(data, self._acks.ask(attachment))
        # Blocked meanwhile, for a link may run somebody's code, and that come back here.
        attachment.blocked = True
        attachment.blocked = not attachment.link.write(data)
        if attachment.blocked:
            return
        self._acks.written(attachment)
        if not joined:
            self.ask(attachment)

    def _with_ping(self, data: bytes, ping: bytes) -> bytes:
        if not ping:
            return data
        if self._pinged[0] is not data or self._pinged[1] != ping:
            self._pinged = (data, ping, data + ping)
        return self._pinged[2]
