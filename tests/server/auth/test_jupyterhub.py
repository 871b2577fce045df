"""Questions to JupyterHub: its answers, its errors, and its absence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from kbridge.errors import Forbidden, UsersUnavailable
from kbridge.kernels.users import User
from kbridge.server.auth.jupyterhub import JupyterHub
from kbridge.server.auth.users import Credential
from tests.support.fake_hub import MODELS, FakeHub
from tests.support.require import require


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHub]:
    require("jupyterhub")
    for name in ("JUPYTERHUB_OAUTH_ACCESS_SCOPES", "JUPYTERHUB_HOST", "JUPYTERHUB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    made = FakeHub()
    yield made
    await made.aclose()


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


@pytest.mark.parametrize("status", [500, 503, 404, 520])
async def test_an_error_of_the_hub_is_not_a_refusal(
    hub: JupyterHub, fake: FakeHub, status: int
) -> None:
    fake.status = status
    with pytest.raises(UsersUnavailable, match="cannot be asked who you are") as caught:
        await hub.user_of(Credential("alice's"))
    assert "alice's" not in str(caught.value)


@pytest.mark.parametrize("model", [[], {}, {"name": "alice"}, {"name": "a", "scopes": 7}])
async def test_an_answer_that_is_not_a_user_is_an_error(
    hub: JupyterHub, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    monkeypatch.setitem(MODELS, "odd", model)
    with pytest.raises(UsersUnavailable):
        await hub.user_of(Credential("odd"))


async def test_without_the_hub_the_log_names_its_address(
    hub: JupyterHub, fake: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    await fake.aclose()
    with pytest.raises(UsersUnavailable) as caught:
        await hub.user_of(Credential("alice's"))
    assert str(fake.port) not in str(caught.value), "clients need not know it"
    assert f"127.0.0.1:{fake.port}/hub/api cannot be used" in caplog.text
    assert "the service's" not in caplog.text
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
