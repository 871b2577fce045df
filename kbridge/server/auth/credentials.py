"""Stores the token and cookie secret of a server for the next server on the same address.

Without this, every page would lose its login when the server is restarted. Only the owner may read
the file; a file that another user could have read or written is not used.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import platform
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kbridge.private import read_private, write_private

__all__ = ["Credentials", "forget", "recall", "store"]

_LIMIT = 4096
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The token of a server, and the key that signs its cookies."""

    token: str = field(repr=False)
    cookie_secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Credentials:
        """Return new random credentials."""
        return cls(secrets.token_hex(24), secrets.token_bytes(32))

    @classmethod
    def of_cluster(cls, secret: str) -> Credentials:
        """Return the credentials that all replicas with this secret have.

        A client that knows the token does not know the secret.
        """

        def derive(use: bytes) -> bytes:
            return hmac.new(secret.encode(), b"kbridge-" + use, hashlib.sha256).digest()

        return cls(derive(b"token").hex()[:48], derive(b"cookies"))


def path_of(folder: Path, address: str) -> Path:
    """Return the path of the credentials file for an address of this machine."""
    text = f"{platform.node()}\0{address}"
    name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return folder / f"kbridge-credentials-{name}.json"


def recall(folder: Path, address: str, log: logging.Logger) -> Credentials:
    """Return the credentials of the last server on an address; new ones if there are none.

    Parameters
    ----------
    folder : Path
        The runtime directory.
    address : str
        The address that the server listens on. The caller has bound it, so no other server writes
        the file.
    log : logging.Logger
        Logs files that cannot be used.
    """
    path = path_of(folder, address)
    try:
        return _parse(read_private(path, _LIMIT))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        log.warning(
            "%s is not used (%s): the server has a new token, and every client must log in again",
            path,
            reason,
        )
    fresh = Credentials.new()
    store(folder, address, fresh, log)
    return fresh


def store(folder: Path, address: str, credentials: Credentials, log: logging.Logger) -> None:
    """Store credentials for the next server on an address; parameters as of `recall`."""
    path = path_of(folder, address)
    kept = {
        "address": address,
        "token": credentials.token,
        "cookie_secret": credentials.cookie_secret.hex(),
    }
    try:
        write_private(path, json.dumps(kept, indent=2).encode())
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): the next start will create a new token",
            path,
            error.strerror or error,
        )


def forget(folder: Path, address: str) -> None:
    """Remove the stored credentials of an address, if there are some."""
    with suppress(OSError):
        path_of(folder, address).unlink()


def _parse(content: bytes) -> Credentials:
    """Parse the file; raise a ValueError that does not repeat the content if it is damaged."""
    try:
        kept = json.loads(content)
        token, secret = kept["token"], kept["cookie_secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError from None
    whole = all(isinstance(v, str) and _HEX.fullmatch(v) for v in (token, secret))
    if not whole or (len(token), len(secret)) != (48, 64):
        raise ValueError
    return Credentials(token, bytes.fromhex(secret))
