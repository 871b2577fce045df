"""What is owed to each websocket, written out: one journal, many cursors.

Websockets that stand at the same place, speak the same dialect and are owed nothing private get
the same bytes object: the sixteenth viewer costs a write, and no encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kbridge.errors import KernelMessageError
from kbridge.flow.coalesce import coalesce
from kbridge.flow.journal import Gap, Journal, Place, Stretch
from kbridge.flow.pace import Pace
from kbridge.hub.acks import Acknowledgements
from kbridge.hub.clients import Attachment
from kbridge.wire import v1
from kbridge.wire.dialects import V1, Dialect
from kbridge.wire.frames import frame, payload
from kbridge.wire.message import Channel, Message

__all__ = ["Delivery"]

CHUNK: Final = 512 << 10
"""Bytes of one write, and so of what a websocket that does not read may hold outside the journal
(one frame that is larger goes alone)."""

_CHUNK_BEHIND: Final = 128 << 10
"""The same of one that lags: each that has gone out is a sign that it reads."""

_KEPT: Final = 8
"""Chunks kept for the next reader: what a kernel link drains in one wake-up."""

_JOINED: Final = 64 << 10
"""Bytes of a write that a ping is copied behind, rather than written after."""


class Delivery:
    """Writes a journal to its readers.

    Parameters
    ----------
    journal : Journal
        What to read.
    pace : Pace
        How far.
    acks : Acknowledgements
        What asks for what has arrived.
    marker : callable
        Makes the message that stands for a gap: takes the gap, the parent header of what was lost,
        and behind which frame it stands.
    refuse : callable
        Is told of a message that a dialect has no form for: its channel, and why.
    joins : bool
        Whether who lags, and everybody in a flood, gets messages joined.
    """

    def __init__(
        self,
        journal: Journal,
        pace: Pace,
        acks: Acknowledgements,
        *,
        marker: Callable[[Gap, bytes, int], Message],
        refuse: Callable[[Channel, KernelMessageError], None],
        joins: bool,
    ) -> None:
        self._journal = journal
        self._pace = pace
        self._acks = acks
        self._marker = marker
        self._refuse = refuse
        self._joins = joins
        # By place, what was read there; and of that, what it is on the wire by dialect, joined
        # or not.
        self._kept: dict[Place, tuple[Stretch, dict[tuple[str, bool], bytes]]] = {}
        # What was last written with a ping behind it, the ping, and both.
        self._pinged = (b"", b"", b"")

    def forget(self) -> None:
        """Drop what was kept for readers at the same place; call when all had their turn."""
        self._kept.clear()
        self._pinged = (b"", b"", b"")

    def pump(self, attachment: Attachment) -> None:
        """Write what is owed to a websocket until it blocks, must acknowledge, or has all."""
        while not attachment.blocked and not attachment.link.closed:
            if self._acks.full(attachment):
                attachment.lags = True
                return
            kept = self._kept.get(attachment.place) or self._read(attachment)
            if kept is None:
                attachment.lags = False
                return
            stretch, rendered = kept
            data = self._render(stretch, rendered, attachment)
            nothing_under_way = attachment.delivered == attachment.place
            attachment.place = stretch.end
            if data:
                self._write(attachment, data)
            elif nothing_under_way:
                attachment.delivered = stretch.end
            if stretch.end.seq == min(self._journal.next_seq, self._pace.horizon):
                attachment.lags = attachment.blocked
                return

    def say(self, attachment: Attachment, messages: list[Message]) -> None:
        """Write to a websocket that was just attached what the journal does not hold."""
        data = self._join([v1.encode_frame(msg) for msg in messages], attachment.dialect)
        if data and not attachment.link.closed:
            self._write(attachment, data)

    def ask(self, attachment: Attachment) -> None:
        """Ask a websocket what has arrived of all that was written, where that is due."""
        if not attachment.blocked and not attachment.link.closed:
            ping = self._acks.ask(attachment)
            if ping:
                self._write(attachment, ping)

    def resume(self, attachment: Attachment) -> None:
        """Go on with a websocket whose last write has gone out."""
        attachment.blocked = False
        self._acks.written(attachment)
        attachment.lags = True
        self.pump(attachment)
        self.ask(attachment)
        self.forget()

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

    def _read(self, attachment: Attachment) -> tuple[Stretch, dict[tuple[str, bool], bytes]] | None:
        place = attachment.place
        size = min(CHUNK, _CHUNK_BEHIND) if attachment.lags else CHUNK
        stretch = self._journal.read(place, size, self._pace.horizon)
        if stretch is None:
            return None
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        kept = self._kept[place] = (stretch, {})
        return kept

    def _render(
        self,
        stretch: Stretch,
        rendered: dict[tuple[str, bool], bytes],
        attachment: Attachment,
    ) -> bytes:
        dialect = attachment.dialect
        joins = self._joins and (attachment.lags or self._pace.late) and not attachment.verbatim
        if stretch.private or stretch.gap:
            frames = stretch.frames_for(attachment.client.number)
            if joins:
                frames = coalesce(frames)
            if stretch.gap:
                behind = stretch.end.seq - len(stretch.frames) - 1
                frames = [self._mark(stretch.gap, frames, behind), *frames]
            return self._join(frames, dialect)
        key = (dialect.name, joins)
        data = rendered.get(key)
        if data is None:
            frames = coalesce(stretch.frames) if joins else stretch.frames
            data = rendered[key] = self._join(frames, dialect)
        return data

    def _mark(self, gap: Gap, frames: list[bytes], behind: int) -> bytes:
        beside = gap.last_lost or (frames[0] if frames else b"")
        parent = v1.split(payload(beside)).parent_header if beside else b"{}"
        return v1.encode_frame(self._marker(gap, parent, behind))

    def _join(self, frames: list[bytes], dialect: Dialect) -> bytes:
        if dialect is not V1:
            frames = [self._translate(f, dialect) for f in frames]
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _translate(self, v1_frame: bytes, dialect: Dialect) -> bytes:
        msg = v1.split(payload(v1_frame))
        try:
            opcode, data = dialect.payload(msg)
        except KernelMessageError as error:
            self._refuse(msg.channel, error)
            return b""
        return frame(data, opcode)
