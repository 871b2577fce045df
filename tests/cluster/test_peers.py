"""Requests to servers that answer as replicas do, or should not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.testing import bind_unused_port

from kbridge.cluster.peers import Peers
from kbridge.errors import Misdirected, ReplicaUnreachable
from kbridge.server.http.listen import TlsFiles, make_context
from tests.support.certificate import Authority, Certificate
from tests.support.cluster_view import replica_at

SECRET = "the-secret-of-the-cluster"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that the replicas know."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    return authority


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Peers]]:
    made: list[Peers] = []

    def new(**options: Any) -> Peers:
        made.append(Peers(SECRET, **options))
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


def serving(made: Certificate) -> ssl.SSLContext:
    """Return the context of a server with these files."""
    context = make_context(TlsFiles(str(made.cert), str(made.key)))
    assert context is not None
    return context


async def errors(peers: Peers, url: str) -> str:
    """Return the errors of a request and a handshake, which are the same."""
    found = await both(peers, url)
    assert all(isinstance(each, ReplicaUnreachable) for each in found), found
    one, two = map(str, found)
    assert one == two
    return one


async def test_a_private_authority_is_trusted(make, trusted: Authority) -> None:
    async with answering(OK, serving(trusted.sign("localhost"))) as (port, heads):
        assert await both(make(), f"https://localhost:{port}/base/") == [200, 200]
        assert [head.split()[1] for head in heads] == [
            b"/base/api/kernels/x",
            b"/base/api/kernels/x/channels",
        ]
        for head in heads:
            assert f"authorization: kbridge-cluster {SECRET}".encode() in head.replace(b"A", b"a")


async def test_a_certificate_for_another_name_names_the_setting(make, trusted: Authority) -> None:
    async with answering(OK, serving(trusted.sign("replica.example"))) as (port, heads):
        for host in ("localhost", "127.0.0.1"):
            said = await errors(make(), f"https://{host}:{port}/")
            assert "not valid for that name" in said
            assert "KbridgeApp.advertise_url of that replica" in said
            assert "KbridgeApp.certfile" in said
        assert heads == [], "it may not see the secret"


async def test_an_unknown_authority_names_the_setting(make, authority: Authority) -> None:
    async with answering(OK, serving(authority.sign("localhost"))) as (port, heads):
        said = await errors(make(), f"https://localhost:{port}/")
        assert "cannot be verified" in said
        assert "SSL_CERT_FILE" in said
        assert heads == [], "it may not see the secret"


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


async def test_a_request_that_is_cancelled_logs_no_error(
    make, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writers.append(writer)
        asked.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        replica = replica_at(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        request = asyncio.create_task(make().request(replica, "GET", "api/kernels/x"))
        await asked.wait()
        request.cancel()
        await asyncio.wait({request})
        for writer in writers:
            writer.transport.abort()
        for _ in range(10):  # the client reads the end of the connection
            await asyncio.sleep(0)
    assert "Exception" not in caplog.text
