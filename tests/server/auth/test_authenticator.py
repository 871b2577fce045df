import re

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.auth.authenticator import (
    Authenticator,
    Cors,
    parse_authorization,
    parse_cluster_secret,
)
from kbridge.server.auth.users import Credential, Users
from tests.support.users import ALICE, Table

ALLOW = "Access-Control-Allow-Origin"


@pytest.mark.parametrize(
    ("allowed", "origin", "found"),
    [
        ((), "https://a.example", None),
        (("*",), None, "*"),
        (("*",), "https://a.example", "*"),
        (("https://a.example",), None, "https://a.example"),
        (("https://a.example",), "https://b.example", "https://a.example"),
        (("https://a.example", "https://b.example"), None, None),
        (("https://a.example", "https://b.example"), "https://b.example", "https://b.example"),
        (("https://a.example", "https://b.example"), "https://c.example", None),
    ],
)
def test_origin(allowed: tuple[str, ...], origin: str | None, found: str | None) -> None:
    headers = Cors().headers(AccessPolicy(allow_origin=allowed), origin, preflight=False)
    assert headers.get(ALLOW) == found
    assert (headers.get("Vary") == "Origin") is (len(allowed) > 1)


def test_pattern() -> None:
    policy = AccessPolicy(allow_origin_pat=re.compile("https://[ab].example"))
    assert Cors().headers(policy, "https://a.example", preflight=False) == {
        ALLOW: "https://a.example",
        "Vary": "Origin",
    }
    assert ALLOW not in Cors().headers(policy, "https://c.example", preflight=False)


def test_preflights_name_what_frontends_need() -> None:
    policy = AccessPolicy(allow_origin=("*",))
    headers = Cors().headers(policy, "https://a.example", preflight=True)
    assert "authorization" in headers["Access-Control-Allow-Headers"]
    assert "PATCH" in headers["Access-Control-Allow-Methods"]
    assert Cors().headers(AccessPolicy(), "https://a.example", preflight=True) == {}


def test_settings_are_sent_as_they_are() -> None:
    cors = Cors("true", "X-Mine", "GET", "X-Seen", "600")
    assert cors.headers(AccessPolicy(), None, preflight=False) == {
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Headers": "X-Mine",
        "Access-Control-Allow-Methods": "GET",
        "Access-Control-Expose-Headers": "X-Seen",
        "Access-Control-Max-Age": "600",
    }


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, b""),
        ("", b""),
        ("token", b""),
        ("token ", b""),
        ("token abc", b"abc"),
        ("Token  abc", b"abc"),
        ("Bearer abc", b"abc"),
        ("BEARER abc", b"abc"),
        ("Basic abc", b""),
        ("abc", b""),
        ("tokenabc", b""),
        ("token s\xe9", b"s\xe9"),
    ],
)
def test_parse_authorization(value: str | None, found: bytes) -> None:
    assert parse_authorization(value) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, b""),
        ("", b""),
        ("kbridge-cluster abc", b"abc"),
        ("kbridge-cluster", b""),
        ("kbridge-cluster ", b""),
        ("kbridge-clusters abc", b""),
        ("token abc", b""),
        ("kbridge-cluster \xe9", b"\xe9"),
    ],
)
def test_parse_cluster_secret(value: str | None, found: bytes) -> None:
    assert parse_cluster_secret(value) == found


def request(path: str, token: str) -> HTTPServerRequest:
    headers = HTTPHeaders({"Host": "localhost", "Authorization": f"token {token}"})
    return HTTPServerRequest(start_line=RequestStartLine("GET", path, "HTTP/1.1"), headers=headers)


async def test_other_tokens_of_a_known_user_are_not_asked_for() -> None:
    """One user could otherwise ask as many questions as they have requests."""
    table = Table()
    auth = Authenticator(AccessPolicy(users=True, cookie_secret=b"s"), users=Users(table))
    for number in range(3):
        asking = request(f"/?token=guess-{number}", "token-alice")
        if (lookup := auth.lookup(asking)) is not None:
            await lookup
        assert auth.decide(asking).user == ALICE
    assert table.asked == ["token-alice", "guess-0"]


async def test_only_users_whom_another_program_knows_have_a_credential() -> None:
    policy = AccessPolicy("operator's", cluster_secret="secret", users=True, cookie_secret=b"s")
    auth = Authenticator(policy, users=Users(Table()))

    async def credential(asking: HTTPServerRequest) -> Credential | None:
        if (lookup := auth.lookup(asking)) is not None:
            await lookup
        return auth.decide(asking).credential

    assert await credential(request("/", "token-alice")) == Credential("token-alice")
    assert await credential(request("/?token=token-alice", "")) == Credential("token-alice")
    login = request("/", "")
    login.headers["Cookie"] = (
        f"kbridge={policy.user_cookie('token-bob')}; jupyterhub-session-id=his"
    )
    assert await credential(login) == Credential("token-bob", "his")
    for path, token in (("/", "guess"), ("/", "operator's"), ("/?token=token-bob", "operator's")):
        assert await credential(request(path, token)) is None
    replica = request("/?token=token-bob", "")
    replica.headers["Authorization"] = "kbridge-cluster secret"
    assert await credential(replica) is None
    assert "alice" not in repr(auth.decide(request("/", "token-alice")).credential)


async def test_the_token_of_the_metrics_is_not_asked_for() -> None:
    table = Table()
    policy = AccessPolicy(users=True, cookie_secret=b"s")
    auth = Authenticator(policy, users=Users(table), metrics_token="scraper")
    assert auth.lookup(request("/metrics", "scraper")) is None
    assert auth.lookup(request("/metrics?token=scraper", "")) is None
    assert "scraper" not in repr(auth)
