import re

import pytest

from kbridge.server.auth.access_policy import (
    AccessPolicy,
    Asked,
    Via,
    parse_authorization,
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
        # Foreign ones that the settings name.
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


def test_star_lets_every_origin_in() -> None:
    policy = AccessPolicy(allow_origin=("*",))
    assert policy.origin_allowed("https://anything.example", LOCAL, "http")
    assert policy.origin_allowed("null", LOCAL, "http")


def asked(method: str = "GET", host: str = LOCAL, **more: object) -> Asked:
    return Asked(method=method, host=host, **more)  # type: ignore[arg-type]


GOOD = TOKEN.encode()
COOKIE = POLICY.cookie_value()
SAME, FOREIGN = "http://localhost:8888", "https://evil.example"


@pytest.mark.parametrize(
    ("request_", "via"),
    [
        (asked(authorization=GOOD), Via.HEADER),
        (asked(query_token=GOOD), Via.QUERY),
        (asked(cookie=COOKIE), Via.COOKIE),
        (asked("POST", authorization=GOOD), Via.HEADER),
        (asked("POST", query_token=GOOD), Via.QUERY),
        (asked("DELETE", authorization=GOOD, fetch_site="cross-site"), Via.HEADER),
        (asked("POST", cookie=COOKIE, origin=SAME), Via.COOKIE),
        (asked("POST", cookie=COOKIE, fetch_site="same-origin"), Via.COOKIE),
        (asked(authorization=b"wrong", cookie=COOKIE), Via.COOKIE),
        (asked(origin="https://notes.example", authorization=GOOD), Via.HEADER),
        (asked("OPTIONS", origin="https://notes.example"), None),
        (asked("POST", origin=FOREIGN, authorization=GOOD), Via.HEADER),
        (asked("POST", origin="null", fetch_site="same-origin", cookie=COOKIE), Via.COOKIE),
        (asked("POST", cookie=COOKIE, xsrf_header="x", xsrf_cookie="x"), Via.COOKIE),
    ],
)
def test_lets_in(request_: Asked, via: Via | None) -> None:
    decision = POLICY.decide(request_)
    assert decision.allowed, decision.reason
    assert decision.via is via


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (asked(), "token"),
        (asked(authorization=b"wrong"), "token"),
        (asked(authorization=GOOD[:-1]), "token"),
        (asked(authorization=GOOD + b"x"), "token"),
        (asked(query_token=b"wrong"), "token"),
        (asked(cookie=TOKEN), "token"),
        (asked(cookie="é\udcff"), "token"),
        (asked(host="evil.example", authorization=GOOD), "Host"),
        (asked(origin=FOREIGN, query_token=GOOD), "cross-origin"),
        (asked(origin=FOREIGN, cookie=COOKIE), "cross-origin"),
        (asked(origin=FOREIGN, cookie=COOKIE, fetch_site="same-origin"), "cross-origin"),
        (asked(origin="null", cookie=COOKIE, fetch_site="cross-site"), "cross-origin"),
        (asked("POST", cookie=COOKIE, xsrf_header="x"), "page"),
        (asked("POST", cookie=COOKIE, xsrf_cookie="x"), "page"),
        (asked("POST", cookie=COOKIE, xsrf_header="x", xsrf_cookie="y"), "page"),
        (asked("POST", cookie=COOKIE, xsrf_header="\xe9", xsrf_cookie="y"), "page"),
        (asked("POST", xsrf_header="x", xsrf_cookie="x"), "token"),
        (asked("OPTIONS", origin=FOREIGN), "cross-origin"),
        (asked("OPTIONS", host="evil.example"), "Host"),
        (asked("POST", cookie=COOKIE), "page"),
        (asked("DELETE", cookie=COOKIE, fetch_site="same-site"), "page"),
        (asked("POST", cookie=COOKIE, origin="null"), "cross-origin"),
    ],
)
def test_keeps_out(request_: Asked, reason: str) -> None:
    decision = POLICY.decide(request_)
    assert not decision.allowed
    assert reason in decision.reason
    assert TOKEN not in decision.reason


def test_public_resources_still_ask_for_host_and_origin() -> None:
    assert POLICY.decide(asked(), public=True).allowed
    assert not POLICY.decide(asked(host="evil.example"), public=True).allowed
    assert not POLICY.decide(asked(origin=FOREIGN), public=True).allowed


def test_without_a_token_programs_come_in_and_forged_requests_do_not() -> None:
    policy = AccessPolicy()
    assert not policy.auth_enabled
    assert policy.decide(asked("POST")).via is Via.OFF
    assert policy.decide(asked("POST", origin=SAME)).allowed
    assert not policy.decide(asked("POST", origin=FOREIGN)).allowed
    assert not policy.decide(asked("POST", fetch_site="cross-site")).allowed


def test_the_cookie_is_not_the_token_and_changes_with_token_and_secret() -> None:
    values = {
        AccessPolicy(token=token, cookie_secret=secret).cookie_value()
        for token in ("a", "b")
        for secret in (b"1", b"2")
    }
    assert len(values) == 4
    assert TOKEN not in COOKIE


def test_reprs_hold_no_secret() -> None:
    assert TOKEN not in repr(POLICY)
    assert "a secret" not in repr(POLICY)
