"""Log in with the form, and as programs for Jupyter Server do."""

import asyncio
import http.client
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from kbridge.server.api.login import safe_target
from tests.support.waiting import TIMEOUT

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
HTML = {"Accept": "text/html,application/xhtml+xml"}


async def test_the_form(start: Any, token: str) -> None:
    running = await start(base_url="/b/")
    shown = await running.ask("GET", "/login?next=%2Fb%2Ftree", token=None, headers=HTML)
    text = shown.body.decode()
    assert shown.code == 200
    assert '<form method="post" action="/b/login">' in text
    assert 'name="next" value="/b/tree"' in text
    assert shown.headers["Referrer-Policy"] == "same-origin"
    [xsrf] = shown.headers.get_list("Set-Cookie")
    assert re.fullmatch(r"_xsrf=[0-9a-f]{32}; Path=/b/; SameSite=Strict", xsrf)
    headers = {**HTML, **FORM}
    body = urlencode({"password": "wrong", "next": "/b/tree"})
    wrong = await running.ask("POST", "/login", token=None, headers=headers, body=body)
    assert wrong.code == 401
    assert "not the token" in wrong.body.decode()
    assert 'name="next" value="/b/tree"' in wrong.body.decode()
    assert "Set-Cookie" not in wrong.headers
    body = urlencode({"password": f"{token}\n", "next": "/b/tree"})
    right = await running.ask("POST", "/login", token=None, headers=headers, body=body)
    assert (right.code, right.headers["Location"]) == (302, "/b/tree")
    [cookie] = right.headers.get_list("Set-Cookie")
    for part in ("kbridge-test=", "HttpOnly", "SameSite=Strict", "Path=/b/"):
        assert part in cookie
    assert token not in cookie
    proof = {"Cookie": cookie.partition(";")[0]}
    assert (await running.ask("GET", "/api/kernels", token=None, headers=proof)).code == 200
    again = await running.ask("GET", "/login", token=None, headers=proof)
    assert (again.code, again.headers["Location"]) == (302, "/b/")


async def test_a_wrong_token_is_answered_with_json_for_programs(
    running: Any, error_of: Any
) -> None:
    for body in ("password=wrong", "password=", "", "token=wrong"):
        reply = await running.ask("POST", "/login", token=None, headers=FORM, body=body)
        assert error_of(reply) == (401, "Unauthorized", "that is not the token")


LINK = {
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
}


@pytest.mark.parametrize("page", ["/b/", "/b/tree", "/b/console?kernel=a-1"])
async def test_a_browser_from_another_site_asks_again(start: Any, page: str) -> None:
    running = await start(base_url="/b/")
    path = f"/login?next={quote(page, safe='')}"
    first = await running.ask("GET", path, token=None, headers={**HTML, **LINK})
    assert (first.code, b"<form" in first.body) == (200, False)
    delay, _, url = first.headers["Refresh"].partition(";url=")
    assert (delay, url) == ("0", f"/b/login?again=1&next={quote(page, safe='')}")
    again = url.removeprefix("/b")
    second = await running.ask("GET", again, token=None, headers={**HTML, **LINK})
    assert "Refresh" not in second.headers, "it would go on without end"
    assert f'name="next" value="{page}"' in second.body.decode()


@pytest.mark.parametrize("target", ["/api/kernels", "/logout", "/console/x", "/login", "/metrics"])
async def test_only_pages_are_opened_from_another_site(running: Any, target: str) -> None:
    path = f"/login?next={quote(target, safe='')}"
    reply = await running.ask("GET", path, token=None, headers={**HTML, **LINK})
    assert "Refresh" not in reply.headers
    assert b"<form" in reply.body


@pytest.mark.parametrize("name", LINK)
async def test_other_requests_receive_the_form_at_once(running: Any, name: str) -> None:
    for headers in ({}, {**LINK, name: "same-origin"}):
        reply = await running.ask("GET", "/login", token=None, headers={**HTML, **headers})
        assert "Refresh" not in reply.headers
        assert b"<form" in reply.body


async def test_a_redirect_target_that_is_not_text_is_refused(running: Any, token: str) -> None:
    headers = {**HTML, **FORM}
    shown = await running.ask("GET", "/login?next=%ff", token=None, headers=HTML)
    assert (shown.code, b'name="next" value="/"' in shown.body) == (200, True)
    for password, code in (("wrong", 401), (token, 302)):
        body = f"password={password}&next=%ff"
        reply = await running.ask("POST", "/login", token=None, headers=headers, body=body)
        assert reply.code == code
        assert reply.headers.get("Location") == ("/" if code == 302 else None)
        assert code == 302 or b"not the token" in reply.body


async def test_the_form_refuses_other_origins(running: Any, token: str) -> None:
    for origin in ("https://evil.example", "null"):
        headers = {**FORM, "Origin": origin, "Sec-Fetch-Site": "cross-site"}
        reply = await running.ask(
            "POST", "/login", token=None, headers=headers, body=f"password={token}"
        )
        assert reply.code == 403
        assert "Set-Cookie" not in reply.headers


async def test_a_browser_that_hides_where_it_is_can_log_in(running: Any, token: str) -> None:
    """Chromium sends `Origin: null` under `Referrer-Policy: no-referrer`, and was refused."""
    headers = {**FORM, "Origin": "null", "Sec-Fetch-Site": "same-origin"}
    reply = await running.ask(
        "POST", "/login", token=None, headers=headers, body=f"password={token}"
    )
    assert reply.code == 302


async def test_the_page_at_the_root_accepts_the_form_of_earlier_versions(
    running: Any, token: str
) -> None:
    reply = await running.ask("POST", "/", token=None, headers=FORM, body=f"token={token}")
    assert (reply.code, reply.headers["Location"]) == (302, "/")
    assert reply.headers["Set-Cookie"].startswith("kbridge-test=")


async def test_logging_out_removes_the_cookies(running: Any) -> None:
    for method in ("GET", "POST"):
        reply = await running.ask(method, "/logout", token=None, headers=HTML)
        assert reply.code == 200
        taken = reply.headers.get_list("Set-Cookie")
        assert [c.partition("=")[0] for c in taken] == ["kbridge-test", "_xsrf"]
        assert all("expires=" in c.lower() for c in taken)


async def test_without_a_token_the_login_page_redirects(start: Any) -> None:
    running = await start(policy={"token": ""})
    for method, body in (("GET", None), ("POST", "password=any")):
        reply = await running.ask(method, "/login", token=None, headers=FORM, body=body)
        assert (reply.code, reply.headers["Location"]) == (302, "/")
        assert "Set-Cookie" not in reply.headers
    assert b"logout" not in (await running.ask("GET", "/", token=None)).body


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/b/", "/b/"),
        ("/b/tree?x=1&y=%2F", "/b/tree?x=1&y=%2F"),
        ("", "/b/"),
        ("/", "/b/"),
        ("/other", "/b/"),
        ("//evil.example/", "/b/"),
        ("https://evil.example/b/", "/b/"),
        ("/b/\\evil", "/b/"),
        ("/b/\r\nSet-Cookie: x=y", "/b/"),
        ("/b/ x", "/b/"),
        ("/b/é", "/b/"),
        ('/b/"><script>', "/b/"),
    ],
)
def test_where_a_login_leads(target: str, found: str) -> None:
    assert safe_target(target, "/b/") == found
    assert safe_target("//evil.example/", "/") == "/"


# -- programs, as they are ----------------------------------------------------------------------


class Client:
    """An HTTP client with one connection, which does not follow the rules of browsers."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: str | None = None
    ) -> tuple[int, list[str], bytes]:
        """Return the status, what `Set-Cookie` says, and the body."""
        self._connection.request(
            method, path, body, {"Connection": "keep-alive", **(headers or {})}
        )
        reply = self._connection.getresponse()
        return reply.status, reply.headers.get_all("Set-Cookie", []), reply.read()

    def close(self) -> None:
        self._connection.close()


def cookies(found: list[str]) -> dict[str, str]:
    """Read `Set-Cookie` as VS Code does: the attributes stay with the value."""
    return dict(cookie.split("=", 1) for cookie in found)


def vscode(client: Client, base: str, password: str) -> dict[str, str]:
    """Send the requests with which VS Code's Jupyter extension logs in; return its headers."""
    status, _, _ = client.ask("GET", f"{base}hub/api")
    assert status != 200, "VS Code would treat this server as a JupyterHub"
    status, _, _ = client.ask("GET", f"{base}tree?")
    if status == 200:
        return {}
    status, found, _ = client.ask("GET", f"{base}login?")
    assert status == 200
    xsrf = cookies(found)["_xsrf"].split(";")[0]
    status, found, _ = client.ask(
        "POST",
        f"{base}login?",
        {"Cookie": f"_xsrf={xsrf}", "content-type": f"{FORM['Content-Type']};charset=UTF-8"},
        urlencode({"_xsrf": xsrf, "password": password}),
    )
    if status != 302:
        return {"refused": str(status)}
    name, value = next(iter(cookies(found).items()))
    return {"Cookie": f"_xsrf={xsrf}; {name}={value}", "X-XSRFToken": xsrf}


def use(client: Client, base: str, headers: dict[str, str]) -> None:
    """Start and end a kernel, as an authenticated frontend does."""
    status, _, body = client.ask("GET", f"{base}api/kernelspecs", headers)
    assert (status, json.loads(body)["default"]) == (200, "fake")
    sent = {**headers, "Content-Type": "application/json"}
    status, _, body = client.ask("POST", f"{base}api/kernels", sent, '{"name": "fake"}')
    assert status == 201
    status, _, _ = client.ask("DELETE", f"{base}api/kernels/{json.loads(body)['id']}", headers)
    assert status == 204


@pytest.fixture
def connect() -> Iterator[Callable[[int], Client]]:
    clients: list[Client] = []

    def make(port: int) -> Client:
        clients.append(Client(port))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize("base", ["/", "/b/"])
async def test_vscode_asks_for_a_password(
    start: Any, token: str, base: str, connect: Callable[[int], Client]
) -> None:
    running = await start(guarded=True, base_url=base)
    client = connect(running.port)

    def play() -> None:
        assert vscode(client, base, "wrong") == {"refused": "401"}
        use(client, base, vscode(client, base, token))

    await asyncio.to_thread(play)


async def test_vscode_with_the_token_in_the_address(
    start: Any, token: str, connect: Callable[[int], Client]
) -> None:
    """`GET /tree?` had its connection closed under it, and the next request died."""
    running = await start(guarded=True)
    client = connect(running.port)

    def play() -> None:
        proof = {"Authorization": f"token {token}"}
        for _ in range(3):
            assert client.ask("GET", "/hub/api")[0] == 404
            assert client.ask("GET", "/tree?")[0] == 302
            assert client.ask("GET", "/api/kernels?1", proof)[0] == 200
            use(client, "/", proof)

    await asyncio.to_thread(play)


async def test_vscode_without_a_token(start: Any, connect: Callable[[int], Client]) -> None:
    running = await start(guarded=True, policy={"token": ""})
    client = connect(running.port)

    def play() -> None:
        assert vscode(client, "/", "") == {}
        use(client, "/", {})

    await asyncio.to_thread(play)


async def test_emacs_jupyter_logs_in(
    start: Any, token: str, connect: Callable[[int], Client]
) -> None:
    running = await start(guarded=True)
    client = connect(running.port)

    def play() -> None:
        status, _, _ = client.ask("GET", "/", {"Accept": "*/*"})
        assert status < 400, "VS Code treats this reply as a missing server"
        _, found, _ = client.ask("GET", "/login")
        xsrf = cookies(found)["_xsrf"].split(";")[0]
        headers = {"Cookie": f"_xsrf={xsrf}", "X-XSRFTOKEN": xsrf}
        for password, expected in (("wrong", 401), (token, 302)):
            status, found, _ = client.ask(
                "POST", "/login", {**headers, **FORM}, f"password={password}"
            )
            assert status == expected
        [(name, value)] = cookies(found).items()
        headers["Cookie"] += f"; {name}={value.split(';')[0]}"
        assert client.ask("GET", "/", headers)[0] == 200
        use(client, "/", headers)

    await asyncio.to_thread(play)
