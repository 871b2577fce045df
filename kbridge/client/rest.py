"""Requests to the REST API of a server. Errors of HTTP become errors of kbridge here."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from kbridge._version import __version__
from kbridge.client.address import Address
from kbridge.client.session import error_of_status, reason_of
from kbridge.errors import (
    KbridgeError,
    KernelNotFound,
    KernelspecNotFound,
    KernelStartError,
    NetworkError,
    NotFound,
)

__all__ = ["USER_AGENT", "Rest"]

# Not that of Tornado, whose output the server would pace (docs/websocket.md, "Rate limits").
USER_AGENT = f"kbridge-client/{__version__}"
_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 600.0  # the server has its own limit for the start of a kernel


class _UnixResolver(Resolver):
    """Resolves every name to one unix socket."""

    def initialize(self, path: str) -> None:
        self._path = path

    async def resolve(
        self,
        host: str,  # noqa: ARG002  # the interface of Tornado
        port: int,  # noqa: ARG002
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002
    ) -> list[tuple[int, Any]]:
        return [(socket.AF_UNIX, self._path)]


class Rest:
    """The REST API of one server.

    Parameters
    ----------
    address : Address
        Where the server is.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._http: SimpleAsyncHTTPClient | None = None  # needs a running event loop

    def close(self) -> None:
        """Close all connections; a second call has no effect."""
        if self._http is not None:
            self._http.close()
            self._http = None

    async def kernelspecs(self) -> dict[str, Any]:
        """Return the kernelspecs, and the name of the default one."""
        return dict(await self._json("GET", "api/kernelspecs"))

    async def kernels(self) -> list[dict[str, Any]]:
        """Return the models of all kernels."""
        return list(await self._json("GET", "api/kernels"))

    async def start(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Start a kernel, and return its model."""
        try:
            return dict(await self._json("POST", "api/kernels", body, timeout=_START_TIMEOUT_S))
        except KernelNotFound as error:
            raise KernelspecNotFound(error.reason) from None
        except KbridgeError as error:
            if type(error).http_status == 500:
                raise KernelStartError(error.reason) from None
            raise

    async def kernel(self, kernel_id: str) -> dict[str, Any]:
        """Return the model of a kernel."""
        return dict(await self._json("GET", _kernel(kernel_id)))

    async def shutdown(self, kernel_id: str) -> None:
        """Shut a kernel down."""
        await self._fetch("DELETE", _kernel(kernel_id))

    async def interrupt(self, kernel_id: str) -> None:
        """Interrupt a kernel."""
        await self._fetch("POST", _kernel(kernel_id, "/interrupt"), {})

    async def restart(self, kernel_id: str) -> None:
        """Restart a kernel."""
        await self._fetch("POST", _kernel(kernel_id, "/restart"), {}, timeout=_START_TIMEOUT_S)

    async def executions(self, kernel_id: str, **filters: str) -> list[dict[str, Any]] | None:
        """Return the executions of a kernel; None if the server does not list them."""
        query = urlencode({name: value for name, value in filters.items() if value})
        path = _kernel(kernel_id, f"/executions{'?' * bool(query)}{query}")
        try:
            return list(await self._json("GET", path))
        except KernelNotFound:
            await self.kernel(kernel_id)  # raises if the kernel does not exist
            return None

    async def execution(self, kernel_id: str, msg_id: str) -> dict[str, Any]:
        """Return one execution.

        Raises
        ------
        NotFound
            If the server does not know it, or does not list executions.
        """
        try:
            path = _kernel(kernel_id, f"/executions/{quote(msg_id, safe='')}")
            return dict(await self._json("GET", path))
        except KernelNotFound as error:
            raise NotFound(error.reason) from None

    async def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float = _TIMEOUT_S,
    ) -> Any:
        reply = await self._fetch(method, path, body, timeout=timeout)
        try:
            return json.loads(reply.body)
        except ValueError:
            raise NetworkError(f"{self.address.url} is not a server of kernels") from None

    async def _fetch(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: float = _TIMEOUT_S,
    ) -> HTTPResponse:
        request = HTTPRequest(
            f"{self.address.url}{path}",
            method,
            HTTPHeaders({**self.address.headers, "Content-Type": "application/json"}),
            None if body is None else json.dumps(body),
            connect_timeout=_TIMEOUT_S,
            request_timeout=timeout,
            user_agent=USER_AGENT,
            ssl_options=self.address.tls,
            follow_redirects=False,
        )
        try:
            fetching = self._client().fetch(request)
            # Tornado logs an error for a future that is cancelled before its connection has ended.
            fetching.add_done_callback(_retrieve)
            return await asyncio.shield(fetching)
        except HTTPClientError as error:
            if error.code == 599:  # Tornado's code for timeouts and closed connections
                raise NetworkError(f"{self.address.url}: {error.message}") from None
            raise error_of_status(error.code, _message(error)) from None
        except OSError as error:
            raise NetworkError(f"cannot reach {self.address.url}: {error}") from None

    def _client(self) -> SimpleAsyncHTTPClient:
        if self._http is None:
            path = self.address.sock
            resolver = _UnixResolver(path=path) if path else None
            self._http = SimpleAsyncHTTPClient(
                force_instance=True, max_clients=20, resolver=resolver
            )
        return self._http


def _retrieve(fetching: asyncio.Future[HTTPResponse]) -> None:
    """Take the error of a request that nobody waits for any longer."""
    if not fetching.cancelled():
        fetching.exception()


def _kernel(kernel_id: str, rest: str = "") -> str:
    return f"api/kernels/{quote(kernel_id, safe='')}{rest}"


def _message(error: HTTPClientError) -> str:
    """Return the message of a reply, or the reason of its status."""
    body = error.response.body if error.response is not None else b""
    return reason_of(body, f"HTTP status {error.code} {error.message}")
