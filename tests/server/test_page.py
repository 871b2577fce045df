import re
from typing import Any

import kbridge

HTML = {"Accept": "text/html,application/xhtml+xml"}


async def test_the_page_says_what_runs_here(running: Any, token: str) -> None:
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
    assert "/readme" in links
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


async def test_a_browser_without_the_token_is_asked_for_it(running: Any, token: str) -> None:
    asked = await running.ask("GET", "/", token=None, headers=HTML)
    assert asked.code == 403
    assert '<form method="post"' in asked.body.decode()
    form = {**HTML, "Content-Type": "application/x-www-form-urlencoded"}
    wrong = await running.ask("POST", "/", token=None, headers=form, body="token=wrong")
    assert wrong.code == 403
    assert "not the token" in wrong.body.decode()
    right = await running.ask("POST", "/", token=None, headers=form, body=f"token={token}")
    assert (right.code, right.headers["Location"]) == (303, "/")
    assert right.headers["Set-Cookie"].startswith("kbridge-test=")


async def test_the_form_takes_nothing_from_elsewhere(running: Any, token: str) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "https://evil.example"}
    reply = await running.ask("POST", "/", token=None, headers=form, body=f"token={token}")
    assert reply.code == 403
    assert "Set-Cookie" not in reply.headers


async def test_programs_get_json(running: Any, error_of: Any) -> None:
    assert error_of(await running.ask("GET", "/", token=None))[0] == 403


async def test_icon_and_readme(running: Any) -> None:
    icon = await running.ask("GET", "/favicon.ico", token=None)
    assert icon.headers["Content-Type"] == "image/svg+xml"
    readme = await running.ask("GET", "/readme")
    assert readme.headers["Content-Type"].startswith("text/plain")
