import asyncio
import json
import re
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

import pytest

import kbridge
from kbridge.cluster.peers import Peers
from kbridge.cluster.remote_kernels import RemoteKernels
from kbridge.hub.table import HubTable
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.page.files import POLICY
from kbridge.page.sampler import Sampler
from kbridge.server.api.live_source import ServerSource
from tests.support.cluster_view import FixedView, kernel_of, replica_at
from tests.support.users import ADMIN, ALICE, Checks, Table
from tests.support.waiting import TIMEOUT

TOKEN = "a-token-of-the-tests"
HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.mark.parametrize("path", ["/", "/tree"])
async def test_a_browser_receives_the_live_page(start: Any, path: str) -> None:
    running = await start(base_url="/b/")
    reply = await running.ask("GET", path, headers=HTML)
    text = reply.body.decode()
    assert reply.code == 200
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert reply.headers["Content-Security-Policy"] == POLICY
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Vary"] == "Accept"
    assert '<html lang="en" data-api="/b/" data-logout="yes">' in text
    assert TOKEN not in text


async def test_without_authentication_the_page_offers_no_logout(start: Any) -> None:
    running = await start(policy={"token": ""})
    text = (await running.ask("GET", "/", headers=HTML)).body.decode()
    assert 'data-api="/">' in text


async def test_links_of_the_page_lead_somewhere(start: Any) -> None:
    running = await start(base_url="/b/")
    text = (await running.ask("GET", "/", headers=HTML)).body.decode()
    links = set(re.findall(r'(?:href|src)="([^"#]+)"', text))
    assert {"readme", "logout", "page/common.css", "page/live/main.js"} <= links
    for link in links - {"./"}:
        assert (await running.ask("GET", f"/{link}")).code == 200, link


async def test_the_console_asks_for_the_token(running: Any) -> None:
    reply = await running.ask("GET", "/console", token=None)
    assert (reply.code, reply.headers["Location"]) == (302, "/login?next=%2Fconsole")
    reply = await running.ask("GET", "/console?kernel=x")
    assert reply.code == 200
    assert reply.headers["Content-Security-Policy"] == POLICY
    assert (await running.ask("HEAD", "/console")).code == 200


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("kernel=a1-b_2", "?kernel=a1-b_2"),
        ("token=wrong&kernel=a1", "?kernel=a1"),
        ("token=wrong", ""),
        ("kernel=a%26token%3Dwrong", ""),
        ("kernel=%ff", ""),
        ("kernel=", ""),
    ],
)
async def test_the_login_leads_to_the_kernel(
    running: Any, token: str, query: str, kept: str
) -> None:
    reply = await running.ask("GET", f"/console?{query}", token=None)
    assert reply.headers["Location"] == f"/login?next={quote(f'/console{kept}', safe='')}"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode({"password": token, "next": f"/console{kept}"})
    reply = await running.ask("POST", "/login", token=None, headers=form, body=body)
    assert reply.headers["Location"] == f"/console{kept}"


async def test_static_files_are_sent_once(running: Any, error_of: Any) -> None:
    reply = await running.ask("GET", "/page/common.css")
    assert reply.headers["Content-Type"] == "text/css; charset=utf-8"
    assert reply.headers["Content-Security-Policy"] == POLICY
    etag = {"If-None-Match": reply.headers["Etag"]}
    assert (await running.ask("GET", "/page/common.css", headers=etag)).code == 304
    assert (await running.ask("HEAD", "/page/common.css")).body == b""
    assert error_of(await running.ask("GET", "/page/common.css", token=None))[0] == 403


@pytest.mark.parametrize(
    "name", ["nothing.js", "../files.py", "%2e%2e/files.py", "..%2ffiles.py", "", "/etc/passwd"]
)
async def test_only_files_of_the_page_are_served(running: Any, error_of: Any, name: str) -> None:
    assert error_of(await running.ask("GET", f"/page/{name}"))[0] == 404


async def test_the_page_can_be_turned_off(running: Any, error_of: Any) -> None:
    running.services.page = False
    assert "<dt>Kernels</dt>" in (await running.ask("GET", "/", headers=HTML)).body.decode()
    for path in ("/console", "/page/common.css"):
        status, _, message = error_of(await running.ask("GET", path))
        assert (status, "KbridgeApp.page" in message) == (404, True)


async def test_there_are_no_samples_without_the_page_or_a_listing(
    start: Any, error_of: Any
) -> None:
    running = await start()
    status, _, message = error_of(await running.ask("GET", "/api/live"))
    assert (status, "KbridgeApp.page" in message) == (404, True)
    running = await start(list_kernels=False)
    running.services.sampler = Sampler(ServerSource(running.services))
    status, _, message = error_of(await running.ask("GET", "/api/live"))
    assert (status, "list_kernels" in message) == (403, True)
    assert not running.services.sampler.running


async def test_a_live_stream_ends_with_the_access_of_its_user(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table()
    checks = Checks(table)
    running = await start(users=checks.users, guarded=True)
    opened = checks.of(running.services)
    manager = BridgeKernelManager(hubs=HubTable(), writer=RegistryWriter())
    monkeypatch.setattr(running.services, "kernels", manager)
    sampler = running.services.sampler = Sampler(
        ServerSource(running.services), pause=lambda _: asyncio.sleep(0.01)
    )
    streams = []
    async with asyncio.timeout(TIMEOUT):
        for token in ("token-alice", f"token-{ADMIN.name}", TOKEN):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            request = f"GET /api/live HTTP/1.0\r\nAuthorization: token {token}\r\n"
            writer.write(f"{request}Host: localhost\r\n\r\n".encode())
            assert b" 200 " in await reader.readuntil(b"\r\n")
            await reader.readuntil(b"\n\n")
            streams.append((reader, writer))
        del table.users["token-alice"]
        table.users[f"token-{ADMIN.name}"] = replace(ADMIN, admin=False)
        checks.check()
        checks.check()
        for reader, _ in streams[:2]:
            await reader.read()  # to the end
        await streams[2][0].readuntil(b"\n\n")
    assert sampler.watchers == 1
    assert ALICE not in table.users.values()
    for _, writer in streams:
        writer.close()
    await sampler.aclose()
    await opened.aclose()


async def test_a_program_receives_the_version_and_the_number_of_kernels(
    running: Any, token: str
) -> None:
    await running.kernels.start_kernel()
    reply = await running.ask("GET", "/", headers={"Accept": "*/*"})
    text = reply.body.decode()
    assert reply.code == 200
    assert f"<dd>{kbridge.__version__}</dd>" in text
    assert "<dt>Kernels</dt><dd>1</dd>" in text
    assert token not in text
    assert "<script" not in text
    assert "Set-Cookie" not in reply.headers
    assert reply.headers["Cache-Control"] == "no-store"


async def test_links_lead_somewhere(start: Any) -> None:
    running = await start(base_url="/b/")
    text = (await running.ask("GET", "/")).body.decode()
    links = re.findall(r'href="/b(/[^"]+)"', text)
    assert {"/readme", "/logout"} <= set(links)
    for link in links:
        assert (await running.ask("GET", link)).code == 200, link


async def test_a_token_in_the_url_becomes_a_cookie_that_holds(running: Any, token: str) -> None:
    reply = await running.ask("GET", f"/?token={token}", token=None)
    cookie = reply.headers["Set-Cookie"]
    for part in ("kbridge-test=", "HttpOnly", "SameSite=Strict", "Path=/"):
        assert part in cookie
    assert token not in cookie
    value = cookie.split(";")[0]
    assert (await running.ask("GET", "/", token=None, headers={"Cookie": value})).code == 200


async def test_icon_and_readme(running: Any) -> None:
    icon = await running.ask("GET", "/favicon.ico", token=None)
    assert icon.headers["Content-Type"] == "image/svg+xml"
    readme = await running.ask("GET", "/readme")
    assert readme.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/", "/tree"])
async def test_without_the_token_the_page_asks_for_it(start: Any, path: str) -> None:
    """`GET /` must not return 403, which some programs treat as a missing server."""
    running = await start(base_url="/b/")
    for query in ("", "?", "?token=wrong"):
        reply = await running.ask("GET", path + query, token=None)
        assert reply.code == 302
        assert reply.headers["Location"] == f"/b/login?next=%2Fb{path.replace('/', '%2F')}"
        assert reply.body == b""
    assert (await running.ask("HEAD", path, token=None)).code == 302
    assert (await running.ask("HEAD", path)).code == 200


async def test_in_a_cluster_the_page_names_the_replica_of_each_kernel(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = running.services
    services.kernels = BridgeKernelManager(hubs=services.hubs, writer=RegistryWriter())
    monkeypatch.setattr(services.kernels, "states", lambda: [("mine", "python3", "idle")])
    view = FixedView(replica_at("http://other/"))
    view.put(
        kernel_of("self", "mine"),
        kernel_of("other", "theirs", state='{"execution_state": "busy"}'),
        kernel_of("gone", "in between"),
        kernel_of("other", "not in use", role="pooled"),
    )
    services.cluster = RemoteKernels(view, Peers())
    sampler = Sampler(ServerSource(services))
    watcher = sampler.watch()
    sample = json.loads(await watcher.next() or b"")
    await sampler.aclose()
    assert sample["replica"] == "http://self/"
    assert {k["id"]: (k["state"], k["replica"]) for k in sample["kernels"]} == {
        "mine": ("idle", "http://self/"),
        "theirs": ("busy", "http://other/"),
        "in between": ("unknown", ""),
    }
