"""Questions to JupyterHub: its answers, its errors, and its absence."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from kbridge.errors import Forbidden, UsersUnavailable
from kbridge.kernels.users import User
from kbridge.server.auth.jupyterhub import HubConfig, JupyterHub
from kbridge.server.auth.users import Credential
from tests.support.require import require

ACCESS = "access:services!service=kbridge"
MODELS: dict[str, dict[str, Any]] = {
    "alice's": {"name": "alice", "kind": "user", "scopes": [ACCESS]},
    "everything": {"name": "root", "kind": "user", "scopes": ["access:services", "custom:admins"]},
    "a service's": {"name": "alice", "kind": "service", "scopes": [ACCESS, "custom:admins"]},
    "of no use": {"name": "bob", "kind": "user", "scopes": ["access:services!service=other"]},
}


class FakeHub:
    """The API of JupyterHub, with the answers of this module."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, Any, str]] = []
        self.status = 200
        sock, self.port = bind_unused_port()
        hub = self

        class Handler(RequestHandler):
            def get(self) -> None:
                _, _, token = self.request.headers["Authorization"].partition(" ")
                if hub.status != 200:
                    self.send_error(hub.status)
                elif token in MODELS:
                    self.finish(json.dumps(MODELS[token]))
                else:
                    self.send_error(403)

            def post(self, *_: str) -> None:
                if self.request.path.endswith("/oauth2/token"):
                    valid = self.get_argument("code") == "good"
                    self.set_status(200 if valid else 400)
                    self.finish(
                        {"access_token": "alice's"} if valid else {"error": "invalid_grant"}
                    )
                    return
                body = json.loads(self.request.body)
                hub.reports.append((self.request.path, body, self.request.headers["Authorization"]))
                self.set_status(hub.status)

        routes = [(r"/hub/api/user", Handler), (r"/hub/api/(.+)", Handler)]
        self.server = HTTPServer(Application(routes))
        self.server.add_socket(sock)

    @property
    def config(self) -> HubConfig:
        return HubConfig(
            name="kbridge",
            api_url=f"http://127.0.0.1:{self.port}/hub/api",
            api_token="the service's",
            client_id="service-kbridge",
            callback="/services/kbridge/oauth_callback",
            admin_scope="custom:admins",
        )


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHub]:
    require("jupyterhub")
    for name in ("JUPYTERHUB_OAUTH_ACCESS_SCOPES", "JUPYTERHUB_HOST", "JUPYTERHUB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    made = FakeHub()
    yield made
    made.server.stop()
    await made.server.close_all_connections()


@pytest.fixture
async def hub(fake: FakeHub) -> AsyncIterator[JupyterHub]:
    made = JupyterHub(fake.config)
    yield made
    await made.aclose()
    await made.aclose()


@pytest.mark.parametrize(
    ("token", "user"),
    [
        ("alice's", User("alice")),
        ("everything", User("root", admin=True)),
        ("a service's", User("services/alice", admin=True)),
        ("of no use", None),
        ("nobody's", None),
        ("two\nlines", None),
        ("é", None),
        ("x" * 5000, None),
    ],
)
async def test_the_user_of_a_token(hub: JupyterHub, token: str, user: User | None) -> None:
    assert await hub.user_of(Credential(token)) == user


async def test_no_user_is_an_administrator_without_a_scope_for_it(fake: FakeHub) -> None:
    from dataclasses import replace

    hub = JupyterHub(replace(fake.config, admin_scope=""))
    assert await hub.user_of(Credential("everything")) == User("root")
    await hub.aclose()


@pytest.mark.parametrize("status", [500, 503, 404])
async def test_an_error_of_the_hub_is_not_a_refusal(
    hub: JupyterHub, fake: FakeHub, status: int
) -> None:
    fake.status = status
    with pytest.raises(UsersUnavailable, match="cannot be asked who you are") as caught:
        await hub.user_of(Credential("alice's"))
    assert "alice's" not in str(caught.value)


async def test_without_the_hub_the_error_names_its_address(hub: JupyterHub, fake: FakeHub) -> None:
    fake.server.stop()
    await fake.server.close_all_connections()
    with pytest.raises(UsersUnavailable, match=f"127.0.0.1:{fake.port}/hub/api") as caught:
        await hub.user_of(Credential("alice's"))
    assert "the service's" not in str(caught.value)
    with pytest.raises(UsersUnavailable):
        await hub.report_activity("alice", 0.0)
    with pytest.raises(UsersUnavailable):
        await hub.end_login("good", "verifier")


async def test_a_login(hub: JupyterHub) -> None:
    first, second = hub.begin_login("state one"), hub.begin_login("state two")
    query = parse_qs(urlsplit(first.url).query)
    assert query["state"] == ["state one"]
    assert query["client_id"] == ["service-kbridge"]
    assert query["redirect_uri"] == ["/services/kbridge/oauth_callback"]
    assert query["code_challenge_method"] == ["S256"]
    assert first.verifier not in first.url
    assert first.verifier != second.verifier
    assert await hub.end_login("good", first.verifier) == "alice's"
    with pytest.raises(Forbidden, match="log in again"):
        await hub.end_login("used before", first.verifier)


async def test_activity_is_reported_with_the_token_of_the_service(
    hub: JupyterHub, fake: FakeHub
) -> None:
    assert await hub.report_activity("a b@c", 1_000_000_000.0) == 200
    assert await hub.report_activity("services/alice", 1.0) == 200
    fake.status = 403
    assert await hub.report_activity("bob", 1.0) == 403
    [(path, body, authorization), _] = fake.reports
    assert path == "/hub/api/users/a%20b@c/activity"
    assert body == {"last_activity": "2001-09-09T01:46:40.000000Z"}
    assert authorization == "token the service's"


def test_the_protocol_of_the_browser_is_that_of_the_first_proxy(fake: FakeHub) -> None:
    def request(**headers: str) -> HTTPServerRequest:
        found = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()})
        found["Host"] = "hub.example"
        line = RequestStartLine("GET", "/", "HTTP/1.1")
        return HTTPServerRequest(start_line=line, headers=found)

    hub = JupyterHub(fake.config)
    assert not hub.is_https(request())
    assert hub.is_https(request(X_Forwarded_Proto="https,http"))


def test_a_configuration_shows_no_token(fake: FakeHub) -> None:
    assert "the service's" not in repr(fake.config)
