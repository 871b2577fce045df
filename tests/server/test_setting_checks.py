"""Settings that could never match are corrected, or refused at the start by name."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from traitlets import TraitError

from kbridge.server.api.routes import normal_path
from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.setting_checks import (
    check_base_url,
    check_cluster,
    check_header,
    check_host,
    check_ip,
    check_origins,
    check_token,
    check_url,
    database_hosts,
    is_loopback,
)


@pytest.mark.parametrize(
    ("check", "given", "found"),
    [
        (check_token, "", ""),
        (check_token, "abc", "abc"),
        (check_token, "abc\n", "abc"),
        (check_token, " abc\r\n", "abc"),
        (check_token, "a b", "a b"),
        (check_token, "sécret", "sécret"),
        (check_base_url, "", "/"),
        (check_base_url, " /lab\n", "/lab/"),
        (check_base_url, "a b", "/a%20b/"),
        (check_base_url, "/a%20b/", "/a%20b/"),
        (check_base_url, "/user/é", "/user/%C3%A9/"),
        (check_base_url, "/user/%c3%a9/", "/user/%C3%A9/"),
        (check_base_url, "/a+(b)/", "/a+(b)/"),
        (check_base_url, "/[x]*$.^/", "/%5Bx%5D*$.%5E/"),
        (check_base_url, "/100%/", "/100%25/"),
        (check_ip, "", ""),
        (check_ip, "*", ""),
        (check_ip, " 127.0.0.1\n", "127.0.0.1"),
        (check_ip, "[::1]", "::1"),
        (check_ip, "::", "::"),
        (check_ip, "lab.example", "lab.example"),
        (check_host, "LAB.example ", "lab.example"),
        (check_host, "[::1]", "::1"),
        (check_host, "bücher.example", "xn--bcher-kva.example"),
        (check_origins, "", ()),
        (check_origins, "*", ("*",)),
        (check_origins, "null", ("null",)),
        (check_origins, "https://A.example/\n", ("https://a.example",)),
        (check_origins, "https://a:443,http://b:80 http://c:81", ("https://a", "http://b", "http://c:81")),
        (check_origins, "https://bücher.example", ("https://xn--bcher-kva.example",)),
        (check_origins, "vscode-webview://abc", ("vscode-webview://abc",)),
        (check_origins, "http://[::1]:8888", ("http://[::1]:8888",)),
        (check_header, " GET, POST\n", "GET, POST"),
        (check_cluster, "", ""),
        (check_cluster, " lab-1.example_A\n", "lab-1.example_A"),
        (check_url, "", ""),
        (check_url, "HTTPS://a.example:8888/\n", "https://a.example:8888"),
        (check_url, "http://[::1]:8888", "http://[::1]:8888"),
        (is_loopback, "127.0.0.2", True),
        (is_loopback, "::1", True),
        (is_loopback, "Localhost", True),
        (is_loopback, "10.0.0.1", False),
        (is_loopback, "db.example", False),
        (database_hosts, "postgresql+psycopg://k:p%40x@db.example:5432/kb", ["db.example"]),
        (database_hosts, "postgresql://u@/kb?host=db1:5432,db2", ["db1", "db2"]),
        (database_hosts, "postgresql://u@/kb?host=/run/postgresql", []),
        (database_hosts, "postgresql:///kb", []),
        (database_hosts, "postgresql://[::1/kb", []),
        (database_hosts, "sqlite:////var/lib/kbridge.sqlite", []),
        (database_hosts, "/var/lib/kbridge.sqlite", []),
    ],
)  # fmt: skip
def test_valid_values_are_normalized(
    check: Callable[[str], object], given: str, found: object
) -> None:
    assert check(given) == found


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("token", " \n", "white space"),
        ("token", "se\ncret", "control characters"),
        ("token", "se\x00cret", "control characters"),
        ("token", "sęcret", "Latin-1"),
        ("token", "😀cret", "Latin-1"),
        ("base_url", "/a?b", "'\\?'"),
        ("base_url", "/a#b", "'#'"),
        ("base_url", "/a;b", "';'"),
        ("base_url", "/a%3Fb", "'\\?'"),
        ("base_url", "/a\nb", "cannot contain"),
        ("base_url", "/a//b", "empty"),
        ("base_url", "/a/../b", "empty"),
        ("base_url", "http://host/a", "whole URL"),
        ("ip", "127.0.0.1:8888", "port is another setting"),
        ("ip", "http://127.0.0.1", "port is another setting"),
        ("ip", "a b", "port is another setting"),
        ("allow_origin", "a.example", "not an origin"),
        ("allow_origin", "https://a.example/lab", "not an origin"),
        ("allow_origin", "https://*.example", "allow_origin_pat"),
        ("allow_origin_pat", "(", "regular expression"),
        ("allow_origin_pat", "*.example", "regular expression"),
        ("local_hostnames", ["a.example:80"], "no scheme, port"),
        ("local_hostnames", ["https://a.example"], "no scheme, port"),
        ("local_hostnames", ["*.example"], "allow_remote_access"),
        ("local_hostnames", [""], "not a host name"),
        ("allow_headers", "a\r\nSet-Cookie: x=y", "control characters"),
        ("cluster", "a/b", "letters, digits"),
        ("cluster", "a" * 101, "letters, digits"),
        ("advertise_url", "a.example:8888", "http://host:port"),
        ("advertise_url", "ftp://a.example", "http://host:port"),
        ("advertise_url", "http://a.example/lab", "http://host:port"),
        ("advertise_url", "http://me:pw@a.example", "user or a password"),
        ("max_age", "a\x00", "control characters"),
    ],
)
def test_invalid_values_are_refused_with_their_name(name: str, value: Any, told: str) -> None:
    with pytest.raises(TraitError, match=told) as caught:
        KbridgeApp(**{name: value})
    assert name in str(caught.value)
    if name == "token":
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize("newline", ["\n", "\r\n", " \n"])
def test_a_newline_after_a_token_is_removed(
    newline: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes' secrets often end in one; no login worked then."""
    monkeypatch.delenv("JUPYTER_TOKEN_FILE", raising=False)
    monkeypatch.setenv("JUPYTER_TOKEN", f"of-the-environment{newline}")
    assert KbridgeApp().token == "of-the-environment"
    monkeypatch.delenv("JUPYTER_TOKEN")
    (tmp_path / "token").write_text(f"of-a-file{newline}")
    monkeypatch.setenv("JUPYTER_TOKEN_FILE", str(tmp_path / "token"))
    assert KbridgeApp().token == "of-a-file"
    assert KbridgeApp(token=f"of-an-option{newline}").token == "of-an-option"


def test_no_source_turns_authentication_off_by_accident(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTER_TOKEN_FILE", raising=False)
    monkeypatch.setenv("JUPYTER_TOKEN", " \n")
    with pytest.raises(TraitError, match="JUPYTER_TOKEN"):
        _ = KbridgeApp().token
    monkeypatch.delenv("JUPYTER_TOKEN")
    (tmp_path / "token").write_text("\n")
    monkeypatch.setenv("JUPYTER_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(TraitError, match="JUPYTER_TOKEN_FILE names an empty file"):
        _ = KbridgeApp().token
    (tmp_path / "token").write_text("se\x01cret")
    with pytest.raises(TraitError, match="JUPYTER_TOKEN_FILE: it contains control"):
        _ = KbridgeApp().token


def test_a_token_beyond_ascii_is_accepted_in_both_encodings() -> None:
    policy = AccessPolicy(token="sécret?")
    for offered in ("sécret?".encode(), "sécret?".encode("latin-1"), "sécret?\n".encode()):
        assert policy.is_token(offered)
    assert not policy.is_token(b"s?cret?")
    assert not AccessPolicy(token="s\u0119cret").is_token(b"s?cret")
    assert not AccessPolicy(token="").is_token(b"")
    assert not AccessPolicy(token="").is_token(b" ")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/a%20b/api", "/a%20b/api"),
        ("/%61%20b/api", "/a%20b/api"),
        ("/a%20b", "/a%20b"),
        ("/%61%20b", "/a%20b"),
        ("/a%20b/", "/a%20b/"),
        ("/%61%20b/%61pi", "/a%20b/%61pi"),
        ("/a+b/api", "/a+b/api"),
        ("/a%2520b/api", "/a%2520b/api"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_paths_below_base_url(path: str, found: str) -> None:
    assert normal_path(path, "/a%20b/") == found
    assert normal_path(path, "/") == path


@pytest.mark.parametrize("given", ["/a b/", "/a+(b)/", "/[x]/", "/é/", "/a.c/"])
async def test_every_accepted_base_url_works(start: Any, token: str, given: str) -> None:
    running = await start(base_url=check_base_url(given))
    inner = given.strip("/")
    for spelled in {quote(inner, safe=""), quote(inner, safe="+()[]*"), quote(inner)}:
        url = f"http://127.0.0.1:{running.port}/{spelled}"
        for path in ("/api", f"/api/kernels?token={token}", "/login"):
            assert (await running.client.fetch(url + path)).code == 200, url
        reply = await running.client.fetch(url, follow_redirects=False, raise_error=False)
        assert (reply.code, reply.headers["Location"]) == (302, running.services.base_url)
    other = await running.client.fetch(
        f"http://127.0.0.1:{running.port}/axc/api", raise_error=False
    )
    assert other.code == 404, "a dot is not a wildcard"
