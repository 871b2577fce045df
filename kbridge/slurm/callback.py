"""Receives the calls of jobs, on one port for all kernels of a process.

A connection carries one line of JSON in each direction. A sender proves with the first line that
it has the token of a job; before that it costs a connection, at most 128 KiB, and no time to speak
of. `kbridge.slurm.sealed` describes how the messages are protected.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from kbridge.errors import ClientError, ListenError, SetupError
from kbridge.flow.log_throttle import LogThrottle
from kbridge.slurm.sealed import Seals, proof, public_key

__all__ = ["Callbacks", "Endpoint", "JobKeys", "default_ip"]

_MOST_LINE: Final = 128 * 1024
_MOST_CONNECTIONS: Final = 256
_READ_TIMEOUT: Final = 10.0

Handler = Callable[[dict[str, Any], str], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address on which a server listens for calls.

    Attributes
    ----------
    ip : str
        An address of this machine.
    port : int
        0 for any free port.
    certfile, keyfile : str
        PEM files for TLS; empty for none.
    """

    ip: str
    port: int = 0
    certfile: str = ""
    keyfile: str = ""


@dataclass(slots=True)
class JobKeys:
    """The secrets of one job on the side of the bridge.

    Attributes
    ----------
    token, secret : bytes
        The one-time token, and the secret key.
    job_public : bytes
        The public key of the job; empty before its first call.
    """

    token: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    job_public: bytes = b""
    _seals: Seals | None = field(default=None, init=False, repr=False)
    _count: int = field(default=0, init=False)

    @classmethod
    def new(cls) -> JobKeys:
        """Return new random keys."""
        return cls(secrets.token_bytes(32), secrets.token_bytes(32))

    @property
    def public(self) -> bytes:
        """The public key of the bridge for this job."""
        return public_key(self.secret)

    def open(self, public: bytes, signature: str, sealed: str) -> dict[str, Any]:
        """Return the content of a message of the job.

        The first public key that comes with the token is that of the job; no other is accepted.

        Raises
        ------
        ValueError
            If the message is not from the job, or was received before.
        """
        if not hmac.compare_digest(signature.encode(), proof(self.token, public).encode()):
            raise ValueError("the sender does not have the token of the job")
        if self.job_public and public != self.job_public:
            raise ValueError("the token of the job was used before by another sender")
        seals = self._seals or Seals(self.token, self.secret, public, public)
        content = seals.open("job", sealed)
        count = content.get("count") if isinstance(content, dict) else None
        if not isinstance(count, int) or count <= self._count:
            raise ValueError("the message was received before")
        self._count, self.job_public, self._seals = count, public, seals
        return dict(content)

    def answer(self, content: dict[str, Any], count: int) -> str:
        """Return the answer to the message with a number; only the job can read it."""
        assert self._seals is not None, "answered before a message was opened"
        return self._seals.seal("bridge", {**content, "count": count})


_servers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Endpoint, Callbacks]] = (
    WeakKeyDictionary()
)


class Callbacks:
    """A listening socket that all kernels of an event loop with the same settings share.

    Parameters
    ----------
    endpoint : Endpoint
        Where to listen.
    log : logging.Logger

    Attributes
    ----------
    ip, port : str, int
        Where it listens; the port is 0 before that.
    """

    def __init__(
        self, endpoint: Endpoint, log: logging.Logger | logging.LoggerAdapter[Any]
    ) -> None:
        self.endpoint = endpoint
        self._log = log
        self._server: asyncio.Server | None = None
        self._listening = asyncio.Lock()
        self._kernels: dict[str, tuple[JobKeys, Handler]] = {}
        self._tls: ssl.SSLContext | None = None
        # Those whose senders have not proved anything yet, the oldest first.
        self._connections: dict[asyncio.StreamWriter, None] = {}
        self._refused = LogThrottle(burst=5)
        self.ip = endpoint.ip
        self.port = 0

    @classmethod
    async def shared(
        cls, endpoint: Endpoint, log: logging.Logger | logging.LoggerAdapter[Any]
    ) -> Callbacks:
        """Return the socket for these settings, which listens.

        Raises
        ------
        ListenError
            If the address or the files for TLS cannot be used.
        """
        servers = _servers.setdefault(asyncio.get_running_loop(), {})
        for other in servers.values():
            # A kernel of an earlier process names the port that another one has found free.
            if other.port and replace(other.endpoint, port=other.port) == endpoint:
                return other
        callbacks = servers.setdefault(endpoint, cls(endpoint, log))
        await callbacks.listen()
        return callbacks

    async def listen(self) -> None:
        """Begin to listen, if the socket does not listen yet; see `shared`."""
        async with self._listening:
            if self._server is not None:
                return
            place = self.endpoint
            try:
                self._tls = _tls(place)
                # TLS begins later, so that connections count before their handshake.
                self._server = await asyncio.start_server(
                    self._connected, place.ip, place.port, limit=_MOST_LINE
                )
            except (OSError, ValueError) as error:
                raise ListenError(
                    f"Cannot listen for jobs on {place.ip} port {place.port}: {error}. See"
                    " SlurmProvisioner.callback_ip, callback_port, callback_certfile"
                ) from error
            self.port = self._server.sockets[0].getsockname()[1]
            self._log.info("Slurm jobs call back to %s port %d", place.ip, self.port)

    def expect(self, kernel_id: str, keys: JobKeys, handler: Handler) -> None:
        """Pass the messages of the job of a kernel to `handler`, with the address of its node."""
        self._kernels[kernel_id] = (keys, handler)

    def forget(self, kernel_id: str) -> None:
        """Accept no messages for a kernel; the last one closes the socket. May be called twice."""
        self._kernels.pop(kernel_id, None)
        if self._kernels or self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        self.port = 0

    # -- connections ----------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            # The oldest has had the most time; a job needs some milliseconds.
            next(iter(self._connections)).transport.abort()
        self._connections[writer] = None
        try:
            peer = writer.get_extra_info("peername")
            async with asyncio.timeout(_READ_TIMEOUT):
                if self._tls is not None:
                    await writer.start_tls(self._tls, ssl_handshake_timeout=_READ_TIMEOUT)
                line = await reader.readline()
            self._connections.pop(writer, None)
            answer = await self._answer(line, str(peer[0]) if peer else "")
            writer.write(json.dumps(answer).encode() + b"\n")
            async with asyncio.timeout(_READ_TIMEOUT):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, ValueError, TimeoutError):
            writer.transport.abort()  # the sender went away, is too slow, or sent too much
        finally:
            self._connections.pop(writer, None)
            writer.close()

    async def _answer(self, line: bytes, peer: str) -> dict[str, Any]:
        try:
            keys, content, handler = self._opened(line)
        except ValueError as error:
            return self._refuse(peer, str(error))
        try:
            return {"sealed": keys.answer(await handler(content, peer), content["count"])}
        except ClientError as error:
            return self._refuse(peer, error.reason)

    def _refuse(self, peer: str, reason: str) -> dict[str, Any]:
        count = self._refused.record(time.monotonic())
        if count:
            self._log.warning("Refused a call of a job from %s: %s (%d)", peer, reason, count)
        return {"error": reason}

    def _opened(self, line: bytes) -> tuple[JobKeys, dict[str, Any], Handler]:
        try:
            envelope = json.loads(line)
            parts = [envelope[name] for name in ("kernel", "public", "proof", "sealed")]
            kernel_id, public, signature, sealed = parts
            key = bytes.fromhex(public)
            if not all(isinstance(part, str) for part in parts) or len(key) != 32:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError("not a message of a job") from None
        expected = self._kernels.get(kernel_id)
        if expected is None:
            raise ValueError("this bridge does not wait for that kernel (now)")
        keys, handler = expected
        return keys, keys.open(key, signature, sealed), handler


def _tls(endpoint: Endpoint) -> ssl.SSLContext | None:
    if not endpoint.certfile:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(endpoint.certfile, endpoint.keyfile or None)
    return context


def default_ip() -> str:
    """Return the address of this machine's host name, which nodes should be able to reach.

    Raises
    ------
    SetupError
        If that is a loopback address, which no other machine can reach.
    """
    name = socket.gethostname()
    with suppress(OSError):
        for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            ip = str(address[0])
            if not ip.startswith(("127.", "::1", "fe80:")):
                return ip
    raise SetupError(
        f"The name of this machine, {name}, is not the name of an address that compute nodes could"
        " reach. Set SlurmProvisioner.callback_ip (or callback_ip in the kernelspec)"
    )
