"""Applies the access policy to Tornado's requests, and the CORS settings to their replies."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Coroutine, Iterable
from dataclasses import dataclass, field, replace

from tornado import httputil

from kbridge.cluster.protocol import CLUSTER_SCHEME
from kbridge.kernels.users import User
from kbridge.server.auth.access_policy import AccessPolicy, AuthMethod, Decision, RequestInfo
from kbridge.server.auth.users import Credential, Users

__all__ = [
    "XSRF_COOKIE",
    "Authenticator",
    "Cors",
    "parse_authorization",
    "parse_cluster_secret",
    "request_info",
]

# The name that Jupyter's clients expect. The cookie is not a secret: see `access_policy`.
XSRF_COOKIE = "_xsrf"
# JupyterHub's cookie for a login, which ends with a logout there.
_HUB_SESSION = "jupyterhub-session-id"
_AUTHORIZATION = re.compile(r"(?:token|bearer)\s+(\S.*)", re.IGNORECASE | re.DOTALL)
# Sent in replies to preflight requests if the settings are empty; the same as in Jupyter Server.
_ALLOW_HEADERS = "accept, content-type, authorization, x-xsrftoken"
_ALLOW_METHODS = "GET, PUT, POST, PATCH, DELETE, OPTIONS"


@dataclass(frozen=True, slots=True)
class Cors:
    """Values of the `Access-Control-*` headers (Fetch standard, section 3.2); empty: not sent.

    The settings are those of Jupyter's kernel gateway: each is the value of one header.
    """

    allow_credentials: str = ""
    allow_headers: str = ""
    allow_methods: str = ""
    expose_headers: str = ""
    max_age: str = ""

    def headers(
        self, policy: AccessPolicy, origin: str | None, *, preflight: bool
    ) -> dict[str, str]:
        """Return the headers for a request that came with `origin`.

        A single origin in the settings (or `*`) is sent unchanged in every reply. Of several
        origins, that of the request is sent, because the header cannot hold a list.
        """
        found: dict[str, str] = {}
        if len(policy.allow_origin) == 1 and policy.allow_origin_pat is None:
            found["Access-Control-Allow-Origin"] = policy.allow_origin[0]
        elif policy.allow_origin or policy.allow_origin_pat is not None:
            found["Vary"] = "Origin"
            if origin is not None and policy.foreign_allowed(origin):
                found["Access-Control-Allow-Origin"] = origin
        shared = "Access-Control-Allow-Origin" in found
        allow_headers, allow_methods = self.allow_headers, self.allow_methods
        if preflight and shared:
            allow_headers = allow_headers or _ALLOW_HEADERS
            allow_methods = allow_methods or _ALLOW_METHODS
        rest = {
            "Access-Control-Allow-Credentials": self.allow_credentials,
            "Access-Control-Allow-Headers": allow_headers,
            "Access-Control-Allow-Methods": allow_methods,
            "Access-Control-Expose-Headers": self.expose_headers,
            "Access-Control-Max-Age": self.max_age,
        }
        return found | {name: value for name, value in rest.items() if value}


@dataclass(frozen=True, slots=True)
class Authenticator:
    """The access rules of one server.

    Parameters
    ----------
    policy : AccessPolicy
    cors : Cors
    cookie_name : str
        The name of the login cookie.
    users : Users, optional
        The users that another program knows.
    metrics_token : str
        The token of the metrics, which does not belong to a user.
    """

    policy: AccessPolicy
    cors: Cors = field(default_factory=Cors)
    cookie_name: str = "kbridge"
    users: Users | None = None
    metrics_token: str = field(default="", repr=False)

    def lookup(self, request: httputil.HTTPServerRequest) -> Coroutine[None, None, None] | None:
        """Return a coroutine that finds out who sends a request; None if that is known.

        It must have ended before `decide` is called.
        """
        if self.users is None:
            return None
        info = request_info(request, self.cookie_name)
        if info.cluster_secret or self.policy.identify(info) is not None:
            return None
        found: list[Coroutine[None, None, None]] = []
        for _, credential in self._credentials(info, request):
            lookup = self.users.lookup(credential)
            if lookup is not None:
                found.append(lookup)
            elif self.users.known(credential) is not None:
                break  # `decide` does not read the others
        return _all(found) if found else None

    def decide(self, request: httputil.HTTPServerRequest, *, public: bool = False) -> Decision:
        """Decide whether a request is allowed, see `AccessPolicy.decide`."""
        info = request_info(request, self.cookie_name)
        if self.users is None:
            return self.policy.decide(info, public=public)
        found: tuple[AuthMethod, User] | None = None
        problem, shown = "", None
        for method, credential in self._credentials(info, request):
            user = self.users.known(credential)
            if user is not None:
                found, shown = (method, user), credential
                break
            problem = problem or self.users.problem(credential)
        decision = self.policy.decide(info, public=public, found=found)
        if decision.user is None:
            return replace(decision, problem=problem)
        if found is not None and decision.user is found[1]:  # else it is the operator
            return replace(decision, credential=shown)
        return decision

    def _credentials(
        self, info: RequestInfo, request: httputil.HTTPServerRequest
    ) -> list[tuple[AuthMethod, Credential]]:
        """Return the tokens of users that a request shows, and where."""
        found = []
        for method, shown in (
            (AuthMethod.HEADER, info.authorization),
            (AuthMethod.QUERY, info.query_token),
        ):
            if shown and not hmac.compare_digest(shown, self.metrics_token.encode()):
                found.append((method, Credential(_text(shown))))
        if token := self.policy.user_token(info.cookie):
            session = _cookies(request.headers, _HUB_SESSION)[_HUB_SESSION]
            found.append((AuthMethod.COOKIE, Credential(token, session)))
        return found

    def cors_headers(self, request: httputil.HTTPServerRequest) -> dict[str, str]:
        """Return the CORS headers of the reply to a request."""
        return self.cors.headers(
            self.policy, request.headers.get("Origin"), preflight=request.method == "OPTIONS"
        )


def request_info(request: httputil.HTTPServerRequest, cookie_name: str) -> RequestInfo:
    """Read from a request what the decision about it needs."""
    tokens = request.query_arguments.get("token", [b""])
    cookies = _cookies(request.headers, cookie_name, XSRF_COOKIE)
    # Websocket clients older than RFC 6455 send their Origin under another name.
    origin = request.headers.get("Origin", request.headers.get("Sec-Websocket-Origin"))
    return RequestInfo(
        method=request.method or "GET",
        host=request.host,
        protocol=request.protocol,
        origin=origin,
        fetch_site=request.headers.get("Sec-Fetch-Site"),
        authorization=parse_authorization(request.headers.get("Authorization")),
        query_token=tokens[-1],
        cookie=cookies[cookie_name],
        xsrf_header=request.headers.get("X-Xsrftoken", ""),
        xsrf_cookie=cookies[XSRF_COOKIE],
        cluster_secret=parse_cluster_secret(request.headers.get("Authorization")),
    )


async def _all(lookups: Iterable[Awaitable[None]]) -> None:
    await asyncio.gather(*lookups)


def _text(token: bytes) -> str:
    return token.strip().decode("utf-8", "replace")


def parse_authorization(value: str | None) -> bytes:
    """Return the token of an Authorization header (`token X` or `Bearer X`), empty for none.

    Jupyter Server's gateway client sends `token ` with nothing after it when it has no token.
    """
    match = _AUTHORIZATION.fullmatch(value.strip()) if value else None
    # Tornado decodes header bytes as latin-1; this gives the bytes back.
    return match[1].encode("latin-1", "replace") if match else b""


def parse_cluster_secret(value: str | None) -> bytes:
    """Return the secret that another replica shows (`kbridge-cluster X`), empty for none."""
    scheme, _, secret = value.partition(" ") if value else ("", "", "")
    return secret.encode("latin-1", "replace") if scheme == CLUSTER_SCHEME else b""


def _cookies(headers: httputil.HTTPHeaders, *names: str) -> dict[str, str]:
    """Return the values of some cookies, empty if missing; of several values, the last.

    Tornado's parser would create an object for each cookie that the browser has for this host.
    """
    found = dict.fromkeys(names, "")
    for header in headers.get_list("Cookie"):
        for cookie in header.split(";"):
            name, _, value = cookie.partition("=")
            if (name := name.strip()) in found:
                found[name] = value.strip().strip('"')
    return found
