"""Sign and verify messages.

The signature is an HMAC over header, parent header, metadata and content, in hex (jupyter_client
docs, "Messaging in Jupyter", the wire protocol). With an empty key, messages are not signed and not
verified.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from kbridge.errors import InvalidConnectionInfo
from kbridge.wire.message import Buffer

__all__ = ["Signer", "hash_of"]

_LARGE: Final = 64 << 10  # bytes of content that are not copied to be signed

# RFC 2104, section 2: the key is combined with two constants.
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))


class Signer:
    """Signs and verifies the messages of one kernel.

    Parameters
    ----------
    key : bytes
        The key of the connection file. Empty: messages are neither signed nor verified.
    scheme : str
        ``hmac-<name>`` with the name of a fixed-length hash of hashlib.

    Raises
    ------
    InvalidConnectionInfo
        If hashlib does not have that hash.

    Attributes
    ----------
    inner, outer : hash or None
        The two hashes of RFC 2104, which have already processed the key; copy them before use. None
        if the key is empty.
    """

    __slots__ = ("enabled", "inner", "outer", "scheme")

    enabled: bool
    scheme: str

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        name = hash_of(scheme)
        self.enabled = bool(key)
        self.scheme = scheme
        self.inner = self.outer = None
        if key:
            # Copying these hashes is cheaper than creating an HMAC for each message, and than
            # copying an HMAC.
            size = hashlib.new(name).block_size
            block = key if len(key) <= size else hashlib.new(name, key).digest()
            block = block.ljust(size, b"\0")
            self.inner = hashlib.new(name, block.translate(_INNER))
            self.outer = hashlib.new(name, block.translate(_OUTER))

    def __repr__(self) -> str:
        return f"<Signer {self.scheme if self.enabled else 'off'}>"

    def sign(self, parts: Sequence[Buffer]) -> bytes:
        """Return the signature of the parts.

        Parameters
        ----------
        parts : sequence of bytes or memoryview
            Header, parent header, metadata and content, as they are sent.

        Returns
        -------
        bytes
            The digest in hex; empty if the key is empty.
        """
        if self.inner is None or self.outer is None:
            return b""
        inner = self.inner.copy()
        if len(parts[-1]) <= _LARGE:
            inner.update(b"".join(parts))
        else:
            for part in parts:
                inner.update(part)
        outer = self.outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest().encode()

    def verify(self, signature: Buffer, parts: Sequence[Buffer]) -> bool:
        """Return True if the parts were signed with the key; compares in constant time.

        Always returns True if the key is empty.
        """
        return not self.enabled or hmac.compare_digest(signature, self.sign(parts))


def hash_of(scheme: str) -> str:
    """Return hashlib's name of the hash of a signature scheme.

    Raises
    ------
    InvalidConnectionInfo
        If the scheme is not ``hmac-<name>``, or hashlib has no such hash of fixed length.
    """
    kind, _, name = scheme.partition("-")
    try:
        hashed = hashlib.new(name if kind == "hmac" else "")
    except ValueError:
        raise InvalidConnectionInfo(f"signature_scheme: unknown scheme {scheme!r}") from None
    if not hashed.digest_size:  # shake has no fixed length, so it cannot be used with HMAC
        raise InvalidConnectionInfo(f"signature_scheme: {scheme!r} has no fixed length")
    return name
