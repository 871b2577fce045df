"""What is owed to each websocket, written out: one journal, many cursors.

Websockets that stand at the same place, speak the same dialect and are owed nothing private get
the same bytes object: the sixteenth viewer costs a write, and no encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kbridge.errors import KernelMessageError
from kbridge.flow.journal import Gap, Journal, Place, Stretch
from kbridge.hub.clients import Attachment
from kbridge.wire import v1
from kbridge.wire.dialects import V1, Dialect
from kbridge.wire.frames import frame, payload
from kbridge.wire.message import Channel, Message

__all__ = ["Delivery"]

CHUNK: Final = 512 << 10
"""Bytes of one write, and so of what a websocket that does not read may hold outside the journal
(one frame that is larger goes alone)."""

_KEPT: Final = 8
"""Chunks kept for the next reader: what a kernel link drains in one wake-up."""


class Delivery:
    """Writes a journal to its readers.

    Parameters
    ----------
    journal : Journal
        What to read.
    marker : callable
        Makes the message that stands for a gap.
    refuse : callable
        Is told of a message that a dialect has no form for: its channel, and why.
    """

    def __init__(
        self,
        journal: Journal,
        marker: Callable[[Gap, bytes], Message],
        refuse: Callable[[Channel, KernelMessageError], None],
    ) -> None:
        self._journal = journal
        self._marker = marker
        self._refuse = refuse
        # By place, what was read there, and by dialect what it is on the wire.
        self._kept: dict[Place, tuple[Stretch, dict[str, bytes]]] = {}

    def forget(self) -> None:
        """Drop what was kept for readers at the same place; call when all had their turn."""
        self._kept.clear()

    def pump(self, attachment: Attachment) -> None:
        """Write what is owed to a websocket until it blocks or has all."""
        while not attachment.blocked and not attachment.link.closed:
            kept = self._kept.get(attachment.place) or self._read(attachment.place)
            if kept is None:
                return
            stretch, rendered = kept
            data = self._render(stretch, rendered, attachment)
            attachment.place = stretch.end
            # Blocked meanwhile, for a link may run somebody's code, and that come back here.
            attachment.blocked = True
            attachment.blocked = bool(data) and not attachment.link.write(data)
            if not attachment.blocked:
                attachment.delivered = stretch.end
            if stretch.end.seq == self._journal.next_seq:
                return

    def resume(self, attachment: Attachment) -> None:
        """Go on with a websocket whose last write has gone out."""
        attachment.blocked = False
        attachment.delivered = attachment.place
        self.pump(attachment)
        self.forget()

    def _read(self, place: Place) -> tuple[Stretch, dict[str, bytes]] | None:
        stretch = self._journal.read(place, CHUNK)
        if stretch is None:
            return None
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        kept = self._kept[place] = (stretch, {})
        return kept

    def _render(
        self, stretch: Stretch, rendered: dict[str, bytes], attachment: Attachment
    ) -> bytes:
        dialect = attachment.dialect
        if stretch.private or stretch.gap:
            frames = stretch.frames_for(attachment.client.number)
            if stretch.gap:
                frames = [v1.encode_frame(self._mark(stretch.gap)), *frames]
            return self._join(frames, dialect)
        data = rendered.get(dialect.name)
        if data is None:
            data = rendered[dialect.name] = self._join(stretch.frames, dialect)
        return data

    def _mark(self, gap: Gap) -> Message:
        parent = v1.split(payload(gap.last_lost)).parent_header if gap.last_lost else b"{}"
        return self._marker(gap, parent)

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
