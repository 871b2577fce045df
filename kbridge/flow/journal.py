"""What a kernel said: a ring of frames under sequence numbers, bounded in bytes.

Laws of this module:

- a frame is encoded once, before it comes here; all cursors share the same bytes;
- this is the only buffer between a kernel and its websockets, and `nbytes <= limit` holds after
  every call (one frame larger than the whole limit excepted: it stays until the next one comes);
- sequence numbers rise by one a frame and are never used twice;
- when the ring must forget what somebody may not have read, it forgets what carries no state
  first (stream text, displays). Frames that carry state move to the *keepsakes*, still in order,
  and are forgotten only when these alone exceed half of the limit;
- it knows no readers: a reader is a `Place`, an immutable value that its owner keeps.

What is common (the frame) is held densely, what is rare (an audience, state) in side tables: a
flood of stream output costs one list slot a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["EVERYONE", "LOSABLE", "Gap", "Journal", "Place", "Stretch"]

EVERYONE = 0
"""The audience of what all clients may read; any other number is one client's."""

LOSABLE = frozenset({"stream", "display_data", "update_display_data", "clear_output"})
"""iopub types without which a frontend still knows the kernel's state: what may be lost first."""

_COMPACT_AFTER = 1024  # dead slots at the front of a list before it is worth moving the live ones


class Gap(NamedTuple):
    """What a cursor has missed.

    `messages` and `nbytes` count frames and their bytes, 0 where nobody knows; `last_lost` is the
    last frame forgotten (its parent tells which cell the loss belongs to).
    """

    messages: int
    nbytes: int
    last_lost: bytes


class Place(NamedTuple):
    """Where a cursor stands.

    `seq` is the sequence number it reads next; `frames` and `nbytes` count what it has behind it,
    and are -1 where nobody knows. Nothing is missing while `frames == seq`.
    """

    seq: int
    frames: int
    nbytes: int


class Stretch(NamedTuple):
    """Consecutive frames, as read by `Journal.read`.

    Attributes
    ----------
    frames : list of bytes
        The frames, whoever they are for.
    private : dict of int to int
        Index into `frames` -> the one client it is for. Most stretches have none.
    nbytes : int
        Bytes in `frames`.
    end : Place
        Where the cursor stands that has read all of it.
    gap : Gap or None
        What was lost before the first frame.
    """

    frames: list[bytes]
    private: dict[int, int]
    nbytes: int
    end: Place
    gap: Gap | None = None

    def frames_for(self, client: int) -> list[bytes]:
        """The frames that `client` may read."""
        if not self.private:
            return self.frames
        get = self.private.get
        return [f for i, f in enumerate(self.frames) if get(i, client) == client]


class Journal:
    """The ring.

    Parameters
    ----------
    limit : int
        Bytes held at most.
    history_limit : int
        Bytes kept once every cursor has passed them, for those who come back or come later.
    """

    def __init__(self, limit: int, history_limit: int) -> None:
        if limit <= 0 or history_limit < 0:
            raise ValueError("journal_limit must be positive, history_limit must not be negative")
        self.limit = limit
        self.history_limit = min(history_limit, limit)
        self.next_seq = 0
        self.appended = 0  # bytes, ever
        self.forgotten = 0  # frames, ever, that were forgotten before every cursor had read them
        self._frames: list[bytes] = []
        self._base = 0  # sequence number of _frames[0]
        self._first = 0  # the oldest that is held densely
        self._dense_bytes = 0
        # Where every cursor was when it was last asked, and the bytes from `_first` to there.
        self._passed = 0
        self._passed_bytes = 0
        self._audience: dict[int, int] = {}
        self._state: set[int] = set()
        # Sequence number, frame, and the bytes that came before it, ever.
        self._keepsakes: deque[tuple[int, bytes, int]] = deque()
        self._keepsake_bytes = 0
        self._last_lost = b""

    # -- writing ----------------------------------------------------------------------------

    def append(self, frame: bytes, audience: int = EVERYONE, *, state: bool = False) -> int:
        """Add a frame and return its sequence number.

        Parameters
        ----------
        frame : bytes
            As it goes over the websocket.
        audience : int
            `EVERYONE`, or the one client it is for.
        state : bool
            Whether a frontend is wrong about the kernel without it (status, replies, ...).
        """
        seq = self.next_seq
        size = len(frame)
        self._frames.append(frame)
        self.next_seq = seq + 1
        self.appended += size
        self._dense_bytes += size
        if audience:
            self._audience[seq] = audience
        if state:
            self._state.add(seq)
        if self._dense_bytes + self._keepsake_bytes > self.limit:
            self._shrink()
        return seq

    def trim(self, slowest: int) -> None:
        """Forget what every cursor has passed, but for the last `history_limit` bytes of that.

        Parameters
        ----------
        slowest : int
            The lowest sequence number that some cursor has yet to read.
        """
        keepsakes = self._keepsakes
        while keepsakes and keepsakes[0][0] < slowest:
            self._drop_keepsake()
        self._note_passed(slowest)
        while self._first < slowest and self._passed_bytes > self.history_limit:
            self._pop()
        self._compact()

    def clear(self) -> None:
        """Forget everything, whoever has yet to read it."""
        self._frames.clear()
        self._audience.clear()
        self._state.clear()
        self._keepsakes.clear()
        self._base = self._first = self.next_seq
        self._dense_bytes = self._keepsake_bytes = 0
        self._passed, self._passed_bytes = self._first, 0
        self._last_lost = b""

    # -- reading ----------------------------------------------------------------------------

    @property
    def first_seq(self) -> int:
        """The oldest frame from which on nothing is missing."""
        return self._first

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._dense_bytes + self._keepsake_bytes

    def end(self) -> Place:
        """The place of a reader that wants only what comes from now on."""
        return Place(self.next_seq, self.next_seq, self.appended)

    def oldest(self) -> Place:
        """The place of a reader that wants all that is held, and to hear what is not."""
        return Place(self._keepsakes[0][0] if self._keepsakes else self._first, 0, 0)

    def unknown(self) -> Place:
        """The place of a reader that has seen some of it, and nobody knows what."""
        return self.oldest()._replace(frames=-1, nbytes=-1)

    def after(self, matches: Callable[[bytes], bool]) -> Place | None:
        """The place behind the newest frame that `matches`, or None where none is held."""
        behind = self.appended
        for index in range(len(self._frames) - 1, self._first - self._base - 1, -1):
            frame = self._frames[index]
            if matches(frame):
                seq = self._base + index + 1
                return Place(seq, seq, behind)
            behind -= len(frame)
        for seq, frame, behind in reversed(self._keepsakes):
            if matches(frame):
                return Place(seq + 1, seq + 1, behind + len(frame))
        return None

    def before(self, matches: Callable[[bytes], bool]) -> Place | None:
        """The place before the oldest frame that `matches`, or None where none is held."""
        held = [(seq, frame) for seq, frame, _ in self._keepsakes]
        held += enumerate(self._frames[self._first - self._base :], self._first)
        for seq, frame in held:
            if matches(frame):
                return self.after_seq(seq - 1)
        return None

    def after_seq(self, seq: int) -> Place | None:
        """The place behind a sequence number, held or not; None where it was not used yet."""
        if not -1 <= seq < self.next_seq:
            return None
        if seq >= self._first - 1:
            later = self._frames[seq + 1 - self._base :]
            return Place(seq + 1, seq + 1, self.appended - sum(map(len, later)))
        for kept, frame, behind in self._keepsakes:
            if kept == seq:
                return Place(seq + 1, seq + 1, behind + len(frame))
        return Place(seq + 1, seq + 1, -1)

    def holds(self, seq: int) -> bool:
        """Whether a frame is still held."""
        if self._first <= seq < self.next_seq:
            return True
        return any(kept == seq for kept, _, _ in self._keepsakes)

    def readdress(self, seq: int, audience: int) -> None:
        """Let a frame that is for one client be for another, where it is still held."""
        if seq in self._audience:
            self._audience[seq] = audience

    def read(self, place: Place, max_bytes: int, horizon: int | None = None) -> Stretch | None:
        """The next frames from `place` on, or None where there are none.

        The stretch ends with the frame that reaches `max_bytes`, or before the sequence number
        `horizon`.
        """
        if horizon is None or horizon > self.next_seq:
            horizon = self.next_seq
        if place.seq >= horizon:
            if place.frames < place.seq == self.next_seq:  # nothing to read, but something to hear
                return Stretch([], {}, 0, self.end(), self._gap(place))
            return None
        gap = None
        if place.seq < self._first and self._keepsakes and self._keepsakes[-1][0] >= place.seq:
            return self._read_keepsakes(place, max_bytes, horizon)
        if place.seq < self._first or place.frames < place.seq or place.nbytes < 0:
            first = max(place.seq, self._first)
            if first >= horizon:
                return None  # all that may be read now is gone: say so with what comes next
            if place.frames < first:
                gap = self._gap(place)
            place = self.after_seq(first - 1) or self.end()
        start, stop = place.seq - self._base, horizon - self._base
        nbytes = self.appended - place.nbytes
        if nbytes > max_bytes or horizon < self.next_seq:
            nbytes = 0
            for index in range(start, stop):
                nbytes += len(self._frames[index])
                if nbytes >= max_bytes:
                    stop = index + 1
                    break
        frames = self._frames[start:stop]
        last = place.seq + len(frames)
        private = self._private(range(place.seq, last)) if self._audience else {}
        end = Place(last, last, place.nbytes + nbytes)
        return Stretch(frames, private, nbytes, end, gap)

    def statistics(self) -> dict[str, int]:
        """Frames and bytes held, and what was lost."""
        return {
            "frames": self.next_seq - self._first + len(self._keepsakes),
            "bytes": self.nbytes,
            "limit": self.limit,
            "appended_frames": self.next_seq,
            "appended_bytes": self.appended,
            "forgotten_frames": self.forgotten,
        }

    def _read_keepsakes(self, place: Place, max_bytes: int, horizon: int) -> Stretch | None:
        frames: list[bytes] = []
        private: dict[int, int] = {}
        seq, nbytes = place.seq - 1, 0
        for kept, frame, _ in self._keepsakes:
            if kept < place.seq:
                continue
            if kept >= horizon:
                break
            seq = kept
            if seq in self._audience:
                private[len(frames)] = self._audience[seq]
            frames.append(frame)
            nbytes += len(frame)
            if nbytes >= max_bytes:
                break
        if not frames:
            return None
        end = Place(
            seq + 1,
            -1 if place.frames < 0 else place.frames + len(frames),
            -1 if place.nbytes < 0 else place.nbytes + nbytes,
        )
        return Stretch(frames, private, nbytes, end)

    def _gap(self, place: Place) -> Gap:
        """What is missing between what a reader has and what is held without a hole."""
        behind = self.appended - self._dense_bytes
        return Gap(
            0 if place.frames < 0 else self._first - place.frames,
            0 if place.nbytes < 0 else behind - place.nbytes,
            self._last_lost,
        )

    def _private(self, seqs: range) -> dict[int, int]:
        audience = self._audience
        if len(audience) < len(seqs):
            return {seq - seqs.start: who for seq, who in audience.items() if seq in seqs}
        return {i: audience[seq] for i, seq in enumerate(seqs) if seq in audience}

    # -- forgetting -------------------------------------------------------------------------

    def _shrink(self) -> None:
        """Hold the limit: the oldest go first, and of these what carries no state."""
        while self.nbytes > self.limit:
            last = self._first >= self.next_seq - 1
            if self._keepsakes and (last or self._keepsake_bytes > self.limit // 2):
                self._drop_keepsake()
                self.forgotten += 1
                continue
            if last:
                break
            seq, keep = self._first, self._first in self._state
            audience = self._audience.get(seq)
            behind = self.appended - self._dense_bytes
            frame = self._pop()
            if keep:
                self._keepsakes.append((seq, frame, behind))
                self._keepsake_bytes += len(frame)
                if audience is not None:
                    self._audience[seq] = audience
            else:
                self._last_lost = frame
                self.forgotten += 1
        self._compact()

    def _pop(self) -> bytes:
        """Take the oldest frame out of the dense part."""
        seq, index = self._first, self._first - self._base
        frame = self._frames[index]
        self._frames[index] = b""
        self._dense_bytes -= len(frame)
        if seq < self._passed:
            self._passed_bytes -= len(frame)
        self._first += 1
        self._state.discard(seq)
        self._audience.pop(seq, None)
        return frame

    def _note_passed(self, slowest: int) -> None:
        """Move on to where every cursor is now, or back for one that came anew."""
        start = max(self._passed, self._first)
        stop = min(max(slowest, self._first), self.next_seq)
        base, frames = self._base, self._frames
        if stop >= start:
            self._passed_bytes += sum(map(len, frames[start - base : stop - base]))
        else:
            self._passed_bytes -= sum(map(len, frames[stop - base : start - base]))
        self._passed = stop

    def _drop_keepsake(self) -> None:
        seq, frame, _ = self._keepsakes.popleft()
        self._keepsake_bytes -= len(frame)
        self._audience.pop(seq, None)
        self._last_lost = frame

    def _compact(self) -> None:
        dead = self._first - self._base
        if dead > _COMPACT_AFTER and dead * 2 > len(self._frames):
            del self._frames[:dead]
            self._base = self._first
