"""The greeting: the first 64 bytes that each peer sends (RFC 37, section "Version Negotiation").

::

    byte   0       9      10       11       12         32         33
           FF ...  7F     major    minor    mechanism  as-server  filler, up to byte 63

The bytes between 0 and 9 have no meaning in ZMTP 3. In ZMTP 2 and 1 they were the length of a long
frame, so that an old peer takes the greeting for the identity of a peer of its own version.
"""

from __future__ import annotations

from typing import Final

from kbridge.errors import NotZmtp, OldZmtp, ZmtpError
from kbridge.wire.zmtp.commands import printable

__all__ = ["GREETING", "GREETING_SIZE", "parse_greeting"]

_MECHANISM: Final = b"NULL".ljust(20, b"\0")

GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + _MECHANISM + b"\0" + bytes(31)
"""The greeting of this side: ZMTP 3.1, NULL, not a server."""

GREETING_SIZE: Final = len(GREETING)


def parse_greeting(data: bytes | bytearray) -> int | None:
    """Return the minor version of ZMTP 3 that both peers speak, or None if bytes are missing.

    A fault is noticed as early as the bytes allow: a peer of an old version may send no more than
    its first bytes before it waits.

    Parameters
    ----------
    data : bytes
        All bytes that the peer has sent; those after the greeting are ignored.

    Raises
    ------
    OldZmtp
        If the peer speaks ZMTP 1.0 or 2.0 only.
    NotZmtp
        If the bytes are not ZMTP.
    ZmtpError
        If the peer requires another mechanism than NULL.
    """
    size = len(data)
    if not size:
        return None
    if data[0] != 0xFF:
        # A peer of ZMTP 1.0 begins with the frame of its identity: length, flags 0, identity.
        if not data[0] or data[1:2].strip(b"\0"):
            raise _not_zmtp(data)
        if size == 1:
            return None
        raise OldZmtp("the peer speaks ZMTP 1.0; ZMTP 3.0 or newer is required")
    if size < 10:
        return None
    if data[9] != 0x7F:
        # In ZMTP 1.0, the length of an identity of 255 bytes.
        if data[9] or any(data[1:7]):
            raise _not_zmtp(data)
        raise OldZmtp("the peer speaks ZMTP 1.0; ZMTP 3.0 or newer is required")
    if size == 10:
        return None
    major = data[10]
    if major < 3:
        # The revision is 0 in ZMTP 1.0, and 1 in ZMTP 2.0.
        raise OldZmtp(f"the peer speaks ZMTP {major + 1}.0; ZMTP 3.0 or newer is required")
    if size >= 32 and data[12:32] != _MECHANISM:
        name = printable(bytes(data[12:32]).rstrip(b"\0"))
        raise ZmtpError(f"the peer requires the security mechanism {name}, not NULL")
    if size < GREETING_SIZE:
        return None
    # A peer of a later version speaks the version that it is greeted with.
    return min(data[11], 1) if major == 3 else 1


def _not_zmtp(data: bytes | bytearray) -> NotZmtp:
    return NotZmtp(f"the peer does not speak ZeroMQ; it answers {printable(bytes(data[:20]))!r}")
