"""The forwarding to a gateway: Jupyter Server and a scripted gateway in one event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from http.cookies import SimpleCookie
from typing import Any

import pytest
from jupyter_server.auth import Authorizer
from jupyter_server.gateway.gateway_client import GatewayClient, GatewayTokenRenewerBase
from tornado import web
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketHandler
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.jupyter.apps import Jupyter
from tests.support.waiting import TIMEOUT, until

KERNEL = "5b8e4d0a-0000-4000-8000-000000000001"
LIST = f"api/kernels/{KERNEL}/executions"
CHANNELS = f"kbridge/kernels/{KERNEL}/channels"
V1 = "v1.kernel.websocket.jupyter.org"
TOKEN = "token-of-the-page"
GATEWAY_TOKEN = "token-of-the-gateway"
MIB = 1 << 20
JSON = "application/json"


class Executions(web.RequestHandler):
    """Answers each request as the test says."""

    async def prepare(self) -> None:
        self.application.settings["gateway"].asked.append(self.request)

    def get(self, *_: str) -> None:
        gateway = self.application.settings["gateway"]
        status, kind, body = gateway.answer
        self.set_status(status)
        for cookie in gateway.cookies:
            self.set_cookie(cookie, "warm")
        if status != 204:
            self.set_header("Content-Type", kind)
            self.finish(body)

    delete = get


class Channels(WebSocketHandler):
    """The gateway's end of a websocket; tests write to it and read what it has received."""

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return V1 if V1 in subprotocols else None

    def check_origin(self, origin: str) -> bool:
        return True

    def get_compression_options(self) -> None:
        return None

    @property
    def max_message_size(self) -> int:
        return 64 * MIB

    async def prepare(self) -> None:
        gateway = self.application.settings["gateway"]
        gateway.asked.append(self.request)
        status, kind, body = gateway.handshake
        if status != 101:
            self.set_status(status)
            self.set_header("Content-Type", kind)
            self.finish(body)

    def open(self, kernel_id: str) -> None:
        self.received: list[str | bytes] = []
        self.pings = 0
        self.ended = asyncio.Event()
        self.application.settings["gateway"].opened.append(self)
        if self.application.settings["gateway"].greeting:
            self.write_message(self.application.settings["gateway"].greeting, binary=True)

    async def on_message(self, message: str | bytes) -> None:
        await self.application.settings["gateway"].reads.wait()
        self.received.append(message)

    def on_ping(self, data: bytes) -> None:
        self.pings += 1

    def on_close(self) -> None:
        self.ended.set()

    def cut(self) -> None:
        """Lose the connection without a closing handshake."""
        assert self.ws_connection is not None
        stream: Any = self.ws_connection.stream
        stream.close()


class Gateway:
    """A gateway; not kbridge, so that each reply can be chosen.

    Attributes
    ----------
    asked : list of HTTPServerRequest
        All requests, those of websockets included.
    opened : list of Channels
        The websockets.
    answer, handshake : tuple
        Status, content type and body of a reply; 101 accepts a websocket.
    reads : asyncio.Event
        Cleared while the gateway does not read from websockets.
    greeting : bytes
        The message that the gateway sends with the handshake.
    cookies : list of str
        Cookies that replies set.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.opened: list[Channels] = []
        self.answer: tuple[int, str, str] = (200, JSON, "[]")
        self.handshake: tuple[int, str, str] = (101, "", "")
        self.reads = asyncio.Event()
        self.reads.set()
        self.greeting = b""
        self.cookies: list[str] = []
        sock, self.port = bind_unused_port()
        kernels = r"/api/kernels/([^/]+)"
        routes = [
            (rf"{kernels}/channels", Channels),
            (rf"{kernels}/executions", Executions),
            (rf"{kernels}/executions/(.+)", Executions),
        ]
        self._server = HTTPServer(web.Application(routes, gateway=self))  # type: ignore[arg-type]
        self._server.add_socket(sock)

    @property
    def socket(self) -> Channels:
        """The last websocket."""
        return self.opened[-1]

    async def aclose(self) -> None:
        self.reads.set()
        self._server.stop()
        await self._server.close_all_connections()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    yield made
    await made.aclose()


class Site:
    """A Jupyter Server in front of the gateway, and its client."""

    def __init__(self, jupyter: Jupyter, gateway: Gateway, *argv: str, **kwargs: Any) -> None:
        self.jupyter = jupyter
        self.app = jupyter.start(
            f"--GatewayClient.url=http://127.0.0.1:{gateway.port}",
            f"--GatewayClient.auth_token={GATEWAY_TOKEN}",
            f"--IdentityProvider.token={TOKEN}",
            *argv,
            **kwargs,
        )
        self.url = jupyter.serve(self.app)

    async def ask(
        self, path: str, method: str = "GET", token: str | None = TOKEN, **headers: str
    ) -> HTTPResponse:
        sent = {"Authorization": f"token {token}"} if token else {}
        return await AsyncHTTPClient().fetch(
            self.url + path, method=method, headers=sent | headers, raise_error=False
        )

    def dial(self, query: str = "", protocol: str = V1, **options: Any) -> connect:
        """Open the websocket of a page."""
        return connect(
            f"{self.url.replace('http', 'ws')}{CHANNELS}?token={TOKEN}{query}",
            subprotocols=[Subprotocol(protocol)] if protocol else None,
            max_size=None,
            proxy=None,
            compression=None,
            **options,
        )

    def assert_no_token_was_logged(self) -> None:
        assert TOKEN not in self.jupyter.log
        assert GATEWAY_TOKEN not in self.jupyter.log


MakeSite = Callable[..., Site]


@pytest.fixture
async def make_site(jupyter: Jupyter, gateway: Gateway) -> AsyncIterator[MakeSite]:
    sites: list[Site] = []

    def make(*argv: str, **kwargs: Any) -> Site:
        sites.append(Site(jupyter, gateway, *argv, **kwargs))
        return sites[-1]

    yield make
    for site in sites:
        site.assert_no_token_was_logged()
    AsyncHTTPClient().close()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


class Refusing(Authorizer):
    """Refuses one action on kernels."""

    refused = ""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        assert resource == "kernels"
        return action != self.refused


def refusing(action: str) -> type[Authorizer]:
    return type("RefusingOne", (Refusing,), {"refused": action})


# -- requests -------------------------------------------------------------------------------


async def test_requests_for_executions_reach_the_gateway(site: Site, gateway: Gateway) -> None:
    gateway.answer = (200, JSON, '[{"id": "a"}]')
    reply = await site.ask(f"{LIST}?state=running,waiting&limit=1&cell_id=%C3%A9")
    assert (reply.code, json.loads(reply.body)) == (200, [{"id": "a"}])
    assert reply.headers["Content-Type"].startswith(JSON)
    [asked] = gateway.asked
    assert asked.path == f"/{LIST}"
    assert asked.query_arguments == {
        "state": [b"running,waiting"],
        "limit": [b"1"],
        "cell_id": ["é".encode()],
    }
    gateway.answer = (200, JSON, '{"id": "a/b"}')
    assert json.loads((await site.ask(f"{LIST}/a%2Fb")).body) == {"id": "a/b"}
    assert gateway.asked[-1].path == f"/{LIST}/a%2Fb"
    gateway.answer = (204, "", "")
    deleted = await site.ask(f"{LIST}/a", "DELETE")
    assert (deleted.code, deleted.body) == (204, b"")
    assert (gateway.asked[-1].method, gateway.asked[-1].path) == ("DELETE", f"/{LIST}/a")


@pytest.mark.parametrize("msg_id", [".", "..", "%2e", "%2E%2e"])
async def test_an_id_that_would_change_the_path_does_not_reach_the_gateway(
    site: Site, gateway: Gateway, msg_id: str
) -> None:
    assert (await site.ask(f"{LIST}/{msg_id}", "DELETE")).code == 404
    assert gateway.asked == []


async def test_the_gateway_receives_its_own_token_and_not_the_pages(
    site: Site, gateway: Gateway
) -> None:
    assert (await site.ask(f"{LIST}?token={TOKEN}&limit=2&secret=x", token=None)).code == 200
    async with site.dial("&session_id=s&secret=x"):
        pass
    for asked in gateway.asked:
        assert asked.headers["Authorization"] == f"token {GATEWAY_TOKEN}"
        assert TOKEN not in str(asked.uri) + str(dict(asked.headers))
        assert "secret" not in asked.query_arguments


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ((400, JSON, '{"message": "limit is not 100%"}'), 400, "limit is not 100%"),
        ((404, JSON, '{"message": "no kernel has the id"}'), 404, "no kernel has the id"),
        ((404, "text/html", "<h1>another gateway</h1>"), 404, "has no executions"),
        ((200, "text/html", "<form>log in</form>"), 404, "has no executions"),
        ((409, JSON, '{"message": "it has not ended"}'), 409, "it has not ended"),
        ((401, JSON, '{"message": "who?"}'), 502, "GatewayClient.auth_token"),
        ((403, JSON, '{"message": "who?"}'), 502, "GatewayClient.auth_token"),
        ((503, JSON, '{"message": "closing"}'), 503, "closing"),
        ((500, JSON, '{"message": "a bug"}'), 502, "500 a bug"),
        ((500, JSON, "["), 502, "The gateway failed: 500"),
        ((400, JSON, "[]"), 400, "no reason"),
        ((400, JSON, '{"message": 1}'), 400, "no reason"),
    ],
)
async def test_errors_of_the_gateway_are_passed_on_as_far_as_they_concern_the_page(
    site: Site, gateway: Gateway, answer: tuple[int, str, str], status: int, says: str
) -> None:
    gateway.answer = answer
    reply = await site.ask(LIST)
    assert reply.code == status
    assert says in json.loads(reply.body)["message"].replace("%%", "%")


async def test_a_gateway_that_cannot_be_reached_is_a_bad_gateway(
    site: Site, gateway: Gateway
) -> None:
    await gateway.aclose()
    reply = await site.ask(LIST)
    assert reply.code == 502
    assert "cannot be reached" in json.loads(reply.body)["message"]
    with pytest.raises(InvalidStatus) as refused:
        await site.dial()
    assert refused.value.response.status_code == 502
    assert gateway.asked == []


async def test_only_clients_with_the_token_reach_the_gateway(site: Site, gateway: Gateway) -> None:
    for method, path in (("GET", LIST), ("GET", f"{LIST}/a"), ("DELETE", f"{LIST}/a")):
        assert (await site.ask(path, method, token=None)).code == 403
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{site.url.replace('http', 'ws')}{CHANNELS}", proxy=None)
    assert refused.value.response.status_code == 403
    assert gateway.asked == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_other_methods_do_not_exist(site: Site, gateway: Gateway, method: str) -> None:
    reply = await AsyncHTTPClient().fetch(
        site.url + LIST,
        method=method,
        headers={"Authorization": f"token {TOKEN}"},
        body="{}",
        raise_error=False,
    )
    assert reply.code == 405
    assert (await site.ask(LIST, "DELETE")).code == 405
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("action", "statuses"),
    [("read", (403, 200, 101)), ("write", (200, 403, 101)), ("execute", (200, 200, 403))],
)
async def test_the_authorizer_decides_about_each_action(
    make_site: MakeSite, gateway: Gateway, action: str, statuses: tuple[int, int, int]
) -> None:
    site = make_site(authorizer_class=refusing(action))
    found = [(await site.ask(LIST)).code, (await site.ask(f"{LIST}/a", "DELETE")).code]
    try:
        async with site.dial():
            found.append(101)
    except InvalidStatus as refused:
        found.append(refused.response.status_code)
    assert tuple(found) == statuses
    assert len(gateway.asked) == 2


class CountingRenewer(GatewayTokenRenewerBase):
    """Gives another token for each request."""

    count = 0

    def get_token(self, key: str, scheme: str | None, token: str, **_: Any) -> str:
        self.count += 1
        return f"{GATEWAY_TOKEN}-{self.count}"


async def test_tokens_are_renewed_and_cookies_kept_as_for_other_requests(
    make_site: MakeSite, gateway: Gateway
) -> None:
    gateway.cookies = ["backend"]
    site = make_site(
        f"--GatewayClient.gateway_token_renewer_class={__name__}.CountingRenewer",
        "--GatewayClient.accept_cookies=True",
    )
    await site.ask(LIST)
    async with site.dial():
        pass
    first, second = gateway.asked
    assert first.headers["Authorization"] != second.headers["Authorization"]
    assert second.headers["Authorization"].startswith(f"token {GATEWAY_TOKEN}-")
    assert second.headers["Cookie"] == "backend=warm"


async def test_older_versions_of_jupyter_server_take_parsed_cookies(
    site: Site, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, str] = {}

    def update_cookies(self: GatewayClient, cookie: SimpleCookie) -> None:
        kept.update({name: morsel.value for name, morsel in cookie.items()})

    monkeypatch.setattr(GatewayClient, "update_cookies", update_cookies)
    gateway.cookies = ["backend", "another"]
    assert (await site.ask(LIST)).code == 200
    assert kept == {"backend": "warm", "another": "warm"}


async def test_requests_for_executions_are_not_activity(site: Site, gateway: Gateway) -> None:
    settings = site.app.web_app.settings
    before = settings.get("api_last_activity")
    assert (await site.ask(LIST)).code == 200
    assert settings.get("api_last_activity") == before


# -- websockets -----------------------------------------------------------------------------


async def received(ws: ClientConnection) -> str | bytes:
    async with asyncio.timeout(TIMEOUT):
        return await ws.recv()


async def closed(ws: ClientConnection) -> tuple[int, str]:
    """Wait until the server has closed a websocket; return the code and the reason."""
    with pytest.raises(ConnectionClosed) as end:
        await received(ws)
    assert end.value.rcvd is not None
    return end.value.rcvd.code, end.value.rcvd.reason


async def test_messages_pass_in_both_directions(site: Site, gateway: Gateway) -> None:
    gateway.greeting = b"sent before the page's handshake ends"
    async with site.dial("&session_id=me&since=a%26b&parents=x,y&parents=z") as ws:
        assert ws.subprotocol == V1
        assert await received(ws) == gateway.greeting
        for message in ("text é", b"\0binary\xff", "", b""):
            gateway.socket.write_message(message, isinstance(message, bytes))
            assert await received(ws) == message
            await ws.send(message)
        await until(lambda: len(gateway.socket.received) == 4, "the messages arrive")
        assert gateway.socket.received == ["text é", b"\0binary\xff", "", b""]
    [asked] = gateway.asked
    assert asked.path == f"/api/kernels/{KERNEL}/channels"
    assert asked.query_arguments == {
        "session_id": [b"me"],
        "since": [b"a&b"],
        "parents": [b"x,y", b"z"],
    }


@pytest.mark.parametrize("protocol", ["", "v1.token.websocket.jupyter.org"])
async def test_only_the_subprotocol_of_kernels_is_passed_on(
    site: Site, gateway: Gateway, protocol: str
) -> None:
    async with site.dial(protocol=protocol) as ws:
        assert ws.subprotocol is None
        assert "Sec-WebSocket-Protocol" not in gateway.asked[0].headers


async def test_large_messages_pass_in_both_directions(site: Site, gateway: Gateway) -> None:
    to_page, to_kernel = bytes(24 * MIB) + b"1", bytes(9 * MIB) + b"2"
    async with site.dial() as ws:
        gateway.socket.write_message(to_page, binary=True)
        await ws.send(to_kernel)
        assert await received(ws) == to_page
        await until(lambda: gateway.socket.received, "the message arrives")
        assert gateway.socket.received == [to_kernel]


@pytest.mark.parametrize("code", [1000, 1003, 1012, 4001])
async def test_the_page_is_closed_as_the_gateway_closes(
    site: Site, gateway: Gateway, code: int
) -> None:
    async with site.dial() as ws:
        gateway.socket.write_message("the last one")
        gateway.socket.close(code, "because")
        assert await received(ws) == "the last one"
        assert await closed(ws) == (code, "because")


async def test_the_page_learns_that_the_gateway_was_lost(site: Site, gateway: Gateway) -> None:
    async with site.dial() as ws:
        gateway.socket.cut()
        assert await closed(ws) == (1001, "the connection to the gateway was lost")


@pytest.mark.parametrize(
    ("code", "passed"), [(1000, (1000, "done")), (4321, (4321, "done")), (None, (1001, None))]
)
async def test_the_gateway_is_closed_as_the_page_closes(
    site: Site, gateway: Gateway, code: int | None, passed: tuple[int, str | None]
) -> None:
    ws = await site.dial()
    if code is None:
        ws.transport.abort()
    else:
        await ws.close(code, "done")
    async with asyncio.timeout(TIMEOUT):
        await gateway.socket.ended.wait()
    assert (gateway.socket.close_code, gateway.socket.close_reason) == passed
    ws.transport.abort()


@pytest.mark.parametrize(
    ("handshake", "status"),
    [
        ((404, JSON, '{"message": "no such kernel"}'), 404),
        ((400, JSON, '{"message": "too many parents"}'), 400),
        ((403, JSON, "{}"), 502),
        ((200, "text/html", "log in"), 502),
    ],
)
async def test_a_handshake_that_the_gateway_refuses_is_refused(
    site: Site, gateway: Gateway, handshake: tuple[int, str, str], status: int
) -> None:
    gateway.handshake = handshake
    with pytest.raises(InvalidStatus) as refused:
        await site.dial()
    assert refused.value.response.status_code == status


async def test_pages_of_other_origins_do_not_reach_the_gateway(
    site: Site, gateway: Gateway
) -> None:
    cookies = (await site.ask("api/status")).headers.get_list("Set-Cookie")
    page = {"Cookie": "; ".join(cookie.partition(";")[0] for cookie in cookies)}
    address = f"{site.url.replace('http', 'ws')}{CHANNELS}"
    async with connect(address, additional_headers=page, origin=Origin(site.url[:-1]), proxy=None):
        pass
    [of_the_own_page] = gateway.asked
    elsewhere = Origin("http://elsewhere.example")
    with pytest.raises(InvalidStatus) as refused:
        await connect(address, additional_headers=page, origin=elsewhere, proxy=None)
    assert refused.value.response.status_code == 403
    assert gateway.asked == [of_the_own_page]


async def test_a_request_without_upgrade_does_not_reach_the_gateway(
    site: Site, gateway: Gateway
) -> None:
    assert (await site.ask(CHANNELS)).code == 400
    assert gateway.asked == []


async def test_a_handshake_that_fails_after_all_ends_the_one_to_the_gateway(
    site: Site, gateway: Gateway
) -> None:
    """Tornado refuses this one only after the gateway has accepted it."""
    gateway.greeting = b"nobody reads this"
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    assert (await site.ask(CHANNELS, **upgrade)).code == 400
    async with asyncio.timeout(TIMEOUT):
        await gateway.socket.ended.wait()


# -- backpressure ---------------------------------------------------------------------------


async def stalled(count: Callable[[], int]) -> int:
    """Run the event loop until a counter stands still; return it.

    Both servers and the client are in this loop, so data that can move does so in a few turns.
    """
    turns, last = 0, count()
    while turns < 2000:
        await asyncio.sleep(0)
        turns, last = (turns + 1, last) if count() == last else (0, count())
    return last


class Flood:
    """Writes numbered messages of 1 MiB to a page, each when the last one was accepted."""

    def __init__(self, socket: Channels) -> None:
        self.total = 64
        self.written = 0
        self._task = asyncio.ensure_future(self._write(socket))

    async def _write(self, socket: Channels) -> None:
        for number in range(self.total):
            await socket.write_message(bytes(MIB) + bytes([number]), binary=True)
            self.written += 1

    async def assert_arrives(self, ws: ClientConnection) -> None:
        numbers = [bytes(await received(ws))[-1] for _ in range(self.total)]  # type: ignore[arg-type]
        assert numbers == list(range(self.total))
        await self._task


async def test_the_gateway_is_not_read_while_the_page_does_not_read(
    site: Site, gateway: Gateway
) -> None:
    async with site.dial(max_queue=1) as ws:
        flood = Flood(gateway.socket)
        assert await stalled(lambda: flood.written) < flood.total
        await flood.assert_arrives(ws)


async def test_the_page_is_not_read_while_the_gateway_does_not_read(
    site: Site, gateway: Gateway
) -> None:
    total, sent = 64, 0
    gateway.reads.clear()

    async def send_all(ws: ClientConnection) -> None:
        nonlocal sent
        for number in range(total):
            await ws.send(bytes(MIB) + bytes([number]))
            sent += 1

    async with site.dial() as ws:
        sending = asyncio.ensure_future(send_all(ws))
        assert await stalled(lambda: sent) < total
        gateway.reads.set()
        await sending
        await until(lambda: len(gateway.socket.received) == total, "all messages arrive")
        assert [m[-1] for m in gateway.socket.received] == list(range(total))


async def test_a_page_that_does_not_read_is_not_taken_for_dead(
    site: Site, gateway: Gateway
) -> None:
    settings = site.app.web_app.settings
    settings.update(ws_ping_interval=20, ws_ping_timeout=10**6)
    async with site.dial(max_queue=1, ping_interval=None) as ws:
        flood = Flood(gateway.socket)
        assert await stalled(lambda: flood.written) < flood.total
        settings["ws_ping_timeout"] = 1
        earlier = gateway.socket.pings
        await until(lambda: gateway.socket.pings > earlier + 5, "the server pings")
        settings["ws_ping_timeout"] = 10**6
        await flood.assert_arrives(ws)


# -- installing -----------------------------------------------------------------------------


async def test_pages_learn_where_the_websocket_is(site: Site) -> None:
    assert site.app.web_app.settings["page_config_data"]["kbridgeChannels"] == "kbridge/kernels"
    [said] = site.jupyter.ours()
    assert said.endswith("requests for executions are forwarded to it")


async def test_an_extension_that_is_turned_off_forwards_nothing(
    make_site: MakeSite, gateway: Gateway
) -> None:
    site = make_site("--KbridgeExtension.enabled=False")
    assert "kbridgeChannels" not in site.app.web_app.settings.get("page_config_data", {})
    assert (await site.ask(LIST)).code == 404
    assert (await site.ask(CHANNELS)).code == 404
    assert gateway.asked == []
