"""The signature that a kernel and its clients put on every message.

HMAC over header, parent header, metadata and content, in hex (jupyter_client docs, "Messaging in
Jupyter", the wire protocol). An empty key means that nobody signs and nobody checks.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from kbridge.wire.message import Buffer

__all__ = ["Signer"]


class Signer:
    """Signs and verifies the messages of one kernel.

    Parameters
    ----------
    key : bytes
        The key of the connection file; empty: messages are neither signed nor checked.
    scheme : str
        ``hmac-<name>``, with any fixed-length hash that hashlib knows.

    Raises
    ------
    ValueError
        If hashlib knows no such hash; the text names the setting.
    """

    __slots__ = ("_keyed", "enabled", "scheme")

    _keyed: hmac.HMAC
    enabled: bool
    scheme: str

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        kind, _, name = scheme.partition("-")
        try:
            hashed = hashlib.new(name if kind == "hmac" else "")
        except ValueError:
            raise ValueError(f"signature_scheme: unknown scheme {scheme!r}") from None
        if not hashed.digest_size:  # shake: as long as one asks for, so no HMAC
            raise ValueError(f"signature_scheme: {scheme!r} has no fixed length")
        self.enabled = bool(key)
        self.scheme = scheme
        # Has read the key already: a copy is cheaper than to begin anew for each message. Of the
        # object in C where there is one, for hmac's own makes a Python object of each copy, which
        # is a quarter of a signature's time.
        keyed = hmac.new(key, digestmod=name)
        self._keyed = getattr(keyed, "_hmac", None) or keyed

    def __repr__(self) -> str:
        return f"<Signer {self.scheme if self.enabled else 'off'}>"

    def sign(self, parts: Iterable[Buffer]) -> bytes:
        """Sign the parts together.

        Parameters
        ----------
        parts : iterable of bytes or memoryview
            Header, parent header, metadata and content, as they go out.

        Returns
        -------
        bytes
            The digest in hex, or nothing if the key is empty.
        """
        if not self.enabled:
            return b""
        mac = self._keyed.copy()
        mac.update(b"".join(parts))
        return mac.hexdigest().encode()

    def verify(self, signature: Buffer, parts: Iterable[Buffer]) -> bool:
        """Tell, in constant time, whether the parts were signed with the key.

        Always true if the key is empty.
        """
        return not self.enabled or hmac.compare_digest(signature, self.sign(parts))
