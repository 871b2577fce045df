"""The cookie of a login that has begun."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.server.auth.login_state import LoginState, cookie_suffix

KEY = b"the key of this server"
LOGIN = LoginState("a state", "/services/kbridge/console?kernel=k", "a verifier", 1600.0)


def test_the_login_comes_back_within_its_time() -> None:
    cookie = LOGIN.seal(KEY)
    assert LoginState.open(KEY, cookie, "a state", 1599.0) == LOGIN
    assert LoginState.open(KEY, cookie, "a state", 1600.0) is None


@pytest.mark.parametrize(
    ("key", "cookie", "state"),
    [
        (KEY, LOGIN.seal(KEY), "another state"),
        (KEY, LOGIN.seal(KEY), ""),
        (KEY, LOGIN.seal(KEY), "\udcff"),
        (KEY, LOGIN.seal(b"the key of another server"), "a state"),
        (KEY, "", "a state"),
        (KEY, ".", "a state"),
        (KEY, "é.ü", "a state"),
        (b"", LOGIN.seal(KEY), "a state"),
    ],
)
def test_a_login_of_another_browser_or_server_is_refused(
    key: bytes, cookie: str, state: str
) -> None:
    assert LoginState.open(key, cookie, state, 0.0) is None


def test_a_changed_target_is_refused() -> None:
    body, _, signature = LOGIN.seal(KEY).partition(".")
    fields = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    fields[1] = "https://evil.example"
    changed = base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")
    assert LoginState.open(KEY, f"{changed}.{signature}", "a state", 0.0) is None


@given(st.text(max_size=60))
def test_any_cookie_is_refused_without_an_error(cookie: str) -> None:
    assert LoginState.open(KEY, cookie, "a state", 0.0) is None


def test_logins_of_two_tabs_have_separate_cookies() -> None:
    assert cookie_suffix("one") != cookie_suffix("two")
    assert cookie_suffix("one").isalnum()


def test_a_repr_has_no_verifier() -> None:
    assert "verifier" not in repr(LOGIN)
