"""One connection to a ZMTP peer, from the greeting on: bytes in, messages and bytes out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kbridge.errors import ZmtpError
from kbridge.wire.message import RawMessage
from kbridge.wire.zmtp import commands
from kbridge.wire.zmtp.commands import COMMAND_LIMIT, SocketType
from kbridge.wire.zmtp.decoder import Decoder, frame_size
from kbridge.wire.zmtp.greeting import GREETING, GREETING_SIZE, parse_greeting

__all__ = ["Limits", "Peer", "SocketType"]


class Limits(NamedTuple):
    """The maximum sizes of what a peer may send.

    Attributes
    ----------
    part : int
        Bytes of one part of a message.
    message : int
        Bytes of all parts of a message.
    parts : int
        Number of parts of a message.
    """

    part: int
    message: int
    parts: int = 1 << 16


class Peer:
    """The state of one connection.

    No method raises an error because of the bytes of the peer: `fault` has it.

    Parameters
    ----------
    socket_type : SocketType
        The type of this side's socket. A SUB subscribes to all messages.
    identity : bytes
        The identity of a DEALER.
    limits : Limits
        The limits of what the peer may send.

    Attributes
    ----------
    decoder : Decoder
        Decodes messages after the handshake.
    established : bool
        True once the READY of the peer was read, and its socket fits. Send messages only then:
        libzmq hangs up if a message or a subscription arrives before it has sent its READY.
    minor : int
        Once established, the version: ZMTP 3.0 or 3.1.
    fault : ZmtpError or None
        The reason for which the connection has to be closed. Messages that were returned before, or
        together with it, are valid.
    output : bytes
        Bytes to be sent now; see `take_output`.
    taken : int
        The number of bytes that this object was given.
    begin : int
        Once established, the number of these bytes that belong to the handshake.
    """

    __slots__ = (
        "_handshake",
        "_identity",
        "_socket_type",
        "_subscription",
        "begin",
        "decoder",
        "established",
        "fault",
        "minor",
        "output",
        "taken",
    )

    def __init__(self, socket_type: SocketType, identity: bytes, limits: Limits) -> None:
        self._socket_type = socket_type
        self._subscription = b""  # the part of `output` that must be sent
        self._identity = identity
        self._handshake = bytearray()  # the bytes of an incomplete handshake
        self.decoder = Decoder(limits.part, limits.message, limits.parts)
        self.established = False
        self.minor = 0
        self.fault: ZmtpError | None = None
        self.output = b""
        self.taken = self.begin = 0

    @classmethod
    def resume(cls, socket_type: SocketType, identity: bytes, limits: Limits, minor: int) -> Peer:
        """Return the state of a connection whose handshake was done by another process.

        Feed it with the bytes that the other process had not taken, see `unfinished`.
        """
        peer = cls(socket_type, identity, limits)
        peer.established = True
        peer.minor = minor
        return peer

    def start(self) -> bytes:
        """Return the bytes to send when the connection is made: greeting and READY."""
        return GREETING + commands.ready(self._socket_type, self._identity)

    def feed(self, data: bytes) -> list[RawMessage]:
        """Take bytes of the peer, and return messages that they complete; see `Decoder.more`."""
        if self.fault is not None:
            return []
        self.taken += len(data)
        if self.established:
            decoder = self.decoder
            messages = decoder.feed(data)
            if decoder.commands or decoder.fault is not None:
                return self._handle_commands(messages)
            return messages
        self._handshake += data
        try:
            if not self._shake_hands():
                return []
        except ZmtpError as error:
            self.fault = error
            return []
        rest = bytes(self._handshake)
        self._handshake.clear()
        self.taken -= len(rest)  # they are counted again
        self.begin = self.taken
        return self.feed(rest)

    @property
    def pending(self) -> memoryview | None:
        """The memory for the rest of a long part; see `Decoder.pending`."""
        return self.decoder.pending

    @property
    def unfinished(self) -> int:
        """The number of bytes that belong to an incomplete handshake or message."""
        return len(self._handshake) + self.decoder.unfinished

    def received(self, size: int) -> list[RawMessage]:
        """Note that `size` bytes were received into `pending`; see `Decoder.received`."""
        if self.fault is not None:
            return []
        self.taken += size
        messages = self.decoder.received(size)
        self.fault = self.decoder.fault
        return messages

    def feed_all(self, data: bytes) -> Iterator[list[RawMessage]]:
        """Take bytes of the peer, also of long parts, and yield the messages that they complete."""
        rest = memoryview(data)
        while rest or self.decoder.more:
            place = self.decoder.pending
            if place is None:
                batch = self.feed(bytes(rest))
                rest = rest[:0]
            else:
                count = min(len(place), len(rest))
                place[:count] = rest[:count]
                place = None
                rest = rest[count:]
                batch = self.received(count)
            if batch:
                yield batch

    def take_output(self) -> bytes:
        """Return the bytes to be sent now, and forget them."""
        output, self.output = self.output, b""
        self._subscription = b""
        return output

    def _shake_hands(self) -> bool:
        """Read the greeting and the READY of the peer; return False if bytes are missing."""
        data = self._handshake
        minor = parse_greeting(data)
        if minor is None:
            return False
        body = frame_size(data, GREETING_SIZE)
        if body is None:
            return False
        start, size = body
        if not data[GREETING_SIZE] & 4 or size > COMMAND_LIMIT:
            raise ZmtpError("the peer sent something else than READY after its greeting")
        if len(data) < start + size:
            return False
        name, value = commands.parse_command(bytes(data[start : start + size]))
        if name == b"ERROR":
            raise ZmtpError(f"the peer refuses the connection: {commands.error_reason(value)}")
        if name != b"READY":
            raise ZmtpError("the peer sent something else than READY after its greeting")
        commands.check_ready(value, self._socket_type)
        del data[: start + size]
        self.established = True
        self.minor = minor
        if self._socket_type is SocketType.SUB:
            # Not earlier, see `established`.
            self.output = self._subscription = commands.subscribe(minor)
        return True

    def _handle_commands(self, messages: list[RawMessage]) -> list[RawMessage]:
        """Answer the commands among these messages, and return those from before a fault."""
        self.fault = self.decoder.fault
        ping = None
        for before, body in self.decoder.take_commands():
            try:
                name, value = commands.parse_command(body)
                if name == b"PING":
                    ping = value
                elif name == b"ERROR":
                    raise ZmtpError(f"the peer reports: {commands.error_reason(value)}")
            except ZmtpError as error:
                self.fault = error
                messages = messages[:before]
                break
        if ping is not None:
            # One answer is enough: a peer only wants to know that this side is alive. More would
            # let it fill the memory of this side with answers that it does not read.
            self.output = self._subscription + commands.pong(ping)
        return messages
