"""The journal of a kernel: a ring of frames with sequence numbers, bounded in bytes.

Invariants:

- a frame is encoded once, before it is appended; all cursors share the same bytes;
- the journal is the only buffer between a kernel and its websockets. After every call,
  `nbytes <= limit + spare`, except that one frame larger than that stays until the next one;
- sequence numbers rise by one per frame and are never reused;
- if the journal must drop frames that a client may not have read, it first drops frames without
  state (stream text, displays). Frames with state move to the *retained* frames, in order. Those
  are dropped only if they alone exceed half of the limit;
- the journal does not know its readers: a reader is a `Place`, an immutable value that its owner
  stores.

Frames are in a dense list; the rare audience and state are in side tables. A flood of stream output
thus needs one list slot per message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from kbridge.flow.places import Gap, Place, Stretch
from kbridge.flow.ring import RetainedFrame, RetainedFrames, Ring

__all__ = ["EVERYONE", "LOSABLE", "Gap", "Journal", "Place", "Stretch"]

EVERYONE = 0
"""The audience of frames for all clients; any other number means one client."""

LOSABLE = frozenset({"stream", "display_data", "update_display_data", "clear_output"})
"""iopub message types without state, which are dropped first."""


class Journal:
    """The frames of one kernel.

    Parameters
    ----------
    limit : int
        Maximum size in bytes.
    history_limit : int
        Bytes to keep after every cursor has read them, for clients that reconnect or join later.

    Attributes
    ----------
    next_seq : int
        The sequence number of the next frame.
    first_seq : int
        The sequence number from which on no frame is missing.
    nbytes : int
        Current size in bytes.
    """

    def __init__(self, limit: int, history_limit: int) -> None:
        if limit <= 0 or history_limit < 0:
            raise ValueError("journal_limit must be positive, history_limit must not be negative")
        self.limit = limit
        self._spare = 0
        self.history_limit = min(history_limit, limit)
        self.forgotten = 0  # frames that were dropped before every cursor had read them
        self._ring = Ring()  # the newest frames, without holes
        self.next_seq = self.first_seq = 0
        self.nbytes = 0
        self._audience: dict[int, int] = {}
        self._state: set[int] = set()
        self._retained = RetainedFrames()
        self._last_lost = b""

    # -- writing ----------------------------------------------------------------------------

    def append(
        self, frame: bytes, audience: int = EVERYONE, *, state: bool = False, key: int = 0
    ) -> int:
        """Add a frame and return its sequence number.

        Parameters
        ----------
        frame : bytes
            The complete websocket frame.
        audience : int
            `EVERYONE`, or the number of the only client that may read it.
        state : bool
            True if a frontend needs the frame to know the state of the kernel (status, replies,
            ...).
        key : int
            The key with which `after` finds the frame.
        """
        seq = self._ring.append(frame, key)
        self.next_seq = seq + 1
        self.nbytes += len(frame)
        if audience:
            self._audience[seq] = audience
        if state:
            self._state.add(seq)
        if self.nbytes > self.limit + self._spare:
            self._shrink()
        return seq

    @property
    def spare(self) -> int:
        """Bytes that the journal may currently hold beyond the limit."""
        return self._spare

    @spare.setter
    def spare(self, nbytes: int) -> None:
        self._spare = nbytes
        self._shrink()

    def trim(self, slowest: int) -> None:
        """Drop the frames that every cursor has read, except their last `history_limit` bytes.

        Parameters
        ----------
        slowest : int
            The lowest sequence number that some cursor has not read.
        """
        retained, ring = self._retained, self._ring
        while (oldest := retained.first) is not None and oldest < slowest:
            self._drop_retained()
        slowest = min(slowest, ring.next)
        if slowest > ring.first:
            passed = ring.offset(slowest) - self.history_limit
            self._drop(ring.reach(passed, ring.first, slowest))

    def clear(self) -> None:
        """Drop all frames, even unread ones."""
        self._ring.clear()
        self.first_seq = self._ring.first
        self.nbytes = 0
        self._audience.clear()
        self._state.clear()
        self._retained.clear()
        self._last_lost = b""

    # -- reading ----------------------------------------------------------------------------

    @property
    def appended(self) -> int:
        """Total number of bytes ever added."""
        return self._ring.appended

    def nbytes_without(self, frames: int) -> int:
        """Return the size in bytes without the oldest `frames` of the ring."""
        ring = self._ring
        return self._retained.nbytes + ring.appended - ring.offset(ring.first + frames)

    def behind(self, seq: int) -> int:
        """Return the bytes from `seq` on, which a reader at `seq` has not read."""
        ring = self._ring
        return ring.appended - ring.offset(max(seq, ring.first))

    def end(self) -> Place:
        """Return the position of a reader that wants only new frames."""
        ring = self._ring
        return Place(ring.next, ring.next, ring.appended)

    def oldest(self) -> Place:
        """Return the position of a reader that wants all frames, and a gap for the dropped ones."""
        kept = self._retained.first
        return Place(self._ring.first if kept is None else kept, 0, 0)

    def unknown(self) -> Place:
        """Return the position of a reader that has read an unknown part of the journal."""
        return self.oldest()._replace(frames=-1, nbytes=-1)

    def after(self, key: int, matches: Callable[[bytes], bool]) -> Place | None:
        """Return the position after the newest frame with that key that `matches`, or None."""
        for seq in self._ring.find(key):
            if matches(self._ring.frame(seq)):
                return self.after_seq(seq)
        for kept in self._retained.find(key):
            if matches(kept.frame):
                return self.after_seq(kept.seq)
        return None

    def after_seq(self, seq: int) -> Place | None:
        """Return the position after a sequence number, even if its frame was dropped.

        None if the sequence number was not used yet.
        """
        ring = self._ring
        if not -1 <= seq < ring.next:
            return None
        if seq >= ring.first - 1:
            return Place(seq + 1, seq + 1, ring.offset(seq + 1))
        kept = self._retained.get(seq)
        return Place(seq + 1, seq + 1, -1 if kept is None else kept.offset + len(kept.frame))

    def holds(self, seq: int) -> bool:
        """Return True if the frame is still in the journal."""
        return self._ring.first <= seq < self._ring.next or self._retained.get(seq) is not None

    def readdress(self, seq: int, audience: int) -> None:
        """Give a frame for one client to another client, if the frame is still in the journal."""
        if seq in self._audience:
            self._audience[seq] = audience

    def read(self, place: Place, max_bytes: int, horizon: int | None = None) -> Stretch | None:
        """Return the next frames from `place` on; None if there are none.

        The stretch ends with the frame that reaches `max_bytes`, or before the sequence number
        `horizon`. A frame of more than `max_bytes` is returned alone, because joining it with other
        frames would copy it.
        """
        ring = self._ring
        if horizon is None or horizon > ring.next:
            horizon = ring.next
        if place.seq >= horizon:
            if place.frames < place.seq == ring.next:  # no frames, but a gap to report
                return Stretch([], {}, 0, self.end(), self._gap(place))
            return None
        gap = None
        if place.seq < ring.first:
            kept = self._retained.last
            if kept is not None and place.seq <= kept:
                return self._read_retained(place, max_bytes, horizon)
        if place.seq < ring.first or place.frames < place.seq or place.nbytes < 0:
            first = max(place.seq, ring.first)
            if first >= horizon:
                return None  # report the gap with the next frame
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
        end = Place(stop, stop, ring.appended if stop == ring.next else ring.offset(stop))
        return Stretch(frames, private, end.nbytes - place.nbytes, end, gap)

    def statistics(self) -> dict[str, int]:
        """Return the number of frames and bytes, and of dropped frames."""
        return {
            "frames": len(self._ring) + len(self._retained),
            "bytes": self.nbytes,
            "limit": self.limit,
            "spare": self._spare,
            "appended_frames": self.next_seq,
            "appended_bytes": self.appended,
            "forgotten_frames": self.forgotten,
        }

    def _read_retained(self, place: Place, max_bytes: int, horizon: int) -> Stretch | None:
        frames: list[bytes] = []
        seqs: list[int] = []
        private: dict[int, int] = {}
        seq, nbytes = place.seq - 1, 0
        for kept, frame, _ in self._retained.since(place.seq):
            if kept >= horizon:
                break
            seq = kept
            if seq in self._audience:
                private[len(frames)] = self._audience[seq]
            frames.append(frame)
            seqs.append(seq)
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
        return Stretch(frames, private, nbytes, end, seqs=seqs)

    def _gap(self, place: Place) -> Gap:
        """Return the gap between the frames of a reader and the first frame of the ring."""
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

    # -- dropping - -------------------------------------------------------------------------

    def _shrink(self) -> None:
        """Enforce the limit: drop the oldest frames without state, retain those with state."""
        ring, retained = self._ring, self._retained
        limit = self.limit + self._spare
        while self.nbytes > limit:
            last = len(ring) <= 1
            if retained and (last or retained.nbytes > limit // 2):
                self._drop_retained()
                self.forgotten += 1
                continue
            if last:
                break
            seq = ring.first
            if seq in self._state:
                self._state.discard(seq)
                key, behind = ring.key(seq), ring.offset(seq)
                retained.append(RetainedFrame(seq, ring.pop(), behind), key)
            else:
                self._audience.pop(seq, None)
                self._last_lost = lost = ring.pop()
                self.nbytes -= len(lost)
                self.forgotten += 1
        self.first_seq = ring.first

    def _drop(self, first: int) -> None:
        """Drop the frames of the ring before `first`."""
        ring = self._ring
        gone = range(ring.first, first)
        if not gone:
            return
        self._state.difference_update(_within(self._state, gone))
        for seq in _within(self._audience, gone):
            self._audience.pop(seq, None)
        before = ring.dropped
        ring.drop(first)
        self.first_seq = first
        self.nbytes -= ring.dropped - before

    def _drop_retained(self) -> None:
        seq, frame, _ = self._retained.popleft()
        self.nbytes -= len(frame)
        self._audience.pop(seq, None)
        self._last_lost = frame


def _within(table: Collection[int], numbers: range) -> Iterable[int]:
    """Return the numbers that are in `table`; or all numbers if they are fewer than the table."""
    return [seq for seq in table if seq in numbers] if len(table) < len(numbers) else numbers
