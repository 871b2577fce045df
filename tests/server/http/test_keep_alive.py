"""Reuse of connections by a client that keeps them alive.

After every reply, whatever its status, either the connection serves the next request, or the reply
has said that it does not. A client cannot tell otherwise, and its next request dies ("socket hang
up", `RemoteDisconnected`).
"""

import asyncio
import http.client
import socket
from typing import Any

import pytest

from tests.support.waiting import TIMEOUT

FOREIGN = {"Origin": "https://evil.example"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

# name: status, request, headers, body
CASES: dict[str, tuple[int, str, dict[str, str], bytes | None]] = {
    "ok": (200, "GET /api", {}, None),
    "head": (200, "HEAD /api", {}, None),
    "icon": (200, "GET /favicon.ico", {}, None),
    "preflight": (204, "OPTIONS /api/kernels", {}, None),
    "form": (200, "GET /login", {}, None),
    "logout": (200, "GET /logout", {}, None),
    "slash": (302, "GET /api/kernels/", {}, None),
    "slash keeps the method": (307, "POST /api/kernels/", {}, b"{}"),
    "unknown": (404, "GET /nowhere", {}, None),
    "unknown, post": (404, "POST /nowhere", {}, b"x" * 1000),
    "hub": (404, "GET /hub/api", {}, None),
    "nbextensions": (404, "GET /nbextensions/jupyter-js-widgets/extension.js", {}, None),
    "contents": (404, "GET /api/contents", {}, None),
    "base": (302, "GET /base", {}, None),
    "host": (403, "GET /api", {"Host": "evil.example"}, None),
    "host, unknown": (403, "GET /nowhere", {"Host": "evil.example"}, None),
    "login": (401, "POST /login", FORM, b"password=wrong"),
    "login from elsewhere": (403, "POST /login", FORM | FOREIGN, b"password=wrong"),
    "method": (405, "PUT /api", {}, b"{}"),
    "strange method": (405, "BREW /api", {}, None),
}
WITH_TOKEN: dict[str, tuple[int, str, dict[str, str], bytes | None]] = {
    "status": (200, "GET /api/status", {}, None),
    "page": (200, "GET /tree?", {}, None),
    "made": (201, "POST /api/kernels", {}, b"{}"),
    "no JSON": (400, "POST /api/kernels", {}, b"{"),
    "no upgrade": (400, "GET /api/kernels/x/channels", {}, None),
    "no kernel": (404, "GET /api/kernels/x", {}, None),
    "no kernel, delete": (404, "DELETE /api/kernels/x", {}, None),
    "method": (405, "DELETE /api/kernels", {}, None),
    "kernel dies": (500, "POST /api/kernels", {}, b'{"name": "dies"}'),
    "fault": (500, "POST /api/kernels", {}, b'{"name": "bug"}'),
    "too big": (413, "POST /api/kernels", {}, b"x" * 200_000),
    "too big, expected": (413, "POST /api/kernels", {"Expect": "100-continue"}, b"x" * 200_000),
}
WITHOUT = {
    "no token": (403, "GET /api/status", {}, None),
    "page": (302, "GET /", {}, None),
    "tree": (302, "GET /tree?", {}, None),
    "no token, post": (403, "POST /api/kernels", {}, b"{}"),
    "no token, websocket": (403, "GET /api/kernels/x/channels", HANDSHAKE, None),
    "too big": (403, "POST /api/kernels", {}, b"x" * 50_000),
    "too big, public": (403, "POST /login", FORM, b"x" * 50_000),
}


def exchange(
    port: int, case: tuple[int, str, dict[str, str], bytes | None], headers: dict[str, str]
) -> tuple[int, bool, int]:
    """Return the status, whether the reply announced the end, and the status of a next request."""
    _, request, more, body = case
    method, path = request.split(" ")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request(method, path, body, {**headers, **more})
        first = connection.getresponse()
        first.read()
        if first.will_close:
            return first.status, True, 0
        kept = connection.sock
        connection.request("GET", "/api", headers=headers)
        assert connection.sock is kept
        second = connection.getresponse()
        second.read()
        return first.status, False, second.status
    finally:
        connection.close()


@pytest.fixture
async def guarded(start: Any) -> Any:
    return await start(guarded=True)


def credentials(running: Any, token: str, kind: str) -> dict[str, str]:
    return {
        "header": {"Authorization": f"token {token}"},
        "cookie": {"Cookie": f"kbridge-test={running.services.auth.policy.cookie_value()}"},
        "none": {},
        "wrong": {"Authorization": "token wrong", "Cookie": "kbridge-test=wrong"},
    }[kind]


@pytest.mark.parametrize("name", [*CASES, *(f"in: {n}" for n in WITH_TOKEN)])
async def test_with_the_token_replies_announce_whether_the_connection_stays(
    guarded: Any, token: str, name: str
) -> None:
    cases = WITH_TOKEN if name.startswith("in: ") else CASES
    case = cases[name.removeprefix("in: ")]
    headers = credentials(guarded, token, "header")
    status, closes, following = await asyncio.to_thread(exchange, guarded.port, case, headers)
    expected = {"form": 302, "base": 404, "login from elsewhere": 401}.get(name, case[0])
    assert status == expected
    # The connection can be used again unless the request was incomplete.
    assert closes is (status in {403, 413} or name == "strange method")
    if not closes:
        assert following == 200


@pytest.mark.parametrize("kind", ["none", "wrong"])
@pytest.mark.parametrize("name", [*CASES, *(f"out: {n}" for n in WITHOUT)])
async def test_without_the_token_replies_announce_the_end_of_the_connection(
    guarded: Any, token: str, name: str, kind: str
) -> None:
    cases = WITHOUT if name.startswith("out: ") else CASES
    case = cases[name.removeprefix("out: ")]
    headers = credentials(guarded, token, kind)
    status, closes, _ = await asyncio.to_thread(exchange, guarded.port, case, headers)
    assert status == {"base": 404}.get(name, case[0])
    assert closes


@pytest.mark.parametrize("path", ["/api/kernels/x", "/nowhere", "/tree?", "/api/status"])
async def test_a_cookie_keeps_its_connection(guarded: Any, token: str, path: str) -> None:
    headers = credentials(guarded, token, "cookie")
    case = (0, f"GET {path}", {}, None)
    status, closes, following = await asyncio.to_thread(exchange, guarded.port, case, headers)
    assert (status in {200, 404}, closes, following) == (True, False, 200)


async def test_a_base_url_without_its_slash(start: Any, token: str) -> None:
    running = await start(guarded=True, base_url="/base/")
    for headers, ends in (({}, True), (credentials(running, token, "header"), False)):
        reply = await asyncio.to_thread(
            exchange, running.port, (302, "GET /base", {}, None), headers
        )
        assert reply[:2] == (302, ends)


async def test_a_server_that_shuts_down_announces_the_end_of_the_connection(
    guarded: Any, token: str
) -> None:
    guarded.services.closing = True
    headers = credentials(guarded, token, "header")
    reply = await asyncio.to_thread(exchange, guarded.port, WITH_TOKEN["status"], headers)
    assert reply == (503, True, 0)


async def test_listing_that_is_off_keeps_the_connection(start: Any, token: str) -> None:
    running = await start(guarded=True, list_kernels=False)
    headers = credentials(running, token, "header")
    case = (403, "GET /api/kernels", {}, None)
    reply = await asyncio.to_thread(exchange, running.port, case, headers)
    assert reply == (403, False, 200)


def raw(port: int, request: bytes) -> bytes:
    """Send bytes, and return all received data until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while piece := connection.recv(1 << 16):
            found += piece
    return found


@pytest.mark.parametrize("token_shown", [True, False])
async def test_http_1_0(guarded: Any, token: str, token_shown: bool) -> None:
    """Tornado by itself sends `Keep-Alive` before it closes a connection."""
    proof = f"Authorization: token {token}\r\n" if token_shown else ""
    request = f"GET /api HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n{proof}\r\n"
    head, _, _ = (await asyncio.to_thread(raw, guarded.port, request.encode())).partition(
        b"\r\n\r\n"
    )
    assert (b"Connection: Keep-Alive" in head) is token_shown
    assert (b"Connection: close" in head) is not token_shown


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST /api HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=["no host", "version", "nonsense", "length", "head"],
)
async def test_an_invalid_request_ends_the_connection(guarded: Any, request_: bytes) -> None:
    """A reply without a length is ended by the end of the connection, if there is a reply."""
    reply = await asyncio.to_thread(raw, guarded.port, request_)
    head, _, body = reply.partition(b"\r\n\r\n")
    assert (
        not reply or b"connection: close" in head.lower() or b"content-length" not in head.lower()
    )
    assert not head or head.startswith(b"HTTP/1.1 4"), (head, body)
