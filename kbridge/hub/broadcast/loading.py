"""Loads frames from disk for the readers of one journal.

Readers at one place share a load. The loaded frames are kept for a moment, because a reader takes
them in several turns, and another one may be behind it. Nothing here blocks: a reader whose frames
are only on disk waits, while the others go on.

A load that takes too long, or finds nothing, lets its readers skip the frames: they go on in
memory, with a gap. Only time in which the load was under way and the event loop ran counts. While
the disk answers other readers, for which the load may have to wait, it may take longer. If memory
has nothing for its readers, they wait for the disk.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import accumulate
from typing import Any, Final, TypeAlias

from kbridge.flow.journal import ON_DISK, Journal, Place, Stretch
from kbridge.flow.places import stop_of
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.broadcast.resume import find_on_disk
from kbridge.storage.history import History

__all__ = ["PATIENCE", "Loader"]

PATIENCE: Final = 10.0
"""Seconds after which readers wait no longer for a disk that is silent.

If it answers others, they wait ten times as long.
"""

_LOOKS: Final = 10  # within PATIENCE; a pause of the process counts as one, however long it is

_LOAD: Final = 512 << 10  # bytes of one load; a larger frame is loaded alone
_AT_ONCE: Final = 2  # loads at a time: as many as there are threads that read
_KEPT: Final = 4 << 20  # bytes that are kept, or one load if that is larger
_KEPT_LOADS: Final = 32


_Done: TypeAlias = Callable[[list[Cursor]], None]


class _Loaded:
    """The frames that the disk has at one place; `stretch` is None if it has nothing more there."""

    __slots__ = ("_offsets", "place", "stretch")

    def __init__(self, place: Place, stretch: Stretch | None) -> None:
        self.place = place
        self.stretch = stretch
        # The bytes before each frame of the stretch, and before its end.
        self._offsets = [0]
        if stretch is not None and stretch.seqs is None:
            self._offsets = [0, *accumulate(map(len, stretch.frames))]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return 0 if self.stretch is None else self.stretch.nbytes

    def index(self, place: Place) -> int | None:
        """Return the index of the frame that a reader at a place reads next; None if unknown."""
        if place == self.place:
            return 0
        stretch = self.stretch
        if stretch is None or stretch.seqs is not None or place.frames != place.seq:
            return None
        index = place.seq - stretch.first_seq
        return index if 0 <= index < len(stretch.frames) else None

    def part(self, place: Place, index: int, max_bytes: int, horizon: int) -> Stretch | None:
        """Return the frames for a reader at a place, from its index on, as `Journal.read` would."""
        stretch = self.stretch
        assert stretch is not None
        if stretch.seqs is not None:
            return stretch.before(horizon)
        first, offsets = stretch.first_seq, self._offsets
        stop = min(len(stretch.frames), horizon - first)
        if stop <= index:
            return None
        stop = stop_of(offsets, index, stop, offsets[stop], max_bytes)
        frames = stretch.frames[index:stop]
        private = {i - index: who for i, who in stretch.private.items() if index <= i < stop}
        end = stretch.end.nbytes - offsets[-1] + offsets[stop]
        return Stretch(
            frames,
            private,
            offsets[stop] - offsets[index],
            Place(first + stop, first + stop, end),
            # The gap is that of the readers for which the frames were loaded. Other readers with an
            # index have read all frames before it, even if the gap ends there.
            stretch.gap if place == self.place else None,
        )


class Loader:
    """Loads frames of a journal from disk.

    Parameters
    ----------
    journal : Journal
        The journal; `read` continues in its memory.
    history : History
        The frames of the journal that are on disk.
    """

    def __init__(self, journal: Journal, history: History) -> None:
        self._journal = journal
        self._history = history
        self._loop = asyncio.get_running_loop()
        self._kept: deque[_Loaded] = deque()  # oldest first
        self._kept_bytes = 0
        # The places whose frames are wanted, and the readers there.
        self._waiting: dict[Place, tuple[_Done, list[Cursor]]] = {}
        self._queue: deque[Place] = deque()
        # The places that are being loaded and the searches, and how often each was looked at.
        self._loads: dict[Place, int] = {}
        self._searches: dict[asyncio.Task[None], int] = {}
        self._answered = 0  # by the disk, at the last look
        self._silent = 0  # looks since the disk has answered somebody
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # -- frames that were loaded ------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        """True if frames are kept."""
        return bool(self._kept)

    def read(self, place: Place, max_bytes: int, horizon: int | None) -> Stretch | None:
        """Return the next frames from a place that only the disk has.

        As with `Journal.read`, the result is None if there are no frames before `horizon`, and
        `ON_DISK` if the frames must be loaded first.
        """
        first = self._journal.first_seq
        for loaded in reversed(self._kept):
            index = loaded.index(place)
            if index is None:
                continue
            stretch = loaded.stretch
            if stretch is None or stretch.first_seq >= first:
                return self._journal.read(place, max_bytes, horizon, on_disk=False)
            stop = sys.maxsize if horizon is None else horizon
            if stretch.seqs is not None:
                stop = min(stop, first)  # memory has all frames from there on
            return loaded.part(place, index, max_bytes, stop)
        return ON_DISK

    def forget(self) -> None:
        """Drop the frames that are kept."""
        self._kept.clear()
        self._kept_bytes = 0

    # -- loading ----------------------------------------------------------------------------

    def load(self, cursor: Cursor, done: _Done) -> None:
        """Load the next frames of a reader, and call `done`; then `read` has an answer for it.

        `done` is called once with all readers at the same place.
        """
        if self._closed:
            return
        place = cursor.place
        if place in self._waiting:
            self._waiting[place][1].append(cursor)
            return
        self._waiting[place] = (done, [cursor])
        if place not in self._loads:
            self._queue.append(place)
        self._load_next()

    def find(self, msg_id: str, done: Callable[[Place | None], None]) -> bool:
        """Call `done` with the place after the newest message on disk with that id, or None.

        Returns
        -------
        bool
            False if nothing is on disk; `done` is not called then.
        """
        if self._closed or self._history.oldest is None:
            return False
        task = self._start(self._find(msg_id, done))
        self._searches[task] = 0
        task.add_done_callback(self._searches.pop)
        self._watch()
        return True

    def close(self) -> None:
        """Load nothing more, and call nobody; may be called twice."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._waiting.clear()
        self._queue.clear()
        self.forget()

    async def wait_closed(self) -> None:
        """Wait until everything that was under way has ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _load_next(self) -> None:
        while self._queue and len(self._loads) < _AT_ONCE:
            place = self._queue.popleft()
            if place in self._waiting and place not in self._loads:
                self._loads[place] = 0
                self._start(self._load(place))
        self._watch()

    def _watch(self) -> None:
        """Look at the loads and searches under way again, a tenth of `PATIENCE` later."""
        if (self._loads or self._searches) and self._timer is None:
            self._timer = self._loop.call_later(PATIENCE / _LOOKS, self._look)

    def _look(self) -> None:
        """Let readers go on whose load takes too long; and all others, if no load can begin.

        A search that takes too long ends as if the message was not there.
        """
        self._timer = None
        answered, self._answered = self._answered, self._history.answered
        self._silent = self._silent + 1 if self._answered == answered else 0
        enough = _LOOKS if self._silent >= _LOOKS else _LOOKS * _LOOKS
        for place in self._loads:
            self._loads[place] += 1
        for task in self._searches:
            self._searches[task] += 1
            if self._searches[task] >= enough:
                task.cancel()
        late = [place for place, looks in self._loads.items() if looks >= enough]
        if len(late) == _AT_ONCE:
            late += self._queue
        for place in late:
            if self._journal.read(place, 1, on_disk=False) is not None:
                self._settle(place, None)
        self._load_next()

    async def _load(self, place: Place) -> None:
        stretch: Stretch | None = None
        try:
            stretch = await self._history.read(place, _LOAD, sys.maxsize)
        finally:
            del self._loads[place]
            if not self._closed:
                self._load_next()
                self._settle(place, stretch)

    def _settle(self, place: Place, stretch: Stretch | None) -> None:
        """Keep the frames at a place, and tell the readers that wait for them."""
        if place not in self._waiting:
            return  # they have given up
        done, cursors = self._waiting.pop(place)
        if stretch is not None:
            # Without frames, there is only a gap up to the end of the disk: memory knows it.
            stretch = self._journal.loaded(stretch) if stretch.frames else None
        self._keep(_Loaded(place, stretch))
        done(cursors)

    def _keep(self, loaded: _Loaded) -> None:
        kept = self._kept
        kept.append(loaded)
        self._kept_bytes += loaded.nbytes
        while len(kept) > 1 and (self._kept_bytes > _KEPT or len(kept) > _KEPT_LOADS):
            self._kept_bytes -= kept.popleft().nbytes

    async def _find(self, msg_id: str, done: Callable[[Place | None], None]) -> None:
        place: Place | None = None
        try:
            place = await find_on_disk(self._history, msg_id)
        finally:  # a search that takes too long is cancelled, as if the message was not there
            if not self._closed:
                done(place)
