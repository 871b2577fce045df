import re
from typing import Any

import pytest

import kbridge

HTML = {"Accept": "text/html,application/xhtml+xml"}


async def test_the_page_shows_the_version_and_the_number_of_kernels(
    running: Any, token: str
) -> None:
    await running.kernels.start_kernel()
    reply = await running.ask("GET", "/", headers=HTML)
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
