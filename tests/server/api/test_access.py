"""Access control on a real server: every route, websockets included."""

import json
import logging
import re
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from kbridge.server import safe_log
from kbridge.server.api.access import ApiHandler
from kbridge.server.api.routes import ROUTES
from kbridge.server.auth.access_policy import AccessPolicy

PUBLIC = {
    *(
        "/favicon.ico",
        "/api/?",
        "/",
        "/tree",
        "/login",
        "/logout",
        "/oauth_callback",
        "/healthz",
        "/readyz",
    ),
    *("/console", "/kbridge.js"),
}
PATHS = [p.removesuffix("/?").replace("([^/]+)", "x").replace("(.+)", "y") for p, _ in ROUTES]
GUARDED = [p for p, (pattern, _) in zip(PATHS, ROUTES, strict=True) if pattern not in PUBLIC]


@pytest.mark.parametrize("path", GUARDED)
async def test_every_route_needs_a_token(running: Any, error_of: Any, path: str) -> None:
    for token in (None, "", "wrong"):
        reply = await running.ask("GET", path, token=token)
        assert error_of(reply) == (403, "Forbidden", "a valid token is needed")


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
async def test_every_route_checks_the_host(running: Any, error_of: Any, path: str) -> None:
    reply = await running.ask("GET", path, headers={"Host": "evil.example"})
    status, _, message = error_of(reply)
    assert (status, "Host header" in message) == (403, True)


@pytest.mark.parametrize("path", [*PATHS, "/nowhere"])
async def test_every_route_checks_the_origin(running: Any, error_of: Any, path: str) -> None:
    cookie = f"kbridge-test={running.services.auth.policy.cookie_value()}"
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{running.port}.evil.example"):
        for proof in ({}, {"Cookie": cookie}):
            reply = await running.ask("GET", path, token=None, headers={"Origin": origin, **proof})
            status, _, message = error_of(reply)
            assert (status, "cross-origin" in message) == (403, True)


async def test_the_token_in_a_header_is_enough_whatever_the_origin_is(
    running: Any, token: str
) -> None:
    """As in Jupyter Server: clients behind a proxy that sends its own name as Host are accepted."""
    headers = {"Origin": "https://hub.example"}
    assert (await running.ask("POST", "/api/kernels", headers=headers)).code == 201
    reply = await running.ask("GET", "/api/kernels", headers=headers)
    assert reply.code == 200
    assert "Access-Control-Allow-Origin" not in reply.headers, "no page may read the reply anyway"
    url = f"ws://127.0.0.1:{running.port}/api/kernels/x/channels"
    proof = {"Authorization": f"token {token}", **headers}
    websocket = await websocket_connect(HTTPRequest(url, headers=proof))
    websocket.close()
    assert (await running.ask("GET", "/api/kernels", token="wrong", headers=headers)).code == 403


async def test_credentials(running: Any, token: str) -> None:
    cookie = f"kbridge-test={running.services.auth.policy.cookie_value()}"
    for headers in (
        {"Authorization": f"token {token}"},
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"BEARER {token}"},
        {"Cookie": cookie},
        {"Authorization": "token ", "Cookie": cookie},
    ):
        reply = await running.ask("GET", "/api/kernels", token=None, headers=headers)
        assert reply.code == 200, headers
    assert (await running.ask("GET", f"/api/kernels?token={token}", token=None)).code == 200
    assert (await running.ask("GET", "/api", token=None)).code == 200


async def test_a_token_in_a_body_is_ignored(running: Any, token: str) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = await running.ask(
        "POST", "/api/kernels", token=None, headers=form, body=f"token={token}"
    )
    assert reply.code == 403


async def test_a_cookie_alone_changes_nothing_from_elsewhere(running: Any) -> None:
    cookie = {"Cookie": f"kbridge-test={running.services.auth.policy.cookie_value()}"}
    own = f"http://127.0.0.1:{running.port}"
    assert (await running.ask("POST", "/api/kernels", token=None, headers=cookie)).code == 403
    reply = await running.ask("POST", "/api/kernels", token=None, headers={**cookie, "Origin": own})
    assert reply.code == 201


async def test_without_a_token_every_client_is_authorized(start: Any) -> None:
    running = await start(policy={"token": ""})
    assert (await running.ask("POST", "/api/kernels", token=None)).code == 201
    assert (await running.ask("GET", "/", token="any")).code == 200


async def test_websockets_have_the_same_access_check(running: Any, token: str) -> None:
    url = f"ws://127.0.0.1:{running.port}/api/kernels/x/channels"
    own = f"http://127.0.0.1:{running.port}"
    good = [
        HTTPRequest(f"{url}?token={token}"),
        HTTPRequest(url, headers={"Authorization": f"token {token}", "Origin": own}),
        HTTPRequest(
            url, headers={"Cookie": f"kbridge-test={running.services.auth.policy.cookie_value()}"}
        ),
    ]
    for request in good:
        websocket = await websocket_connect(request)
        await websocket.write_message("hello")
        assert await websocket.read_message() == "hello"
        websocket.close()
    bad = [
        HTTPRequest(url),
        HTTPRequest(f"{url}?token=wrong"),
        HTTPRequest(f"{url}?token={token}", headers={"Origin": "https://evil.example"}),
        HTTPRequest(f"{url}?token={token}", headers={"Origin": own + "0"}),
        HTTPRequest(
            url,
            headers={
                "Cookie": f"kbridge-test={running.services.auth.policy.cookie_value()}",
                "Origin": "https://evil.example",
            },
        ),
        HTTPRequest(f"{url}?token={token}", headers={"Host": "evil.example"}),
    ]
    for request in bad:
        with pytest.raises(HTTPClientError) as caught:
            await websocket_connect(request)
        assert caught.value.code == 403


async def test_a_server_that_shuts_down_refuses_requests(running: Any, error_of: Any) -> None:
    running.services.closing = True
    status, _, message = error_of(await running.ask("POST", "/api/kernels"))
    assert (status, message) == (503, "the server is shutting down")


async def test_unknown_routes_and_methods_answer_in_json(running: Any, error_of: Any) -> None:
    assert error_of(await running.ask("GET", "/nowhere", token=None))[:2] == (404, "Not Found")
    assert error_of(await running.ask("GET", "/api/kernels/x/y"))[0] == 404
    reply = await running.ask("PUT", "/api/kernels", body=b"")
    assert error_of(reply)[:2] == (405, "Method Not Allowed")
    assert reply.headers["Allow"] == "GET, POST, OPTIONS"


@pytest.mark.parametrize("path", [*PATHS, "/api/kernels/x/channels", "/api/kernels/"])
async def test_options_answers_on_every_route(running: Any, path: str) -> None:
    """`/`, kernelspecs' files and websockets used to answer 405."""
    reply = await running.ask("OPTIONS", path, token=None)
    assert (reply.code, reply.body) == (204, b"")


async def test_an_unexpected_error_shows_no_details_and_logs_no_token(
    running: Any, error_of: Any, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    safe_log.hide(token)
    caplog.set_level(logging.DEBUG)
    caplog.handler.setFormatter(safe_log.SafeFormatter("%(message)s"))
    path = f"/api/kernels?token={token}"
    reply = await running.ask("POST", path, body={"name": "bug", "path": token})
    assert error_of(reply) == (
        500,
        "Internal Server Error",
        "Unhandled error; the server's log says more",
    )
    assert "RuntimeError: an unexpected error" in caplog.text
    assert "POST /api/kernels?token=[secret]" in caplog.text
    assert token not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "token", "line"),
    [
        ("GET", "/nowhere", "right", "404 GET /nowhere (127.0.0.1)"),
        ("GET", "/api/kernels?a=1", None, "403 GET /api/kernels?a=1 (127.0.0.1)"),
        ("GET", "/api/kernels/none", "right", "404 GET /api/kernels/none (127.0.0.1)"),
        ("PUT", "/api/kernels", "right", "405 PUT /api/kernels (127.0.0.1)"),
        ("POST", "/api/kernels", "right", "400 POST /api/kernels (127.0.0.1)"),
    ],
)
async def test_each_refusal_is_logged_once(
    running: Any, caplog: pytest.LogCaptureFixture, method: str, path: str, token: str, line: str
) -> None:
    caplog.set_level(logging.INFO)
    body = b"[" if method == "POST" else b"" if method == "PUT" else None
    given = {} if token else {"token": None}
    await running.ask(method, path, body=body, **given)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(line)
    # The status alone distinguishes unknown methods.
    assert bool(re.search(r"ms: \S", record.getMessage())) is not line.startswith("405")


async def test_the_login_cookie_is_not_logged(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(safe_log.SafeFormatter("%(message)s"))
    policy = AccessPolicy(token="something-else", cookie_secret=b"k")
    safe_log.hide(policy.cookie_value())
    await running.ask("GET", f"/nowhere/{policy.cookie_value()}")
    assert "404 GET /nowhere/[secret]" in caplog.text


async def test_an_error_that_repeats_a_token_is_scrubbed(
    running: Any, error_of: Any, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe_log.hide(token)

    def fail(self: ApiHandler, _: str) -> None:
        from kbridge.errors import InvalidRequest

        raise InvalidRequest(f"no good: {token}")

    from kbridge.server.api.rest import KernelHandler

    monkeypatch.setattr(KernelHandler, "get", fail)
    assert error_of(await running.ask("GET", "/api/kernels/x"))[2] == "no good: [secret]"


async def test_headers_of_every_reply(running: Any) -> None:
    for path in ("/api", "/nowhere", "/"):
        headers = (await running.ask("GET", path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "Tornado" not in headers.get("Server", "")
        assert "Access-Control-Allow-Origin" not in headers


async def test_cors(start: Any) -> None:
    origin = "https://notes.example"
    running = await start(policy={"allow_origin": (origin,)}, cors={"max_age": "60"})
    preflight = await running.ask(
        "OPTIONS",
        "/api/kernels",
        token=None,
        headers={"Origin": origin, "Access-Control-Request-Method": "POST"},
    )
    assert preflight.code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == origin
    assert preflight.headers["Access-Control-Max-Age"] == "60"
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
    for reply in (
        await running.ask("GET", "/api/kernels", headers={"Origin": origin}),
        await running.ask("GET", "/api/kernels", headers={"Origin": origin}, token="wrong"),
    ):
        assert reply.headers["Access-Control-Allow-Origin"] == origin
    assert json.loads(reply.body)["reason"] == "Forbidden"
    foreign = await running.ask(
        "OPTIONS", "/api/kernels", token=None, headers={"Origin": "https://evil.example"}
    )
    assert foreign.code == 403
