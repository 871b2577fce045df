"""Requests to servers that answer as replicas do, or should not."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tornado.testing import bind_unused_port

from kbridge.cluster.peers import Peers
from kbridge.errors import Misdirected, ReplicaUnreachable
from tests.support.cluster_view import replica_at

SECRET = "the-secret-of-the-cluster"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", str(key), "-out", str(cert))
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return cert, key


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Peers]]:
    made: list[Peers] = []

    def new(tls: ssl.SSLContext | None = None) -> Peers:
        made.append(Peers(SECRET, tls))
        return made[-1]

    yield new
    for peers in made:
        peers.close()
        peers.close()


@asynccontextmanager
async def answering(
    answer: bytes, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Serve one answer; yield the port, and the heads of the requests."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


async def both(peers: Peers, url: str) -> list[BaseException | int]:
    """Send a request and a handshake; return the statuses or the errors."""
    replica = replica_at(url)
    found: list[BaseException | int] = []
    for asked in (
        peers.request(replica, "GET", "api/kernels/x"),
        peers.open_websocket(replica, "api/kernels/x/channels", {"Sec-WebSocket-Key": "a"}),
    ):
        try:
            reply = await asked
            found.append(reply.status)
            if reply.stream is not None:
                reply.stream.close()
        except (ReplicaUnreachable, Misdirected) as error:
            found.append(error)
    assert SECRET not in str(found)
    return found


async def test_the_certificate_of_a_replica_is_checked(make, certificate) -> None:
    cert, key = certificate
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=str(cert))
    async with answering(OK, serving) as (port, heads):
        assert await both(make(trusting), f"https://localhost:{port}/base/") == [200, 200]
        assert [head.split()[1] for head in heads] == [
            b"/base/api/kernels/x",
            b"/base/api/kernels/x/channels",
        ]
        for head in heads:
            assert f"authorization: kbridge-cluster {SECRET}".encode() in head.replace(b"A", b"a")
        # Neither of these certificates may see the secret.
        heads.clear()
        for peers, host in ((make(), "localhost"), (make(trusting), "127.0.0.1")):
            for error in await both(peers, f"https://{host}:{port}/"):
                assert isinstance(error, ReplicaUnreachable)
                assert "certificate" in str(error)
        assert heads == []


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (b"", ReplicaUnreachable, "cannot be reached"),
        (b"no HTTP at all\r\n\r\n", ReplicaUnreachable, "cannot be reached"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", ReplicaUnreachable, "not a replica"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno", ReplicaUnreachable, "not a replica"),
        (
            b"HTTP/1.1 421 No\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n%b"
            % b'{"message":"no"}',
            Misdirected,
            "no",
        ),
        (
            b"HTTP/1.1 403 No\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]",
            ReplicaUnreachable,
            "refuses the secret",
        ),
    ],
)
async def test_answers_that_are_not_those_of_a_replica(make, answer, kind, says) -> None:
    async with answering(answer) as (port, _):
        for error in await both(make(), f"http://127.0.0.1:{port}/"):
            assert isinstance(error, kind)
            assert says in str(error)
            if kind is ReplicaUnreachable:
                assert f"http://127.0.0.1:{port}/" in str(error)


async def test_a_replica_that_is_not_there(make) -> None:
    sock, port = bind_unused_port()
    sock.close()
    for url in (f"http://127.0.0.1:{port}/", "http://no-such-host.invalid:1/"):
        for error in await both(make(), url):
            assert isinstance(error, ReplicaUnreachable)
            assert url in str(error)
            assert "advertise_url" in str(error)


async def test_a_handshake_gives_the_stream_with_what_follows(make) -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: yes\r\n\r\n"
    async with answering(head + b"\x82\x02hi") as (port, heads):
        reply = await make().open_websocket(
            replica_at(f"http://127.0.0.1:{port}/"), "x?a=b", {"Sec-WebSocket-Key": "key"}
        )
        assert (reply.status, reply.headers["Sec-WebSocket-Accept"]) == (101, "yes")
        assert reply.stream is not None
        assert await reply.stream.read_bytes(4) == b"\x82\x02hi"
        reply.stream.close()
        [lines] = [head.decode().split("\r\n") for head in heads]
        assert lines[0] == "GET /x?a=b HTTP/1.1"
        assert {f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Sec-WebSocket-Key: key"} < {
            *lines
        }


async def test_a_header_of_two_lines_is_not_sent(make) -> None:
    async with answering(OK) as (port, heads):
        with pytest.raises(ReplicaUnreachable):
            await make().open_websocket(
                replica_at(f"http://127.0.0.1:{port}/"), "x", {"User-Agent": "a\r\nX: y"}
            )
    assert heads == []
