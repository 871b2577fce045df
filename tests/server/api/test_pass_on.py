"""Two servers: what one passes on, and what the other sees of it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tornado.httputil import HTTPServerRequest
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketHandler
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from kbridge.cluster.peers import Peers
from kbridge.cluster.remote_kernels import RemoteKernels
from kbridge.hub.table import HubTable
from kbridge.kernels.users import User
from kbridge.server.api.access import AccessMixin
from kbridge.server.api.websocket import ChannelsHandler
from kbridge.server.auth.users import Users
from kbridge.server.http.listen import TlsFiles, make_context
from tests.support.certificate import Authority, Certificate
from tests.support.cluster_view import FixedView, kernel_of, replica_at
from tests.support.users import ADMIN, Checks, Table
from tests.support.waiting import TIMEOUT, until

SECRET = "the-secret-of-the-cluster"
OWNER_TOKEN = "the-token-of-the-owner"
MB = 1 << 20


class OwnerChannels(AccessMixin, WebSocketHandler):
    """The websocket of the owner: it repeats messages, and notes requests and pongs."""

    for_replicas = True
    requests: list[HTTPServerRequest] = []  # noqa: RUF012  # emptied by the fixture
    methods: list[Any] = []  # noqa: RUF012
    users: list[User] = []  # noqa: RUF012
    pongs: list[bytes] = []  # noqa: RUF012
    open_now: set[Any] = set()  # noqa: RUF012

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return subprotocols[0] if subprotocols else None

    def open(self, kernel_id: str) -> None:
        self.requests.append(self.request)
        self.methods.append((self.passed_on, self.auth_method, self.request.remote_ip))
        self.users.append(self.user)
        self.open_now.add(self)
        self.services.websockets.add(self)

    def on_message(self, message: str | bytes) -> None:
        if message == "ping me":
            self.ping(b"place 17")
        elif message == "close":
            self.close(1012, "the kernel has ended")
        elif message == "cut":
            self.close_connection()
        else:
            self.write_message(message, binary=isinstance(message, bytes))

    def close_connection(self) -> None:
        assert self.ws_connection is not None
        self.ws_connection.stream.close()  # type: ignore[attr-defined]

    def on_pong(self, data: bytes) -> None:
        self.pongs.append(data)

    def on_close(self) -> None:
        self.open_now.discard(self)
        self.services.websockets.discard(self)


class Cluster:
    """Two servers: `front` passes on to `owner`."""

    def __init__(self, front: Any, owner: Any, view: FixedView) -> None:
        self.front, self.owner, self.view = front, owner, view
        self.relays = front.services.cluster.relays

    def connect(self, kernel_id: str, query: str = "", **options: Any) -> connect:
        url = f"ws{self.front.url.removeprefix('http')}/api/kernels/{kernel_id}/channels"
        return connect(f"{url}?token={self.front.services.auth.policy.token}{query}", **options)

    async def start_kernel(self) -> str:
        """Start a kernel at the owner, and put it into the view of the other server."""
        kernel_id = str(await self.owner.kernels.start_kernel())
        self.view.put(kernel_of("other", kernel_id))
        return kernel_id


Make = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def make(start: Any) -> AsyncIterator[Make]:
    opened: list[Peers] = []
    kept: list[Any]
    for kept in (OwnerChannels.requests, OwnerChannels.methods, OwnerChannels.users):
        kept.clear()
    OwnerChannels.pongs.clear()

    async def run(
        *,
        owner_secret: str = SECRET,
        guarded: bool = True,
        tls: Certificate | None = None,
        client_ca: str = "",
        shown: Certificate | None = None,
        **options: Any,
    ) -> Cluster:
        files, own = ((str(c.cert), str(c.key)) if c else ("", "") for c in (tls, shown))
        owner = await start(
            tls=make_context(TlsFiles(*files, client_ca)),
            channels=OwnerChannels,
            policy={"cluster_secret": owner_secret, "token": OWNER_TOKEN},
            guarded=guarded,
            base_url="/of/the/owner/",
        )
        url = owner.url if tls is None else f"https://localhost:{owner.port}/of/the/owner"
        view = FixedView(replica_at(f"{url}/"))
        front = await start(
            channels=ChannelsHandler,
            policy={"cluster_secret": SECRET},
            guarded=guarded,
            hubs=HubTable(),
            **options,
        )
        peers = Peers(SECRET, certificate=own)
        opened.append(peers)
        front.services.cluster = RemoteKernels(view, peers)
        return Cluster(front, owner, view)

    yield run
    for peers in opened:
        peers.close()


@pytest.fixture
async def cluster(make: Make) -> Cluster:
    return await make()


# -- REST ------------------------------------------------------------------------------------


async def test_requests_for_a_kernel_are_answered_by_its_owner(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()
    path = f"/api/kernels/{kernel_id}"
    model = await cluster.front.ask("GET", path)
    assert (model.code, json.loads(model.body)) == (200, cluster.owner.kernels.model(kernel_id))
    interrupted = await cluster.front.ask("POST", f"{path}/interrupt")
    assert (interrupted.code, interrupted.body) == (204, b"")
    restarted = await cluster.front.ask("POST", f"{path}/restart", body={})
    assert (restarted.code, json.loads(restarted.body)["id"]) == (200, kernel_id)
    assert cluster.owner.kernels.calls == [("interrupt", kernel_id), ("restart", kernel_id)]
    assert cluster.front.kernels.calls == []
    deleted = await cluster.front.ask("DELETE", path)
    assert (deleted.code, deleted.body) == (204, b"")
    assert not cluster.owner.kernels.running


async def test_the_client_gets_the_errors_of_the_owner(cluster: Cluster, error_of: Any) -> None:
    cluster.view.put(kernel_of("other", "ended"))
    assert error_of(await cluster.front.ask("GET", "/api/kernels/ended")) == (
        404,
        "Not Found",
        "no kernel has the id ended",
    )
    wrong = await cluster.front.ask("PUT", "/api/kernels/ended")
    assert wrong.code == 405
    assert wrong.headers["Allow"] == "GET, DELETE, OPTIONS"


async def test_a_request_without_the_token_is_not_passed_on(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()
    refused = await cluster.front.ask("DELETE", f"/api/kernels/{kernel_id}", token=None)
    assert refused.code == 403
    assert kernel_id in cluster.owner.kernels.running
    with pytest.raises(InvalidStatus, match="403"):
        async with connect(
            f"ws{cluster.front.url.removeprefix('http')}/api/kernels/{kernel_id}/channels"
        ):
            pass


async def test_the_user_of_a_request_is_passed_on(make: Make) -> None:
    """Neither replica lets a user reach the kernel of another one."""
    cluster = await make(users=Users(Table()), guarded=True)
    kernel_id = str(await cluster.owner.kernels.start_kernel(user="alice"))
    cluster.view.put(kernel_of("other", kernel_id, user="alice"))
    path = f"/api/kernels/{kernel_id}"
    hers = await cluster.front.ask("GET", path, token="token-alice")
    assert (hers.code, json.loads(hers.body)["user"]) == (200, "alice")
    assert (await cluster.front.ask("DELETE", path, token="token-bob")).code == 404
    admin = await cluster.front.ask("POST", f"{path}/interrupt", token=f"token-{ADMIN.name}")
    assert admin.code == 204
    # The front server may know less than the owner.
    cluster.view.put(kernel_of("other", kernel_id, user="bob"))
    for method in ("GET", "DELETE"):
        assert (await cluster.front.ask(method, path, token="token-bob")).code == 404
    assert kernel_id in cluster.owner.kernels.running
    url = f"ws{cluster.front.url.removeprefix('http')}{path}/channels"
    for user in ("alice", "mallory"):
        with pytest.raises(InvalidStatus, match=r"40[34]"):
            async with connect(f"{url}?token=token-{user}"):
                pass
    async with connect(f"{url}?token=token-bob") as ws:  # this owner does not filter
        await ws.send("hello")
        assert await ws.recv() == "hello"
    assert OwnerChannels.users == [User("bob")]


async def test_a_websocket_that_is_passed_on_ends_with_the_access_of_its_user(make: Make) -> None:
    """The server that the browser is connected to asks; the owner knows no token of a user."""
    table = Table()
    checks = Checks(table)
    cluster = await make(users=checks.users, guarded=True)
    opened = checks.of(cluster.front.services)
    kernel_id = str(await cluster.owner.kernels.start_kernel(user="alice"))
    cluster.view.put(kernel_of("other", kernel_id, user="alice"))
    url = f"ws{cluster.front.url.removeprefix('http')}/api/kernels/{kernel_id}/channels?token="
    admin = f"token-{ADMIN.name}"
    async with (
        connect(f"{url}token-alice") as hers,
        connect(f"{url}{admin}".replace(" ", "%20")) as his,
        cluster.connect(kernel_id) as operators,
    ):
        for ws in (hers, his, operators):
            await ws.send("hello")
            assert await ws.recv() == "hello"
        del table.users["token-alice"]
        table.users[admin] = User(ADMIN.name)
        checks.check()
        checks.check()
        for ws, reason in ((hers, "no longer valid"), (his, "no longer gives access")):
            with pytest.raises(ConnectionClosed) as caught:
                async with asyncio.timeout(TIMEOUT):
                    await ws.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1008
            assert reason in caught.value.rcvd.reason
        await until(lambda: len(OwnerChannels.open_now) == 1, "the owner's websockets end, too")
        await operators.send("still here")
        assert await operators.recv() == "still here"
    assert set(table.asked) == {"token-alice", admin}
    await opened.aclose()


async def test_a_request_is_passed_on_once(cluster: Cluster, error_of: Any) -> None:
    """Each of two servers takes the other for the owner."""
    back = FixedView(replica_at(f"{cluster.front.url}/"))
    back.put(kernel_of("other", "lost"))
    peers = Peers(SECRET)
    cluster.owner.services.cluster = RemoteKernels(back, peers)
    cluster.view.put(kernel_of("other", "lost"))
    status, _, message = error_of(await cluster.front.ask("GET", "/api/kernels/lost"))
    assert status == 503
    assert "handed over" in message
    assert back.refreshed == 1  # the kernel may have been given to it
    peers.close()


async def test_the_secret_opens_single_kernels_only(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()

    async def ask(path: str, method: str = "GET", secret: str = SECRET) -> int:
        authorization = {"Authorization": f"kbridge-cluster {secret}"}
        reply = await cluster.owner.ask(method, path, token=None, headers=authorization)
        return int(reply.code)

    assert await ask(f"/api/kernels/{kernel_id}") == 200
    for path in ("/api/kernels", "/api/sessions", "/api/status", "/metrics", "/api/live"):
        assert await ask(path) == 403
    for path in ("/api/kernels", "/api/shutdown", "/api/restart"):
        assert await ask(path, "POST") == 403
    for wrong in (SECRET[:-1], SECRET + "x", OWNER_TOKEN, "é"):
        assert await ask(f"/api/kernels/{kernel_id}", secret=wrong) == 403


async def test_a_kernel_that_changes_its_owner_is_listed_all_the_time(cluster: Cluster) -> None:
    """This replica gives the kernel away while the database is asked, then gets it again."""
    running = cluster.front.kernels.running
    mine, theirs = kernel_of("self"), kernel_of("other")

    async def listed() -> list[str]:
        return [k["id"] for k in json.loads((await cluster.front.ask("GET", "/api/kernels")).body)]

    running["a-kernel"] = {"id": "a-kernel", "name": "fake"}
    cluster.view.put(mine)
    assert await listed() == ["a-kernel"]
    cluster.view.on_refresh = running.clear  # released, and not given yet
    assert await listed() == ["a-kernel"]
    cluster.view.on_refresh = lambda: cluster.view.put(theirs)
    assert await listed() == ["a-kernel"]
    cluster.view.on_refresh = lambda: cluster.view.put(mine)  # given, and not adopted yet
    assert await listed() == ["a-kernel"]
    cluster.view.fails = True
    assert await listed() == ["a-kernel"]


async def test_an_owner_with_another_secret_is_named(make: Make, error_of: Any) -> None:
    cluster = await make(owner_secret="another")
    kernel_id = await cluster.start_kernel()
    status, _, message = error_of(await cluster.front.ask("GET", f"/api/kernels/{kernel_id}"))
    assert status == 503
    assert cluster.owner.url in message
    assert "registry_url" in message
    assert SECRET not in message
    with pytest.raises(InvalidStatus) as refused:
        async with cluster.connect(kernel_id):
            pass
    assert refused.value.response.status_code == 503
    assert b"registry_url" in refused.value.response.body


async def test_an_owner_that_is_not_there_is_named(cluster: Cluster, error_of: Any) -> None:
    sock, port = bind_unused_port()
    sock.close()
    cluster.view.replicas["gone"] = replica_at(f"http://127.0.0.1:{port}/", "gone")
    cluster.view.put(kernel_of("gone"))
    reply = await cluster.front.ask("POST", "/api/kernels/a-kernel/interrupt")
    status, _, message = error_of(reply)
    assert status == 503
    assert f"http://127.0.0.1:{port}/" in message
    assert "advertise_url" in message
    assert reply.headers["Retry-After"]
    with pytest.raises(InvalidStatus, match="503"):
        async with cluster.connect("a-kernel"):
            pass


async def test_a_kernel_without_a_replica_is_not_taken_for_an_ended_one(
    cluster: Cluster, error_of: Any
) -> None:
    cluster.view.put(kernel_of("left long ago", "one"), kernel_of("self", "two"))
    for kernel_id in ("one", "two"):
        status, _, message = error_of(await cluster.front.ask("GET", f"/api/kernels/{kernel_id}"))
        assert (status, "handed over" in message) == (503, True)
    cluster.view.on_refresh = cluster.view.kernels.clear
    assert (await cluster.front.ask("GET", "/api/kernels/one")).code == 404


async def test_a_kernel_that_has_moved_is_found_in_the_database(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()
    sock, port = bind_unused_port()
    sock.close()
    cluster.view.replicas["old"] = replica_at(f"http://127.0.0.1:{port}/", "old")
    for old in ("old", "self", "unknown"):
        cluster.view.put(kernel_of(old, kernel_id))
        cluster.view.on_refresh = lambda: cluster.view.put(kernel_of("other", kernel_id))
        assert (await cluster.front.ask("GET", f"/api/kernels/{kernel_id}")).code == 200
        cluster.view.put(kernel_of(old, kernel_id))
        async with cluster.connect(kernel_id) as client:
            await client.send("hello")
            assert await client.recv() == "hello"


async def test_a_kernel_that_has_moved_here_is_served_here(cluster: Cluster) -> None:
    cluster.view.put(kernel_of("other"))  # which answers 421
    model = {"id": "a-kernel", "name": "fake"}

    def take() -> None:
        cluster.front.kernels.running["a-kernel"] = model

    cluster.view.on_refresh = take
    cluster.owner.services.cluster = RemoteKernels(FixedView(), Peers(SECRET))
    reply = await cluster.front.ask("GET", "/api/kernels/a-kernel")
    assert json.loads(reply.body) == model


async def test_a_kernel_that_was_given_is_served_when_another_replica_asks(
    cluster: Cluster, error_of: Any
) -> None:
    """The new owner has not renewed its lease since, so it does not know yet."""
    view, peers = FixedView(), Peers(SECRET)
    view.on_refresh = lambda: view.put(kernel_of("self"))
    cluster.owner.services.cluster = RemoteKernels(view, peers)
    cluster.view.put(kernel_of("other"))
    model = {"id": "a-kernel", "name": "fake"}

    class Serve:
        async def settle(self, kernel_id: str) -> None:
            await asyncio.sleep(0)
            cluster.owner.kernels.running[kernel_id] = model

        def has_ended(self, kernel_id: str) -> bool:
            return kernel_id != "a-kernel"

    cluster.owner.services.cluster.wait_for(Serve())
    assert json.loads((await cluster.front.ask("GET", "/api/kernels/a-kernel")).body) == model
    # The same at a replica that a client asks.
    cluster.owner.kernels.running.clear()
    assert (
        json.loads(
            (await cluster.owner.ask("GET", "/api/kernels/a-kernel", token=OWNER_TOKEN)).body
        )
        == model
    )
    cluster.owner.kernels.running.clear()
    view.fails = True
    status, _, message = error_of(await cluster.front.ask("GET", "/api/kernels/a-kernel"))
    assert (status, "database" in message) == (503, True)
    peers.close()


async def test_a_kernel_that_is_new_is_found_in_the_database(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()
    [kernel] = cluster.view.kernels.values()
    cluster.view.kernels.clear()
    cluster.view.on_refresh = lambda: cluster.view.put(kernel)
    assert (await cluster.front.ask("GET", f"/api/kernels/{kernel_id}")).code == 200
    assert (await cluster.front.ask("GET", f"/api/kernels/{kernel_id}")).code == 200
    assert cluster.view.refreshed == 1


async def test_without_the_database_only_unknown_kernels_are_out_of_reach(
    cluster: Cluster, error_of: Any
) -> None:
    kernel_id = await cluster.start_kernel()
    cluster.view.fails = True
    assert (await cluster.front.ask("GET", f"/api/kernels/{kernel_id}")).code == 200
    status, _, message = error_of(await cluster.front.ask("GET", "/api/kernels/unknown"))
    assert status == 503
    assert "database" in message


async def test_a_program_that_is_not_a_replica_is_named(cluster: Cluster, error_of: Any) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        cluster.view.replicas["web"] = replica_at(f"http://127.0.0.1:{port}/", "web")
        cluster.view.put(kernel_of("web"))
        status, _, message = error_of(await cluster.front.ask("GET", "/api/kernels/a-kernel"))
        assert (status, "is not a replica" in message) == (503, True)
        with pytest.raises(InvalidStatus) as refused:
            async with cluster.connect("a-kernel"):
                pass
        assert b"is not a replica" in refused.value.response.body


# -- websockets ------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [True, False])
async def test_requests_and_websockets_are_passed_on_over_tls(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """With a private authority, which has signed the certificates of both servers."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    tls, ca = authority.sign("localhost"), str(authority.cert)
    cluster = await make(tls=tls, client_ca=ca, shown=tls, guarded=guarded)
    kernel_id = await cluster.start_kernel()
    reply = await cluster.front.ask("GET", f"/api/kernels/{kernel_id}")
    assert json.loads(reply.body) == cluster.owner.kernels.model(kernel_id)
    async with asyncio.timeout(TIMEOUT), cluster.connect(kernel_id, max_size=None) as client:
        for message in ("text", bytes(4 * MB), "more", *map(str, range(100))):
            await client.send(message)
            assert await client.recv() == message
        await client.send("close")
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


@pytest.mark.parametrize("usage", ["", "serverAuth"])
async def test_an_owner_that_refuses_the_certificate_of_a_replica_names_the_setting(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error_of: Any, usage: str
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    tls, ca = authority.sign("localhost"), str(authority.cert)
    shown = authority.sign("localhost", usage=usage) if usage else None
    cluster = await make(tls=tls, client_ca=ca, shown=shown)
    kernel_id = await cluster.start_kernel()
    reply = await cluster.front.ask("GET", f"/api/kernels/{kernel_id}")
    status, _, message = error_of(reply)
    assert (status, "closed the connection" in message) == (503, True), message
    assert "KbridgeApp.client_ca" in message
    with pytest.raises(InvalidStatus) as refused:
        async with cluster.connect(kernel_id):
            pass
    assert b"KbridgeApp.client_ca" in refused.value.response.body


async def test_a_websocket_is_passed_on_without_the_secrets_of_its_client(
    cluster: Cluster,
) -> None:
    kernel_id = await cluster.start_kernel()
    headers = {"Cookie": "kbridge-test=login; other=1", "Origin": cluster.front.url}
    query = "&session_id=a%20b&since=m%26n&parents=one&parents=two"
    protocols: list[Any] = ["v1.kernel.websocket.jupyter.org", "other"]
    async with cluster.connect(
        kernel_id,
        query,
        subprotocols=protocols,
        additional_headers=headers,
        user_agent_header="A browser/1.0",
    ) as client:
        await client.send("text")
        assert await client.recv() == "text"
        assert client.subprotocol == protocols[0]
        [request] = OwnerChannels.requests
        assert request.query_arguments == {
            "session_id": [b"a b"],
            "since": [b"m&n"],
            "parents": [b"one", b"two"],
        }
        assert request.headers["User-Agent"] == "A browser/1.0"
        for name in ("Cookie", "Origin"):
            assert name not in request.headers
        assert OwnerChannels.methods == [(True, "query", "127.0.0.1")]
        assert cluster.front.services.auth.policy.token not in str(request.headers)
    await until(lambda: not OwnerChannels.open_now, "the end reaches the owner")
    await until(lambda: not len(cluster.relays), "the relay has ended")
    assert not cluster.front.services.websockets


async def test_pongs_reach_the_owner(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()
    async with cluster.connect(kernel_id) as client:
        await client.send("ping me")
        await client.send("and then")
        assert await client.recv() == "and then"
        await until(lambda: b"place 17" in OwnerChannels.pongs, "the pong has arrived")
        async with asyncio.timeout(TIMEOUT):
            await (await client.ping(b"of the client"))


async def test_large_messages_pass(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()
    async with cluster.connect(kernel_id, max_size=None) as client:
        for message in (b"\x88" * (8 * MB), "ü" * MB, b"", b"x" * 126):
            await client.send(message)
            async with asyncio.timeout(TIMEOUT):
                assert await client.recv() == message


async def test_the_close_frame_of_the_owner_reaches_the_client(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()
    async with cluster.connect(kernel_id) as client:
        await client.send("close")
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), TIMEOUT)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "the kernel has ended")
    await until(lambda: not len(cluster.relays), "the relay has ended")


async def test_a_client_whose_owner_is_lost_is_told_to_come_back(cluster: Cluster) -> None:
    kernel_id = await cluster.start_kernel()
    async with cluster.connect(kernel_id) as client:
        await client.send("cut")
        assert await closing_code(client) == 1012
    await until(lambda: not cluster.front.services.websockets, "the relay has ended")


async def test_the_shutdown_of_the_first_replica_closes_what_it_passes_on(
    cluster: Cluster,
) -> None:
    kernel_id = await cluster.start_kernel()
    async with cluster.connect(kernel_id) as client:
        await until(lambda: len(cluster.front.services.websockets) == 1, "the websocket is listed")
        [passed] = cluster.front.services.websockets
        passed.close(1012, "the server is restarting")
        assert await closing_code(client) == 1012
    await until(lambda: not OwnerChannels.open_now, "the end reaches the owner")


async def test_the_websockets_of_a_kernel_that_moves_are_closed(cluster: Cluster) -> None:
    moves, stays = await cluster.start_kernel(), await cluster.start_kernel()
    async with cluster.connect(moves) as one, cluster.connect(stays) as two:
        await until(lambda: len(cluster.relays) == 2, "both are passed on")
        cluster.relays.follow([kernel_of("a third", moves), kernel_of("other", stays)])
        assert await closing_code(one) == 1012
        await two.send("still here")
        assert await two.recv() == "still here"


async def test_a_client_that_goes_during_the_handshake_leaves_nothing(cluster: Cluster) -> None:
    """The owner answers only when the client has gone."""
    go_on, asked = asyncio.Event(), asyncio.Event()
    gone: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n")
        with suppress(OSError):
            gone.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        cluster.view.replicas["slow"] = replica_at(f"http://127.0.0.1:{port}/", "slow")
        cluster.view.put(kernel_of("slow"))
        client = socket.create_connection(("127.0.0.1", cluster.front.port))
        token = cluster.front.services.auth.policy.token
        client.sendall(
            f"GET /api/kernels/a-kernel/channels?token={token} HTTP/1.1\r\nHost: localhost\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        async with asyncio.timeout(TIMEOUT):
            await asked.wait()
        client.close()
        go_on.set()
        await until(lambda: gone == [b""], "the connection to the owner is closed")
    await until(lambda: not cluster.front.services.websockets, "nothing is left")


async def closing_code(client: ClientConnection) -> int:
    with pytest.raises(ConnectionClosedError) as closed:
        await asyncio.wait_for(client.recv(), TIMEOUT)
    assert closed.value.rcvd is not None
    return int(closed.value.rcvd.code)
