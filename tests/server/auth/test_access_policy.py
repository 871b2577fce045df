import re

import pytest

from kbridge.kernels.users import OPERATOR, User
from kbridge.server.auth.access_policy import (
    AccessPolicy,
    AuthMethod,
    RequestInfo,
    parse_host,
)

TOKEN = "sécret-token"
POLICY = AccessPolicy(
    token=TOKEN,
    hostnames=frozenset({"localhost", "lab.example"}),
    allow_origin=("https://notes.example", "http://other.example:81"),
    allow_origin_pat=re.compile(r"https://[a-z]+\.cloud\.example"),
    cookie_secret=b"a secret",
)
LOCAL = "localhost:8888"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("localhost", ("localhost", None)),
        ("LocalHost:8888", ("localhost", 8888)),
        ("[::1]:8888", ("::1", 8888)),
        ("[::1]", ("::1", None)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("::1", None),
        ("", None),
        ("a b", None),
        ("user@localhost", None),
        ("localhost:", None),
        ("localhost:port", None),
        ("localhost/..", None),
        ("localhost\n", None),
    ],
)
def test_parse_host(value: str, found: tuple[str, int | None] | None) -> None:
    assert parse_host(value) == found


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8888", True),
        ("127.0.0.1:8888", True),
        ("127.8.9.1", True),
        ("[::1]:8888", True),
        ("lab.example:8888", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil.localhost", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1", False),
        ("lab.example.", False),
        ("0x7f000001", False),
        ("", False),
    ],
)
def test_hosts(host: str, allowed: bool) -> None:
    assert POLICY.host_allowed(host) is allowed
    assert AccessPolicy(check_hosts=False).host_allowed(host) is (host != "")


@pytest.mark.parametrize(
    ("origin", "host", "protocol", "allowed"),
    [
        (None, LOCAL, "http", True),
        ("http://localhost:8888", LOCAL, "http", True),
        ("HTTP://LOCALHOST:8888", LOCAL, "http", True),
        ("http://localhost", "localhost:80", "http", True),
        ("http://localhost:80", "localhost", "http", True),
        ("https://localhost", "localhost", "http", True),  # behind a proxy that ends TLS
        ("https://localhost", "localhost:443", "https", True),
        ("http://localhost", "localhost", "https", False),
        ("http://localhost:8888", LOCAL, "https", False),
        ("http://localhost:8889", LOCAL, "http", False),
        ("http://localhost", LOCAL, "http", False),
        ("http://localhost:88880", LOCAL, "http", False),
        ("http://127.0.0.1:8888", LOCAL, "http", False),
        ("http://localhost:8888.evil.example", LOCAL, "http", False),
        ("http://localhost:8888@evil.example", LOCAL, "http", False),
        ("http://evil.example/http://localhost:8888", LOCAL, "http", False),
        ("http://evil.example", LOCAL, "http", False),
        ("ftp://localhost:8888", LOCAL, "http", False),
        ("null", LOCAL, "http", False),
        ("", LOCAL, "http", False),
        # Foreign origins that the settings name.
        ("https://notes.example", LOCAL, "http", True),
        ("https://NOTES.example", LOCAL, "http", True),
        ("http://notes.example", LOCAL, "http", False),
        ("https://notes.example:444", LOCAL, "http", False),
        ("https://notes.example.evil.example", LOCAL, "http", False),
        ("https://evil-notes.example", LOCAL, "http", False),
        ("http://other.example:81", LOCAL, "http", True),
        ("http://other.example", LOCAL, "http", False),
        ("https://abc.cloud.example", LOCAL, "http", True),
        ("https://abc.cloud.example.evil.example", LOCAL, "http", False),
        ("https://abcXcloud.example", LOCAL, "http", False),
    ],
)
def test_origins(origin: str | None, host: str, protocol: str, allowed: bool) -> None:
    assert POLICY.origin_allowed(origin, host, protocol) is allowed


def test_a_star_allows_every_origin() -> None:
    policy = AccessPolicy(allow_origin=("*",))
    assert policy.origin_allowed("https://anything.example", LOCAL, "http")
    assert policy.origin_allowed("null", LOCAL, "http")


def info(method: str = "GET", host: str = LOCAL, **more: object) -> RequestInfo:
    return RequestInfo(method=method, host=host, **more)  # type: ignore[arg-type]


GOOD = TOKEN.encode()
COOKIE = POLICY.cookie_value()
SAME, FOREIGN = "http://localhost:8888", "https://evil.example"


@pytest.mark.parametrize(
    ("request_", "auth_method"),
    [
        (info(authorization=GOOD), AuthMethod.HEADER),
        (info(query_token=GOOD), AuthMethod.QUERY),
        (info(cookie=COOKIE), AuthMethod.COOKIE),
        (info("POST", authorization=GOOD), AuthMethod.HEADER),
        (info("POST", query_token=GOOD), AuthMethod.QUERY),
        (info("DELETE", authorization=GOOD, fetch_site="cross-site"), AuthMethod.HEADER),
        (info("POST", cookie=COOKIE, origin=SAME), AuthMethod.COOKIE),
        (info("POST", cookie=COOKIE, fetch_site="same-origin"), AuthMethod.COOKIE),
        (info(authorization=b"wrong", cookie=COOKIE), AuthMethod.COOKIE),
        (info(origin="https://notes.example", authorization=GOOD), AuthMethod.HEADER),
        (info("OPTIONS", origin="https://notes.example"), None),
        (info("POST", origin=FOREIGN, authorization=GOOD), AuthMethod.HEADER),
        (info("POST", origin="null", fetch_site="same-origin", cookie=COOKIE), AuthMethod.COOKIE),
        (info("POST", cookie=COOKIE, xsrf_header="x", xsrf_cookie="x"), AuthMethod.COOKIE),
    ],
)
def test_valid_requests_are_allowed(request_: RequestInfo, auth_method: AuthMethod | None) -> None:
    decision = POLICY.decide(request_)
    assert decision.allowed, decision.reason
    assert decision.auth_method is auth_method


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (info(), "token"),
        (info(authorization=b"wrong"), "token"),
        (info(authorization=GOOD[:-1]), "token"),
        (info(authorization=GOOD + b"x"), "token"),
        (info(query_token=b"wrong"), "token"),
        (info(cookie=TOKEN), "token"),
        (info(cookie="é\udcff"), "token"),
        (info(host="evil.example", authorization=GOOD), "Host"),
        (info(origin=FOREIGN, query_token=GOOD), "cross-origin"),
        (info(origin=FOREIGN, cookie=COOKIE), "cross-origin"),
        (info(origin=FOREIGN, cookie=COOKIE, fetch_site="same-origin"), "cross-origin"),
        (info(origin="null", cookie=COOKIE, fetch_site="cross-site"), "cross-origin"),
        (info("POST", cookie=COOKIE, xsrf_header="x"), "page"),
        (info("POST", cookie=COOKIE, xsrf_cookie="x"), "page"),
        (info("POST", cookie=COOKIE, xsrf_header="x", xsrf_cookie="y"), "page"),
        (info("POST", cookie=COOKIE, xsrf_header="\xe9", xsrf_cookie="y"), "page"),
        (info("POST", xsrf_header="x", xsrf_cookie="x"), "token"),
        (info("OPTIONS", origin=FOREIGN), "cross-origin"),
        (info("OPTIONS", host="evil.example"), "Host"),
        (info("POST", cookie=COOKIE), "page"),
        (info("DELETE", cookie=COOKIE, fetch_site="same-site"), "page"),
        (info("POST", cookie=COOKIE, origin="null"), "cross-origin"),
    ],
)
def test_invalid_requests_are_refused(request_: RequestInfo, reason: str) -> None:
    decision = POLICY.decide(request_)
    assert not decision.allowed
    assert reason in decision.reason
    assert TOKEN not in decision.reason


def test_public_resources_still_ask_for_host_and_origin() -> None:
    assert POLICY.decide(info(), public=True).allowed
    assert not POLICY.decide(info(host="evil.example"), public=True).allowed
    assert not POLICY.decide(info(origin=FOREIGN), public=True).allowed


def test_without_a_token_forged_requests_are_refused() -> None:
    policy = AccessPolicy()
    assert not policy.auth_enabled
    assert policy.decide(info("POST")).auth_method is AuthMethod.OFF
    assert policy.decide(info("POST", origin=SAME)).allowed
    assert not policy.decide(info("POST", origin=FOREIGN)).allowed
    assert not policy.decide(info("POST", fetch_site="cross-site")).allowed


def test_the_cookie_is_not_the_token_and_changes_with_token_and_secret() -> None:
    values = {
        AccessPolicy(token=token, cookie_secret=secret).cookie_value()
        for token in ("a", "b")
        for secret in (b"1", b"2")
    }
    assert len(values) == 4
    assert TOKEN not in COOKIE


def test_with_users_an_empty_token_opens_nothing() -> None:
    policy = AccessPolicy(users=True, cookie_secret=b"s")
    empty = AccessPolicy(cookie_secret=b"s").cookie_value()
    for request in (info(), info(cookie=empty), info(authorization=b"guess")):
        assert policy.decide(request).reason == "a valid token is needed"
    assert policy.auth_enabled


def test_a_user_is_known_and_forged_requests_of_a_user_are_refused() -> None:
    user = User("alice")
    policy = AccessPolicy(token=TOKEN, users=True)
    by_cookie = (AuthMethod.COOKIE, user)
    assert policy.decide(info(), found=by_cookie).user == user
    assert policy.decide(info(authorization=GOOD), found=by_cookie).user == OPERATOR
    assert "page" in policy.decide(info("POST"), found=by_cookie).reason
    assert "cross-origin" in policy.decide(info(origin=FOREIGN), found=by_cookie).reason
    assert policy.decide(info("POST"), found=(AuthMethod.HEADER, user)).allowed
    assert policy.decide(info(), public=True).user is None


def test_the_cookie_of_a_user_has_the_token_and_only_this_server_makes_it() -> None:
    policy = AccessPolicy(users=True, cookie_secret=b"s")
    cookie = policy.user_cookie("their token é")
    assert policy.user_token(cookie) == "their token é"
    other = AccessPolicy(users=True, cookie_secret=b"another").user_cookie("their token é")
    for wrong in (other, cookie[:-1], cookie.replace("user.", ""), "user.", "user.x.y", "", "é"):
        assert policy.user_token(wrong) == ""


def test_reprs_hold_no_secret() -> None:
    assert TOKEN not in repr(POLICY)
    assert "a secret" not in repr(POLICY)


CLUSTER = AccessPolicy(token=TOKEN, cluster_secret="the-secret")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_another_replica_needs_no_token_and_may_use_any_name(method: str) -> None:
    asked = info(method, "10.0.0.7:8888", cluster_secret=b"the-secret", origin=FOREIGN)
    assert CLUSTER.decide(asked).auth_method is AuthMethod.CLUSTER


@pytest.mark.parametrize("wrong", [b"the-secre", b"the-secret ", b"\xe9", TOKEN.encode()])
def test_a_wrong_secret_is_refused_even_with_the_token(wrong: bytes) -> None:
    decision = CLUSTER.decide(info(cluster_secret=wrong, authorization=GOOD, query_token=GOOD))
    assert not decision.allowed
    assert "registry_url" in decision.reason
    assert decision.auth_method is None


def test_without_a_cluster_no_secret_opens_anything() -> None:
    assert not POLICY.decide(info(cluster_secret=b"the-secret")).allowed
    assert not POLICY.decide(info(cluster_secret=b"")).allowed
    assert "the-secret" not in repr(CLUSTER)
