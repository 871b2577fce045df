"""What a kernel said: a ring of frames under sequence numbers, bounded in bytes.

Laws of this module:

- a frame is encoded once, before it comes here; all cursors share the same bytes;
- this is the only buffer between a kernel and its websockets, and `nbytes <= limit + spare` holds
  after every call (one frame larger than that excepted: it stays until the next one comes);
- sequence numbers rise by one a frame and are never used twice;
- when the ring must forget what somebody may not have read, it forgets what carries no state
  first (stream text, displays). Frames that carry state move to the *keepsakes*, still in order,
  and are forgotten only when these alone exceed half of the limit;
- it knows no readers: a reader is a `Place`, an immutable value that its owner keeps.

What is common (the frame) is held densely, what is rare (an audience, state) in side tables: a
flood of stream output costs one list slot a message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from kbridge.flow.ring import Keepsake, Keepsakes, Ring

__all__ = ["EVERYONE", "LOSABLE", "Gap", "Journal", "Place", "Stretch"]

EVERYONE = 0
"""The audience of what all clients may read; any other number is one client's."""

LOSABLE = frozenset({"stream", "display_data", "update_display_data", "clear_output"})
"""iopub types without which a frontend still knows the kernel's state: what may be lost first."""


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
        self._spare = 0
        self.history_limit = min(history_limit, limit)
        self.forgotten = 0  # frames, ever, that were forgotten before every cursor had read them
        self._ring = Ring()  # all frames of the last while, without holes
        self._audience: dict[int, int] = {}
        self._state: set[int] = set()
        self._keepsakes = Keepsakes()
        self._last_lost = b""

    # -- writing ----------------------------------------------------------------------------

    def append(
        self, frame: bytes, audience: int = EVERYONE, *, state: bool = False, key: int = 0
    ) -> int:
        """Add a frame and return its sequence number.

        Parameters
        ----------
        frame : bytes
            As it goes over the websocket.
        audience : int
            `EVERYONE`, or the one client it is for.
        state : bool
            Whether a frontend is wrong about the kernel without it (status, replies, ...).
        key : int
            By which `after` finds it.
        """
        ring = self._ring
        seq = ring.append(frame, key)
        if audience:
            self._audience[seq] = audience
        if state:
            self._state.add(seq)
        if ring.nbytes + self._keepsakes.nbytes > self.limit + self._spare:
            self._shrink()
        return seq

    @property
    def spare(self) -> int:
        """Bytes that may be held beyond the limit for the moment."""
        return self._spare

    @spare.setter
    def spare(self, nbytes: int) -> None:
        self._spare = nbytes
        self._shrink()

    def trim(self, slowest: int) -> None:
        """Forget what every cursor has passed, but for the last `history_limit` bytes of that.

        Parameters
        ----------
        slowest : int
            The lowest sequence number that some cursor has yet to read.
        """
        keepsakes, ring = self._keepsakes, self._ring
        while (oldest := keepsakes.first) is not None and oldest < slowest:
            self._drop_keepsake()
        slowest = min(slowest, ring.next)
        if slowest > ring.first:
            passed = ring.offset(slowest) - self.history_limit
            self._drop(ring.reach(passed, ring.first, slowest))

    def clear(self) -> None:
        """Forget everything, whoever has yet to read it."""
        self._ring.clear()
        self._audience.clear()
        self._state.clear()
        self._keepsakes.clear()
        self._last_lost = b""

    # -- reading ----------------------------------------------------------------------------

    @property
    def first_seq(self) -> int:
        """The oldest frame from which on nothing is missing."""
        return self._ring.first

    @property
    def next_seq(self) -> int:
        """The next frame's sequence number."""
        return self._ring.next

    @property
    def appended(self) -> int:
        """Bytes ever added."""
        return self._ring.appended

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._ring.nbytes + self._keepsakes.nbytes

    def nbytes_without(self, frames: int) -> int:
        """Return the bytes that are held without the oldest `frames` of the ring."""
        ring = self._ring
        return self._keepsakes.nbytes + ring.appended - ring.offset(ring.first + frames)

    def behind(self, seq: int) -> int:
        """Return the bytes held from `seq` on: what a reader that stands there has yet to read."""
        ring = self._ring
        return ring.appended - ring.offset(max(seq, ring.first))

    def end(self) -> Place:
        """The place of a reader that wants only what comes from now on."""
        ring = self._ring
        return Place(ring.next, ring.next, ring.appended)

    def oldest(self) -> Place:
        """The place of a reader that wants all that is held, and to hear what is not."""
        kept = self._keepsakes.first
        return Place(self._ring.first if kept is None else kept, 0, 0)

    def unknown(self) -> Place:
        """The place of a reader that has seen some of it, and nobody knows what."""
        return self.oldest()._replace(frames=-1, nbytes=-1)

    def after(self, key: int, matches: Callable[[bytes], bool]) -> Place | None:
        """The place behind the newest frame of that key that `matches`; None if none is held."""
        for seq in self._ring.find(key):
            if matches(self._ring.frame(seq)):
                return self.after_seq(seq)
        for kept in self._keepsakes.find(key):
            if matches(kept.frame):
                return self.after_seq(kept.seq)
        return None

    def after_seq(self, seq: int) -> Place | None:
        """The place behind a sequence number, held or not; None where it was not used yet."""
        ring = self._ring
        if not -1 <= seq < ring.next:
            return None
        if seq >= ring.first - 1:
            return Place(seq + 1, seq + 1, ring.offset(seq + 1))
        kept = self._keepsakes.get(seq)
        return Place(seq + 1, seq + 1, -1 if kept is None else kept.behind + len(kept.frame))

    def holds(self, seq: int) -> bool:
        """Whether a frame is still held."""
        return self._ring.first <= seq < self._ring.next or self._keepsakes.get(seq) is not None

    def readdress(self, seq: int, audience: int) -> None:
        """Let a frame that is for one client be for another, where it is still held."""
        if seq in self._audience:
            self._audience[seq] = audience

    def read(self, place: Place, max_bytes: int, horizon: int | None = None) -> Stretch | None:
        """The next frames from `place` on, or None where there are none.

        The stretch ends with the frame that reaches `max_bytes`, or before the sequence number
        `horizon`. A frame of more than `max_bytes` is read alone: to write it together with others
        would take a copy of it.
        """
        ring = self._ring
        if horizon is None or horizon > ring.next:
            horizon = ring.next
        if place.seq >= horizon:
            if place.frames < place.seq == ring.next:  # nothing to read, but something to hear
                return Stretch([], {}, 0, self.end(), self._gap(place))
            return None
        gap = None
        kept = self._keepsakes.last
        if kept is not None and place.seq <= kept and place.seq < ring.first:
            return self._read_keepsakes(place, max_bytes, horizon)
        if place.seq < ring.first or place.frames < place.seq or place.nbytes < 0:
            first = max(place.seq, ring.first)
            if first >= horizon:
                return None  # all that may be read now is gone: say so with what comes next
            if place.frames < first:
                gap = self._gap(place)
            place = self.after_seq(first - 1) or self.end()
        stop = horizon
        if ring.appended - place.nbytes > max_bytes:
            stop = ring.reach(place.nbytes + max_bytes, place.seq + 1, horizon)
            last = stop - 1
            if last > place.seq and ring.offset(stop) - ring.offset(last) > max_bytes:
                stop = last
        frames = ring.frames(place.seq, stop)
        private = self._private(range(place.seq, stop)) if self._audience else {}
        end = Place(stop, stop, ring.offset(stop))
        return Stretch(frames, private, end.nbytes - place.nbytes, end, gap)

    def statistics(self) -> dict[str, int]:
        """Frames and bytes held, and what was lost."""
        return {
            "frames": len(self._ring) + len(self._keepsakes),
            "bytes": self.nbytes,
            "limit": self.limit,
            "spare": self._spare,
            "appended_frames": self.next_seq,
            "appended_bytes": self.appended,
            "forgotten_frames": self.forgotten,
        }

    def _read_keepsakes(self, place: Place, max_bytes: int, horizon: int) -> Stretch | None:
        frames: list[bytes] = []
        private: dict[int, int] = {}
        seq, nbytes = place.seq - 1, 0
        for kept, frame, _ in self._keepsakes.since(place.seq):
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
        ring = self._ring
        behind = ring.appended - ring.nbytes
        return Gap(
            0 if place.frames < 0 else ring.first - place.frames,
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
        ring, keepsakes = self._ring, self._keepsakes
        limit = self.limit + self._spare
        while self.nbytes > limit:
            last = len(ring) <= 1
            if keepsakes and (last or keepsakes.nbytes > limit // 2):
                self._drop_keepsake()
                self.forgotten += 1
                continue
            if last:
                break
            seq = ring.first
            if seq in self._state:
                self._state.discard(seq)
                key, behind = ring.key(seq), ring.offset(seq)
                keepsakes.append(Keepsake(seq, ring.pop(), behind), key)
            else:
                self._audience.pop(seq, None)
                self._last_lost = ring.pop()
                self.forgotten += 1

    def _drop(self, first: int) -> None:
        """Forget the frames of the ring before `first`."""
        ring = self._ring
        gone = range(ring.first, first)
        if not gone:
            return
        self._state.difference_update(_within(self._state, gone))
        for seq in _within(self._audience, gone):
            self._audience.pop(seq, None)
        ring.drop(first)

    def _drop_keepsake(self) -> None:
        seq, frame, _ = self._keepsakes.popleft()
        self._audience.pop(seq, None)
        self._last_lost = frame


def _within(table: Collection[int], numbers: range) -> Iterable[int]:
    """Give what `table` and `numbers` have in common, or all numbers if these are fewer."""
    return [seq for seq in table if seq in numbers] if len(table) < len(numbers) else numbers
