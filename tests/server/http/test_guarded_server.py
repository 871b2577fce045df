"""The guarded HTTP server on a real port: limits of unauthenticated clients, and refusals."""

import asyncio
import json
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tornado import web

from kbridge.server.api.access import AccessMixin
from kbridge.server.api.services import Services
from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.auth.users import Users
from kbridge.server.http.connection_limiter import ConnectionLimits
from kbridge.server.http.guarded_server import GuardedServer
from kbridge.server.http.listen import TlsFiles, bind_all, make_context
from kbridge.server.http.request_gate import UNAUTHENTICATED_BODY
from kbridge.server.http.request_head import HeadLimits
from tests.support.users import Table
from tests.support.waiting import TIMEOUT

TOKEN = "a-token-of-the-tests"
PROOF = f"Authorization: token {TOKEN}"
LIMIT = 100_000
MUCH = 8 << 20
FOREIGN = "https://elsewhere.example"


class Echo(AccessMixin):
    """Answers with the size of the body."""

    def get(self) -> None:
        self.write(b"x" * int(self.get_query_argument("size", "0")))

    def post(self) -> None:
        self.write(str(len(self.request.body)))


class Public(AccessMixin):
    public = True

    def get(self) -> None:
        self.write(b"x" * MUCH if self.get_query_argument("much", "") else b"come in")


class Harness:
    """The server, and raw connections to it."""

    def __init__(
        self, limits: ConnectionLimits, *, users: Users | None = None, **options: Any
    ) -> None:
        kernels, sessions = SimpleNamespace(), SimpleNamespace()
        services = Services(
            kernels=kernels,  # type: ignore[arg-type]
            sessions=sessions,  # type: ignore[arg-type]
            hubs=None,
            auth=Authenticator(
                AccessPolicy(
                    token=TOKEN,
                    cookie_secret=b"s",
                    allow_origin=(FOREIGN,),
                    users=users is not None,
                ),
                users=users,
            ),
        )
        application = web.Application([("/echo", Echo), ("/", Public)], services=services)
        self.http = GuardedServer(
            application,
            auth=services.auth,
            limits=limits,
            log=logging.getLogger("kbridge.test.http"),
            max_body_size=LIMIT,
            **options,
        )
        self.ended = asyncio.Event()
        closed = self.http.limiter.closed

        def note_closed(stream: Any) -> None:
            closed(stream)
            self.ended.set()

        self.http.limiter.closed = note_closed  # type: ignore[method-assign]
        sockets = bind_all("127.0.0.1", 0)
        self.port = sockets[0].getsockname()[1]
        self.http.add_sockets(sockets)
        self.writers: list[asyncio.StreamWriter] = []

    async def dial(self, **how: Any) -> "Raw":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **how)
        self.writers.append(writer)
        return Raw(reader, writer)

    async def until_nobody_is_there(self) -> None:
        """Wait until the last connection has ended; there must have been one."""
        async with asyncio.timeout(TIMEOUT):
            await self.ended.wait()
            limiter = self.http.limiter
            while limiter.unauthenticated_connections or limiter.authenticated_connections:
                self.ended.clear()
                await self.ended.wait()

    async def aclose(self) -> None:
        for writer in self.writers:
            writer.close()
        self.http.stop()
        await self.http.close_all_connections()


class Raw:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, first: str, *headers: str, body: bytes = b"") -> None:
        lines = [f"{first} HTTP/1.1", "Host: localhost", *headers, "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(TIMEOUT):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers.get("Content-Length", "0")))
        return int(first.split()[1]), headers, body

    async def ended(self) -> bytes:
        """Wait until the server closes or resets the connection."""
        got = b""
        async with asyncio.timeout(TIMEOUT):
            try:
                while data := await self.reader.read(1 << 16):
                    got += data
            except ConnectionError:
                pass
        return got


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    where = ("-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert))
    subprocess.run([*command, *where], check=True, capture_output=True)
    context = make_context(TlsFiles(str(cert), str(key)))
    assert context is not None
    return context


Start = Callable[..., Awaitable[Harness]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    houses: list[Harness] = []

    async def run(**options: Any) -> Harness:
        limits = ConnectionLimits(**options.pop("limits", {}))
        houses.append(Harness(limits, **options))
        return houses[-1]

    yield run
    for harness in houses:
        await harness.aclose()


async def test_authenticated_clients_may_send_several_requests_per_connection(start) -> None:
    client = await (await start()).dial()
    for size in (1, 2, 3):
        client.send(f"GET /echo?size={size}", PROOF)
        status, headers, body = await client.answer()
        assert (status, body, headers.get("Connection")) == (200, b"x" * size, None)


@pytest.mark.parametrize("path", ["/", "/echo", "/nowhere"])
async def test_an_unauthenticated_connection_ends_after_one_request(start, path: str) -> None:
    client = await (await start()).dial()
    client.send(f"GET {path}")
    status, headers, _ = await client.answer()
    assert status == {"/": 200, "/echo": 403, "/nowhere": 404}[path]
    if path != "/nowhere":  # Tornado's own page: this application has no handler for it
        assert headers["Connection"] == "close"
    assert await client.ended() == b""


async def test_a_second_request_without_the_token_is_not_answered(start) -> None:
    client = await (await start()).dial()
    for _ in range(50):
        client.send("GET /")
    assert (await client.ended()).count(b"come in") <= 1


async def test_a_connection_stays_authenticated_when_a_later_request_has_no_token(start) -> None:
    client = await (await start()).dial()
    client.send("GET /echo", PROOF)
    assert (await client.answer())[0] == 200
    client.send("GET /")
    assert (await client.answer())[2] == b"come in"
    client.send("POST /echo", f"Content-Length: {UNAUTHENTICATED_BODY + 1}")
    assert (await client.answer())[0] == 403


async def test_a_large_body_of_a_user_who_cannot_be_identified_is_answered_with_503(start) -> None:
    """With 403, the user would look for another token."""
    table = Table()
    table.down = True
    client = await (await start(users=Users(table))).dial()
    headers = ("Authorization: token token-alice", f"Content-Length: {UNAUTHENTICATED_BODY + 1}")
    client.send("POST /echo", *headers)
    status, _, body = await client.answer()
    assert (status, json.loads(body)["message"]) == (503, "the table is locked away")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_answered_with_413(start, chunked: bool) -> None:
    client = await (await start()).dial()
    piece = b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n"
    if chunked:
        client.send(
            "POST /echo", PROOF, "Transfer-Encoding: chunked", body=piece * 40 + b"0\r\n\r\n"
        )
    else:
        client.send("POST /echo", PROOF, "Content-Length: 2000000", body=b"x" * 2_000_000)
    # All of it is sent before the answer is read, as most clients do.
    async with asyncio.timeout(TIMEOUT):
        await client.writer.drain()
    status, headers, body = await client.answer()
    assert (status, headers["Connection"]) == (413, "close")
    assert headers["Access-Control-Allow-Origin"] == FOREIGN
    assert "KbridgeApp.max_body_size" in json.loads(body)["message"]
    assert await client.ended() == b""


async def test_a_body_of_the_maximum_size_is_accepted(start) -> None:
    client = await (await start()).dial()
    client.send("POST /echo", PROOF, f"Content-Length: {LIMIT}", body=b"x" * LIMIT)
    assert (await client.answer())[2] == b"%d" % LIMIT


async def test_expect_100_continue_is_answered_with_413_if_the_body_is_too_large(start) -> None:
    client = await (await start()).dial()
    client.send("POST /echo", PROOF, "Content-Length: 2000000", "Expect: 100-continue")
    assert (await client.answer())[0] == 413


@pytest.mark.parametrize("length", ["9" * 19, "9" * 6000, "-1", "1e3", "5, 6"])
async def test_invalid_content_lengths_end_the_connection(start, length: str) -> None:
    client = await (await start()).dial()
    client.send("POST /echo", PROOF, f"Content-Length: {length}")
    assert (await client.ended()).startswith(b"HTTP/1.1 400 ")


async def test_a_repeated_content_length_is_accepted(start) -> None:
    client = await (await start()).dial()
    client.send(
        "POST /echo", PROOF, f"Content-Length: {LIMIT + 1}, {LIMIT + 1}", body=b"x" * (LIMIT + 1)
    )
    assert (await client.answer())[0] == 413


@pytest.mark.parametrize(
    ("first", "status", "message"),
    [
        ("POST /echo", 403, "a valid token is needed"),
        (
            "OPTIONS /echo",
            413,
            f"the body has more than {UNAUTHENTICATED_BODY} bytes, and there is no token",
        ),
    ],
)
async def test_an_unauthenticated_body_is_refused_before_it_arrives(
    start, first, status, message
) -> None:
    client = await (await start()).dial()
    client.send(first, f"Content-Length: {UNAUTHENTICATED_BODY + 1}")
    got, _, body = await client.answer()
    assert (got, json.loads(body)["message"]) == (status, message)
    client.writer.write(b"x" * (UNAUTHENTICATED_BODY + 1))
    assert await client.ended() == b""


async def test_a_refused_body_without_end_is_cut_off(start) -> None:
    client = await (await start()).dial()
    client.send("POST /echo", f"Content-Length: {10**12}")
    assert (await client.answer())[0] == 403

    async def push() -> None:
        while True:
            client.writer.write(b"x" * 100_000)
            await client.writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(push(), TIMEOUT)


async def test_the_oldest_silent_connection_makes_room(start) -> None:
    harness = await start(limits={"unauthenticated": 5})
    known = await harness.dial()
    known.send("GET /echo", PROOF)
    assert (await known.answer())[0] == 200
    silent = [await harness.dial() for _ in range(9)]
    for one in silent[:4]:
        assert await one.ended() == b""
    for one in silent[4:]:
        one.send("GET /")
        assert (await one.answer())[2] == b"come in"
    known.send("GET /echo", PROOF)
    assert (await known.answer())[0] == 200


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: loc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1",
    ],
    ids=["silence", "headers", "body"],
)
async def test_a_request_that_never_ends_is_ended(start, begun: bytes) -> None:
    harness = await start(limits={"request_timeout": 0.2})
    client = await harness.dial()
    client.writer.write(begun)
    assert await client.ended() == b""


async def test_a_request_that_trickles_is_ended(start) -> None:
    harness = await start(limits={"request_timeout": 0.3})
    client = await harness.dial()
    client.writer.write(b"GET / HTTP/1.1\r\n")
    loop = asyncio.get_running_loop()

    def drip() -> None:
        if not client.writer.is_closing():
            client.writer.write(b"X-A: b\r\n")
            dripping.append(loop.call_later(0.02, drip))

    dripping = [loop.call_later(0.02, drip)]
    assert await client.ended() == b""
    dripping[-1].cancel()


async def test_an_authenticated_connection_has_a_longer_timeout(start) -> None:
    harness = await start(limits={"request_timeout": 0.05, "keep_alive_timeout": 0.3})
    client = await harness.dial()
    client.send("GET /echo?size=1", PROOF)
    assert (await client.answer())[0] == 200
    assert await client.ended() == b""


async def test_a_reply_that_is_not_read_ends_the_connection(start) -> None:
    harness = await start(limits={"request_timeout": 0.2})
    client = await harness.dial()
    client.send("GET /?much=1")
    await harness.until_nobody_is_there()
    assert len(await client.ended()) < MUCH


async def test_headers_that_are_too_long_end_the_connection(start) -> None:
    harness = await start(heads=HeadLimits(size=2000))
    client = await harness.dial()
    client.send("GET /", f"X-Long: {'x' * 5000}")
    assert (await client.ended()).startswith(b"HTTP/1.1 431 ")


async def test_a_missing_tls_handshake_ends_the_connection(start, tls: ssl.SSLContext) -> None:
    harness = await start(limits={"request_timeout": 0.2}, ssl_options=tls)
    client = await harness.dial()
    assert await client.ended() == b""


async def test_an_invalid_tls_handshake_ends_the_connection(start, tls: ssl.SSLContext) -> None:
    harness = await start(ssl_options=tls)
    client = await harness.dial()
    client.send("GET /")
    assert b"HTTP" not in await client.ended()


async def test_tls_is_served(start, tls: ssl.SSLContext) -> None:
    harness = await start(ssl_options=tls)
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    client = await harness.dial(ssl=trusting)
    client.send("GET /")
    assert (await client.answer())[2] == b"come in"


async def test_ended_connections_leave_nothing_behind(start) -> None:
    harness = await start()
    for first in ("GET /", "GET /echo"):
        client = await harness.dial()
        client.send(first, "Connection: close", *([PROOF] if "echo" in first else []))
        await client.ended()
    cut = await harness.dial()
    cut.writer.write(b"GET / HT")
    cut.writer.transport.abort()
    await harness.until_nobody_is_there()


async def test_a_request_head_in_pieces_is_answered(start) -> None:
    client = await (await start()).dial()
    for piece in (
        b"GET /echo?size=3 HTTP/1.1\r\nHo",
        b"st: localhost\r\n",
        f"{PROOF}\r\n\r".encode(),
    ):
        client.writer.write(piece)
        await client.writer.drain()
    client.writer.write(b"\nGET /echo?size=4 HTTP/1.1\r\nHost: localhost\r\n")
    assert (await client.answer())[2] == b"xxx"
    client.writer.write(f"{PROOF}\r\n\r\n".encode())
    assert (await client.answer())[2] == b"xxxx"


async def test_a_connection_with_an_incomplete_head_counts_as_unauthenticated(start) -> None:
    harness = await start(limits={"unauthenticated": 3})
    half, silent, whole, late = [await harness.dial() for _ in range(4)]
    assert await half.ended() == b""  # the oldest
    whole.send("GET /")
    assert (await whole.answer())[2] == b"come in"
    silent.send("GET /")
    assert (await silent.answer())[2] == b"come in"
    late.writer.close()
    await harness.until_nobody_is_there()


async def test_pending_connections_are_closed_with_the_server(start) -> None:
    harness = await start()
    waiting = [await harness.dial() for _ in range(5)]
    for one in waiting[:3]:
        one.writer.write(b"GET / HTTP/1.1\r\nHost: lo")
    known = await harness.dial()
    known.send("GET /echo", PROOF)
    assert (await known.answer())[0] == 200  # the other connections were accepted before it
    limiter = harness.http.limiter
    assert (limiter.unauthenticated_connections, limiter.authenticated_connections) == (5, 1)
    harness.http.stop()
    await harness.http.close_all_connections()
    for one in (*waiting, known):
        assert await one.ended() == b""
    assert (limiter.unauthenticated_connections, limiter.authenticated_connections) == (0, 0)
