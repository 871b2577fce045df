"""Seals the messages between a job and the bridge: one token, one exchange of keys.

This module is part of the script that runs on compute nodes, so it uses the standard library of
Python 3.8 only, which has no public-key cryptography. X25519 is RFC 7748's; the rest is built from
HMAC and SHAKE.

- The token and the bridge's public key are in the batch script, the job's public key is in each
  message. The token alone proves that a sender has the script; the agreed key hides the content
  from everybody who has only read the script and the network.
- Only the bridge can answer: answers are authenticated with the agreed key, which needs the
  bridge's secret key or the job's.
- A key pair serves one job, so an attacker cannot measure many uses of one secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from typing import Any

__all__ = ["Seals", "proof", "public_key", "x25519"]

_P = 2**255 - 19
_BASE = (9).to_bytes(32, "little")


def x25519(secret: bytes, public: bytes) -> bytes:
    """Return the X25519 function of a secret and a public key (RFC 7748, section 5)."""
    number = bytearray(secret)
    number[0] &= 248
    number[31] = number[31] & 127 | 64
    k = int.from_bytes(number, "little")
    x1 = int.from_bytes(public, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3, swapped = 1, 0, x1, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swapped ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swapped = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % _P, b * b % _P, d * a % _P, c * b % _P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % _P, x1 * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, e * (aa + 121665 * e) % _P
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _P - 2, _P) % _P).to_bytes(32, "little")


def public_key(secret: bytes) -> bytes:
    """Return the public key of 32 random bytes."""
    return x25519(secret, _BASE)


def proof(token: bytes, job_public: bytes) -> str:
    """Return the proof that a sender with this public key has the token.

    It is checked first: it costs microseconds, and agreeing on a key a millisecond.
    """
    return hmac.new(token, b"kbridge slurm 1 proof" + job_public, "sha256").hexdigest()


class Seals:
    """The keys of one job and one bridge.

    Parameters
    ----------
    token : bytes
        The token in the batch script.
    secret : bytes
        The secret key of this side.
    peer : bytes
        The public key of the other side.
    job_public : bytes
        The public key of the job: one of the two.
    """

    def __init__(self, token: bytes, secret: bytes, peer: bytes, job_public: bytes) -> None:
        shared = x25519(secret, peer)
        if not any(shared):
            raise ValueError("the public key has a small order")
        self._master = hmac.new(token, b"kbridge slurm 1" + job_public + shared, "sha256").digest()

    def seal(self, sender: str, content: Any) -> str:
        """Return a JSON object (`content`) as text that only the other side can read.

        `sender` is `job` or `bridge`; a message cannot be sent back to its sender.
        """
        data = json.dumps(content).encode()
        nonce = os.urandom(16)
        data = self._mask(sender, nonce, data)
        return base64.b64encode(self._tag(sender, nonce + data) + nonce + data).decode()

    def open(self, sender: str, text: str) -> Any:
        """Return the content of a message of `sender`.

        Raises
        ------
        ValueError
            If the message is not from the other side.
        """
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            raise ValueError("the message is not base64") from None
        tag, rest = data[:32], data[32:]
        if len(rest) < 16 or not hmac.compare_digest(tag, self._tag(sender, rest)):
            raise ValueError("the message has a wrong signature")
        return json.loads(self._mask(sender, rest[:16], rest[16:]).decode())

    def _key(self, sender: str, use: str) -> bytes:
        return hmac.new(self._master, (sender + " " + use).encode(), "sha256").digest()

    def _tag(self, sender: str, data: bytes) -> bytes:
        return hmac.new(self._key(sender, "sign"), data, "sha256").digest()

    def _mask(self, sender: str, nonce: bytes, data: bytes) -> bytes:
        stream = hashlib.shake_256(self._key(sender, "hide") + nonce).digest(len(data))
        masked = int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")
        return masked.to_bytes(len(data), "big")
