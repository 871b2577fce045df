"""The cookie of a browser whose user logs in at another server (OAuth 2, RFC 6749 and 7636).

It has a signature, so that any replica can finish a login. The cookie proves that the browser which
returns is the one that has begun, unless a page of another subdomain can set cookies for this one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import Final

__all__ = ["LIFETIME", "LoginState", "cookie_suffix"]

LIFETIME: Final = 600
"""Seconds that a login may take."""


def cookie_suffix(state: str) -> str:
    """Return the end of the cookie's name, which differs between logins at the same time."""
    return hashlib.sha256(state.encode("utf-8", "replace")).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class LoginState:
    """A login that has begun.

    Attributes
    ----------
    state : str
        The random text that comes back with the browser.
    target : str
        The path that the user wanted.
    verifier : str
        The secret that belongs to the code which comes back (PKCE).
    until : float
        The end of the login, in unix seconds.
    """

    state: str
    target: str
    verifier: str = field(repr=False)
    until: float

    def seal(self, key: bytes) -> str:
        """Return the value of the cookie."""
        text = json.dumps([self.state, self.target, self.verifier, self.until])
        body = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        return f"{body}.{_sign(key, body)}"

    @classmethod
    def open(cls, key: bytes, cookie: str, state: str, now: float) -> LoginState | None:
        """Return the login of a cookie, if this server has begun it and it belongs to `state`.

        Parameters
        ----------
        key : bytes
            The key of the signature.
        cookie : str
            The value of the cookie; empty if there is none.
        state : str
            The text that came back with the browser.
        now : float
            Unix seconds.
        """
        body, _, signature = cookie.partition(".")
        expected = _sign(key, body).encode()
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), expected):
            return None
        found = cls(*json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))))
        same = hmac.compare_digest(found.state.encode(), state.encode("utf-8", "replace"))
        return found if same and now < found.until else None


def _sign(key: bytes, body: str) -> str:
    key = hashlib.sha256(b"kbridge-login-state:" + key).digest()
    return hmac.new(key, body.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
