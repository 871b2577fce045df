"""Decode runs of messages that look alike, as in a flood of output.

The messages of such a run differ in the size of their last part only: topic, signature, headers and
metadata have the same sizes. `struct` cuts out the parts of such a message in one call, which takes
half of the time of a loop over its frames. The heads of the frames are compared, so that a message
of another shape is recognized.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from kbridge.wire.message import RawMessage

__all__ = ["Shape"]

_LONG: Final = 2


class Shape:
    """The sizes of all parts of a message except the last one.

    Parameters
    ----------
    sizes : tuple of int
        The sizes in bytes.
    """

    __slots__ = ("_heads", "_size", "_unpack", "sizes")

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self._heads = tuple(
            bytes((1, size)) if size < 256 else b"\x03" + size.to_bytes(8, "big") for size in sizes
        )
        bodies = [f"{len(head)}s{size}s" for head, size in zip(self._heads, sizes, strict=True)]
        # Then the flags of the last part, and its size if it is short.
        unpacker = Struct(f"!{''.join(bodies)}BB")
        self._unpack = unpacker.unpack_from
        self._size = unpacker.size

    def read(
        self, data: bytes, at: int, part_limit: int, messages: list[RawMessage], most: int
    ) -> int:
        """Append the whole messages of this shape that begin at a place.

        Parameters
        ----------
        data : bytes
            Frames.
        at : int
            The place of a message.
        part_limit : int
            Maximum number of bytes of the last part.
        messages : list of RawMessage
            The list to extend.
        most : int
            The most messages to append.

        Returns
        -------
        int
            The place of the first message that is cut, or has another shape, or is above the limit,
            or is one too many.
        """
        unpack, heads, size = self._unpack, self._heads, self._size
        add = messages.append
        end = len(data)
        last_start = end - size
        for _ in range(most):
            if at > last_start:
                break
            fields = unpack(data, at)
            if fields[:-2:2] != heads:
                break
            flags, length = fields[-2:]
            start = at + size
            if flags == _LONG:
                start += 7
                length = int.from_bytes(data[start - 8 : start], "big")
            elif flags:
                break
            stop = start + length
            if stop > end or length > part_limit:
                break
            parts = list(fields[1:-2:2])
            parts.append(data[start:stop])
            add(parts)
            at = stop
        return at
