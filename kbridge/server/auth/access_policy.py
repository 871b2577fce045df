"""Who may come in: decisions about one request, without the request.

Laws of this module:

- nothing here knows Tornado, a socket or a clock: strings and bytes in, a decision out;
- names are compared whole: no prefix, suffix or substring ever lets anybody in;
- secrets are compared in constant time, and no reason ever repeats one.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["AccessPolicy", "Asked", "Decision", "Via", "parse_authorization", "parse_host"]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_ORIGIN = re.compile(r"(https?)://([^/\s]+)", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"(?:token|bearer)\s+(\S.*)", re.IGNORECASE | re.DOTALL)
_PORTS = {"http": 80, "https": 443}
_SAFE = {"GET", "HEAD", "OPTIONS"}


class Via(StrEnum):
    """How a request proved that it may come in."""

    OFF = "off"  # no token is asked for
    HEADER = "header"
    QUERY = "query"
    COOKIE = "cookie"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a decision needs to know of a request.

    `authorization` and `query_token` are bytes as they came; `fetch_site` is the browser's own
    word on where the request comes from (Fetch Metadata, `Sec-Fetch-Site`). `xsrf_header` is
    `X-XSRFToken`, `xsrf_cookie` the value of the cookie `_xsrf`.
    """

    method: str
    host: str
    protocol: str = "http"
    origin: str | None = None
    fetch_site: str | None = None
    authorization: bytes = b""
    query_token: bytes = b""
    cookie: str = ""
    xsrf_header: str = ""
    xsrf_cookie: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` is empty where the request may go on."""

    reason: str = ""
    via: Via | None = None

    @property
    def allowed(self) -> bool:
        """Whether the request may go on."""
        return not self.reason


def parse_host(host: str) -> tuple[str, int | None] | None:
    """Split a Host header into a name in lower case, without brackets, and a port.

    None where it is no host at all.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    name = match[1].lower().removeprefix("[").removesuffix("]")
    return name, int(match[2]) if match[2] else None


def parse_authorization(value: str | None) -> bytes:
    """Return the token of an Authorization header (`token X` or `Bearer X`), empty for none.

    Jupyter Server's gateway client sends `token ` with nothing after it when it has no token.
    """
    match = _AUTHORIZATION.fullmatch(value.strip()) if value else None
    # Tornado decodes header bytes as latin-1; this gives the bytes back.
    return match[1].encode("latin-1", "replace") if match else b""


@dataclass(frozen=True)
class AccessPolicy:
    """The rules of one server.

    Parameters
    ----------
    token : str
        What a client must show; empty lets everybody in.
    check_hosts : bool
        Refuse Host headers that name no local host (a page of evil.example whose name suddenly
        resolves to 127.0.0.1 sends its own name here: DNS rebinding).
    hostnames : frozenset of str
        Names and addresses taken for local besides loopback addresses.
    allow_origin : tuple of str
        Foreign origins let in, whole; `*` lets in every one.
    allow_origin_pat : re.Pattern, optional
        Likewise, where it matches the whole origin.
    cookie_secret : bytes
        Key of the cookie's value, so that the cookie does not hold the token.
    """

    token: str = field(default="", repr=False)
    check_hosts: bool = True
    hostnames: frozenset[str] = frozenset({"localhost"})
    allow_origin: tuple[str, ...] = ()
    allow_origin_pat: re.Pattern[str] | None = None
    cookie_secret: bytes = field(default=b"", repr=False)

    @property
    def auth_enabled(self) -> bool:
        """Whether a token is asked for."""
        return bool(self.token)

    def cookie_value(self) -> str:
        """Return the cookie of a browser that has shown the token."""
        key = hashlib.sha256(b"kbridge-cookie:" + self.cookie_secret).digest()
        return hmac.new(key, self.token.encode(), hashlib.sha256).hexdigest()

    def is_token(self, offered: bytes) -> bool:
        """Compare an offered token with ours, in constant time.

        Clients that do not know what to do with letters beyond ASCII send them as Latin-1.
        """
        offered, utf8 = offered.strip(), self.token.encode()
        try:
            latin1 = self.token.encode("latin-1")
        except UnicodeEncodeError:
            latin1 = utf8
        same = hmac.compare_digest(offered, utf8) | hmac.compare_digest(offered, latin1)
        return bool(offered) and same

    def host_allowed(self, host: str) -> bool:
        """Decide about a Host header."""
        parsed = parse_host(host)
        if parsed is None:
            return False
        if not self.check_hosts or parsed[0] in self.hostnames:
            return True
        try:
            return ipaddress.ip_address(parsed[0]).is_loopback
        except ValueError:
            return False

    def same_origin(self, origin: str, host: str, protocol: str) -> bool:
        """Compare an Origin with the server's own name, scheme and port.

        Plain http is taken for https too, because a proxy that ends TLS may stand in front of us;
        https is never taken for http.
        """
        match = _ORIGIN.fullmatch(origin)
        theirs = parse_host(match[2]) if match else None
        ours = parse_host(host)
        if match is None or theirs is None or ours is None:
            return False
        scheme = match[1].lower()
        if scheme != protocol and protocol == "https":
            return False
        port = _PORTS[scheme]
        return (theirs[0], theirs[1] or port) == (ours[0], ours[1] or port)

    def foreign_allowed(self, origin: str) -> bool:
        """Decide about an origin that is not our own."""
        if "*" in self.allow_origin or origin.lower() in self.allow_origin:
            return True
        return bool(self.allow_origin_pat and self.allow_origin_pat.fullmatch(origin))

    def origin_allowed(self, origin: str | None, host: str, protocol: str) -> bool:
        """Decide about an Origin header; only browsers send one, so none at all may go on."""
        if origin is None:
            return True
        return self.same_origin(origin, host, protocol) or self.foreign_allowed(origin)

    def identify(self, asked: Asked) -> Via | None:
        """Say which credential of a request holds, or None."""
        if not self.token:
            return Via.OFF
        if self.is_token(asked.authorization):
            return Via.HEADER
        if self.is_token(asked.query_token):
            return Via.QUERY
        cookie = asked.cookie.encode("utf-8", "replace")
        if cookie and hmac.compare_digest(cookie, self.cookie_value().encode()):
            return Via.COOKIE
        return None

    def decide(self, asked: Asked, *, public: bool = False) -> Decision:
        """Decide about a request.

        Parameters
        ----------
        asked : Asked
            What came.
        public : bool
            Whether the resource is open to those without a token; host and origin are checked
            all the same.
        """
        if not self.host_allowed(asked.host):
            return Decision(
                "the Host header names no local host; set KbridgeApp.local_hostnames or "
                "KbridgeApp.allow_remote_access to serve under that name"
            )
        via = self.identify(asked)
        # No page can put the token into a header without knowing it, and no browser adds it by
        # itself. A proxy that sends its own name as Host must not shut such clients out.
        if via is not Via.HEADER and not self._origin_good(asked):
            return Decision("cross-origin request refused; see KbridgeApp.allow_origin")
        if public or asked.method == "OPTIONS":  # a preflight never carries credentials
            return Decision(via=via)
        if via is None:
            return Decision("a valid token is needed")
        if asked.method not in _SAFE and not self._may_change(asked, via):
            return Decision("a browser's request that changes something must come from our page")
        return Decision(via=via)

    def _origin_good(self, asked: Asked) -> bool:
        """Decide about the Origin of a request.

        Browsers send `null` where a referrer policy or an extension hides the page, even to the
        page's own server; Sec-Fetch-Site still tells that it is the same.
        """
        if asked.origin == "null" and asked.fetch_site == "same-origin":
            return True
        return self.origin_allowed(asked.origin, asked.host, asked.protocol)

    def _may_change(self, asked: Asked, via: Via) -> bool:
        """Refuse forged requests: those that a browser would send without its user's will.

        A page elsewhere cannot know the token, so whoever shows it is trusted; a cookie goes
        along by itself, and where no token is asked for there is nothing to forge. Programs that
        log in as browsers do send the cookie `_xsrf` again as a header, which no page elsewhere
        can (a preflight would refuse it).
        """
        if via in (Via.HEADER, Via.QUERY) or asked.origin is not None:
            return True  # the Origin was found good before
        if asked.xsrf_cookie and hmac.compare_digest(
            asked.xsrf_header.encode("utf-8", "replace"),
            asked.xsrf_cookie.encode("utf-8", "replace"),
        ):
            return True
        if asked.fetch_site is not None:
            return asked.fetch_site == "same-origin"
        return via is Via.OFF
