"""Requests to the other replicas of a cluster: REST, and the handshakes of websockets.

Invariants:

- every request shows the secret of the cluster, and nothing of the client's token or cookies. A
  replica that receives the secret passes nothing on, so that no request goes in a circle;
- an error names the replica and the setting; no error and no log line contains the secret.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

from tornado.httpclient import HTTPError, HTTPRequest
from tornado.httputil import HTTPHeaders, HTTPInputError, parse_response_start_line
from tornado.iostream import IOStream
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.tcpclient import TCPClient

from kbridge._version import __version__
from kbridge.cluster.protocol import CLUSTER_SCHEME
from kbridge.errors import Misdirected, ReplicaUnreachable
from kbridge.kernels.registry.models import Replica

__all__ = ["PeerReply", "Peers"]

_CONNECT_SECONDS: Final = 5.0
_HANDSHAKE_SECONDS: Final = 15.0
_HEAD_LIMIT: Final = 64 << 10
_BODY_LIMIT: Final = 64 << 10  # of the refusal of a websocket
_CLIENTS: Final = 1000
_USER_AGENT: Final = f"kbridge-replica/{__version__}"


@dataclass(frozen=True, slots=True)
class PeerReply:
    """The reply of a replica, or its answer to a handshake.

    Attributes
    ----------
    status : int
        The HTTP status.
    headers : HTTPHeaders
        All headers.
    body : bytes
        The body; empty if the handshake has succeeded.
    stream : IOStream or None
        The connection of a websocket whose handshake has succeeded.
    """

    status: int
    headers: HTTPHeaders
    body: bytes = b""
    stream: IOStream | None = field(default=None, repr=False)

    @property
    def message(self) -> str:
        """The message of an error."""
        try:
            body = json.loads(self.body)
        except (ValueError, RecursionError):
            body = None
        message = body.get("message") if isinstance(body, dict) else None
        return message if isinstance(message, str) else f"HTTP status {self.status}"


class Peers:
    """Sends requests to other replicas; needs a running event loop.

    Parameters
    ----------
    secret : str
        The secret of the cluster.
    tls : ssl.SSLContext, optional
        Verifies replicas whose URL is https; by default with the certificates of the system, or of
        the file that `SSL_CERT_FILE` names.

    Attributes
    ----------
    secret : str
        The secret; empty until this replica has joined the cluster.
    """

    def __init__(self, secret: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.secret = secret
        self._given_tls = tls
        self._tcp = TCPClient()

    async def request(
        self,
        replica: Replica,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 60.0,
    ) -> PeerReply:
        """Send a request, and return the reply, whatever its status.

        Parameters
        ----------
        replica : Replica
            The replica.
        method, path : str
            The method; the path behind the replica's URL, with the query.
        headers : mapping of str to str, optional
            More headers.
        body : bytes
            The body; empty for none.
        timeout : float
            Seconds to wait for the reply.

        Raises
        ------
        ReplicaUnreachable
            If it cannot be reached, does not answer in time, or refuses this replica.
        Misdirected
            If it does not serve the kernel.
        """
        request = HTTPRequest(
            f"{replica.url}{path}",
            method,
            HTTPHeaders(self._headers(headers or {})),
            body or None,
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=timeout,
            follow_redirects=False,
            allow_nonstandard_methods=True,  # a POST without a body
            ssl_options=self._tls_for(replica),
        )
        try:
            response = await self._http.fetch(request, raise_error=False)
        except (OSError, HTTPError) as error:
            raise _unreachable(replica, error) from None
        reply = PeerReply(response.code, response.headers, response.body)
        _check(replica, reply)
        return reply

    async def open_websocket(
        self, replica: Replica, path: str, headers: Mapping[str, str]
    ) -> PeerReply:
        """Send the handshake of a websocket, and return the answer.

        Parameters
        ----------
        replica : Replica
            The replica.
        path : str
            The path behind the replica's URL, with the query.
        headers : mapping of str to str
            The headers `Sec-WebSocket-*` of the client, and others to pass on.

        Raises
        ------
        ReplicaUnreachable, Misdirected
            As of `request`.
        """
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                stream = await self._connect(replica)
                try:
                    reply = await self._shake_hands(replica, stream, path, headers)
                except BaseException:
                    stream.close()
                    raise
        except (OSError, HTTPInputError, ValueError) as error:  # TimeoutError is an OSError
            raise _unreachable(replica, error) from None
        if reply.stream is None:
            stream.close()
            _check(replica, reply)
        return reply

    def close(self) -> None:
        """Close all connections but those of websockets; a second call has no effect."""
        if client := self.__dict__.pop("_http", None):
            client.close()
        self._tcp.close()

    async def _connect(self, replica: Replica) -> IOStream:
        parts = urlsplit(replica.url)
        tls = self._tls_for(replica)
        port = parts.port or (443 if tls is not None else 80)
        async with asyncio.timeout(_CONNECT_SECONDS):
            return await self._tcp.connect(parts.hostname or "", port, ssl_options=tls)

    async def _shake_hands(
        self, replica: Replica, stream: IOStream, path: str, headers: Mapping[str, str]
    ) -> PeerReply:
        parts = urlsplit(replica.url)
        lines = [f"GET {parts.path}{path} HTTP/1.1", f"Host: {parts.netloc}"]
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
        for name, value in {**self._headers(headers), **upgrade}.items():
            if "\r" in value or "\n" in value:
                raise ValueError(f"the header {name} has more than one line")
            lines.append(f"{name}: {value}")
        await stream.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        head = await stream.read_until(b"\r\n\r\n", max_bytes=_HEAD_LIMIT)
        first, _, rest = head.decode("latin-1").partition("\n")
        status = parse_response_start_line(first.rstrip("\r")).code
        found = HTTPHeaders.parse(rest)
        if status == 101:
            return PeerReply(status, found, stream=stream)
        length = min(int(found.get("Content-Length", "0")), _BODY_LIMIT)
        return PeerReply(status, found, await stream.read_bytes(length) if length else b"")

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        authorization = f"{CLUSTER_SCHEME} {self.secret}"
        return {"User-Agent": _USER_AGENT, **more, "Authorization": authorization}

    def _tls_for(self, replica: Replica) -> ssl.SSLContext | None:
        return self._tls if replica.url.startswith("https:") else None

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or ssl.create_default_context()

    @cached_property
    def _http(self) -> SimpleAsyncHTTPClient:
        return SimpleAsyncHTTPClient(force_instance=True, max_clients=_CLIENTS)


def _check(replica: Replica, reply: PeerReply) -> None:
    """Raise an error for a reply that is about this replica, and not about the request."""
    if reply.status == Misdirected.http_status:
        raise Misdirected(reply.message)
    if reply.status in (401, 403):
        raise ReplicaUnreachable(
            f"The replica at {replica.url} refuses the secret of the cluster: {reply.message}"
        )
    if 300 <= reply.status < 400 or (reply.status >= 400 and not _is_json(reply)):
        raise ReplicaUnreachable(
            f"The program that answers at {replica.url} (HTTP status {reply.status}) is not a"
            " replica of this cluster; see KbridgeApp.advertise_url of that replica"
        )


def _is_json(reply: PeerReply) -> bool:
    return reply.headers.get("Content-Type", "").startswith("application/json")


def _unreachable(replica: Replica, error: BaseException | None) -> ReplicaUnreachable:
    reason = "it does not answer" if isinstance(error, TimeoutError) else str(error)
    return ReplicaUnreachable(
        f"The kernel is served by the replica at {replica.url}, which cannot be reached:"
        f" {reason or type(error).__name__}. See KbridgeApp.advertise_url of that replica"
    )
