"""The commands that peers exchange beside messages (RFC 37, section "Commands").

A command is a frame whose body is one byte with the length of its name, the name, and its data.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from kbridge.errors import ZmtpError

__all__ = [
    "COMMAND_LIMIT",
    "SocketType",
    "check_ready",
    "error_reason",
    "parse_command",
    "parse_properties",
    "pong",
    "printable",
    "ready",
    "subscribe",
]

COMMAND_LIMIT: Final = 8192
"""Maximum number of bytes of a command. READY is the longest one; it has about 30 to 300."""

_TEXT_LIMIT: Final = 255  # bytes of a peer's text that are shown
_CONTEXT_LIMIT: Final = 16  # bytes of a PING that its PONG repeats
_TTL_SIZE: Final = 2


class SocketType(StrEnum):
    """The type of this side's socket."""

    SUB = "SUB"
    DEALER = "DEALER"


_PEERS: Final = {
    SocketType.SUB: frozenset({b"PUB", b"XPUB"}),
    SocketType.DEALER: frozenset({b"ROUTER", b"REP", b"DEALER"}),
}


def _command(name: bytes, data: bytes) -> bytes:
    body = bytes((len(name),)) + name + data
    size = len(body)
    head = bytes((4, size)) if size < 256 else b"\x06" + size.to_bytes(8, "big")
    return head + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def ready(socket_type: SocketType, identity: bytes = b"") -> bytes:
    """Return the command READY of this side.

    Parameters
    ----------
    socket_type : SocketType
        The type of this side's socket.
    identity : bytes
        At most 255 bytes; by it, a ROUTER addresses its messages. Empty: the ROUTER chooses one.
    """
    properties = _property(b"Socket-Type", socket_type.value.encode())
    if socket_type is SocketType.DEALER:
        properties += _property(b"Identity", identity)
    return _command(b"READY", properties)


def subscribe(minor: int) -> bytes:
    """Return the subscription to all messages, for a peer of ZMTP 3.`minor`."""
    return _command(b"SUBSCRIBE", b"") if minor else b"\x00\x01\x01"


def pong(data: bytes) -> bytes:
    """Return the answer to a PING with this data: time to live, and context."""
    return _command(b"PONG", data[_TTL_SIZE : _TTL_SIZE + _CONTEXT_LIMIT])


def parse_command(body: bytes) -> tuple[bytes, bytes]:
    """Return the name and the data of a command.

    Raises
    ------
    ZmtpError
        If the body ends before the name does.
    """
    end = 1 + body[0] if body else 1
    if end > len(body):
        raise ZmtpError("the peer sent a command without a whole name")
    return body[1:end], body[end:]


def parse_properties(data: bytes) -> dict[bytes, bytes]:
    """Return the properties of a READY. Their names do not depend on case, and are in lower case.

    Raises
    ------
    ZmtpError
        If the data ends within a property.
    """
    found = {}
    at = 0
    while at < len(data):
        name = at + 1
        value = name + data[at] + 4
        size = data[value - 4 : value]
        end = value + int.from_bytes(size, "big")
        if len(size) < 4 or end > len(data):
            raise ZmtpError("the peer sent a READY that ends within a property")
        found[data[name : value - 4].lower()] = data[value:end]
        at = end
    return found


def check_ready(data: bytes, socket_type: SocketType) -> None:
    """Check that a socket of this type may talk to the peer that sent this READY.

    A peer that does not name its type is accepted, as libzmq does.

    Raises
    ------
    ZmtpError
        If the properties are malformed, or the type of the peer's socket does not fit.
    """
    peer = parse_properties(data).get(b"socket-type")
    if peer is not None and peer not in _PEERS[socket_type]:
        raise ZmtpError(
            f"the peer has a socket of the type {printable(peer)}, to which a {socket_type.value}"
            " cannot connect"
        )


def error_reason(data: bytes) -> str:
    """Return the reason of an ERROR, without control characters."""
    return printable(data[1 : 1 + data[0]]) if data else ""


def printable(data: bytes) -> str:
    """Return the beginning of a peer's text; `?` replaces all but printable ASCII."""
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in data[:_TEXT_LIMIT])
