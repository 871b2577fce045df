"""The frames that a websocket client sends, taken out of the bytes that come (RFC 6455, section 5).

Laws of this module:

- bytes in, whole messages and control frames out: no I/O, and no clock;
- what a frame claims is checked before anything is kept for it, and what is kept is never more
  than what has come;
- after an error nothing more comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kbridge.errors import FrameTooBig, ProtocolViolation
from kbridge.wire.frames import BINARY, CLOSE, PING, PONG, TEXT

__all__ = ["FrameReader", "unmask"]

_CONTINUATION: Final = 0x0
_KNOWN: Final = frozenset({_CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_CONTROL: Final = 0x8
_FIN: Final = 0x80
_MASKED: Final = 0x80
_RESERVED: Final = 0x70
_CONTROL_LIMIT: Final = 125


def unmask(mask: bytes, data: bytes) -> bytes:
    """Undo a client's masking (section 5.3): each byte was combined with one of four."""
    size = len(data)
    repeated = int.from_bytes(mask * (size // 4 + 1), "little") & ((1 << 8 * size) - 1)
    return (int.from_bytes(data, "little") ^ repeated).to_bytes(size, "little")


class FrameReader:
    """Reads one client's frames.

    Parameters
    ----------
    max_size : int
        Bytes that a message may have, all its fragments together.
    unmask : callable
        What undoes the masking; Tornado has one in C.
    """

    __slots__ = ("_at", "_buffer", "_fragments", "_max_size", "_opcode", "_unmask")

    def __init__(self, max_size: int, unmask: Callable[[bytes, bytes], bytes] = unmask) -> None:
        self._max_size = max_size
        self._unmask = unmask
        self._buffer = bytearray()
        self._at = 0  # where the next frame begins
        self._opcode = 0  # of the message whose fragments are being collected
        self._fragments: bytearray | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> tuple[int, bytes] | None:
        """The next message or control frame: its opcode and payload; None if it is not whole yet.

        Raises
        ------
        ProtocolViolation
            If the client does not speak RFC 6455.
        FrameTooBig
            If a message is larger than `max_size`.
        """
        while (frame := self._frame()) is not None:
            final, opcode, payload = frame
            if opcode & _CONTROL:
                return opcode, payload
            if self._fragments is not None:
                self._fragments += payload
                if final:
                    whole, self._fragments = bytes(self._fragments), None
                    return self._opcode, whole
            elif final:
                return opcode, payload
            else:
                self._opcode, self._fragments = opcode, bytearray(payload)
        return None

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """One frame, unmasked; None if it is not whole yet."""
        buffer, at = self._buffer, self._at
        if len(buffer) - at < 2:
            return None
        first, second = buffer[at], buffer[at + 1]
        opcode, size = first & 0x0F, second & 0x7F
        self._check(first, second)
        start = at + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) - start < width:
                return None
            size = int.from_bytes(buffer[start : start + width], "big")
            start += width
        collected = len(self._fragments) if self._fragments is not None else 0
        if not opcode & _CONTROL and size + collected > self._max_size:
            raise FrameTooBig(f"a message of more than {self._max_size} bytes")
        end = start + 4 + size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            mask, data = bytes(view[start : start + 4]), bytes(view[start + 4 : end])
        self._at = end
        return bool(first & _FIN), opcode, self._unmask(mask, data)

    def _check(self, first: int, second: int) -> None:
        """Judge the two bytes that every frame begins with."""
        opcode = first & 0x0F
        if first & _RESERVED:
            raise ProtocolViolation("a reserved bit is set, and no extension was agreed on")
        if opcode not in _KNOWN:
            raise ProtocolViolation(f"a frame with the unknown opcode {opcode}")
        if not second & _MASKED:
            raise ProtocolViolation("a frame that is not masked")
        if opcode & _CONTROL:
            if not first & _FIN or second & 0x7F > _CONTROL_LIMIT:
                raise ProtocolViolation("a control frame in fragments, or of more than 125 bytes")
        elif (opcode == _CONTINUATION) is (self._fragments is None):
            raise ProtocolViolation("a fragment of nothing, or a message within another one")
