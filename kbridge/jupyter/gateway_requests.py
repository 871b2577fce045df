"""Requests of Jupyter Server to its gateway, with the address and the credentials of GatewayClient.

`GatewayClient` has the URLs, headers, timeouts, certificates and cookies of `--gateway-url`, and
renews tokens. Of the arguments that a page sends, only those that are named here go to the gateway:
others may be credentials of this server.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import quote, urlencode

from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders
from tornado.websocket import WebSocketClientConnection, WebSocketError, websocket_connect

from kbridge.wire.dialects import V1

__all__ = ["fetch_executions", "open_channels"]

_FILTERS: Final = ("state", "session_id", "cell_id", "limit")
_PLACES: Final = ("session_id", "since", "parents")

_MESSAGE_LIMIT: Final = 100 << 20  # bytes; Tornado's client cannot read a longer message
_TEXT_LIMIT: Final = 1000  # characters of a gateway's error that a page is shown
_PASSED: Final = frozenset({400, 404, 409, 503})  # statuses that mean the same for the page

_NO_EXECUTIONS: Final = "The gateway has no executions of this kernel"


def _query(arguments: Mapping[str, Sequence[bytes]], names: Sequence[str]) -> str:
    """Return the named arguments as the query of a URL, with its question mark."""
    passed = [(name, value) for name in names for value in arguments.get(name, ())]
    return f"?{urlencode(passed)}" if passed else ""


async def fetch_executions(
    method: str, kernel_id: str, msg_id: str, arguments: Mapping[str, Sequence[bytes]]
) -> bytes:
    """Forward a request for the executions of a kernel; return the body of the reply.

    Parameters
    ----------
    method : str
        The HTTP method.
    kernel_id, msg_id : str
        The kernel and the execution; an empty `msg_id` means the list.
    arguments : mapping
        The arguments of the page's URL.

    Raises
    ------
    tornado.web.HTTPError
        400, 404, 409 and 503 of the gateway itself; 404 if it has no executions; 502 if it cannot
        be reached, refuses the credentials, or fails.
    """
    if msg_id in (".", ".."):  # a proxy would take them for another path
        raise web.HTTPError(404, "there is no such execution")
    client: Any = GatewayClient.instance()
    path = [quote(kernel_id, safe=""), "executions", *([quote(msg_id, safe="")] if msg_id else [])]
    url = url_path_join(client.url, client.kernels_endpoint, *path) + _query(arguments, _FILTERS)
    options = client.load_connection_args(method=method)
    try:
        response = await AsyncHTTPClient().fetch(url, raise_error=False, **options)
    except (HTTPClientError, OSError) as error:  # of the connection
        raise _unreachable(error) from error
    _keep_cookies(client, response.headers)
    if response.code == 204:
        return b""
    if response.code != 200:
        raise _refused(response.code, response)
    if not _is_json(response):  # the page of a login, for example
        raise web.HTTPError(404, _NO_EXECUTIONS)
    return response.body


async def open_channels(
    kernel_id: str, arguments: Mapping[str, Sequence[bytes]], offered: Sequence[str]
) -> WebSocketClientConnection:
    """Open a websocket to a kernel of the gateway.

    Parameters
    ----------
    kernel_id : str
        The kernel.
    arguments : mapping
        The arguments of the page's URL.
    offered : sequence of str
        The subprotocols that the page offers. Only the one of kernels is passed on: Jupyter clients
        can send a token as another one.

    Raises
    ------
    tornado.web.HTTPError
        As for `fetch_executions`.
    """
    client: Any = GatewayClient.instance()
    path = (client.kernels_endpoint, quote(kernel_id, safe=""), "channels")
    url = url_path_join(client.ws_url or "", *path) + _query(arguments, _PLACES)
    protocols = [name for name in offered if name == V1.subprotocol]
    try:
        opened = await websocket_connect(
            HTTPRequest(url, **client.load_connection_args()),
            max_message_size=_MESSAGE_LIMIT,
            subprotocols=protocols or None,
        )
    except HTTPClientError as error:
        if error.response is None or error.code == 599:
            raise _unreachable(error) from error
        raise _refused(error.code, error.response) from error
    except (OSError, WebSocketError) as error:
        raise _unreachable(error) from error
    _keep_cookies(client, opened.headers or HTTPHeaders())
    return opened


def _keep_cookies(client: Any, headers: HTTPHeaders) -> None:
    """Store the gateway's cookies, if `accept_cookies` is on."""
    if "headers" in inspect.signature(client.update_cookies).parameters:
        client.update_cookies(headers)
        return
    # Older versions of Jupyter Server, 2.14 for example, take parsed cookies.
    for header in headers.get_list("Set-Cookie"):
        with suppress(CookieError):
            client.update_cookies(SimpleCookie(header))


def _unreachable(error: Exception) -> web.HTTPError:
    # Neither a URL nor a header is in these texts.
    return web.HTTPError(502, f"The gateway cannot be reached: {str(error)[:_TEXT_LIMIT]}")


def _refused(status: int, response: HTTPResponse) -> web.HTTPError:
    """Return the error for the page when the gateway has answered with an error."""
    if status in (401, 403):  # the page's own credentials are not the reason
        return web.HTTPError(
            502, f"The gateway refused this server ({status}); see GatewayClient.auth_token"
        )
    said = _message(response)
    if status == 404:
        return web.HTTPError(404, said or _NO_EXECUTIONS)
    if status in _PASSED:
        return web.HTTPError(status, said or "The gateway gave no reason")
    return web.HTTPError(502, f"The gateway failed: {status} {said}")


def _message(response: HTTPResponse) -> str:
    """Return the `message` of a JSON error; empty if there is none."""
    if not _is_json(response):
        return ""
    try:
        whole = json.loads(response.body)
    except (ValueError, RecursionError):
        return ""
    said = whole.get("message") if isinstance(whole, dict) else None
    return said[:_TEXT_LIMIT] if isinstance(said, str) else ""


def _is_json(response: HTTPResponse) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")
