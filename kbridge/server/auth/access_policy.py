"""Decides whether a request is allowed.

Invariants:

- Nothing here knows Tornado, a socket or a clock: strings and bytes go in, a decision comes out.
- Names are compared whole: a prefix, suffix or substring never grants access.
- Secrets are compared in constant time, and no reason ever repeats one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from kbridge.kernels.users import OPERATOR, User

if TYPE_CHECKING:
    from kbridge.server.auth.users import Credential

__all__ = [
    "AccessPolicy",
    "AuthMethod",
    "Decision",
    "RequestInfo",
    "parse_host",
]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/@\[\]]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_ORIGIN = re.compile(r"(https?)://([^/\s]+)", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_SAFE = {"GET", "HEAD", "OPTIONS"}
_USER = "user."  # the beginning of a cookie with the token of a user


class AuthMethod(StrEnum):
    """The way in which a request was authenticated."""

    OFF = "off"  # authentication is off
    HEADER = "header"
    QUERY = "query"
    COOKIE = "cookie"
    CLUSTER = "cluster"  # another replica of the cluster, with the cluster's secret


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """The parts of a request that a decision needs.

    `authorization`, `query_token` and `cluster_secret` are raw bytes; the last one is what another
    replica shows. `fetch_site` is the header `Sec-Fetch-Site`
    (Fetch Metadata), by which a browser says where the request comes from. `xsrf_header` is
    `X-XSRFToken`; `xsrf_cookie` is the value of the cookie `_xsrf`.
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
    cluster_secret: bytes = b""


@dataclass(frozen=True, slots=True)
class Decision:
    """The result.

    Attributes
    ----------
    reason : str
        Why the request is refused; empty if it is allowed.
    auth_method : AuthMethod or None
        The method of authentication; None if the client was not authenticated.
    user : User or None
        The client; None if it is not known.
    problem : str
        The reason for which the client could not be identified; else empty.
    credential : Credential or None
        The token by which another program knows the user; None for everybody else.
    """

    reason: str = ""
    auth_method: AuthMethod | None = None
    user: User | None = None
    problem: str = ""
    credential: Credential | None = field(default=None, repr=False)

    @property
    def allowed(self) -> bool:
        """True if the request is allowed."""
        return not self.reason


def parse_host(host: str) -> tuple[str, int | None] | None:
    """Split a Host header into a name in lower case, without brackets, and a port.

    Return None if it is not a valid host.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    name = match[1].lower().removeprefix("[").removesuffix("]")
    return name, int(match[2]) if match[2] else None


@dataclass(frozen=True)
class AccessPolicy:
    """The access rules of one server.

    Parameters
    ----------
    token : str
        The token that clients must show; empty turns authentication off.
    check_hosts : bool
        Refuse Host headers that do not name a local host. (DNS rebinding: a page of evil.example
        whose name is made to resolve to 127.0.0.1 sends its own name as Host.)
    hostnames : frozenset of str
        Names and addresses that count as local besides loopback addresses.
    allow_origin : tuple of str
        Foreign origins that are allowed, compared whole; `*` allows all.
    allow_origin_pat : re.Pattern, optional
        Also allows the foreign origins that it matches whole.
    cookie_secret : bytes
        Key of the cookie's value; the cookie does not contain the token.
    cluster_secret : str
        The secret that the other replicas of the cluster show; empty without a cluster.
    users : bool
        True if clients may be users that another program knows. Then an empty `token` only means
        that nobody has it.
    """

    token: str = field(default="", repr=False)
    check_hosts: bool = True
    hostnames: frozenset[str] = frozenset({"localhost"})
    allow_origin: tuple[str, ...] = ()
    allow_origin_pat: re.Pattern[str] | None = None
    cookie_secret: bytes = field(default=b"", repr=False)
    cluster_secret: str = field(default="", repr=False)
    users: bool = False

    @property
    def auth_enabled(self) -> bool:
        """True if clients must show a token."""
        return bool(self.token) or self.users

    def cookie_value(self) -> str:
        """Return the value of the login cookie."""
        key = hashlib.sha256(b"kbridge-cookie:" + self.cookie_secret).digest()
        return hmac.new(key, self.token.encode(), hashlib.sha256).hexdigest()

    def user_cookie(self, token: str) -> str:
        """Return the value of the login cookie of a user with that token, which it contains."""
        text = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
        return f"{_USER}{text}.{self._sign(text)}"

    def user_token(self, cookie: str) -> str:
        """Return the token in a login cookie; empty if this server has not made the cookie."""
        text, _, signature = cookie.removeprefix(_USER).partition(".")
        if not cookie.startswith(_USER) or not hmac.compare_digest(
            signature.encode("utf-8", "replace"), self._sign(text).encode()
        ):
            return ""
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()

    def _sign(self, text: str) -> str:
        key = hashlib.sha256(b"kbridge-user-cookie:" + self.cookie_secret).digest()
        return hmac.new(key, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def is_token(self, offered: bytes) -> bool:
        """True if `offered` is the token; compares in constant time.

        Some clients send letters beyond ASCII as Latin-1 instead of UTF-8.
        """
        offered, utf8 = offered.strip(), self.token.encode()
        try:
            latin1 = self.token.encode("latin-1")
        except UnicodeEncodeError:
            latin1 = utf8
        same = hmac.compare_digest(offered, utf8) | hmac.compare_digest(offered, latin1)
        return bool(offered) and same

    def host_allowed(self, host: str) -> bool:
        """True if requests with this Host header are allowed."""
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
        """True if an Origin has the server's own name, scheme and port.

        An https origin also matches a server that speaks http, because a proxy in front of it may
        terminate TLS; an http origin never matches an https server.
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
        """True if pages of this foreign origin may use the server."""
        if "*" in self.allow_origin or origin.lower() in self.allow_origin:
            return True
        return bool(self.allow_origin_pat and self.allow_origin_pat.fullmatch(origin))

    def origin_allowed(self, origin: str | None, host: str, protocol: str) -> bool:
        """True if an Origin header is allowed, or absent: only browsers send one."""
        if origin is None:
            return True
        return self.same_origin(origin, host, protocol) or self.foreign_allowed(origin)

    def identify(self, request: RequestInfo) -> AuthMethod | None:
        """Return which credential of a request is valid; None if none is."""
        if not self.token:
            return None if self.users else AuthMethod.OFF
        if self.is_token(request.authorization):
            return AuthMethod.HEADER
        if self.is_token(request.query_token):
            return AuthMethod.QUERY
        cookie = request.cookie.encode("utf-8", "replace")
        if cookie and hmac.compare_digest(cookie, self.cookie_value().encode()):
            return AuthMethod.COOKIE
        return None

    def decide(
        self,
        request: RequestInfo,
        *,
        public: bool = False,
        found: tuple[AuthMethod, User] | None = None,
    ) -> Decision:
        """Decide whether a request is allowed.

        Parameters
        ----------
        request : RequestInfo
        public : bool
            True if the resource needs no token; Host and Origin are checked in any case.
        found : tuple of (AuthMethod, User), optional
            A user that another program knows by a token in the request.
        """
        # Host and Origin protect browsers, and no page knows this secret.
        if request.cluster_secret and self.cluster_secret:
            if hmac.compare_digest(request.cluster_secret, self.cluster_secret.encode()):
                return Decision(auth_method=AuthMethod.CLUSTER, user=OPERATOR)
            return Decision(
                "the secret of the cluster is wrong: do all replicas have the same"
                " KbridgeApp.registry_url and KbridgeApp.cluster?"
            )
        if not self.host_allowed(request.host):
            return Decision(
                "the Host header does not name a local host; set KbridgeApp.local_hostnames or "
                "KbridgeApp.allow_remote_access to serve under that name"
            )
        auth_method, user = self.identify(request), None
        if auth_method is not None:
            user = OPERATOR
        elif found is not None:
            auth_method, user = found
        # A page cannot put the token into a header without knowing it, and a browser never adds it
        # by itself. So the Origin does not matter then: a proxy that sends its own name as Host
        # must not lock such clients out.
        if auth_method is not AuthMethod.HEADER and not self._origin_acceptable(request):
            return Decision("cross-origin request refused; see KbridgeApp.allow_origin")
        if public or request.method == "OPTIONS":  # a preflight never carries credentials
            return Decision(auth_method=auth_method, user=user)
        if auth_method is None:
            return Decision("a valid token is needed")
        if request.method not in _SAFE and not self._may_change(request, auth_method):
            return Decision(
                "a browser's request that changes something must come from this server's own page"
            )
        return Decision(auth_method=auth_method, user=user)

    def _origin_acceptable(self, request: RequestInfo) -> bool:
        """True if the Origin of a request is allowed.

        Browsers send `null` if a referrer policy or an extension hides the page, even to the page's
        own server; `Sec-Fetch-Site` still says that it is the same.
        """
        if request.origin == "null" and request.fetch_site == "same-origin":
            return True
        return self.origin_allowed(request.origin, request.host, request.protocol)

    def _may_change(self, request: RequestInfo, auth_method: AuthMethod) -> bool:
        """True if a request that changes something is not forged by a foreign page (CSRF).

        A foreign page cannot know the token, so a client that shows it is trusted; browsers send
        the cookie by themselves. Without authentication there is nothing to forge. Programs that
        log in as browsers do repeat the cookie `_xsrf` in a header, which a foreign page cannot
        set (a preflight would refuse it).
        """
        if auth_method in (AuthMethod.HEADER, AuthMethod.QUERY) or request.origin is not None:
            return True  # the Origin was checked before
        if request.xsrf_cookie and hmac.compare_digest(
            request.xsrf_header.encode("utf-8", "replace"),
            request.xsrf_cookie.encode("utf-8", "replace"),
        ):
            return True
        if request.fetch_site is not None:
            return request.fetch_site == "same-origin"
        return auth_method is AuthMethod.OFF
