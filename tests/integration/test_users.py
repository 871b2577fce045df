"""Several users of one server: each of them sees and reaches their own kernels."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from traitlets.config import Config
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import kbridge.client
from kbridge.cluster.protocol import CLIENT_ADMIN, CLIENT_USER, CLUSTER_SCHEME
from kbridge.kernels.users import User
from kbridge.server.auth.jupyterhub import MODULES, HubConfig
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.server import Server
from tests.support.fake_hub import FakeHub
from tests.support.replicas import replicas
from tests.support.require import require
from tests.support.server import Server as Process
from tests.support.users import ADMIN, ALICE, BOB, Table
from tests.support.waiting import TIMEOUT, until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

TOKEN = "token of the operator"
PATIENT = {"connect_timeout": TIMEOUT, "request_timeout": TIMEOUT}  # a start of a kernel is slow
NOTEBOOK = {"path": "nb.ipynb", "type": "notebook", "name": ""}


class Site:
    """A server with users."""

    def __init__(self, server: Server, kernels: Any, table: Table) -> None:
        self.server, self.kernels, self.table = server, kernels, table
        self.client = AsyncHTTPClient(force_instance=True, defaults=PATIENT)

    async def ask(
        self, user: User | None, method: str, path: str, body: Any = None
    ) -> tuple[int, Any]:
        """Send a request as a user, None for the operator; return the status and the JSON."""
        token = TOKEN if user is None else f"token-{user.name}"
        reply = await self.client.fetch(
            self.server.url + path,
            method=method,
            headers={"Authorization": f"token {token}"},
            body=None if body is None else json.dumps(body),
            raise_error=False,
            allow_nonstandard_methods=True,
        )
        kind = reply.headers.get("Content-Type", "")
        return reply.code, json.loads(reply.body) if "json" in kind else reply.body

    async def kernel(self, user: User | None, **body: Any) -> str:
        status, model = await self.ask(user, "POST", "api/kernels", body or None)
        assert status == 201, model
        return str(model["id"])

    def websocket(self, user: User, kernel_id: str, *, header: bool = False) -> connect:
        url = f"ws{self.server.url.removeprefix('http')}api/kernels/{kernel_id}/channels"
        token = f"token-{user.name}".replace(" ", "%20")
        if header:
            sent = {"Authorization": f"token token-{user.name}"}
            return connect(url, additional_headers=sent, open_timeout=TIMEOUT)
        return connect(f"{url}?token={token}", open_timeout=TIMEOUT)

    async def refused(self, user: User, kernel_id: str) -> tuple[int, Any]:
        """Return the status and the message with which a websocket is refused."""
        with pytest.raises(InvalidStatus) as caught:
            async with self.websocket(user, kernel_id):
                pass
        response = caught.value.response
        return response.status_code, json.loads(response.body or b"{}").get("message")

    async def live(self, user: User) -> Any:
        """Return the first sample of the live view that a user receives."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(
            f"GET /api/live HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: token token-{user.name}\r\n\r\n".encode()
        )
        async with asyncio.timeout(TIMEOUT):
            await reader.readuntil(b"\r\n\r\n")
            event = await reader.readuntil(b"\n\n")
        writer.close()
        return json.loads(event.partition(b"data: ")[2])


@asynccontextmanager
async def running(
    home: Path, jupyterhub: HubConfig | None = None, **settings: Any
) -> AsyncIterator[Site]:
    require("ipykernel")
    app = KbridgeApp(
        log=logging.getLogger("kbridge.test.users"),
        runtime_dir=str(home),
        token=TOKEN,
        port=0,
        **settings,
    )
    table = Table()
    config = app.configuration()
    if jupyterhub is None:
        config = replace(config, auth=replace(config.auth, resolver=table))
    else:
        config = replace(config, jupyterhub=jupyterhub)
    server = Server(config, app.log)
    kernels = await server.open()
    server.accept()
    await kernels.open()
    site = Site(server, kernels, table)
    try:
        yield site
    finally:
        site.client.close()
        await server.aclose()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path) as made:
        yield made


async def test_a_kernel_of_another_user_is_as_if_it_did_not_exist(site: Site) -> None:
    hers = await site.kernel(ALICE)
    for user, listed in ((ALICE, [hers]), (BOB, []), (ADMIN, [hers]), (None, [hers])):
        _, models = await site.ask(user, "GET", "api/kernels")
        assert [model["id"] for model in models] == listed
    async with site.websocket(ALICE, hers), site.websocket(ADMIN, hers, header=True):
        pass
    for method, rest in (
        ("GET", ""),
        ("POST", "/interrupt"),
        ("POST", "/restart"),
        ("GET", "/executions"),
        ("GET", "/executions/x"),
        ("DELETE", "/executions/x"),
        ("DELETE", ""),
    ):
        status, body = await site.ask(BOB, method, f"api/kernels/{hers}{rest}")
        missing = await site.ask(BOB, method, f"api/kernels/no-kernel{rest}")
        assert status == 404
        assert (status, json.loads(json.dumps(body).replace(hers, "no-kernel"))) == missing
    status, message = await site.refused(BOB, hers)
    assert (status, message) == (404, f"There is no kernel {hers}")
    assert await site.refused(BOB, "no-kernel") == (404, "There is no kernel no-kernel")
    assert (await site.ask(ALICE, "GET", f"api/kernels/{hers}"))[1]["user"] == "alice"
    assert (await site.ask(ALICE, "DELETE", f"api/kernels/{hers}"))[0] == 204


async def test_kernels_of_the_operator_are_for_administrators(site: Site) -> None:
    kernel_id = await site.kernel(None)
    assert (await site.ask(ALICE, "GET", f"api/kernels/{kernel_id}"))[0] == 404
    status, model = await site.ask(ADMIN, "GET", f"api/kernels/{kernel_id}")
    assert (status, "user" in model) == (200, False)


async def test_two_users_of_a_path_have_separate_sessions(site: Site) -> None:
    _, hers = await site.ask(ALICE, "POST", "api/sessions", NOTEBOOK)
    _, his = await site.ask(BOB, "POST", "api/sessions", NOTEBOOK)
    assert (hers["id"], hers["kernel"]["id"]) != (his["id"], his["kernel"]["id"])
    assert (await site.ask(ALICE, "POST", "api/sessions", NOTEBOOK))[1]["id"] == hers["id"]
    assert [s["id"] for s in (await site.ask(BOB, "GET", "api/sessions"))[1]] == [his["id"]]
    assert len((await site.ask(ADMIN, "GET", "api/sessions"))[1]) == 2
    path = f"api/sessions/{hers['id']}"
    assert (await site.ask(BOB, "GET", path))[0] == 404
    assert (await site.ask(BOB, "PATCH", path, {"path": "mine"}))[0] == 404
    assert (await site.ask(BOB, "DELETE", path))[0] == 404
    # Neither does his own session get her kernel.
    kernel = {"kernel": {"id": hers["kernel"]["id"]}}
    status, body = await site.ask(BOB, "PATCH", f"api/sessions/{his['id']}", kernel)
    assert (status, body["message"]) == (400, f"There is no kernel {hers['kernel']['id']}")
    status, other = await site.ask(BOB, "POST", "api/sessions", {**NOTEBOOK, "path": "b", **kernel})
    assert (status, other["kernel"]["user"]) == (201, "bob")
    assert other["kernel"]["id"] != hers["kernel"]["id"]
    assert (await site.ask(ALICE, "GET", path))[1]["kernel"]["id"] == hers["kernel"]["id"]


async def test_status_metrics_and_live_view_show_a_user_their_own(site: Site) -> None:
    hers, _ = await site.kernel(ALICE), await site.kernel(None)
    counts = {}
    for user in (ALICE, BOB, ADMIN):
        _, status = await site.ask(user, "GET", "api/status?statistics=1")
        counts[user.name] = (status["kernels"], len(status["hubs"]), "journals" in status)
    assert counts == {"alice": (1, 1, False), "bob": (0, 0, False), ADMIN.name: (2, 2, True)}
    assert (await site.ask(ALICE, "GET", "api/status?statistics=1"))[1]["hubs"][0][
        "kernel_id"
    ] == hers
    assert [(await site.ask(user, "GET", "metrics"))[0] for user in (BOB, ADMIN, None)] == [
        *(403, 200, 200)
    ]
    sample = await site.live(ALICE)
    assert [(kernel["id"], kernel["user"]) for kernel in sample["kernels"]] == [(hers, "alice")]
    assert not {"journals", "websockets", "rss"} & sample.keys()
    assert (await site.live(BOB))["kernels"] == []
    assert len((await site.live(ADMIN))["kernels"]) == 2


async def test_only_administrators_end_the_server(site: Site) -> None:
    for path in ("api/shutdown", "api/restart"):
        assert (await site.ask(ALICE, "POST", path))[0] == 403
    assert not site.server.shutdown_requested.is_set()
    assert (await site.ask(ADMIN, "POST", "api/shutdown"))[0] == 200
    assert site.server.shutdown_requested.is_set()


async def test_the_identity_is_that_of_the_user(site: Site) -> None:
    _, me = await site.ask(ALICE, "GET", "api/me")
    assert (me["identity"]["username"], me["identity"]["initials"]) == ("alice", "A")
    assert (await site.ask(None, "GET", "api/me"))[1]["identity"]["username"] == "anonymous"


async def test_an_unknown_token_is_refused_and_an_empty_one_opens_nothing(tmp_path: Path) -> None:
    """Without users, an empty token would turn authentication off."""
    async with running(tmp_path) as site:
        assert (await site.ask(User("mallory"), "GET", "api/kernels"))[0] == 403
        site.table.down = True
        status, body = await site.ask(BOB, "GET", "api/kernels")
        assert (status, body["message"]) == (503, "the table is locked away")


async def test_the_first_request_of_a_user_may_have_a_large_body(site: Site) -> None:
    """Bodies of clients that are not authenticated are limited to 16 KiB."""
    env = {"KERNEL_TEXT": "x" * 50_000}
    kernel_id = await site.kernel(BOB, env=env)
    assert site.kernels.users() == {kernel_id: "bob"}
    status, _ = await site.ask(User("mallory"), "POST", "api/kernels", {"env": env})
    assert status == 403


async def test_the_first_request_of_a_user_leaves_the_connection_open(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    async with asyncio.timeout(TIMEOUT):
        for _ in range(2):
            writer.write(
                b"GET /api/me HTTP/1.1\r\nHost: localhost\r\nAuthorization: token token-bob\r\n\r\n"
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 200")
            length = int(head.lower().partition("content-length: ")[2].partition("\r")[0])
            assert b'"bob"' in await reader.readexactly(length)
    writer.close()
    assert site.table.asked == ["token-bob"]


async def test_only_a_replica_may_name_the_user_of_a_request(site: Site) -> None:
    hers = await site.kernel(ALICE)
    claims = {CLIENT_USER: "alice", CLIENT_ADMIN: "true", "Authorization": "token token-bob"}
    for more in ({}, {"Authorization": f"{CLUSTER_SCHEME} guess"}):
        reply = await site.client.fetch(
            f"{site.server.url}api/kernels/{hers}", headers={**claims, **more}, raise_error=False
        )
        assert reply.code in (403, 404)


async def test_the_audit_log_names_the_user(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with running(tmp_path, audit_log=str(path)) as site:
        kernel_id = await site.kernel(ALICE)
        async with kbridge.client.connect(site.server.url, "token-alice") as client:
            execution = await (await client.kernel(kernel_id)).execute("6 * 7")
            assert [type(output).__name__ async for output in execution] == ["ExecuteResult"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["user"], line["auth"]) for line in lines] == [("alice", "header")]


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[list[Process]]:
    """Two replicas that are a service of JupyterHub, which has not started them."""
    require("ipykernel", "jupyterhub")
    hub = FakeHub()
    cluster = replicas(tmp_path / "lab", env=hub.environment)
    try:
        yield await asyncio.to_thread(cluster.__enter__)
    finally:
        await asyncio.to_thread(cluster.__exit__, None, None, None)
        await hub.aclose()


async def send(
    server: Process, user: str, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    """Send a request with the token of a user; return the status and the JSON."""
    url = f"{server.url}/services/kbridge/{path}"
    headers = {"Authorization": f"token {user}'s"}
    reply = await AsyncHTTPClient().fetch(
        url,
        method=method,
        headers=headers,
        body=None if body is None else json.dumps(body),
        raise_error=False,
        allow_nonstandard_methods=True,
        **PATIENT,
    )
    return reply.code, json.loads(reply.body) if reply.body else None


async def test_all_replicas_know_the_user_of_a_kernel(lab: list[Process]) -> None:
    one, two = lab
    status, model = await send(one, "alice", "POST", "api/kernels")
    assert (status, model["user"]) == (201, "alice")
    path = f"api/kernels/{model['id']}"
    for server in lab:
        for user, seen in (("alice", True), ("carol", False), ("a service", True)):
            _, models = await send(server, user, "GET", "api/kernels")
            assert (model["id"] in [each["id"] for each in models]) is seen
            expected = 200 if seen else 404
            assert (await send(server, user, "GET", path))[0] == expected
            assert (await send(server, user, "GET", f"{path}/executions"))[0] == expected
        url = f"ws{server.url.removeprefix('http')}/services/kbridge/{path}/channels"
        async with connect(f"{url}?token=alice's", open_timeout=TIMEOUT):
            pass
        with pytest.raises(InvalidStatus, match="404"):
            async with connect(f"{url}?token=carol's", open_timeout=TIMEOUT):
                pass
    foreign = await send(two, "carol", "GET", path)
    missing = await send(two, "carol", "GET", "api/kernels/none")
    assert json.dumps(foreign).replace(model["id"], "none") == json.dumps(missing)
    _, session = await send(two, "alice", "POST", "api/sessions", NOTEBOOK)
    assert (await send(one, "carol", "GET", f"api/sessions/{session['id']}"))[0] == 404
    _, other = await send(one, "carol", "POST", "api/sessions", NOTEBOOK)
    assert other["id"] != session["id"]
    assert (await send(one, "alice", "POST", "api/sessions", NOTEBOOK))[1]["id"] == session["id"]
    assert (await send(two, "carol", "DELETE", path))[0] == 404
    assert (await send(two, "alice", "DELETE", path))[0] == 204


async def test_a_replica_finishes_a_login_that_another_one_has_begun(lab: list[Process]) -> None:
    one, two = lab
    client = AsyncHTTPClient()

    async def get(server: Process, path: str, cookies: str = "") -> HTTPResponse:
        return await client.fetch(
            f"{server.url}/services/kbridge/{path}",
            headers={"Cookie": cookies},
            follow_redirects=False,
            raise_error=False,
            **PATIENT,
        )

    begun = await get(one, "login?next=%2Fservices%2Fkbridge%2Fconsole")
    location = urlsplit(begun.headers["Location"])
    assert (begun.code, location.path) == (302, "/hub/api/oauth2/authorize")
    state = parse_qs(location.query)["state"][0]
    cookie = begun.headers["Set-Cookie"].partition(";")[0]
    for query, cookies in (
        (f"code=good&state={state}", ""),
        ("code=good&state=another", cookie),
        (f"code=stolen&state={state}", cookie),
        (f"error=access_denied&state={state}", cookie),
    ):
        assert (await get(two, f"oauth_callback?{query}", cookies)).code == 403
    ended = await get(two, f"oauth_callback?code=good&state={state}", cookie)
    assert (ended.code, ended.headers["Location"]) == (302, "/services/kbridge/console")
    [login] = [c for c in ended.headers.get_list("Set-Cookie") if "user." in c]
    assert {"HttpOnly", "SameSite=Lax", "Path=/services/kbridge/"} <= set(login.split("; "))
    me = await get(one, "api/me", login.partition(";")[0])
    assert json.loads(me.body)["identity"]["username"] == "alice"
    # A link with the token of somebody else logs no browser in.
    assert (await get(one, "?token=carol's")).code == 302
    assert (await get(one, "login?token=carol's")).headers["Location"].startswith("/hub/")


async def test_without_jupyterhub_known_users_go_on_and_others_are_told(tmp_path: Path) -> None:
    require("jupyterhub")
    hub = FakeHub()
    config = replace(hub.config, fresh=0.0)  # each request asks
    async with running(tmp_path, jupyterhub=config) as site:

        async def get(token: str, path: str, accept: str = "*/*") -> HTTPResponse:
            return await site.client.fetch(
                site.server.url + path,
                headers={"Authorization": f"token {token}", "Accept": accept},
                raise_error=False,
            )

        assert (await get("alice's", "api/kernels")).code == 200
        await hub.aclose()
        for _ in range(2):
            assert (await get("alice's", "api/kernels")).code == 200
        refused = await get("carol's", "api/kernels")
        assert (refused.code, refused.headers["Retry-After"]) == (503, "5")
        assert "JupyterHub cannot be asked who you are" in json.loads(refused.body)["message"]
        page = await get("carol's", "", "text/html")
        assert (page.code, page.headers["Retry-After"]) == (503, "5")
        assert b"<p>JupyterHub cannot be asked who you are" in page.body
        assert (await get(TOKEN, "api/kernels")).code == 200


async def test_a_websocket_ends_once_the_hub_has_withdrawn_its_token(tmp_path: Path) -> None:
    require("jupyterhub")
    for module in MODULES:  # takes seconds, of which the first question would have 10
        importlib.import_module(module)
    hub = FakeHub()
    async with running(tmp_path, jupyterhub=replace(hub.config, fresh=0.0)) as site:
        kernel_id = await site.kernel(None)
        url = f"ws{site.server.url.removeprefix('http')}api/kernels/{kernel_id}/channels"
        operator = {"Authorization": f"token {TOKEN}"}
        async with (
            connect(f"{url}?token=a%20service's") as ws,
            connect(url, additional_headers=operator) as operators,
        ):
            hub.withdrawn.add("a service's")
            async with asyncio.timeout(TIMEOUT):
                await ws.wait_closed()
            assert ws.close_code == 1008
            assert "no longer valid" in str(ws.close_reason)
            async with asyncio.timeout(TIMEOUT):
                await (await operators.ping())
    await hub.aclose()


async def test_kernels_know_their_user_and_users_outlive_the_server(tmp_path: Path) -> None:
    code = "import os; print(os.environ['KERNEL_USERNAME'])"
    pool = Config({"BridgeKernelManager": {"pool": {"python3": 1}}})
    async with running(tmp_path, shutdown_kernels_on_exit=False, config=pool) as site:
        pooled = [("python3", "pooled")]
        await until(
            lambda: [s[1:] for s in site.kernels.states()] == pooled, "a kernel in the pool"
        )
        from_pool = await site.kernel(ALICE)
        # The request may not name another user.
        started = await site.kernel(BOB, env={"KERNEL_USERNAME": "alice"})
        async with kbridge.client.connect(site.server.url, "token-bob") as client:
            assert [model["id"] for model in await client.kernels()] == [started]
            execution = await (await client.kernel(started)).execute(code)
            assert [output.text async for output in execution] == ["bob\n"]
        assert site.kernels.users() == {from_pool: "alice", started: "bob"}
        session = (await site.ask(BOB, "POST", "api/sessions", NOTEBOOK))[1]
    async with running(tmp_path) as site:
        assert (await site.ask(ALICE, "GET", f"api/kernels/{started}"))[0] == 404
        assert (await site.ask(ALICE, "GET", f"api/kernels/{from_pool}"))[0] == 200
        assert (await site.ask(BOB, "GET", f"api/kernels/{started}"))[0] == 200
        assert (await site.ask(ALICE, "GET", f"api/sessions/{session['id']}"))[0] == 404
        assert (await site.ask(BOB, "POST", "api/sessions", NOTEBOOK))[1]["id"] == session["id"]
