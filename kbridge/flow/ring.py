"""The containers of a journal: frames by sequence number, in constant time.

Invariants:

- adding a frame, and finding a frame or the bytes before it, takes the same time for any number of
  frames;
- a lookup by key reads eight bytes per frame, and not the frames.

A key is a signed 64-bit number that the caller derives from a frame, such as a hash of its message
id. Two frames may have the same key, so the caller must check the frames that a lookup returns.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from kbridge.flow.places import stop_of

__all__ = ["RetainedFrame", "RetainedFrames", "Ring"]

_COMPACT_AFTER: Final = 1024  # empty slots at the front of a list before it is compacted
_KEY_SIZE: Final = 8


class Ring:
    """Frames with consecutive sequence numbers; added at the end, dropped at the front.

    Attributes
    ----------
    first : int
        Sequence number of the oldest frame.
    next : int
        The next sequence number; the ring is empty if it equals `first`.
    appended : int
        Total number of bytes ever added.
    dropped : int
        Number of bytes that were added before the oldest frame.
    """

    __slots__ = (
        "_base",
        "_frames",
        "_keys",
        "_offsets",
        "appended",
        "dropped",
        "first",
        "next",
    )

    def __init__(self) -> None:
        self.first = 0
        self.next = 0
        self.appended = 0
        self._frames: list[bytes] = []
        self._offsets = array("Q")  # bytes added before each frame
        self._keys = array("q")
        self._base = 0  # sequence number of _frames[0]
        self.dropped = 0

    @property
    def nbytes(self) -> int:
        """The size of all frames in bytes."""
        return self.appended - self.dropped

    def __len__(self) -> int:
        return self.next - self.first

    def append(self, frame: bytes, key: int) -> int:
        """Add a frame; return its sequence number."""
        seq = self.next
        self.next = seq + 1
        self._frames.append(frame)
        self._offsets.append(self.appended)
        self._keys.append(key)
        self.appended += len(frame)
        return seq

    def extend(self, frames: Sequence[bytes], keys: Sequence[int]) -> None:
        """Add several frames."""
        offsets = [*accumulate(map(len, frames), initial=self.appended)]
        self.appended = offsets.pop()
        self.next += len(offsets)
        self._frames += frames
        self._offsets.extend(offsets)
        self._keys.extend(keys)

    def frame(self, seq: int) -> bytes:
        """Return the frame with a sequence number that is in the ring."""
        return self._frames[seq - self._base]

    def key(self, seq: int) -> int:
        """Return the key of a frame in the ring."""
        return self._keys[seq - self._base]

    def frames(self, start: int, stop: int) -> list[bytes]:
        """Return the frames from `start` to `stop - 1`; all must be in the ring."""
        return self._frames[start - self._base : stop - self._base]

    def tables(self, start: int, stop: int) -> tuple[array[int], array[int]]:
        """Return copies of the offsets and keys of the frames from `start` to `stop - 1`."""
        part = slice(start - self._base, stop - self._base)
        return self._offsets[part], self._keys[part]

    def offset(self, seq: int) -> int:
        """Return the bytes ever added before `seq`, which is in the ring or the next number."""
        return self.appended if seq >= self.next else self._offsets[seq - self._base]

    def reach(self, offset: int, start: int, stop: int) -> int:
        """Return the first sequence number from `start` on with `offset` bytes before it.

        The result is at most `stop`.
        """
        base = self._base
        return base + bisect_left(self._offsets, offset, start - base, stop - base)

    def stop_of(self, start: int, stop: int, max_bytes: int) -> int:
        """Return the number after the last frame of a stretch; see `places.stop_of`."""
        base = self._base
        after = self.offset(stop)
        return base + stop_of(self._offsets, start - base, stop - base, after, max_bytes)

    def find(self, key: int) -> Iterator[int]:
        """Yield the sequence numbers of the frames with that key, newest first."""
        dead = self.first - self._base
        for index in _indices(self._keys, key, dead):
            yield self._base + index

    def pop(self) -> bytes:
        """Remove and return the oldest frame."""
        frame = self._frames[self.first - self._base]
        self.drop(self.first + 1)
        return frame

    def drop(self, first: int) -> None:
        """Remove the frames before `first`."""
        start, stop = self.first - self._base, first - self._base
        self.dropped = self.offset(first)
        self.first = first
        if stop - start == 1:
            self._frames[start] = b""
        else:
            self._frames[start:stop] = [b""] * (stop - start)
        if stop > _COMPACT_AFTER and stop * 2 > len(self._frames):
            del self._frames[:stop]
            del self._offsets[:stop]
            del self._keys[:stop]
            self._base = first

    def start_at(self, seq: int, appended: int) -> None:
        """Continue an earlier ring: set the next number of an empty ring, and the bytes before."""
        self.first = self.next = self._base = seq
        self.appended = self.dropped = appended

    def clear(self) -> None:
        """Remove all frames; sequence numbers and offsets continue."""
        self._frames.clear()
        del self._offsets[:]
        del self._keys[:]
        self.first = self._base = self.next
        self.dropped = self.appended


class RetainedFrame(NamedTuple):
    """A frame that was moved out of the ring.

    `offset` is the number of bytes that were added to the ring before the frame.
    """

    seq: int
    frame: bytes
    offset: int


class RetainedFrames:
    """Frames with rising sequence numbers and holes; added at the end, removed at the front."""

    __slots__ = ("_head", "_items", "_keys", "nbytes")

    def __init__(self) -> None:
        self._items: list[RetainedFrame | None] = []
        self._keys = array("q")
        self._head = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._items) - self._head

    def __iter__(self) -> Iterator[RetainedFrame]:
        return self.since(-1)

    def since(self, seq: int) -> Iterator[RetainedFrame]:
        """Yield the frames from `seq` on, oldest first."""
        items = self._items
        for index in range(self._place(seq), len(items)):
            item = items[index]
            assert item is not None
            yield item

    def with_keys(self, seq: int) -> Iterator[tuple[RetainedFrame, int]]:
        """Yield the frames from `seq` on, oldest first, and their keys."""
        for index, item in enumerate(self.since(seq), self._place(seq)):
            yield item, self._keys[index]

    def append(self, item: RetainedFrame, key: int) -> None:
        """Add a frame; its number must be higher than that of the last one."""
        self._items.append(item)
        self._keys.append(key)
        self.nbytes += len(item.frame)

    @property
    def first(self) -> int | None:
        """The lowest sequence number; None if there are no frames."""
        return self._seq(self._head) if len(self) else None

    @property
    def last(self) -> int | None:
        """The highest sequence number; None if there are no frames."""
        return self._seq(-1) if len(self) else None

    def get(self, seq: int) -> RetainedFrame | None:
        """Return the frame with that sequence number; None if it is missing."""
        place = self._place(seq)
        item = self._items[place] if place < len(self._items) else None
        return item if item is not None and item.seq == seq else None

    def find(self, key: int) -> Iterator[RetainedFrame]:
        """Yield the frames with that key, newest first."""
        for index in _indices(self._keys, key, self._head):
            item = self._items[index]
            assert item is not None
            yield item

    def popleft(self) -> RetainedFrame:
        """Remove and return the oldest frame."""
        head = self._head
        item = self._items[head]
        assert item is not None
        self._items[head] = None
        self._head = head = head + 1
        self.nbytes -= len(item.frame)
        if head > _COMPACT_AFTER and head * 2 > len(self._items):
            del self._items[:head]
            del self._keys[:head]
            self._head = 0
        return item

    def clear(self) -> None:
        """Remove all frames."""
        self._items.clear()
        del self._keys[:]
        self._head = self.nbytes = 0

    def _seq(self, index: int) -> int:
        item = self._items[index]
        assert item is not None
        return item.seq

    def _place(self, seq: int) -> int:
        """Return the index of the first frame whose number is at least `seq`."""
        low, high = self._head, len(self._items)
        while low < high:
            middle = (low + high) // 2
            if self._seq(middle) < seq:
                low = middle + 1
            else:
                high = middle
        return low


def _indices(keys: array[int], key: int, start: int) -> Iterator[int]:
    """Yield the indices of `key` from `start` on, highest first."""
    # `bytes.rfind` searches a gigabyte per second, `array.index` a tenth of that.
    data = memoryview(keys)[start:].tobytes()
    wanted = array("q", [key]).tobytes()
    end = len(data)
    while (at := data.rfind(wanted, 0, end)) >= 0:
        if at % _KEY_SIZE == 0:
            yield start + at // _KEY_SIZE
        end = at + _KEY_SIZE - 1  # the next match may overlap this one
