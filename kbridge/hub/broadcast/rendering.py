"""Rendering of a journal for its readers, done once for all readers at the same place.

The journal is read in chunks that end at fixed boundaries, multiples of a number of bytes since the
journal began. So readers that stopped at different places meet again at the next boundary, and
share chunks from then on. Readers without private frames in a chunk share one rendering per dialect
and per mode (messages joined or not), so a private frame adds no cost for other readers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from kbridge.errors import KernelMessageError
from kbridge.flow.coalesce import coalesce_counted
from kbridge.flow.journal import EVERYONE, ON_DISK, Gap, Journal, Place, Stretch
from kbridge.flow.pace import Pace
from kbridge.flow.selection import Selection
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.broadcast.loading import Loader
from kbridge.hub.notices import Notices
from kbridge.hub.rejected import DroppedMessages
from kbridge.wire import v1
from kbridge.wire.dialects import V1, Dialect
from kbridge.wire.frames import frame, payload

__all__ = ["CHUNK", "CHUNK_BEHIND", "UNLOADED", "Chunk", "Portion", "Renderer"]

CHUNK: Final = 512 << 10
"""Bytes of one write, and so the bytes outside the journal that a websocket holds which does not
read. A larger frame is written alone."""

CHUNK_BEHIND: Final = 128 << 10
"""The same for a websocket that is behind, because each completed write shows that it reads, and
for a dialect that needs every frame translated."""

_KEPT: Final = 8
"""Chunks kept for the next reader: what a kernel link drains in one wake-up."""

_KEPT_BEHIND: Final = 16
"""The same for readers that lag: two megabytes, what sockets' buffers hold."""

_NONE: Final[frozenset[int]] = frozenset()
_Kind: TypeAlias = tuple[Dialect, bool, bool, bool]
_Key: TypeAlias = tuple[str, bool, int, int]


class Chunk:
    """Some consecutive frames, and their renderings.

    Parameters
    ----------
    stretch : Stretch
        The frames.

    Attributes
    ----------
    stretch : Stretch
        The frames.
    audiences : frozenset of int
        The clients for which there are private frames.
    rendered : dict
        The renderings that websockets share. The key is the name of the dialect, True if messages
        are joined, and the part of the chunk: two indices of frames, or an audience and -1.
    """

    __slots__ = ("audiences", "rendered", "stretch")

    def __init__(self, stretch: Stretch) -> None:
        self.stretch = stretch
        self.audiences = frozenset(stretch.private.values()) if stretch.private else _NONE
        self.rendered: dict[_Key, bytes] = {}


_UNLOADED: Final = Chunk(ON_DISK)


class Portion(NamedTuple):
    """The next data to write to a websocket.

    Attributes
    ----------
    data : bytes
        Whole frames; empty if all frames read are private to other clients.
    end : Place
        The place of the websocket after the write.
    nbytes : int
        The number of bytes read from the journal.
    """

    data: bytes
    end: Place
    nbytes: int


UNLOADED: Final = Portion(b"", ON_DISK.end, 0)
"""The portion of a websocket whose next frames must be loaded from disk first."""


class Renderer:
    """Reads a journal for its readers, and renders the frames.

    Parameters
    ----------
    journal : Journal
        The journal to read.
    pace : Pace
        Limits how far readers may read.
    notices : Notices
        Makes the markers of gaps.
    rejected : DroppedMessages
        Counts the messages that a dialect cannot express.
    joins : bool
        True if messages are joined for websockets that are behind, and for all paced ones in a
        flood.
    loader : Loader, optional
        Has the frames that are only on disk.

    Attributes
    ----------
    caches : bool
        True if anything is cached.
    joined, left_out : int
        The number of messages that coalescing has joined to later ones, and left out, in all
        renderings so far.
    """

    def __init__(
        self,
        journal: Journal,
        pace: Pace,
        notices: Notices,
        rejected: DroppedMessages,
        *,
        joins: bool,
        loader: Loader | None = None,
    ) -> None:
        self._journal = journal
        self._pace = pace
        self._notices = notices
        self._rejected = rejected
        self._joins = joins
        self._loader = loader
        # By position, size, and whether the pace determined the end.
        self._chunks: dict[tuple[Place, int, bool], Chunk] = {}
        self._behind: OrderedDict[tuple[Place, int, bool], Chunk] = OrderedDict()
        # The last portion, and the readers that it is valid for: most are at the same place.
        self._last: tuple[Place, _Kind, frozenset[int], Portion] | None = None
        self.caches = False
        self.joined = 0
        self.left_out = 0

    def forget(self) -> None:
        """Drop the chunks cached for readers that keep up; call when all readers had a turn."""
        self._chunks.clear()
        self._last = None
        self.caches = bool(self._behind) or (self._loader is not None and self._loader.keeps)

    def forget_large(self) -> None:
        """Drop the cached chunks with large frames; call it after each turn."""
        large = [key for key, chunk in self._chunks.items() if chunk.stretch.nbytes > 2 * CHUNK]
        for key in large:
            del self._chunks[key]
        if large:
            self._last = None

    def forget_all(self) -> None:
        """Drop all chunks, and the frames that were loaded from disk."""
        self._behind.clear()
        if self._loader is not None:
            self._loader.forget()
        self.forget()

    def load(self, cursor: Cursor, done: Callable[[list[Cursor]], None]) -> None:
        """Load the next frames of a websocket from disk; see `Loader.load`."""
        if self._loader is not None:
            self._loader.load(cursor, done)

    def next(self, cursor: Cursor, *, shared: bool = True) -> Portion | None:
        """Return the next portion for a websocket; None if it has read everything that it may.

        The result is `UNLOADED` if the next frames must be loaded from disk first. With `shared`,
        the rendering is kept for other websockets at the same place.
        """
        if cursor.selection is not None:
            return self._next_selected(cursor, cursor.selection)
        if not shared:
            return self._next_alone(cursor)
        kind = (cursor.dialect, cursor.behind, cursor.verbatim, cursor.paced)
        number = cursor.session.number
        if self._last is not None:
            place, same, audiences, portion = self._last
            if cursor.place == place and kind == same and number not in audiences:
                return portion
        found = self._read(cursor)
        if found is None:
            return None
        chunk, gap = found
        if chunk.stretch is ON_DISK:
            return UNLOADED
        data = self._render(chunk, gap, cursor)
        portion = Portion(data, chunk.stretch.end, chunk.stretch.nbytes)
        if gap is None and number not in chunk.audiences:
            self._last = (cursor.place, kind, chunk.audiences, portion)
            self.caches = True
        return portion

    def _next_alone(self, cursor: Cursor) -> Portion | None:
        """Return the next portion for the only websocket."""
        if cursor.behind or cursor.dialect is not V1:
            return self.next(cursor)
        pace = self._pace
        horizon = pace.horizon if cursor.paced else None
        stretch = self._journal.read(cursor.place, CHUNK, horizon)
        if stretch is None:
            return None
        if stretch.gap is not None or stretch is ON_DISK:
            return self.next(cursor)
        frames = stretch.frames
        if stretch.private:
            frames = stretch.frames_for(cursor.session.number)
        if self._joins and pace.late and cursor.paced and not cursor.verbatim:
            frames = self._coalesce(frames)
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        return Portion(data, stretch.end, stretch.nbytes)

    def _next_selected(self, cursor: Cursor, selection: Selection) -> Portion | None:
        """Return the next portion for a websocket that receives a selection of the frames.

        Its rendering is not shared. It reads at most `CHUNK_BEHIND` bytes for a portion, whose data
        may be empty, because other websockets must not wait while much is read and little selected.
        """
        if late := selection.take_late():
            return Portion(self.join(late, cursor.dialect), cursor.place, 0)
        horizon = self._pace.horizon if cursor.paced else None
        stretch = self._journal.read(cursor.place, CHUNK_BEHIND, horizon)
        if stretch is ON_DISK and self._loader is not None:
            stretch = self._loader.read(cursor.place, CHUNK_BEHIND, horizon)
            self.caches = True
        if stretch is None or stretch is ON_DISK:
            return None if stretch is None else UNLOADED
        marker: list[bytes] = []
        if stretch.gap is not None:
            parent = selection.parent_of_gap(_beside(stretch.gap, stretch.frames))
            if parent is not None:
                notice = self._notices.lost(stretch.gap, parent, stretch.first_seq - 1)
                marker = [v1.encode_frame(notice)]
        frames = selection.select(stretch, cursor.session.number)
        if self._joins_for(cursor):
            frames = self._coalesce(frames)
        return Portion(self.join(marker + frames, cursor.dialect), stretch.end, stretch.nbytes)

    def _coalesce(self, frames: Sequence[bytes]) -> list[bytes]:
        found, left_out = coalesce_counted(frames)
        self.left_out += left_out
        self.joined += len(frames) - left_out - len(found)
        return found

    def _joins_for(self, cursor: Cursor) -> bool:
        """Return True if messages are joined for a websocket, now."""
        late = cursor.behind or (cursor.paced and self._pace.late)
        return self._joins and late and not cursor.verbatim

    def _read(self, cursor: Cursor) -> tuple[Chunk, Gap | None] | None:
        """Return the next chunk for a websocket and the gap before it; None if there is nothing."""
        place = cursor.place
        behind = cursor.behind or cursor.dialect is not V1
        size = min(CHUNK, CHUNK_BEHIND) if behind else CHUNK
        key = (place, size, cursor.paced)
        kept = self._chunks.get(key)
        if kept is None and behind:
            kept = self._behind.get(key)
        if kept is not None:
            return kept, None
        until = size
        if cursor.behind and place.nbytes > 0:
            until -= place.nbytes % size  # up to the boundary
        horizon = self._pace.horizon if cursor.paced else None
        stretch = self._journal.read(place, until, horizon)
        if stretch is ON_DISK and self._loader is not None:
            stretch = self._loader.read(place, until, horizon)
        if stretch is None:
            return None
        if stretch is ON_DISK:
            return _UNLOADED, None
        if stretch.gap is None:
            return self._keep(key, Chunk(stretch)), None
        # Websockets without a gap at this place share the frames behind it.
        first = stretch.end.seq - len(stretch.frames)
        key = (Place(first, first, stretch.end.nbytes - stretch.nbytes), size, cursor.paced)
        kept = self._chunks.get(key) or self._behind.get(key)
        if kept is None or kept.stretch.end != stretch.end:
            kept = self._keep(key, Chunk(stretch._replace(gap=None)))
        return kept, stretch.gap

    def _render(self, chunk: Chunk, gap: Gap | None, cursor: Cursor) -> bytes:
        dialect = cursor.dialect
        joins = self._joins_for(cursor)
        number = cursor.session.number
        if number not in chunk.audiences:
            data = self._shared(chunk, dialect, joins, EVERYONE)
        elif len(chunk.audiences) == 1:
            data = self._shared(chunk, dialect, joins, number)
        else:
            data = self._pieces(chunk, dialect, joins, number)
        if gap is None:
            return data
        behind = chunk.stretch.end.seq - len(chunk.stretch.frames) - 1
        frames = chunk.stretch.frames_for(number)
        marker = self._notices.lost(gap, _beside(gap, frames), behind)
        return self.join([v1.encode_frame(marker)], dialect) + data

    def join(self, frames: list[bytes], dialect: Dialect) -> bytes:
        """Return frames of the v1 dialect as one run of bytes in another one."""
        if dialect is not V1:
            frames = [self._translate(f, dialect) for f in frames]
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _keep(self, key: tuple[Place, int, bool], chunk: Chunk) -> Chunk:
        self.caches = True
        if key[1] < CHUNK and chunk.stretch.nbytes <= 2 * CHUNK_BEHIND:
            self._behind[key] = chunk
            if len(self._behind) > _KEPT_BEHIND:
                self._behind.popitem(last=False)
        else:
            if len(self._chunks) >= _KEPT:
                self._chunks.clear()
            self._chunks[key] = chunk
        return chunk

    def _shared(self, chunk: Chunk, dialect: Dialect, joins: bool, audience: int) -> bytes:
        """Render a chunk without private frames, or with those of its only audience."""
        key = (dialect.name, joins, audience, -1)
        data = chunk.rendered.get(key)
        if data is None:
            frames = chunk.stretch.frames_for(audience)
            data = chunk.rendered[key] = self.join(
                self._coalesce(frames) if joins else frames, dialect
            )
        return data

    def _pieces(self, chunk: Chunk, dialect: Dialect, joins: bool, audience: int) -> bytes:
        """Render a chunk for one of several audiences; the parts that are public are shared."""
        frames, private = chunk.stretch.frames, chunk.stretch.private
        pieces = []
        start = 0
        for index in (*sorted(private), len(frames)):
            if start < index:
                key = (dialect.name, joins, start, index)
                data = chunk.rendered.get(key)
                if data is None:
                    part = frames[start:index]
                    data = self.join(self._coalesce(part) if joins else part, dialect)
                    chunk.rendered[key] = data
                pieces.append(data)
            if private.get(index) == audience:
                pieces.append(self.join([frames[index]], dialect))
            start = index + 1
        return b"".join(pieces)

    def _translate(self, v1_frame: bytes, dialect: Dialect) -> bytes:
        msg = v1.split(payload(v1_frame))
        try:
            opcode, data = dialect.payload(msg)
        except KernelMessageError as error:
            self._rejected.record(msg.channel, error.reason)
            return b""
        return frame(data, opcode)


def _beside(gap: Gap, frames: list[bytes]) -> bytes:
    """Return the parent header of the last message that is missing, or of the first one behind."""
    frame = gap.last_lost or (frames[0] if frames else b"")
    return v1.envelope(frame)[2] if frame else b"{}"
