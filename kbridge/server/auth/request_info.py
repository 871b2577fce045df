"""Reads from a Tornado request what the access policy decides on."""

from __future__ import annotations

from tornado import httputil

from kbridge.server.auth.access_policy import Asked, parse_authorization

__all__ = ["XSRF_COOKIE", "asked_of"]

# The name that Jupyter's clients expect. The cookie is not a secret: see `access_policy`.
XSRF_COOKIE = "_xsrf"


def asked_of(request: httputil.HTTPServerRequest, cookie_name: str) -> Asked:
    """Read from a request what the decision about it needs."""
    tokens = request.query_arguments.get("token", [b""])
    cookies = _cookies(request.headers, cookie_name, XSRF_COOKIE)
    # Websocket clients of before RFC 6455 send their Origin under another name.
    origin = request.headers.get("Origin", request.headers.get("Sec-Websocket-Origin"))
    return Asked(
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
    """Return the values of some cookies, empty where there is none; the last one counts.

    Tornado would make an object for each cookie that the browser has for this host.
    """
    found = dict.fromkeys(names, "")
    for header in headers.get_list("Cookie"):
        for cookie in header.split(";"):
            name, _, value = cookie.partition("=")
            if (name := name.strip()) in found:
                found[name] = value.strip().strip('"')
    return found
