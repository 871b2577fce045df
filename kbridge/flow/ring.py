"""The containers of a journal: frames under sequence numbers, found in constant time.

Laws of this module:

- to add a frame, and to find a frame's place or the bytes before it, costs the same however many
  frames are held;
- a lookup by key reads eight bytes a frame and no frame.

A key is any number of 64 bits, with a sign, that a caller derives from a frame, such as a hash of
its message id. Two frames may share a key, so that the caller has to look at what is found.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["Keepsake", "Keepsakes", "Ring"]

_COMPACT_AFTER: Final = 1024  # dead slots at the front of a list before the live ones are moved
_KEY_SIZE: Final = 8


class Ring:
    """Frames under consecutive sequence numbers: added behind, dropped at the front.

    Attributes
    ----------
    first : int
        Sequence number of the oldest frame held.
    next : int
        The next sequence number; nothing is held if it equals `first`.
    appended : int
        Bytes ever added.
    dropped : int
        Bytes added before the oldest frame held.
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
        """Bytes held."""
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

    def frame(self, seq: int) -> bytes:
        """Return a frame that is held."""
        return self._frames[seq - self._base]

    def key(self, seq: int) -> int:
        """Return the key of a frame that is held."""
        return self._keys[seq - self._base]

    def frames(self, start: int, stop: int) -> list[bytes]:
        """Return the frames from `start` up to, and without, `stop`; all must be held."""
        return self._frames[start - self._base : stop - self._base]

    def offset(self, seq: int) -> int:
        """Return the bytes ever added before `seq`, which is held or the next."""
        return self.appended if seq >= self.next else self._offsets[seq - self._base]

    def reach(self, offset: int, start: int, stop: int) -> int:
        """Return the first sequence number from `start` on that has `offset` bytes before it.

        At most `stop`.
        """
        base = self._base
        return base + bisect_left(self._offsets, offset, start - base, stop - base)

    def find(self, key: int) -> Iterator[int]:
        """Give the sequence numbers of the frames with that key, newest first."""
        dead = self.first - self._base
        for index in _indices(self._keys, key, dead):
            yield self._base + index

    def pop(self) -> bytes:
        """Take out the oldest frame."""
        frame = self._frames[self.first - self._base]
        self.drop(self.first + 1)
        return frame

    def drop(self, first: int) -> None:
        """Forget the frames before `first`."""
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

    def clear(self) -> None:
        """Forget all frames; numbers and bytes go on."""
        self._frames.clear()
        del self._offsets[:]
        del self._keys[:]
        self.first = self._base = self.next
        self.dropped = self.appended


class Keepsake(NamedTuple):
    """A frame that outlives the ring.

    `behind` counts the bytes ever added to the ring before the frame.
    """

    seq: int
    frame: bytes
    behind: int


class Keepsakes:
    """Frames under rising sequence numbers, with holes: added behind, taken from the front."""

    __slots__ = ("_head", "_items", "_keys", "nbytes")

    def __init__(self) -> None:
        self._items: list[Keepsake | None] = []
        self._keys = array("q")
        self._head = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._items) - self._head

    def __iter__(self) -> Iterator[Keepsake]:
        return self.since(-1)

    def since(self, seq: int) -> Iterator[Keepsake]:
        """Give the frames from `seq` on, oldest first."""
        items = self._items
        for index in range(self._place(seq), len(items)):
            item = items[index]
            assert item is not None
            yield item

    def append(self, item: Keepsake, key: int) -> None:
        """Add a frame, with a higher number than the last one."""
        self._items.append(item)
        self._keys.append(key)
        self.nbytes += len(item.frame)

    @property
    def first(self) -> int | None:
        """The lowest sequence number; None if the ring is empty."""
        return self._seq(self._head) if len(self) else None

    @property
    def last(self) -> int | None:
        """The highest sequence number; None if the ring is empty."""
        return self._seq(-1) if len(self) else None

    def get(self, seq: int) -> Keepsake | None:
        """Return the frame with that sequence number; None if it is not held."""
        place = self._place(seq)
        item = self._items[place] if place < len(self._items) else None
        return item if item is not None and item.seq == seq else None

    def find(self, key: int) -> Iterator[Keepsake]:
        """Give the frames with that key, newest first."""
        for index in _indices(self._keys, key, self._head):
            item = self._items[index]
            assert item is not None
            yield item

    def popleft(self) -> Keepsake:
        """Take out the oldest frame."""
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
        """Forget all frames."""
        self._items.clear()
        del self._keys[:]
        self._head = self.nbytes = 0

    def _seq(self, index: int) -> int:
        item = self._items[index]
        assert item is not None
        return item.seq

    def _place(self, seq: int) -> int:
        """Index of the first frame whose number is `seq` or higher."""
        low, high = self._head, len(self._items)
        while low < high:
            middle = (low + high) // 2
            if self._seq(middle) < seq:
                low = middle + 1
            else:
                high = middle
        return low


def _indices(keys: array[int], key: int, start: int) -> Iterator[int]:
    """Give the indices from `start` on at which `key` stands, highest first."""
    # Bytes are searched at a gigabyte a second, an array at a tenth of that.
    data = memoryview(keys)[start:].tobytes()
    wanted = array("q", [key]).tobytes()
    end = len(data)
    while (at := data.rfind(wanted, 0, end)) >= 0:
        if at % _KEY_SIZE == 0:
            yield start + at // _KEY_SIZE
        end = at + _KEY_SIZE - 1  # the next match ends before, and may overlap this one
