"""All ways to log in with a browser, with a real Chromium."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tests.conftest import ServerFactory
from tests.support.browser import chromium_page
from tests.support.certificate import self_signed
from tests.support.require import require
from tests.support.server import TOKEN, free_port
from tests.support.waiting import TIMEOUT, eventually

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.kernel, pytest.mark.browser, pytest.mark.slow]

# Requests of a frontend after login, authenticated by the browser's cookie alone.
FRONTEND = """async (base) => {
    const ask = (method, path, body) => fetch(base + path, {method, body});
    const made = await ask("POST", "api/kernels", JSON.stringify({name: "python3"}));
    const {id} = await made.json();
    const url = base.replace(/^http/, "ws") + `api/kernels/${id}/channels`;
    const opened = await new Promise(done => {
        const socket = new WebSocket(url, ["v1.kernel.websocket.jupyter.org"]);
        socket.onopen = () => { done("opened"); socket.close(); };
        socket.onclose = (event) => done(`closed ${event.code}`);
    });
    const listed = await (await ask("GET", "api/kernels")).json();
    const gone = await ask("DELETE", `api/kernels/${id}`);
    return [made.status, opened, listed.map(k => k.id).includes(id), gone.status];
}"""
NGINX = """\
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/a; uwsgi_temp_path {home}/b; scgi_temp_path {home}/c;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
    server {{
        listen 127.0.0.1:{port};
        location /hub/ {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    # The policy of the page allows no scripts; this frontend simulates one from another origin.
    async with chromium_page(bypass_csp=True, ignore_https_errors=True) as page:
        page.set_default_timeout(TIMEOUT * 1000)
        yield page


async def log_in(page: Page, base: str) -> None:
    """Open the page without a token, type a wrong one, and then the right one."""
    await page.goto(base)
    assert page.url.startswith(f"{base}login?next="), page.url
    assert "Kernels" not in await page.inner_text("body")
    await page.fill("input[name=password]", "wrong")
    await page.click("button")
    await page.wait_for_selector("text=that is not the token")
    await page.fill("input[name=password]", TOKEN)
    await page.click("button")
    await page.wait_for_url(base)
    assert "Kernels" in await page.inner_text("body")


async def journey(page: Page, base: str) -> None:
    """Log in, work, return, log out, and log in with the URL that has the token."""
    await log_in(page, base)
    [cookie] = [c for c in await page.context.cookies() if c["name"].startswith("kbridge-")]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert cookie["secure"] is base.startswith("https")
    assert cookie["path"] == "/" + base.split("/", 3)[3]
    assert TOKEN not in cookie["value"]
    assert await page.evaluate(FRONTEND, base) == [201, "opened", True, 204]
    await page.goto(f"{base}tree")
    assert "Kernels" in await page.inner_text("body")
    await page.click("text=README")
    assert "kbridge" in await page.inner_text("body")
    await page.go_back()
    await page.click("text=log out")
    assert "You are logged out" in await page.inner_text("body")
    assert await page.context.cookies() == []
    await page.goto(f"{base}tree")
    assert page.url.startswith(f"{base}login?next=")
    # From a deep link to the form, and back to it.
    await page.fill("input[name=password]", TOKEN)
    await page.click("button")
    await page.wait_for_url(f"{base}tree")
    await page.context.clear_cookies()
    await page.goto(f"{base}?token=wrong")
    assert page.url.startswith(f"{base}login?next=")
    await page.goto(f"{base}?token={TOKEN}")
    assert "Kernels" in await page.inner_text("body")
    await page.goto(base)
    assert "Kernels" in await page.inner_text("body"), "afterwards the cookie is enough"
    assert await page.evaluate(FRONTEND, base) == [201, "opened", True, 204]


async def test_a_new_user_can_log_in(new_server: ServerFactory) -> None:
    """Chromium sent `Origin: null` with the form, and the login failed."""
    server = new_server()
    async with browser() as page:
        await journey(page, f"{server.url}/")


async def test_login_under_the_name_localhost(new_server: ServerFactory) -> None:
    server = new_server()
    async with browser() as page:
        await log_in(page, f"http://localhost:{server.port}/")


@asynccontextmanager
async def another_site(link: str) -> AsyncIterator[str]:
    """Serve a page with a link; its site is `localhost`, while that of servers is 127.0.0.1."""

    class Page(RequestHandler):
        def get(self) -> None:
            self.finish(f'<a href="{link}">kbridge</a>')

    [socket] = bind_sockets(0, "127.0.0.1")
    http = HTTPServer(Application([("/", Page)]))
    http.add_sockets([socket])
    try:
        yield f"http://localhost:{socket.getsockname()[1]}/"
    finally:
        http.stop()


async def test_a_link_of_another_site_opens_the_page(new_server: ServerFactory) -> None:
    server = new_server()
    kernel_id = server.start_kernel()
    for path, shown in (("/", "Kernels"), (f"/console?kernel={kernel_id}", "Run")):
        async with another_site(f"{server.url}{path}") as site, browser() as page:
            await page.goto(site)
            await page.click("a")
            await page.wait_for_selector("input[name=password]")  # not logged in yet
            await page.fill("input[name=password]", TOKEN)
            await page.click("button")
            await page.wait_for_url(f"{server.url}{path}")
            await page.goto(site)
            await page.click("a")
            await page.wait_for_url(f"{server.url}{path}")
            await page.wait_for_selector(f"text={shown}")


async def test_login_with_a_base_url(new_server: ServerFactory) -> None:
    server = new_server("--base-url=/a (b)/é/")
    async with browser() as page:
        await journey(page, f"{server.url}/a%20(b)/%C3%A9/")


@pytest.fixture
def certificate(tmp_path: Path) -> list[str]:
    """Create a self-signed certificate; return the options of a server with it."""
    made = self_signed(tmp_path)
    return [f"--certfile={made.cert}", f"--keyfile={made.key}"]


async def test_login_over_tls(new_server: ServerFactory, certificate: list[str]) -> None:
    server = new_server(*certificate)
    async with browser() as page:
        await journey(page, f"https://127.0.0.1:{server.port}/")


@contextmanager
def nginx(home: Path, upstream: int) -> Iterator[str]:
    """Run nginx in front of a server; return the address."""
    port = free_port()
    config = home / "nginx.conf"
    config.write_text(NGINX.format(home=home, port=port, upstream=upstream))
    command = [require("nginx"), "-c", str(config), "-p", str(home), "-e", str(home / "error.log")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            eventually((home / "nginx.pid").exists, "nginx runs")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(TIMEOUT)


async def test_login_behind_nginx(new_server: ServerFactory, tmp_path: Path) -> None:
    server = new_server("--base-url=/hub/user/")
    with nginx(tmp_path, server.port) as address:
        async with browser() as page:
            await journey(page, f"{address}/hub/user/")


async def test_a_page_of_another_origin_cannot_use_the_cookie(new_server: ServerFactory) -> None:
    """It is another site (localhost), so that the request would be cross-site."""
    server = new_server()
    async with browser() as page:
        await log_in(page, f"{server.url}/")
        other = await page.context.new_page()
        await other.goto(f"http://localhost:{server.port}/login")
        base = f"{server.url}/"
        sent = """async (base) => {
            const tries = ["api/kernels", "api/shutdown"].map(path => fetch(base + path,
                {method: "POST", body: "{}", mode: "no-cors", credentials: "include"}));
            return (await Promise.all(tries)).map(reply => reply.type);
        }"""
        assert await other.evaluate(sent, base) == ["opaque", "opaque"]
        opened = """(url) => new Promise(done => {
            const socket = new WebSocket(url);
            socket.onopen = () => done("opened");
            socket.onclose = (event) => done(`closed ${event.code}`);
        })"""
        kernel = server.start_kernel()
        url = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel}/channels"
        assert await other.evaluate(opened, url) == "closed 1006"
        assert [k["id"] for k in server.request("GET", "/api/kernels").json()] == [kernel]
        refused = re.findall(r"403 POST /api/(kernels|shutdown)", server.log.read_text())
        assert sorted(set(refused)) == ["kernels", "shutdown"]
