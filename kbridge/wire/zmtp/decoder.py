"""Decode the frames that a ZMTP peer sends after its handshake (RFC 37, section "Framing").

Properties of this module:

- bytes in, whole messages out: no I/O, and no clock;
- a call costs no more than the bytes fed since the last call, however they are divided, and it
  returns a bounded number of messages;
- the head of a frame is checked before memory is set aside for its body. The memory for a long part
  is requested in one piece, but the operating system provides it only as bytes arrive: `bytes(n)`
  calls calloc, which does not touch new memory (it clears memory that the process had used before);
- a long part is received in its final place, and becomes `bytes` without a copy;
- the messages do not depend on how the bytes are divided.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

from kbridge.errors import MessageTooBig, ZmtpError
from kbridge.wire.message import RawMessage
from kbridge.wire.speedups import split
from kbridge.wire.zmtp.commands import COMMAND_LIMIT
from kbridge.wire.zmtp.shape import Shape

__all__ = ["Decoder", "frame_size"]

_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_FLAGS: Final = frozenset({0, _MORE, _LONG, _LONG | _MORE, _COMMAND, _COMMAND | _LONG})
_SHORT_LIMIT: Final = 255
_JOINED: Final = 64 << 10  # bytes up to which the pieces of an incomplete frame are joined

# A call stops after so many messages, so that a chunk of tiny ones does not hold up the caller. At
# places that are `_STRIDE` bytes per message apart, they are counted: as a message has 2 bytes or
# more, a call returns at most twice as many. The usual chunk has fewer: 128 KiB.
_BATCH: Final = 1000
_STRIDE: Final = 4
# Messages that look alike are searched for in chunks of this many bytes or more.
_FLOOD: Final = 8192
_WORTHWHILE: Final = 8  # messages for which making a shape is worthwhile
_MAX_DISTANCE: Final = 64 << 10
_SHAPE_PARTS: Final = 32


def frame_size(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """Return the place and the size of the body of the frame at `at`; None if its head is cut."""
    if len(data) < at + 2:
        return None
    if not data[at] & _LONG:
        return at + 2, data[at + 1]
    if len(data) < at + 9:
        return None
    return at + 9, int.from_bytes(data[at + 1 : at + 9], "big")


class Decoder:
    """Decodes the messages and commands of one peer.

    Parameters
    ----------
    part_limit : int
        Maximum number of bytes of one part of a message.
    message_limit : int
        Maximum number of bytes of all parts of a message.
    parts_limit : int
        Maximum number of parts of a message.

    Attributes
    ----------
    commands : list of (int, bytes)
        The commands that were decoded since `take_commands`: the number of messages that the same
        call of `feed` returns from before the command, and the body of the command.
    more : bool
        True if the last call has left whole messages for the next one, because they are many: call
        `feed` again, without bytes if there are none.
    pending : memoryview or None
        The place for the rest of a long part. Receive into it, and call `received`. While it is not
        None, do not call `feed`.
    fault : ZmtpError or None
        Set when the peer has violated the protocol or a limit. The messages before the violation
        were returned; later bytes are ignored.
    """

    __slots__ = (
        "_buffer",
        "_counted",
        "_distance",
        "_last",
        "_long",
        "_message_limit",
        "_needed",
        "_part_limit",
        "_parts",
        "_parts_limit",
        "_rest",
        "_shape",
        "_size",
        "_split",
        "_try_at",
        "_unchecked",
        "commands",
        "fault",
        "more",
        "pending",
    )

    def __init__(self, part_limit: int, message_limit: int, parts_limit: int) -> None:
        self._part_limit = part_limit
        self._message_limit = message_limit
        self._parts_limit = parts_limit
        # Fewer bytes than that cannot exceed the limits. The loop does not look at short parts.
        self._unchecked = message_limit if part_limit >= _SHORT_LIMIT else -1
        self._parts: RawMessage = []  # the whole parts of the incomplete message
        self._counted = 0  # the number of them whose bytes are in `_size`
        self._size = 0
        self._split = 0  # the bytes of its frames
        self._rest = bytearray()  # the incomplete frame, unless `pending` has it
        self._needed = 0  # the size that `_rest` must have until it is looked at again
        self._shape = Shape(())  # the shape of recent messages
        self._distance = 0  # bytes between attempts to read messages of one shape
        self._try_at = 0  # the place of the next attempt in the present chunk
        self._buffer: BytesIO | None = None  # the memory of `pending`
        self._long = 0  # the bytes of the frame that `pending` belongs to
        self._last = False  # True if `pending` is the last part of its message
        self.commands: list[tuple[int, bytes]] = []
        self.more = False
        self.pending: memoryview | None = None
        self.fault: ZmtpError | None = None

    def take_commands(self) -> list[tuple[int, bytes]]:
        """Return the commands that were decoded since the last call."""
        taken, self.commands = self.commands, []
        return taken

    def feed(self, data: bytes) -> list[RawMessage]:  # noqa: C901  # calls cost more than frames
        """Take bytes of the peer, and return messages that they complete, in order; see `more`."""
        assert self.pending is None, "receive into `pending` first"
        if self._rest or self.fault is not None:
            data = self._join(data)
        messages: list[RawMessage] = []
        at = whole = 0  # `whole`: the end of the last message
        end = len(data)
        if split is not None and not self._parts and end < _STRIDE * _BATCH:
            at = whole = split(data, 0, self._part_limit, self._parts_limit, end, messages)
        # The hot loop: about seven frames per message. A short part that is not the last one is cut
        # out before its end is known to be there; if it is not, the part is removed after the loop.
        parts = self._parts
        add = parts.append
        part_limit, parts_limit = self._part_limit, self._parts_limit
        frame = at
        look_at = self._begin_chunk(end) if end >= _STRIDE * _BATCH else end + 1
        try:
            while at < end:
                while (flags := data[at]) == _MORE:
                    frame = at
                    body = at + 2
                    at = body + data[at + 1]
                    add(data[body:at])
                frame = at
                if flags == 0:
                    body = at + 2
                    at = body + data[at + 1]
                    if at > end:
                        break
                elif flags < _COMMAND:
                    body = at + 9
                    size = int.from_bytes(data[at + 1 : body], "big")
                    if size > end - body or size > part_limit:
                        break
                    at = body + size
                else:
                    at = self._read_command(data, at, len(messages))
                    if at == frame:
                        break
                    if not parts:
                        whole = at
                    if len(self.commands) >= _BATCH:
                        frame = at
                        self.more = at < end
                        break
                    continue
                add(data[body:at])
                if flags & _MORE:
                    continue
                messages.append(parts)
                if len(parts) > parts_limit:
                    break
                if at >= look_at:
                    room = _BATCH - len(messages)
                    if room > 0 and at < self._try_at:
                        look_at = at + _STRIDE * room
                    else:
                        at, look_at = self._look(data, at, messages)
                        if len(messages) >= _BATCH:
                            whole = frame = at
                            parts = []
                            break
                whole = at
                parts = []
                add = parts.append
        except IndexError:
            pass  # the head of a frame is cut, or the next frame of the message is missing
        self._parts = parts
        if at == end and not parts and not self._counted and end <= self._unchecked:
            return messages
        if at > end and flags == _MORE:
            parts.pop()
        return self._finish(data, end if at == end else frame, whole, messages)

    @property
    def unfinished(self) -> int:
        """The number of bytes since the end of the last message, or of a command after it.

        A decoder that is fed with these bytes again continues where this one is.
        """
        long = 0 if self.pending is None else self._long - len(self.pending)
        return self._split + len(self._rest) + long

    def received(self, size: int) -> list[RawMessage]:
        """Note that `size` bytes were received into the beginning of `pending`.

        Returns
        -------
        list of RawMessage
            The message that they complete, if any.
        """
        view, buffer = self.pending, self._buffer
        assert view is not None
        assert buffer is not None
        self.pending = rest = view[size:]
        view.release()
        if rest:
            return []
        rest.release()
        self.pending = self._buffer = None
        part = buffer.getvalue()  # the memory itself: nothing else uses it now
        self._parts.append(part)
        self._split += self._long
        if not self._last:
            return self._finish(b"", 0, 0, [])
        message, self._parts, self._split = self._parts, [], 0
        return self._finish(b"", 0, 0, self._check([message]))

    def _begin_chunk(self, size: int) -> int:
        """Return the first place in a chunk of this size at which to call `_look`."""
        self._try_at = size + 1
        if size >= _FLOOD:
            if self._distance >= size:
                self._distance //= 2  # so that small chunks are tried again at some time
            self._try_at = self._distance
        return min(self._try_at, _STRIDE * _BATCH)

    def _look(self, data: bytes, at: int, messages: list[RawMessage]) -> tuple[int, int]:
        """Append the messages at a place that look like the last one, if there are many.

        Returns
        -------
        int
            The place of the next message.
        int
            The next place at which to count the messages.
        """
        if at >= self._try_at and len(messages) < _BATCH:
            at = self._read_similar(data, at, messages)
        room = _BATCH - len(messages)
        self.more = room <= 0 and at < len(data)
        return at, min(self._try_at, at + _STRIDE * room)

    def _read_similar(self, data: bytes, at: int, messages: list[RawMessage]) -> int:
        """Append the messages that look like the last one; return the place of the next message.

        The compiled function appends whatever they look like, until one is unusual.

        The next attempt is further away after each attempt that was in vain, because an attempt
        costs as much as several messages.
        """
        before = len(messages)
        parts = messages[-1]
        if split is not None:
            room = _BATCH - before
            at = split(data, at, self._part_limit, self._parts_limit, room, messages)
        elif len(parts) <= _SHAPE_PARTS:
            sizes = tuple(map(len, parts[:-1]))
            if sizes != self._shape.sizes:
                self._shape = Shape(sizes)
            at = self._shape.read(data, at, self._part_limit, messages, _BATCH - before)
        if len(messages) - before > _WORTHWHILE:
            self._distance = 0
        else:
            self._distance = min(max(2 * self._distance, _FLOOD // 8), _MAX_DISTANCE)
        self._try_at = at + self._distance
        return at

    def _join(self, data: bytes) -> bytes:
        """Return the incomplete frame with the bytes after it, or nothing if it stays incomplete.

        The pieces of a frame are collected until there are enough of them, so that many small
        pieces are not joined again and again.
        """
        rest = self._rest
        self.more = False
        if self.fault is not None:
            return b""
        if len(rest) + len(data) < self._needed:
            rest += data
            return b""
        self._rest = bytearray()
        return b"".join((rest, data))

    def _read_command(self, data: bytes, at: int, before: int) -> int:
        """Note the command at a place; return its end, or the place if it is cut or not valid."""
        found = frame_size(data, at)
        if data[at] not in _FLAGS or found is None:
            return at
        body, size = found
        if size > COMMAND_LIMIT or size > len(data) - body:
            return at
        self.commands.append((before, data[body : body + size]))
        return body + size

    def _finish(
        self, data: bytes, at: int, whole: int, messages: list[RawMessage]
    ) -> list[RawMessage]:
        """Check the limits of the messages, and keep the incomplete frame at a place."""
        self._split = at - whole if whole else self._split + at
        if self._size + len(data) > self._unchecked or len(self._parts) > self._parts_limit:
            messages = self._check(messages)
        if self.fault is not None:
            self._parts = []
            self.more = False
            return messages
        if messages:
            self._counted = self._size = 0
        parts = self._parts
        if len(parts) > self._counted:
            self._size += sum(map(len, parts[self._counted :]))
            self._counted = len(parts)
        if self.more:
            self._needed = 0
            self._rest += data[at:]
        elif at < len(data):
            self._keep(data, at)
        return messages

    def _check(self, messages: list[RawMessage]) -> list[RawMessage]:
        """Return the messages before the first one that exceeds a limit."""
        for number, parts in enumerate([*messages, self._parts]):
            sizes = [len(part) for part in parts]
            if len(sizes) > self._parts_limit:
                self.fault = ZmtpError(f"a message of more than {self._parts_limit} parts")
            elif max(sizes, default=0) > self._part_limit:
                self.fault = self._too_big("a part of a message", self._part_limit)
            elif sum(sizes) > self._message_limit:
                self.fault = self._too_big("a message", self._message_limit)
            else:
                continue
            return messages[:number]
        return messages

    def _keep(self, data: bytes, at: int) -> None:
        """Keep the incomplete frame at a place, or note the fault of its head."""
        flags = data[at]
        found = frame_size(data, at)
        if flags not in _FLAGS:
            self.fault = ZmtpError(f"a frame with the invalid flags {flags:#04x}")
        elif found is None:
            self._needed = 9 if flags & _LONG else 2
            self._rest += data[at:]
        elif not self._accept(flags, body_size := found[1]):
            pass
        elif body_size > _JOINED:
            self._begin_long_part(data, *found, last=not flags & _MORE)
        else:
            self._needed = sum(found) - at
            self._rest += data[at:]

    def _accept(self, flags: int, size: int) -> bool:
        """Return True if the body of a frame may have this size, or set `fault`."""
        if flags & _COMMAND:
            if size > COMMAND_LIMIT:
                self.fault = ZmtpError(f"a command of more than {COMMAND_LIMIT} bytes")
        elif size > self._part_limit:
            self.fault = self._too_big("a part of a message", self._part_limit)
        elif self._size + size > self._message_limit:
            self.fault = self._too_big("a message", self._message_limit)
        return self.fault is None

    def _begin_long_part(self, data: bytes, body: int, size: int, *, last: bool) -> None:
        try:
            # BytesIO takes the object over, and getvalue() returns it: `bytes` without a copy.
            self._buffer = BytesIO(bytes(size))
        except (MemoryError, OverflowError):
            self.fault = ZmtpError(f"there is no memory for a part of {size} bytes")
            return
        here = len(data) - body
        with self._buffer.getbuffer() as view, memoryview(data) as fed:  # copied once
            view[:here] = fed[body:]
            self.pending = view[here:]
        self._last = last
        self._long = 9 + size

    @staticmethod
    def _too_big(what: str, limit: int) -> MessageTooBig:
        return MessageTooBig(f"{what} has more than {limit} bytes", limit)
