"""Sign and verify messages.

The signature is an HMAC over header, parent header, metadata and content, in hex (jupyter_client
docs, "Messaging in Jupyter", the wire protocol). With an empty key, messages are not signed and not
verified.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from kbridge.errors import InvalidConnectionInfo
from kbridge.wire.message import Buffer

__all__ = ["Signer", "hash_of"]


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
    """

    __slots__ = ("_keyed", "enabled", "scheme")

    _keyed: hmac.HMAC
    enabled: bool
    scheme: str

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        name = hash_of(scheme)
        self.enabled = bool(key)
        self.scheme = scheme
        # This object has already processed the key; copying it is cheaper than creating an HMAC for
        # each message. The object in C is used if it exists, because copying the object of the hmac
        # module creates a Python object, which takes a quarter of the time of a signature.
        keyed = hmac.new(key, digestmod=name)
        self._keyed = getattr(keyed, "_hmac", None) or keyed

    def __repr__(self) -> str:
        return f"<Signer {self.scheme if self.enabled else 'off'}>"

    def sign(self, parts: Iterable[Buffer]) -> bytes:
        """Return the signature of the parts.

        Parameters
        ----------
        parts : iterable of bytes or memoryview
            Header, parent header, metadata and content, as they are sent.

        Returns
        -------
        bytes
            The digest in hex; empty if the key is empty.
        """
        if not self.enabled:
            return b""
        mac = self._keyed.copy()
        mac.update(b"".join(parts))
        return mac.hexdigest().encode()

    def verify(self, signature: Buffer, parts: Iterable[Buffer]) -> bool:
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
