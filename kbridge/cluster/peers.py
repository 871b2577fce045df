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

from tornado.httpclient import HTTPError, HTTPRequest, HTTPResponse
from tornado.httputil import HTTPHeaders, HTTPInputError, parse_response_start_line
from tornado.iostream import IOStream, StreamClosedError
from tornado.simple_httpclient import HTTPStreamClosedError, SimpleAsyncHTTPClient
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


# OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH.
_WRONG_NAME: Final = (62, 64)
# A replica that does not accept the certificate of a client closes the connection. Its alert may be
# lost, because the client has sent a request by then.
_CUT: Final = (ssl.SSLError, ConnectionError, StreamClosedError, HTTPStreamClosedError)


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

    Replicas whose URL is https are verified with the certificates of the system, or of the file
    that `SSL_CERT_FILE` names.

    Parameters
    ----------
    secret : str
        The secret of the cluster.
    certificate : tuple of (str, str)
        The files `certfile` and `keyfile` of this server, for replicas that verify their clients;
        empty for none.

    Attributes
    ----------
    secret : str
        The secret; empty until this replica has joined the cluster.
    """

    def __init__(self, secret: str = "", *, certificate: tuple[str, str] = ("", "")) -> None:
        self.secret = secret
        self._certificate = certificate
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
            fetching = self._http.fetch(request, raise_error=False)
            # Tornado logs an error for a future that is cancelled before its connection has ended.
            fetching.add_done_callback(_retrieve)
            response = await asyncio.shield(fetching)
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
        return self._tls if _is_https(replica) else None

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        certfile, keyfile = self._certificate
        if certfile:
            context.load_cert_chain(certfile, keyfile or None)
        return context

    @cached_property
    def _http(self) -> SimpleAsyncHTTPClient:
        return SimpleAsyncHTTPClient(force_instance=True, max_clients=_CLIENTS)


def _retrieve(fetching: asyncio.Future[HTTPResponse]) -> None:
    """Take the error of a request that nobody waits for any longer."""
    if not fetching.cancelled():
        fetching.exception()


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


def _is_https(replica: Replica) -> bool:
    return replica.url.startswith("https:")


def _is_json(reply: PeerReply) -> bool:
    return reply.headers.get("Content-Type", "").startswith("application/json")


def _unreachable(replica: Replica, error: BaseException) -> ReplicaUnreachable:
    https = _is_https(replica)
    reason, advice = _explain(getattr(error, "real_error", None) or error, https=https)
    return ReplicaUnreachable(
        f"The kernel is served by the replica at {replica.url}, which cannot be reached: {reason}."
        f" {advice}"
    )


def _explain(error: BaseException, *, https: bool) -> tuple[str, str]:
    """Return the reason of an error, and the setting that may be wrong."""
    advice = "See KbridgeApp.advertise_url of that replica"
    reason = "it does not answer" if isinstance(error, TimeoutError) else str(error)
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _WRONG_NAME:
        reason = f"its certificate is not valid for that name ({error.verify_message})"
        advice = (
            "Set KbridgeApp.advertise_url of that replica to a URL with a name that the certificate"
            " in KbridgeApp.certfile has"
        )
    elif isinstance(error, ssl.SSLCertVerificationError):
        reason = f"its certificate cannot be verified ({error.verify_message})"
        advice = (
            "Set the environment variable SSL_CERT_FILE of this replica to a file with the"
            " authority that has signed KbridgeApp.certfile of that replica"
        )
    elif https and isinstance(error, _CUT):
        reason = f"it closed the connection ({reason or type(error).__name__})"
        advice += (
            ". If KbridgeApp.client_ca is set there, it must have signed KbridgeApp.certfile of"
            " this replica, for the use by clients, too"
        )
    return reason or type(error).__name__, advice
