"""The frames that a websocket client sends, taken out of the bytes that come (RFC 6455, section 5).

Laws of this module:

- bytes in, whole messages and control frames out: no I/O, and no clock;
- what a frame claims is checked before anything is kept for it, and what is kept is never more
  than what has come;
- a call costs no more than the bytes fed since the last one, and a copy of the message where it
  ends: bytes are unmasked, and text is decoded, as they come;
- after an error nothing more comes out.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Final, TypeAlias

from kbridge.errors import FrameTooBig, ProtocolViolation
from kbridge.wire.frames import BINARY, CLOSE, PING, PONG, TEXT

__all__ = ["PARTIAL", "Event", "FrameReader", "parse_close", "unmask"]

Event: TypeAlias = tuple[int, bytes | str]
"""An opcode and a payload. Text is a str; text that is not UTF-8 is empty bytes in its place."""

_CONTINUATION: Final = 0x0
_KNOWN: Final = frozenset({_CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_CONTROL: Final = 0x8
_FIN: Final = 0x80
_MASKED: Final = 0x80
_RESERVED: Final = 0x70
_CONTROL_LIMIT: Final = 125
_BLOCK: Final = 1 << 20  # bytes of text that are decoded at once
_NEVER_SENT: Final = frozenset({1004, 1005, 1006, 1015})  # section 7.4.1

PARTIAL: Final[Event] = (_CONTINUATION, b"")
"""Stands for a fragment that was taken in, of a message that has not ended."""


def unmask(mask: bytes, data: bytes) -> bytes:
    """Undo a client's masking (section 5.3): each byte was combined with one of four."""
    size = len(data)
    repeated = int.from_bytes(mask * (size // 4 + 1), "little") & ((1 << 8 * size) - 1)
    return (int.from_bytes(data, "little") ^ repeated).to_bytes(size, "little")


class _Message:
    """A message of which some has come."""

    __slots__ = ("_data", "_decoder", "_texts", "_valid", "nbytes", "opcode")

    def __init__(self, opcode: int) -> None:
        self.opcode = opcode
        self.nbytes = 0
        self._data = bytearray()
        self._texts: list[str] = []
        self._valid = True
        self._decoder = codecs.getincrementaldecoder("utf-8")() if opcode == TEXT else None

    def add(self, data: bytes) -> None:
        self._data += data
        self.nbytes += len(data)
        if self._decoder is not None and len(self._data) >= _BLOCK:
            self._decode(final=False)

    def end(self) -> Event:
        if self._decoder is None:
            return self.opcode, bytes(self._data)
        self._decode(final=True)
        return self.opcode, "".join(self._texts) if self._valid else b""

    def _decode(self, *, final: bool) -> None:
        assert self._decoder is not None
        try:
            if self._valid:
                self._texts.append(self._decoder.decode(self._data, final))
        except UnicodeDecodeError:
            self._valid = False
            self._texts.clear()
        self._data.clear()


class FrameReader:
    """Reads one client's frames.

    Parameters
    ----------
    max_size : int
        Bytes that a message may have, all its fragments together.
    unmask : callable
        What undoes the masking; Tornado has one in C.
    """

    __slots__ = ("_at", "_buffer", "_final", "_left", "_mask", "_max_size", "_message", "_unmask")

    def __init__(self, max_size: int, unmask: Callable[[bytes, bytes], bytes] = unmask) -> None:
        self._max_size = max_size
        self._unmask = unmask
        self._buffer = bytearray()
        self._at = 0  # where the next frame begins
        self._message: _Message | None = None  # of which some has come
        # Of its fragment that is being read: the bytes to come, how they are masked, and whether
        # it is the last one.
        self._left = 0
        self._mask = b""
        self._final = False

    def feed(self, data: bytes) -> None:
        """Take bytes as they came."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> Event | None:
        """The next message or control frame, or `PARTIAL`; None if more bytes must come first.

        Raises
        ------
        ProtocolViolation
            If the client does not speak RFC 6455.
        FrameTooBig
            If a message is larger than `max_size`.
        """
        if self._left:
            return self._read_on()
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
        control = opcode & _CONTROL
        message = self._message
        if not control and size + (message.nbytes if message else 0) > self._max_size:
            raise FrameTooBig(f"a message of more than {self._max_size} bytes")
        start += 4
        end = start + size
        whole = len(buffer) >= end
        if (control and not whole) or len(buffer) < start:
            return None
        mask = bytes(buffer[start - 4 : start])
        if whole and (control or (message is None and first & _FIN)):
            self._at = end
            data = self._unmask(mask, bytes(buffer[start:end]))
            return opcode, _text(data) if opcode == TEXT else data
        if message is None:
            self._message = _Message(opcode)
        self._at, self._left, self._mask = start, size, mask
        self._final = bool(first & _FIN)
        return self._read_on()

    def _read_on(self) -> Event | None:
        """Take in what has come of a fragment."""
        message, at = self._message, self._at
        assert message is not None
        size = min(self._left, len(self._buffer) - at)
        if size:
            with memoryview(self._buffer) as view:
                message.add(self._unmask(self._mask, bytes(view[at : at + size])))
            turned = size % 4
            self._mask = self._mask[turned:] + self._mask[:turned]
            self._at = at + size
            self._left -= size
        if self._left:
            return None
        if not self._final:
            return PARTIAL
        self._message = None
        return message.end()

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
        elif (opcode == _CONTINUATION) is (self._message is None):
            raise ProtocolViolation("a fragment of nothing, or a message within another one")


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return b""


def parse_close(data: bytes) -> tuple[int | None, str | None]:
    """Read the payload of a close frame (sections 5.5.1 and 7.4).

    Returns
    -------
    code : int or None
        None if the payload is empty.
    reason : str or None
        None if there is none.

    Raises
    ------
    ProtocolViolation
        If the code may not be sent, or the reason is not UTF-8.
    """
    if not data:
        return None, None
    code = int.from_bytes(data[:2], "big")
    if len(data) < 2 or not 1000 <= code < 5000 or code in _NEVER_SENT:
        raise ProtocolViolation("a close frame without a code that may be sent")
    try:
        return code, data[2:].decode() or None
    except UnicodeDecodeError:
        raise ProtocolViolation("a close frame whose reason is not UTF-8") from None
