"""`kbridge.tornado.ChannelsHandler` in a Tornado application; the kernel behind it is in memory."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, HTTPError
from tornado.websocket import WebSocketHandler
from traitlets.config import Configurable
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kbridge import Hub, HubSettings, HubTable
from kbridge.connection import ZMQChannelsWebsocketConnection
from kbridge.link import MemoryKernel
from kbridge.tornado import ChannelsHandler
from kbridge.wire import LEGACY, V1, Channel, Message, Signer
from kbridge.wire.build import build
from kbridge.wire.zmq import parse, serialize
from tests.hub.rig import INFO, KEY
from tests.support.waiting import TIMEOUT, until

SIGNER = Signer(KEY)


class Kernel(Configurable):
    kernel_id = "a-kernel"

    def get_connection_info(self) -> dict[str, Any]:
        return INFO


class Server:
    """An application with one route, `/kernels/ID`, and one kernel."""

    def __init__(self, handler: Any, settings: HubSettings | None = None, **app: Any) -> None:
        self.kernels: list[MemoryKernel] = []
        self.hubs = HubTable(settings or HubSettings(limit_rate=False), link=self._link)
        route = app.pop("route", {"get_kernel": {"a-kernel": Kernel()}.get})
        self.app = Application([(r"/kernels/(.+)", handler, route)], **{"hubs": self.hubs, **app})
        sock, self.port = bind_unused_port()
        self.http = HTTPServer(self.app)
        self.http.add_socket(sock)

    def _link(self, endpoints: Any, events: Any, identity: bytes) -> MemoryKernel:
        self.kernels.append(MemoryKernel(endpoints, events, identity))
        return self.kernels[-1]

    @property
    def hub(self) -> Hub:
        return self.hubs["a-kernel"]

    def say(self, *messages: Message) -> None:
        self.kernels[-1].say(Channel.IOPUB, *(serialize(m, SIGNER) for m in messages))

    def prove(self) -> None:
        """Let the kernel show that it is ready for requests."""
        self.say(build(Channel.IOPUB, "iopub_welcome", {}, session="k", date=""))
        assert self.hub.ready

    def requests(self) -> list[Message]:
        """Return the messages that clients have sent to the kernel."""
        messages = [parse(channel, parts, SIGNER) for channel, parts in self.kernels[-1].sent]
        return [m for m in messages if m.msg_type != "kernel_info_request"]

    @asynccontextmanager
    async def client(
        self, path: str = "a-kernel", **options: Any
    ) -> AsyncIterator[ClientConnection]:
        usual: dict[str, Any] = {
            "subprotocols": [V1.subprotocol],
            "compression": None,
            "ping_interval": None,
            "proxy": None,
            "open_timeout": TIMEOUT,
        }
        url = f"ws://127.0.0.1:{self.port}/kernels/{path}"
        async with connect(url, **{**usual, **options}) as websocket:
            yield websocket

    async def close(self) -> None:
        await self.hubs.aclose()
        self.http.stop()
        await self.http.close_all_connections()


@pytest.fixture
async def start() -> AsyncIterator[Any]:
    servers: list[Server] = []

    def start(*args: Any, **options: Any) -> Server:
        servers.append(Server(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        await server.close()


def stream(text: str) -> Message:
    content = {"name": "stdout", "text": text}
    return build(Channel.IOPUB, "stream", content, session="k", date="2030-01-01T00:00:00Z")


def request(code: str) -> Message:
    content = {"code": code}
    return build(
        Channel.SHELL, "execute_request", content, session="c", date="2030-01-01T00:00:00Z"
    )


def payload(message: Message, dialect: Any = V1) -> str | bytes:
    _, data = dialect.payload(message)
    return data if dialect is V1 else data.decode()


async def text(websocket: ClientConnection) -> str:
    """The text of the next message."""
    async with asyncio.timeout(TIMEOUT):
        data = await websocket.recv()
    return str(json.loads((V1 if isinstance(data, bytes) else LEGACY).decode(data).content)["text"])


async def closed(websocket: ClientConnection) -> tuple[int, str]:
    """Read until the server closes the websocket; return the code and the reason."""
    async with asyncio.timeout(TIMEOUT):
        await drain(websocket)
    assert websocket.close_code is not None
    return websocket.close_code, websocket.close_reason or ""


async def drain(websocket: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await websocket.recv()


async def attached(server: Server, count: int = 1) -> None:
    """Wait until the kernel has the given number of websockets."""
    await until(lambda: server.hubs.connections("a-kernel") == count, f"{count} are attached")


def holds_output(server: Server) -> bool:
    """False once all has been acknowledged, with history_limit=0."""
    return server.hub.journal.nbytes > 0


async def acknowledged(server: Server) -> None:
    await until(lambda: not holds_output(server), "all output is acknowledged")


# -- messages -------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [V1, LEGACY], ids=["v1", "legacy"])
async def test_messages_pass_both_ways_in_the_dialect_of_the_client(start, dialect) -> None:
    server = start(ChannelsHandler)
    offered = [V1.subprotocol] if dialect is V1 else None
    async with server.client(subprotocols=offered) as websocket:
        assert websocket.subprotocol == dialect.subprotocol
        await attached(server)
        server.prove()
        server.say(stream("hello"))
        assert await text(websocket) == "hello"
        sent = request("1")
        await websocket.send(payload(sent, dialect))
        await until(server.requests, "the kernel got a request")
        assert [m.msg_id for m in server.requests()] == [sent.msg_id]
    await attached(server, 0)


async def test_websockets_of_one_kernel_share_its_hub(start) -> None:
    server = start(ChannelsHandler)
    async with server.client() as one, server.client() as two:
        await attached(server, 2)
        server.say(stream("to both"))
        assert await text(one) == await text(two) == "to both"
    assert len(server.hubs) == 1


async def test_an_invalid_frame_closes_the_websocket_with_its_code(start) -> None:
    server = start(ChannelsHandler)
    async with server.client() as websocket:
        await websocket.send(b"no message")
        assert (await closed(websocket))[0] == 1007


async def test_a_frame_above_tornados_limit_closes_the_websocket_and_names_the_setting(
    start,
) -> None:
    server = start(ChannelsHandler, websocket_max_message_size=1000)
    async with server.client() as websocket:
        await websocket.send(b"x" * 1001)
        code, reason = await closed(websocket)
        assert (code, "websocket_max_message_size" in reason) == (1009, True)


async def test_a_kernel_that_ends_closes_its_websockets(start) -> None:
    server = start(ChannelsHandler)
    async with server.client() as websocket:
        await attached(server)
        await server.hubs.close("a-kernel")
        assert await closed(websocket) == (1012, "the kernel was shut down")


async def test_a_since_that_is_not_an_id_closes_the_websocket_with_the_reason(start) -> None:
    server = start(ChannelsHandler)
    async with server.client("a-kernel?since=" + "x" * 513) as websocket:
        code, reason = await closed(websocket)
        assert (code, "since" in reason) == (1008, True)


async def test_a_compressed_websocket_is_left_to_tornado(start) -> None:
    class Compressed(ChannelsHandler):
        def get_compression_options(self) -> dict[str, Any]:
            return {}

    server = start(Compressed)
    async with server.client(compression="deflate") as websocket:
        await attached(server)
        sent = request("x" * 10_000)
        server.prove()
        await websocket.send(payload(sent))
        await until(server.requests, "the kernel got a request")
        assert server.requests()[0].content == sent.content


# -- backpressure ---------------------------------------------------------------------------


async def test_nothing_is_read_while_the_kernel_does_not_read(start) -> None:
    server = start(ChannelsHandler, HubSettings(request_limit=1000))
    async with server.client() as websocket:
        for _ in range(3):
            await websocket.send(payload(request("x" * 2000)))
        keepalive_pong = await websocket.ping()
        await attached(server)
        assert not keepalive_pong.done()
        server.prove()
        await until(lambda: len(server.requests()) == 3, "the kernel got three requests")
        async with asyncio.timeout(TIMEOUT):
            await keepalive_pong


async def test_a_kernel_that_ends_before_it_is_ready_closes_the_websocket(start) -> None:
    handlers: list[Any] = []

    class Handler(ChannelsHandler):
        def on_message(self, message: str | bytes) -> Any:
            handlers.append(super().on_message(message))
            return handlers[-1]

    server = start(Handler, HubSettings(request_limit=1000))
    async with server.client() as websocket:
        await websocket.send(payload(request("x" * 2000)))
        await until(lambda: handlers and handlers[-1], "reading is paused")
        await server.hubs.close("a-kernel")
        assert (await closed(websocket))[0] == 1012


# -- coming back ----------------------------------------------------------------------------


class Silent(ChannelsHandler):
    """A handler that does not call the method that it overrides."""

    def on_pong(self, data: bytes) -> None:
        pass


class Plain(WebSocketHandler):
    """A handler that does not pass pongs to its connection."""

    def initialize(self, get_kernel: Any) -> None:
        self.connection = ZMQChannelsWebsocketConnection(
            parent=get_kernel("a-kernel"), websocket_handler=self
        )

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return self.connection.select_subprotocol(subprotocols)

    def open(self, *_: str) -> None:
        self.connection.connect()

    def on_message(self, message: str | bytes) -> Any:
        return self.connection.handle_incoming_message(message)

    def on_close(self) -> None:
        self.connection.disconnect()


@pytest.mark.parametrize("handler", [ChannelsHandler, Silent, Plain])
async def test_after_a_reconnect_only_missed_messages_are_sent(start, handler) -> None:
    server = start(handler, HubSettings(limit_rate=False, history_limit=0))
    async with server.client("a-kernel?session_id=s") as websocket:
        await attached(server)
        server.say(*(stream(f"{n}\n") for n in range(20)))
        assert [await text(websocket) for _ in range(20)] == [f"{n}\n" for n in range(20)]
        await acknowledged(server)
    await attached(server, 0)
    server.say(stream("missed"))
    assert holds_output(server)
    async with server.client("a-kernel?session_id=s") as websocket:
        assert await text(websocket) == "missed"
        await acknowledged(server)


# -- who may come in ------------------------------------------------------------------------


async def status(server: Server, path: str = "a-kernel") -> int:
    """The status with which a handshake ends; 101 if it succeeds."""
    try:
        async with server.client(path):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


class Async(ChannelsHandler):
    async def authorize(self) -> bool:
        await asyncio.sleep(0)
        return self.get_query_argument("token", "") == "right"

    async def get_kernel(self, kernel_id: str) -> Kernel | None:
        await asyncio.sleep(0)
        return Kernel() if kernel_id == "a-kernel" else None


class Sync(ChannelsHandler):
    def authorize(self) -> bool:
        return self.get_query_argument("token", "") == "right"

    def get_kernel(self, kernel_id: str) -> Kernel:
        return {"a-kernel": Kernel()}[kernel_id]


def by_route(handler: ChannelsHandler) -> bool:
    return handler.get_query_argument("token", "") == "right"


async def test_every_client_is_authorized_by_default(start) -> None:
    assert await status(start(ChannelsHandler)) == 101


@pytest.mark.parametrize("handler", [Sync, Async])
async def test_methods_of_a_subclass_authorize_and_find_the_kernel(start, handler) -> None:
    server = start(handler, route={})
    assert await status(server, "a-kernel") == 403
    assert await status(server, "a-kernel?token=wrong") == 403
    assert await status(server, "another?token=wrong") == 403, (
        "the reply does not tell which kernels exist"
    )
    assert await status(server, "another?token=right") == 404
    assert await status(server, "a-kernel?token=right") == 101


async def test_functions_of_the_route_authorize_and_find_the_kernel(start) -> None:
    route = {"get_kernel": {"a-kernel": Kernel()}.__getitem__, "authorize": by_route}
    server = start(ChannelsHandler, route=route)
    assert await status(server, "a-kernel") == 403
    assert await status(server, "another?token=right") == 404
    assert await status(server, "a-kernel?token=right") == 101


@pytest.mark.parametrize("answer", [None, "yes", 1], ids=repr)
async def test_only_true_authorizes(start, answer) -> None:
    class Sloppy(ChannelsHandler):
        def authorize(self) -> Any:
            return answer

    assert await status(start(Sloppy)) == 403


async def test_authorize_can_choose_the_status(start) -> None:
    class Choosy(ChannelsHandler):
        def authorize(self) -> bool:
            raise HTTPError(401)

    assert await status(start(Choosy)) == 401


async def test_pages_of_other_origins_are_refused(start) -> None:
    server = start(ChannelsHandler)
    with pytest.raises(InvalidStatus, match="403"):
        async with server.client(origin="http://elsewhere.example"):
            pass
    assert len(server.hubs) == 0


class Counting(ChannelsHandler):
    """Count the requests that reach the functions of the application."""

    asked = 0

    def authorize(self) -> bool:
        type(self).asked += 1
        return True

    def get_kernel(self, kernel_id: str) -> None:
        type(self).asked += 1


async def test_a_page_of_another_origin_cannot_tell_which_kernels_there_are(
    start, monkeypatch
) -> None:
    monkeypatch.setattr(Counting, "asked", 0)
    server = start(Counting, route={})
    with pytest.raises(InvalidStatus, match="403"):
        async with server.client("another", origin="http://elsewhere.example"):
            pass
    assert Counting.asked == 0


@pytest.mark.parametrize(
    "headers",
    [{}, {"Upgrade": "websocket"}, {"Connection": "Upgrade"}],
    ids=["neither", "upgrade", "connection"],
)
async def test_a_request_without_a_handshake_does_not_reach_the_application(
    start, monkeypatch, headers
) -> None:
    monkeypatch.setattr(Counting, "asked", 0)
    server = start(Counting, route={})
    url = f"http://127.0.0.1:{server.port}/kernels/another"
    reply = await AsyncHTTPClient().fetch(url, headers=headers, raise_error=False)
    assert (reply.code, Counting.asked) == (400, 0)


# -- an application that lacks something ----------------------------------------------------


@pytest.mark.parametrize("hubs", [None, {}])
async def test_an_application_without_hubs_is_told_how_to_set_them(start, hubs, caplog) -> None:
    server = start(ChannelsHandler, hubs=hubs)
    with caplog.at_level(logging.ERROR):
        assert await status(server) == 500
    assert "Application(..., hubs=kbridge.HubTable())" in caplog.text


async def test_a_handler_that_cannot_find_kernels_says_what_to_do(start, caplog) -> None:
    server = start(ChannelsHandler, route={})
    with caplog.at_level(logging.ERROR):
        assert await status(server) == 500
    assert "ChannelsHandler cannot find kernels: override get_kernel()" in caplog.text


# -- pings ----------------------------------------------------------------------------------


async def test_there_are_no_pings_unless_the_application_asks_for_them(start) -> None:
    server = start(ChannelsHandler)
    async with server.client():
        await attached(server)
        assert server.app.settings["kbridge_keepalive"] is None


async def test_clients_that_answer_pings_stay_and_silent_ones_are_closed(start) -> None:
    pongs: list[bytes] = []

    class Handler(ChannelsHandler):
        def on_pong(self, data: bytes) -> None:
            super().on_pong(data)
            pongs.append(data)

    server = start(Handler, websocket_ping_interval=3600)
    async with server.client() as websocket:
        await attached(server)
        keepalive = server.app.settings["kbridge_keepalive"]
        for count in range(1, 4):
            keepalive.beat()
            await until(lambda count=count: len(pongs) == count, "the client answered")
        keepalive.beat()
        keepalive.beat()  # immediately, so the client cannot have answered
        assert await closed(websocket) == (1011, "no answer to a ping")
    await attached(server, 0)
