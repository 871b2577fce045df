"""`/api/kernels/{id}/channels` on a real server; the kernels behind it live in memory."""

import asyncio
import gc
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from traitlets.config import Configurable
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kbridge.errors import KernelNotFound
from kbridge.hub.hub import Hub
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.kernels.users import User
from kbridge.link.keepalive import Keepalive
from kbridge.link.memory import MemoryKernel
from kbridge.server.api.routes import make_application
from kbridge.server.api.services import Services
from kbridge.server.api.websocket import ChannelsHandler
from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.auth.users import Credential
from kbridge.wire import legacy, v1
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse, serialize
from tests.hub.rig import INFO, KEY
from tests.link.peer import BINARY, PING, TEXT, Peer
from tests.support.memory import MemoryKernels
from tests.support.users import ADMIN, Checks, Table
from tests.support.waiting import TIMEOUT, until

TOKEN = "a-token-of-the-tests"
ID = "a-kernel"
LIMIT = 1 << 20
SIGNER = Signer(KEY)


class Kernel(Configurable):
    kernel_id = ID

    def get_connection_info(self) -> dict[str, Any]:
        return INFO


class Kernels(Configurable):
    """A manager of a single kernel."""

    def __contains__(self, kernel_id: str) -> bool:
        return kernel_id == ID

    def model(self, kernel_id: str) -> dict[str, Any]:
        return {"id": self.get_kernel(kernel_id).kernel_id, "user": "alice"}

    def get_kernel(self, kernel_id: str) -> Kernel:
        if kernel_id != ID:
            raise KernelNotFound(kernel_id)
        return Kernel(parent=self)


class Harness:
    """The server."""

    def __init__(self, *, settings: HubSettings | None = None, **app: Any) -> None:
        self.links = MemoryKernels()
        self.hubs = HubTable(settings or HubSettings(limit_rate=False), link=self.links)
        self.services = Services(
            kernels=Kernels(),  # type: ignore[arg-type]
            sessions=SimpleNamespace(),  # type: ignore[arg-type]
            hubs=self.hubs,
            auth=Authenticator(AccessPolicy(token=TOKEN, cookie_secret=b"s")),
        )
        self.news = asyncio.Event()
        self.http = HTTPServer(
            make_application(
                self.services,
                self.handler(),
                hubs=self.hubs,
                websocket_max_message_size=LIMIT,
                **app,
            )
        )
        sock, self.port = bind_unused_port()
        self.http.add_socket(sock)

    def handler(self) -> type[ChannelsHandler]:
        harness = self

        class Handler(ChannelsHandler):
            """Report all received events."""

            def on_message(self, message: str | bytes) -> Any:
                harness.news.set()
                return super().on_message(message)

            def on_close(self) -> None:
                harness.news.set()
                super().on_close()

        return Handler

    @property
    def hub(self) -> Hub:
        return self.hubs[ID]

    @property
    def kernel(self) -> MemoryKernel:
        return self.links.latest

    def say(self, *messages: Message) -> None:
        self.kernel.say(messages[0].channel, *(serialize(m, SIGNER) for m in messages))

    def prove(self) -> None:
        self.say(message("iopub_welcome", {}, Channel.IOPUB))
        assert self.hub.ready

    def sent(self) -> list[Message]:
        got = [parse(c, frames, SIGNER) for c, frames in self.kernel.sent]
        return [m for m in got if self.hub.notices.mark not in m.header]

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until a condition holds that the actions of clients cause."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def until_connections(self, count: int) -> None:
        await self.until(lambda: self.hubs.connections(ID) == count)

    def url(self, path: str = ID, query: str = "") -> str:
        return f"ws://127.0.0.1:{self.port}/api/kernels/{path}/channels?{query}"

    @asynccontextmanager
    async def client(
        self, *, dialect: Any = v1, query: str = "", path: str = ID, token: str = TOKEN, **how: Any
    ) -> AsyncIterator[ClientConnection]:
        headers = {"Authorization": f"token {token}"} if token else {}
        options = {
            "subprotocols": [v1.SUBPROTOCOL] if dialect is v1 else None,
            "additional_headers": headers | how.pop("headers", {}),
            "compression": None,
            "ping_interval": None,
            "max_size": None,
            "proxy": None,
            "open_timeout": TIMEOUT,
            "close_timeout": TIMEOUT,
            **how,
        }
        async with connect(self.url(path, query), **options) as ws:
            yield ws

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        """A client of the legacy dialect that writes its frames by hand."""
        peer = await Peer.connect(self.port, f"/api/kernels/{ID}/channels?token={TOKEN}")
        try:
            yield peer
        finally:
            await peer.hang_up()

    async def close(self) -> None:
        await self.hubs.aclose()
        self.http.stop()
        await self.http.close_all_connections()


def message(
    msg_type: str, content: Any = None, channel: Channel = Channel.SHELL, **more: Any
) -> Message:
    return build(channel, msg_type, content or {}, session="c", date="2030-01-01T00:00:00Z", **more)


def stream(text: str) -> Message:
    return message("stream", {"name": "stdout", "text": text}, Channel.IOPUB)


async def read(ws: ClientConnection) -> Message:
    async with asyncio.timeout(TIMEOUT):
        data = await ws.recv()
    return (v1 if ws.subprotocol else legacy).decode(data)


async def ended(ws: ClientConnection) -> tuple[int, str]:
    """Read to the end; return code and reason of the server's close frame."""

    async def drain() -> None:
        async with asyncio.timeout(TIMEOUT):
            while True:
                await ws.recv()

    with pytest.raises(ConnectionClosed) as caught:
        await drain()
    received = caught.value.rcvd
    assert received is not None, "the connection was broken, not closed"
    assert caught.value.rcvd_then_sent, "the server closed first"
    return received.code, received.reason


Start = Callable[..., Harness]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    houses: list[Harness] = []

    def begin(**how: Any) -> Harness:
        houses.append(Harness(**how))
        return houses[-1]

    yield begin
    for one in houses:
        await one.close()


@pytest.fixture
async def harness(start: Start) -> Harness:
    return start()


async def refused(attempt: Any) -> tuple[int, dict[str, str]]:
    """The status and the body of an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with attempt:
            pass
    response = caught.value.response
    assert response.body is not None
    return response.status_code, json.loads(response.body)


# -- the door -------------------------------------------------------------------------------


async def test_an_unknown_kernel_is_404_before_any_upgrade(harness) -> None:
    status, body = await refused(harness.client(path="no-such-kernel"))
    assert status == 404
    assert set(body) == {"reason", "message"}
    assert "no-such-kernel" in body["message"]
    assert len(harness.hubs) == 0
    assert harness.services.websockets == set()


async def test_without_the_token_unknown_kernels_cannot_be_told_from_others(harness) -> None:
    answers = [
        await refused(harness.client(path=path, token=token))
        for path in (ID, "no-such-kernel")
        for token in ("", "wrong", TOKEN + "x")
    ]
    assert {status for status, _ in answers} == {403}
    assert len({body["message"] for _, body in answers}) == 1
    assert len(harness.hubs) == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
    ],
    ids=str,
)
async def test_foreign_origins_and_hosts_are_refused_with_the_token_too(harness, headers) -> None:
    if "Host" in headers:
        # websockets sends the Host of its URI, so the address is passed separately.
        attempt = connect(
            f"ws://{headers['Host']}/api/kernels/{ID}/channels?token={TOKEN}",
            sock=socket.create_connection(("127.0.0.1", harness.port)),
            proxy=None,
        )
    else:
        attempt = harness.client(token="", query=f"token={TOKEN}", headers=headers)
    status, body = await refused(attempt)
    assert status == 403
    assert TOKEN not in str(body)
    assert len(harness.hubs) == 0


async def test_a_token_in_a_header_is_accepted_from_any_origin(harness) -> None:
    async with harness.client(headers={"Origin": "https://hub.example"}):
        assert harness.hubs.connections(ID) == 1


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "proxy"),
        ({"Connection": "Upgrade"}, "proxy"),
        ({"Upgrade": "websocket"}, "proxy"),
        ({"Connection": "keep-alive, Upgrade", "Upgrade": "h2c"}, "proxy"),
        ({"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket"}, "Sec-WebSocket-Key"),
    ],
    ids=str,
)
async def test_an_invalid_handshake_is_answered_with_the_usual_cause(
    harness, headers, told
) -> None:
    reply = await AsyncHTTPClient().fetch(
        f"http://127.0.0.1:{harness.port}/api/kernels/{ID}/channels",
        headers={"Authorization": f"token {TOKEN}", **headers},
        raise_error=False,
    )
    body = json.loads(reply.body)
    assert (reply.code, body["reason"]) == (400, "Bad Request")
    assert told in body["message"]
    assert len(harness.hubs) == 0


async def test_the_servers_origin_and_a_token_in_the_url_are_accepted(harness) -> None:
    origin = {"Origin": f"http://127.0.0.1:{harness.port}"}
    async with harness.client(token="", query=f"token={TOKEN}", headers=origin):
        assert harness.hubs.connections(ID) == 1


async def test_a_server_that_shuts_down_accepts_no_websocket(harness) -> None:
    harness.services.closing = True
    status, _ = await refused(harness.client())
    assert status == 503


async def test_a_plain_get_is_refused(harness) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    writer.write(
        f"GET /api/kernels/{ID}/channels?token={TOKEN} HTTP/1.1\r\n"
        "Host: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    async with asyncio.timeout(TIMEOUT):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 4")
    assert len(harness.hubs) == 0
    writer.close()
    await writer.wait_closed()


async def test_a_session_id_that_is_not_text_is_refused_with_400(harness) -> None:
    status, _ = await refused(harness.client(query="session_id=%ff"))
    assert status == 400


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("parents=", "parents names no request"),
        ("parents=a&" * 3 + "parents=" + ",".join(map(str, range(100))), "more than 100 requests"),
        ("parents=" + "x" * 16_385, "more than 16,384 bytes"),
    ],
    ids=["none", "too many", "too long"],
)
async def test_parents_beyond_the_limits_are_refused_with_the_reason(
    harness, query, reason
) -> None:
    status, body = await refused(harness.client(query=query))
    assert status == 400
    assert reason in body["message"]


# -- open and talk --------------------------------------------------------------------------


async def test_a_websocket_opens_although_the_kernel_does_not_answer(harness) -> None:
    async with harness.client() as ws:
        assert harness.hubs.connections(ID) == 1
        assert not harness.hub.ready
        await ws.send(v1.encode(message("execute_request", {"code": "1"})))
        await (await ws.ping())
        assert harness.sent() == [], "it waits"
        harness.prove()
        assert [m.msg_type for m in harness.sent()] == ["execute_request"]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([v1.SUBPROTOCOL], v1.SUBPROTOCOL),
        (["x", v1.SUBPROTOCOL], v1.SUBPROTOCOL),
        (None, None),
        (["x"], None),
    ],
)
async def test_the_subprotocol_is_echoed(harness, offered, chosen) -> None:
    async with harness.client(subprotocols=offered) as ws:
        assert ws.subprotocol == chosen


@pytest.mark.parametrize("dialect", [v1, legacy], ids=["v1", "legacy"])
async def test_a_round_trip_in_each_dialect(harness, dialect) -> None:
    async with harness.client(dialect=dialect) as ws:
        harness.prove()
        asked = message("comm_msg", {"data": "naïve 🎉"}, buffers=[b"\x00\xff", b""])
        plain = message("execute_request", {"code": "1"}, msg_id="plain")
        for msg in (asked, plain):
            await ws.send(dialect.encode(msg))
        await harness.until(lambda: len(harness.sent()) == 2)
        assert [(m.content, m.buffers) for m in harness.sent()] == [
            (asked.content, (b"\x00\xff", b"")),
            (plain.content, ()),
        ]
        said = [
            stream("größer"),
            message("display_data", {"data": {}}, Channel.IOPUB, buffers=[b"\x01" * 70_000]),
            message("execute_reply", {"status": "ok"}, parent_header=plain.header),
        ]
        for msg in said:
            harness.say(msg)
        for msg in said:
            assert await read(ws) == msg


async def test_fragments_are_one_message(harness) -> None:
    async with harness.client() as ws:
        harness.prove()
        data = v1.encode(message("execute_request", {"code": "x" * 1000}))
        await ws.send(iter([data[:7], data[7:500], data[500:]]))
        await harness.until(harness.sent)
        assert v1.encode(harness.sent()[0]) == data


async def test_replies_are_sent_to_one_client_and_output_to_all(harness) -> None:
    async with harness.client(query="session_id=a") as one, harness.client(dialect=legacy) as two:
        harness.prove()
        asked = message("execute_request", {"code": "1"})
        await one.send(v1.encode(asked))
        await harness.until(harness.sent)
        harness.say(message("execute_reply", {"status": "ok"}, parent_header=asked.header))
        harness.say(stream("for all"))
        assert [(await read(one)).msg_type for _ in range(2)] == ["execute_reply", "stream"]
        assert (await read(two)).msg_type == "stream"


async def test_closing_detaches(harness) -> None:
    async with harness.client(), harness.client():
        assert harness.hubs.connections(ID) == 2
        assert len(harness.services.websockets) == 2
    await harness.until_connections(0)
    assert harness.services.websockets == set()


async def test_a_client_that_vanishes_is_detached(harness) -> None:
    async with harness.client() as ws:
        ws.transport.abort()
        await harness.until_connections(0)


async def test_a_session_that_reconnects_gets_the_messages_it_missed(harness) -> None:
    async with harness.client(query="session_id=me") as ws:
        harness.prove()
        harness.say(stream("seen"))
        await read(ws)
    await harness.until_connections(0)
    harness.say(stream("missed"), stream("missed, too"))
    async with (
        harness.client(query="session_id=me") as ws,
        harness.client(query="session_id=else") as other,
    ):
        harness.say(stream("now"))
        got = [json.loads((await read(ws)).content)["text"] for _ in range(2)]
        assert got == ["missedmissed, too", "now"], "a client that lags gets joined texts"
        assert json.loads((await read(other)).content)["text"] == "now"


@pytest.mark.parametrize("dialect", [v1, legacy], ids=["v1", "legacy"])
async def test_a_websocket_may_follow_requests_of_another_session(harness, dialect) -> None:
    async with harness.client(query="session_id=me") as page:
        harness.prove()
        requests = {each: message("execute_request", {"code": each}, msg_id=each) for each in "ab"}
        for each in requests.values():
            await page.send(v1.encode(each))
        await harness.until(lambda: len(harness.sent()) == 2)
        said = [
            message("status", {"execution_state": "busy"}, Channel.IOPUB, parent_header=one.header)
            for one in requests.values()
        ]
        harness.say(*said)
        reply = message("execute_reply", {"status": "ok"}, parent_header=requests["b"].header)
        async with harness.client(dialect=dialect, query="session_id=you&parents=b") as ws:
            harness.say(reply)
            assert [await read(ws), await read(ws)] == [said[1], reply]


async def test_a_kernel_that_is_shut_down_closes_its_websockets(harness) -> None:
    async with harness.client() as ws:
        await harness.hubs.close(ID)
        assert await ended(ws) == (1012, "the kernel was shut down")


async def test_a_kernel_that_ends_during_the_handshake_closes_the_websocket(harness) -> None:
    kernel = harness.services.kernels.get_kernel(ID)
    hub = harness.hubs.open(ID, kernel.get_connection_info())
    await hub.aclose()  # the table still has the hub
    async with harness.client() as ws:
        assert await ended(ws) == (1012, "the kernel is gone")
    assert harness.services.websockets == set()


# -- frames that are no messages ------------------------------------------------------------

GOOD = message("execute_request", {"code": "1"})
FAULTS: dict[str, tuple[Any, Any, int, str]] = {
    "text where binary is spoken": (v1, legacy.encode(GOOD), 1003, "text frame"),
    "truncated": (v1, v1.encode(GOOD)[:-1], 1007, "offset"),
    "empty": (v1, b"", 1007, "too short"),
    "ten million offsets": (v1, struct.pack("<Q", 10_000_000) + bytes(64), 1007, "offsets"),
    "invalid UTF-8": (v1, v1.encode(GOOD._replace(content=b'{"a":"\xff"}')), 1007, "UTF-8"),
    "two ids": (
        v1,
        v1.encode(GOOD._replace(header=b'{"msg_id": "a", "msg_id": "b", "msg_type": "c"}')),
        1008,
        "msg_id",
    ),
    "legacy: no JSON": (legacy, "{", 1007, "JSON"),
    "legacy: a list": (legacy, "[]", 1008, "object"),
    "legacy: no header": (legacy, "{}", 1008, "header"),
    "legacy: offsets": (legacy, struct.pack("!II", 1, 4000), 1007, "offset"),
    "over the limit": (v1, b"x" * (LIMIT + 1), 1009, "websocket_max_message_size"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_closes_only_its_websocket_with_the_reason(harness, name) -> None:
    dialect, frame, code, words = FAULTS[name]
    async with harness.client(dialect=dialect) as bad, harness.client() as bystander:
        harness.prove()
        for data in (frame, dialect.encode(GOOD)):
            try:
                await bad.send(data)
            except ConnectionClosed:
                break  # the server's close was faster
        closed, reason = await ended(bad)
        assert closed == code
        assert words in reason
        await harness.until_connections(1)
        await bystander.send(v1.encode(message("kernel_info_request")))
        await harness.until(harness.sent)
        assert [m.msg_type for m in harness.sent()] == ["kernel_info_request"]
        harness.say(stream("alive"))
        assert (await read(bystander)).msg_type == "stream"


async def test_text_that_is_not_utf8_is_closed_with_1007(harness) -> None:
    async with harness.client(dialect=legacy) as ws:
        await ws.send(b'{"header": "\xff"}', text=True)
        assert (await ended(ws))[0] == 1007


@pytest.mark.parametrize("opcode", [BINARY, TEXT], ids=["no message", "no UTF-8"])
async def test_nothing_is_written_after_a_close_frame(harness, opcode) -> None:
    """The kernel continues to send output during the closing handshake."""
    async with harness.peer() as peer:
        harness.say(stream("before"))
        assert (await peer.frame())[0] == TEXT
        peer.send(opcode, b"\xff")
        assert (await peer.close_frame())[0] == 1007
        harness.say(stream("late"))
        peer.send_close(1007)
        assert await peer.end() == b""


# -- backpressure ---------------------------------------------------------------------------


async def test_a_full_kernel_stops_reading_until_there_is_room(start) -> None:
    harness = start(settings=HubSettings(limit_rate=False, request_limit=1 << 20))
    frames = [
        v1.encode(message("execute_request", {"code": f"{i:03}" + "x" * 500_000}))
        for i in range(60)
    ]
    async with harness.client() as ws, harness.client() as other:
        harness.prove()
        harness.kernel.full = True

        async def send_all() -> None:
            for frame in frames:
                await ws.send(frame)

        sending = asyncio.ensure_future(send_all())
        outbox = lambda: harness.hub.statistics()["outbox"]  # noqa: E731
        try:
            await harness.until(lambda: outbox()["senders_waiting"])
            # The server answers pings of the other websocket: it only does not read this one.
            for _ in range(20):
                await (await other.ping())
            assert not sending.done()
            waiting = outbox()
            assert (waiting["senders_waiting"], waiting["requests"]) == (1, 3)
            await other.send(v1.encode(message("kernel_info_request")))
            harness.say(stream("output goes on"))
            for each in (ws, other):
                assert (await read(each)).msg_type == "stream"
        finally:
            harness.kernel.make_room()
        async with asyncio.timeout(TIMEOUT):
            await sending
        await harness.until(lambda: len(harness.sent()) == len(frames) + 1)
        shell = [v1.encode(m) for m in harness.sent() if m.msg_type == "execute_request"]
        assert shell == frames


@asynccontextmanager
async def stuck(start: Start, **app: Any) -> AsyncIterator[tuple[Harness, ClientConnection]]:
    """A websocket that waits for a full kernel."""
    harness = start(settings=HubSettings(limit_rate=False, request_limit=10), **app)
    async with harness.client(close_timeout=1) as ws:
        harness.prove()
        harness.kernel.full = True
        await ws.send(v1.encode(GOOD))
        await harness.until(lambda: harness.hub.statistics()["outbox"]["senders_waiting"])
        yield harness, ws


async def test_a_client_that_waits_for_a_full_kernel_is_not_disconnected(start) -> None:
    """Its pongs are not read in the meantime."""
    keepalive = Keepalive(3600)
    async with stuck(start, kbridge_keepalive=keepalive) as (harness, ws):
        for _ in range(3):
            keepalive.beat()
        harness.kernel.make_room()
        await (await ws.ping())
        keepalive.beat()
        await (await ws.ping())  # behind its pong
        keepalive.beat()
        await (await ws.ping())
        assert harness.hubs.connections(ID) == 1


async def test_a_kernel_that_ends_while_a_client_waits_closes_its_websocket(start, caplog) -> None:
    async with stuck(start) as (harness, ws):
        await harness.hubs.close(ID)
        assert await ended(ws) == (1012, "the kernel was shut down")
    assert "Traceback" not in caplog.text
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


async def test_a_client_that_does_not_read_uses_only_the_memory_of_the_journal(start) -> None:
    limit = 2 << 20
    harness = start(settings=HubSettings(limit_rate=False, journal_limit=limit, history_limit=0))
    async with harness.client(max_queue=1) as slow, harness.client() as honest:
        harness.prove()
        text = "x" * 10_000
        for i in range(2000):
            harness.say(stream(f"{i:05}{text}"))
            assert harness.hub.journal.nbytes <= limit
            assert json.loads((await read(honest)).content)["text"].startswith(f"{i:05}")
        links = [h.ws_connection for h in harness.services.websockets]
        assert sum(link.unsent_bytes for link in links) < 2 << 20, "held outside the journal"
        harness.say(message("status", {"execution_state": "idle"}, Channel.IOPUB))
        seen = []
        while (msg := await read(slow)).msg_type != "status":
            seen.append(json.loads(msg.content)["text"])
        assert any("were dropped" in t for t in seen)
        assert f"01999{text}" in seen[-1]
        assert (await read(honest)).msg_type == "status"


# -- keepalive ------------------------------------------------------------------------------


async def test_clients_that_do_not_answer_pings_are_disconnected(start) -> None:
    keepalive = Keepalive(3600)
    harness = start(kbridge_keepalive=keepalive)
    async with harness.client() as lively:
        for _ in range(3):
            keepalive.beat()
            await (await lively.ping())  # answered behind the pong to our own
        async with harness.peer() as silent:
            keepalive.beat()
            assert await silent.frame() == (PING, b"")
            await (await lively.ping())
            keepalive.beat()
            assert await silent.close_frame() == (1011, "no answer to a ping")
            silent.send_close(1011)
            assert await silent.end() == b""
            await harness.until_connections(1)


# -- thousands ------------------------------------------------------------------------------


@pytest.fixture
def no_log_records() -> Iterator[None]:
    """Make no log records: pytest keeps them until the test ends.

    `caplog` does not silence loggers whose level an earlier test has set.
    """
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_log_records")
async def test_thousands_of_upgrades_to_an_unknown_kernel_leave_no_objects(harness) -> None:
    process = psutil.Process()
    request = (
        f"GET /api/kernels/none/channels HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: token {TOKEN}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()

    async def ask(count: int) -> None:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 404")
            writer.close()
            await writer.wait_closed()

    async with asyncio.timeout(TIMEOUT):
        await ask(200)
        gc.collect()
        memory, objects, fds = process.memory_info().rss, len(gc.get_objects()), process.num_fds()
        await ask(2000)
    gc.collect()
    assert process.num_fds() <= fds + 10
    assert len(gc.get_objects()) < objects + 2000
    assert process.memory_info().rss < memory + (16 << 20)
    assert len(harness.hubs) == 0
    assert harness.services.websockets == set()


# -- users -----------------------------------------------------------------------------------


@asynccontextmanager
async def with_users(harness: Harness) -> AsyncIterator[tuple[Table, Checks]]:
    """Give a server users; they are known already."""
    table = Table()
    checks = Checks(table)
    policy = AccessPolicy(token=TOKEN, cookie_secret=b"s", users=True)
    harness.services.auth = Authenticator(policy, users=checks.users)
    opened = checks.of(harness.services)
    for token in table.users:
        lookup = checks.users.lookup(Credential(token))
        assert lookup is not None
        await lookup
    table.asked.clear()
    yield table, checks
    await opened.aclose()
    await checks.users.aclose()


async def test_all_websockets_of_a_withdrawn_token_end(harness: Harness) -> None:
    async with (
        with_users(harness) as (table, checks),
        harness.client(token="token-alice") as first,
        harness.client(token="", query="token=token-alice", dialect=legacy) as second,
        harness.client(token=f"token-{ADMIN.name}") as other,
        harness.client() as operator,
    ):
        await harness.until_connections(4)
        del table.users["token-alice"]
        checks.check()  # the tokens have their turns in the order in which they came
        for ws in (first, second):
            code, reason = await ended(ws)
            assert (code, "token is no longer valid" in reason) == (1008, True)
        await harness.until_connections(2)
        checks.check()
        await until(lambda: len(table.asked) == 2, "a question about each user, none about others")
        harness.prove()
        harness.say(stream("hello"))
        for ws in (other, operator):
            assert json.loads((await read(ws)).content)["text"] == "hello"


async def test_the_websocket_of_a_former_administrator_ends_if_the_kernel_is_not_theirs(
    harness: Harness,
) -> None:
    token = "token-alice"
    async with with_users(harness) as (table, checks):
        for name, admin in (("carol", True), ("alice", True)):
            table.users[token] = User(name, admin)
            lookup = checks.users.lookup(Credential(token))
            assert lookup is not None
            await lookup
            table.asked.clear()
            async with harness.client(token=token) as ws:
                await harness.until_connections(1)
                table.users[token] = User(name)
                checks.check()
                if name == "carol":
                    code, reason = await ended(ws)
                    assert (code, "no longer gives access" in reason) == (1008, True)
                else:
                    await until(lambda: table.asked, "the question")
                    checks.check()
                    await until(lambda: len(table.asked) == 2, "the next question")
                    assert harness.hubs.connections(ID) == 1
            await harness.until_connections(0)
