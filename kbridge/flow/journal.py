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

With a place on disk (`attach_disk`), memory is a cache of the journal's end:

- frames that are on disk may leave memory at any time, and are neither retained nor counted as
  dropped. Frames that are not on disk yet leave memory only as they would without a disk, and may
  exceed the limit by `ROOM`;
- `read` returns `ON_DISK` for a place that only the disk has;
- while the disk fails (`durable` is false), memory keeps what it would keep without a disk.

Frames are in a dense list; the rare audience and state are in side tables. A flood of stream output
thus needs one list slot per message.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

from kbridge.flow.batch import Batch
from kbridge.flow.places import ON_DISK, Gap, Place, Stored, Stretch
from kbridge.flow.ring import RetainedFrame, RetainedFrames, Ring
from kbridge.flow.unwritten import members, private, retained_batch, ring_batch

__all__ = ["EVERYONE", "LOSABLE", "ON_DISK", "ROOM", "Gap", "Journal", "Place", "Stretch"]

EVERYONE = 0
"""The audience of frames for all clients; any other number means one client."""

LOSABLE = frozenset({"stream", "display_data", "update_display_data", "clear_output"})
"""iopub message types without state, which are dropped first."""

ROOM: Final = 8 << 20
"""Bytes of frames that are not on disk yet, beyond the limit: twice what one wake-up brings."""

_SLACK: Final = 32  # part of the limit that is dropped at once, if it is on disk
_READDRESSED: Final = 1000  # frames whose audience differs from the one on disk


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
    durable : bool
        True while frames are written to disk.
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
        self.durable = False
        self._disk: Stored | None = None
        self._written = 0  # the frames before this number are on disk, or were dropped
        self._written_bytes = 0  # the bytes before them
        self._room = 0
        self._passed = 0  # all cursors have read the frames before this number
        self._closing = False
        # Frames that now have another audience than on disk.
        self._readdressed: dict[int, int] = {}

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

    def extend(self, frames: Sequence[bytes], keys: Sequence[int]) -> int:
        """Add frames without state for all clients; return the sequence number of the first.

        `nbytes` may exceed the limit by these frames until all are added.
        """
        ring, first = self._ring, self.next_seq
        before = ring.appended
        ring.extend(frames, keys)
        self.next_seq = ring.next
        self.nbytes += ring.appended - before
        if self.nbytes > self.limit + self._spare:
            self._shrink()
        return first

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
        self._passed = slowest
        slowest = min(slowest, ring.next)
        stop = min(slowest, self._written) if self.durable else slowest
        while (oldest := retained.first) is not None and oldest < stop:
            self._drop_retained()
        if stop > ring.first:
            passed = ring.offset(slowest) - self.history_limit
            self._drop(ring.reach(passed, ring.first, stop))

    def clear(self) -> None:
        """Drop all frames, even unread ones."""
        self._ring.clear()
        self.first_seq = self._ring.first
        self.nbytes = 0
        self._audience.clear()
        self._state.clear()
        self._retained.clear()
        self._readdressed.clear()
        self._last_lost = b""

    def release(self) -> None:
        """Drop all frames that are on disk; each of the others goes as soon as it is written."""
        if not self.durable:
            self.clear()
            return
        self._closing = True
        self.history_limit = 0
        self.trim(sys.maxsize)

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
        first = self._ring.first if kept is None else kept
        disk = self._disk
        if disk is not None and disk.end and disk.oldest is not None:
            first = min(first, disk.oldest.seq)
        return Place(first, 0, 0)

    def unknown(self) -> Place:
        """Return the position of a reader that has read an unknown part of the journal."""
        return self.oldest()._replace(frames=-1, nbytes=-1)

    def after(self, key: int, matches: Callable[[bytes], bool]) -> Place | None:
        """Return the position after the newest frame with that key that `matches`, or None.

        Frames that are only on disk are not looked at.
        """
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

    def in_memory(self, seq: int) -> tuple[bytes, int] | None:
        """Return a frame and its audience; None if it is not in the memory of the journal."""
        if self._ring.first <= seq < self._ring.next:
            return self._ring.frame(seq), self._audience.get(seq, EVERYONE)
        return None

    def holds(self, seq: int) -> bool:
        """Return True if the frame is still in the journal."""
        return (
            self._ring.first <= seq < self._ring.next
            or self._retained.get(seq) is not None
            or (self._disk is not None and self._disk.holds(seq))
        )

    def held_from(self, seq: int) -> int:
        """Return the number from which on frames without state are there, `seq` or later.

        The first number in memory, if that is lower than `seq` or if there is nothing before it.
        """
        first = self._ring.first
        if seq < first and self._disk is not None:
            full = self._disk.next_full(seq)
            if full is not None and full < first:
                return full
        return first

    def readdress(self, seq: int, audience: int) -> None:
        """Give a frame for one client to another client, if the frame is still in the journal."""
        if seq in self._audience:
            self._audience[seq] = audience
        if self._disk is not None:
            self._readdressed[seq] = audience
            if len(self._readdressed) > _READDRESSED:
                del self._readdressed[next(iter(self._readdressed))]

    def loaded(self, stretch: Stretch) -> Stretch:
        """Return a stretch that was read from disk with the present audiences of its frames."""
        if not self._readdressed:
            return stretch
        seqs = stretch.seqs or range(stretch.first_seq, stretch.end.seq)
        moved = {
            i: self._readdressed[seq] for i, seq in enumerate(seqs) if seq in self._readdressed
        }
        return stretch._replace(private=stretch.private | moved) if moved else stretch

    def read(
        self, place: Place, max_bytes: int, horizon: int | None = None, *, on_disk: bool = True
    ) -> Stretch | None:
        """Return the next frames from `place` on; None if there are none.

        The stretch ends with the frame that reaches `max_bytes`, or before the sequence number
        `horizon`. A frame of more than `max_bytes` is returned alone, because joining it with other
        frames would copy it.

        The result is `ON_DISK` if the next frames are only on disk. Without `on_disk`, those are
        skipped, and the stretch has a gap.
        """
        ring = self._ring
        if horizon is None or horizon > ring.next:
            horizon = ring.next
        if place.seq >= horizon:
            if place.frames < place.seq == ring.next:  # no frames, but a gap to report
                return Stretch([], {}, 0, self.end(), self._gap(place, ring.first))
            return None
        gap = None
        if place.seq < ring.first:
            if on_disk and self._disk is not None and place.seq < self._disk.end:
                return ON_DISK
            kept = self._retained.last
            if kept is not None and place.seq <= kept:
                return self._read_retained(place, max_bytes, horizon)
        if place.seq < ring.first or place.frames < place.seq or place.nbytes < 0:
            first = max(place.seq, ring.first)
            if first >= horizon:
                return None  # report the gap with the next frame
            if place.frames < first:
                gap = self._gap(place, first)
            place = self.after_seq(first - 1) or self.end()
        stop = horizon
        if ring.appended - place.nbytes > max_bytes:
            stop = ring.stop_of(place.seq, horizon, max_bytes)
        frames = ring.frames(place.seq, stop)
        clients = private(self._audience, range(place.seq, stop)) if self._audience else {}
        end = Place(stop, stop, ring.appended if stop == ring.next else ring.offset(stop))
        return Stretch(frames, clients, end.nbytes - place.nbytes, end, gap)

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
        clients: dict[int, int] = {}
        seq, nbytes = place.seq - 1, 0
        for kept, frame, _ in self._retained.since(place.seq):
            if kept >= horizon:
                break
            seq = kept
            if seq in self._audience:
                clients[len(frames)] = self._audience[seq]
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
        return Stretch(frames, clients, nbytes, end, seqs=seqs)

    def _gap(self, place: Place, first: int) -> Gap:
        """Return the gap between the frames of a reader and frame `first` of the ring."""
        return Gap(
            0 if place.frames < 0 else first - place.frames,
            0 if place.nbytes < 0 else self._ring.offset(first) - place.nbytes,
            self._last_lost,
        )

    # -- the disk ---------------------------------------------------------------------------

    def attach_disk(
        self, disk: Stored, next_seq: int = 0, appended: int = 0, *, room: int = ROOM
    ) -> None:
        """Read frames from a disk, too, from now on; the journal must be empty.

        Parameters
        ----------
        disk : Stored
            The frames on disk.
        next_seq : int
            The sequence number of the next frame.
        appended : int
            The bytes of the frames before it.
        room : int
            Bytes by which frames that are not on disk yet may exceed the limit.
        """
        assert not self.next_seq, "frames before the first one of the disk would be lost"
        self._disk = disk
        self._ring.start_at(next_seq, appended)
        self.next_seq = self.first_seq = self._written = next_seq
        self._written_bytes = appended
        self._room = room

    def on_durable(self, durable: bool) -> None:
        """Note that frames will be written to disk from now on, or that the disk fails."""
        self.durable = durable
        if not durable:
            if self._closing:
                self.clear()
            self._shrink()

    def on_written(self, end: int) -> None:
        """Note that the frames before the sequence number `end` are on disk."""
        self._written = max(self._written, end)
        if end >= self.first_seq:
            self._written_bytes = self._ring.offset(end)
        retained = self._retained
        while retained.nbytes and (retained.first or 0) < end:
            item = retained.popleft()
            self.nbytes -= len(item.frame)
            self._audience.pop(item.seq, None)
        if self.durable:
            if self.nbytes > self.history_limit:
                self.trim(self._passed)
            if self.nbytes > self.limit + self._spare:
                self._shrink()

    @property
    def unwritten_bytes(self) -> int:
        """The size of the frames that are not on disk yet."""
        ring, kept = self._ring, self._retained.nbytes
        if kept and (self._retained.last or 0) < self._written:
            kept = 0
        return kept + ring.appended - max(self._written_bytes, ring.dropped)

    def unwritten(self, max_bytes: int) -> Batch | None:
        """Return the oldest frames that are not on disk yet; None if there are none.

        The batch ends with the frame that reaches `max_bytes`. Retained frames come first, in a
        separate batch.
        """
        last = self._retained.last
        if last is not None and last >= self._written:
            return retained_batch(self._retained, self._written, self._audience, max_bytes)
        return ring_batch(self._ring, self._written, self._audience, self._state, max_bytes)

    # -- dropping - -------------------------------------------------------------------------

    def _drop_written(self) -> None:
        """Drop the oldest frames of the ring that are on disk, down to the limit and `spare`."""
        ring = self._ring
        stop = min(self._written, ring.next - 1)
        if stop > ring.first:
            # A little more, or each frame of a full journal would drop one.
            excess = self.nbytes - self.limit - self._spare + self.limit // _SLACK
            self._drop(ring.reach(ring.dropped + excess, ring.first, stop))

    def _shrink(self) -> None:
        """Enforce the limit: drop the oldest frames without state, retain those with state."""
        ring, retained = self._ring, self._retained
        limit = self.limit + self._spare
        if self.durable and self.nbytes > limit:
            self._drop_written()
            limit += self._room
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
        self._state.difference_update(members(self._state, gone))
        for seq in members(self._audience.keys(), gone):
            del self._audience[seq]
        before = ring.dropped
        ring.drop(first)
        self.first_seq = first
        self.nbytes -= ring.dropped - before

    def _drop_retained(self) -> None:
        seq, frame, _ = self._retained.popleft()
        self.nbytes -= len(frame)
        self._audience.pop(seq, None)
        self._last_lost = frame
