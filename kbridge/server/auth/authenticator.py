"""Applies the access policy and the CORS settings to Tornado's requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from tornado import httputil

from kbridge.server.auth.access_policy import (
    AccessPolicy,
    Decision,
    RequestInfo,
    parse_authorization,
)
from kbridge.server.auth.cors import Cors

__all__ = ["XSRF_COOKIE", "Authenticator", "request_info"]

# The name that Jupyter's clients expect. The cookie is not a secret: see `access_policy`.
XSRF_COOKIE = "_xsrf"


@dataclass(frozen=True, slots=True)
class Authenticator:
    """The access rules of one server.

    Parameters
    ----------
    policy : AccessPolicy
    cors : Cors
    cookie_name : str
        The name of the login cookie.
    """

    policy: AccessPolicy
    cors: Cors = field(default_factory=Cors)
    cookie_name: str = "kbridge"

    def decide(self, request: httputil.HTTPServerRequest, *, public: bool = False) -> Decision:
        """Decide whether a request may go on, see `AccessPolicy.decide`."""
        return self.policy.decide(request_info(request, self.cookie_name), public=public)

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
    )


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
