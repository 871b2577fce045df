"""Read the websocket frames of a client (RFC 6455, section 5).

Properties of this module:

- bytes in, complete messages and control frames out: no I/O, and no clock;
- the header of a frame is checked before memory is set aside for its payload, and no more bytes
  are kept than were fed;
- a call costs no more than the bytes fed since the last call, and one copy of the message at its
  end: bytes are unmasked, and text is decoded, as they are fed;
- after an error, every further call raises an error.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from kbridge.errors import FrameTooBig, ProtocolViolation
from kbridge.wire.frames import BINARY, CLOSE, PING, PONG, TEXT

__all__ = ["PARTIAL", "Event", "FrameReader", "parse_close", "unmask"]

Event: TypeAlias = tuple[int, bytes | str]
"""An opcode and a payload. Text is a str; in place of text that is not UTF-8 there is b""."""

_CONTINUATION: Final = 0x0
_KNOWN: Final = frozenset({_CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_CONTROL: Final = 0x8
_FIN: Final = 0x80
_MASKED: Final = 0x80
_RESERVED: Final = 0x70
_USUAL: Final = frozenset({_FIN | TEXT, _FIN | BINARY})  # first bytes of unfragmented messages
_CONTROL_LIMIT: Final = 125
_BLOCK: Final = 1 << 20  # bytes of text that are decoded at once
_NEVER_SENT: Final = frozenset({1004, 1005, 1006, 1015})  # section 7.4.1

PARTIAL: Final[Event] = (_CONTINUATION, b"")
"""Returned for a fragment of a message that has not ended."""


def unmask(mask: bytes, data: bytes) -> bytes:
    """Undo the masking of a payload (section 5.3): byte i was XORed with byte i % 4 of the mask."""
    size = len(data)
    repeated = int.from_bytes(mask * (size // 4 + 1), "little") & ((1 << 8 * size) - 1)
    return (int.from_bytes(data, "little") ^ repeated).to_bytes(size, "little")


class _Message:
    """A message that is not complete yet."""

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
    """Reads the frames of one client.

    Parameters
    ----------
    max_size : int
        Maximum number of bytes of a message, all its fragments together.
    unmask : callable
        Undoes the masking of a payload, given the mask and the payload. The default is written in
        Python; Tornado and others have faster ones in C.
    """

    __slots__ = ("_at", "_buffer", "_final", "_left", "_mask", "_max_size", "_message", "_unmask")

    def __init__(self, max_size: int, unmask: Callable[[bytes, bytes], bytes] = unmask) -> None:
        self._max_size = max_size
        self._unmask = unmask
        # Slices of bytes cost half of those of a bytearray. The rest of a buffer after `next` is
        # less than a header or a control frame, so that joining it with the next bytes is cheap.
        self._buffer = b""
        self._at = 0  # the place of the next frame in `_buffer`
        self._message: _Message | None = None  # the incomplete message
        # The rest of its current fragment: number of bytes, mask, and whether it is the last one.
        self._left = 0
        self._mask = b""
        self._final = False

    def read(self, data: bytes) -> Iterator[Event]:
        """Take bytes from the client, and return the messages and control frames that they end.

        Read all of them before the next call. `PARTIAL` and the errors are those of `next`.
        """
        self.feed(data)
        while (event := self.next()) is not None:
            yield event

    def feed(self, data: bytes) -> None:
        """Take bytes from the client; then call `next` until it returns None."""
        rest = self._buffer[self._at :]
        self._buffer = rest + data if rest else bytes(data)
        self._at = 0

    @property
    def unread(self) -> bool:
        """True if there are bytes behind the last event: another frame, or a part of one."""
        return self._at < len(self._buffer)

    def next(self) -> Event | None:
        """Return the next message or control frame, `PARTIAL`, or None if it is incomplete.

        Raises
        ------
        ProtocolViolation
            If the client violates RFC 6455.
        FrameTooBig
            If a message is larger than `max_size`.
        """
        if self._left:
            return self._read_fragment()
        buffer, at = self._buffer, self._at
        available = len(buffer)
        if available - at < 2:
            return None
        first, second = buffer[at], buffer[at + 1]
        message = self._message
        if first not in _USUAL or second < _MASKED or message is not None:
            self._check(first, second)
        opcode, size = first & 0x0F, second & 0x7F
        start = at + 2
        if size >= 126:
            start += 2 if size == 126 else 8
            if available < start:
                return None
            size = int.from_bytes(buffer[at + 2 : start], "big")
        control = opcode & _CONTROL
        if not control and size + (message.nbytes if message else 0) > self._max_size:
            raise FrameTooBig(f"a message of more than {self._max_size} bytes")
        start += 4
        end = start + size
        if available < end:
            if control or available < start:
                return None
        elif control or (message is None and first & _FIN):
            self._at = end
            data = self._unmask(buffer[start - 4 : start], buffer[start:end])
            return opcode, _text(data) if opcode == TEXT else data
        if message is None:
            self._message = _Message(opcode)
        self._at, self._left, self._mask = start, size, buffer[start - 4 : start]
        self._final = bool(first & _FIN)
        return self._read_fragment()

    def _read_fragment(self) -> Event | None:
        """Add the available bytes of the current fragment to its message."""
        message, at = self._message, self._at
        assert message is not None
        data = self._buffer[at : at + self._left]
        if data:
            message.add(self._unmask(self._mask, data))
            size = len(data)
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
        """Check the first two bytes of a frame."""
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
