"""Find the server of a client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kbridge.client.address import Address, find_server
from kbridge.errors import InvalidRequest, NoServer
from kbridge.server.runtime_file import RuntimeFile

INFO: dict[str, Any] = {"url": "http://127.0.0.1:9999/base/", "token": "secret", "secure": False}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8888", Address("http://127.0.0.1:8888/")),
        ("http://[::1]:8888/base", Address("http://[::1]:8888/base/")),
        ("http://host/?token=abc", Address("http://host/", "abc")),
        ("http://me:pw@host:1/", Address("http://host:1/")),
        (
            "http+unix://%2Frun%2Fa.sock/base/",
            Address("http://localhost/base/", sock="/run/a.sock"),
        ),
    ],
)
def test_urls(url: str, expected: Address) -> None:
    assert Address.parse(url) == expected


def test_https_is_verified() -> None:
    address = Address.parse("https://host/")
    assert address.tls is not None
    assert address.tls.check_hostname
    assert address.websocket("a?b=c") == "wss://host/a?b=c"


def test_the_token_is_a_header_and_not_part_of_the_url() -> None:
    address = Address.parse("http://host/?token=abc")
    assert address.headers == {"Authorization": "token abc"}
    assert address.websocket("a") == "ws://host/a"
    assert Address.parse("http://host/").headers == {}


@pytest.mark.parametrize("url", ["host:8888", "ftp://host", "http://", "http://host:port/"])
def test_other_texts_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="URL"):
        Address.parse(url)


def test_arguments_win_over_the_environment() -> None:
    environment = {"KBRIDGE_URL": "http://a/", "KBRIDGE_TOKEN": "t", "JUPYTER_TOKEN": "j"}
    assert find_server(environment=environment) == Address("http://a/", "t")
    assert find_server("http://b/", "u", environment=environment) == Address("http://b/", "u")


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("http://b/", {"KBRIDGE_URL": "http://a/", "KBRIDGE_TOKEN": "t", "JUPYTER_TOKEN": "j"}, ""),
        ("http://a", {"KBRIDGE_URL": "http://a/", "KBRIDGE_TOKEN": "t"}, "t"),
        ("", {"KBRIDGE_URL": "http://a/?token=q"}, "q"),
        ("", {"KBRIDGE_URL": "http://a/", "JUPYTER_TOKEN": "j"}, ""),
        ("http://b/", {"KBRIDGE_TOKEN": "t", "JUPYTER_TOKEN": "j"}, ""),
        ("http://127.0.0.1:1/", {"KBRIDGE_TOKEN": "t", "JUPYTER_TOKEN": "j"}, "t"),
        ("http://127.0.0.1.evil.example/", {"KBRIDGE_TOKEN": "t", "JUPYTER_TOKEN": "j"}, ""),
        ("http://[::1]:1/", {"JUPYTER_TOKEN": "j"}, "j"),
        ("http+unix://%2Frun%2Fa.sock/", {"JUPYTER_TOKEN": "j"}, "j"),
        ("http://127.0.0.1:1/", {"KBRIDGE_URL": "http://a/", "KBRIDGE_TOKEN": "t"}, ""),
    ],
)
def test_a_token_of_the_environment_goes_to_its_server_only(
    url: str, environment: dict[str, str], expected: str
) -> None:
    assert find_server(url, environment=environment).token == expected


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8888/?token=SECRET",
        "ws://127.0.0.1:8888/?token=SECRET",
        "http://me:SECRET@host:bad/",
        "http://me:SEC/RET@host:bad/",
        "me:SECRET@host",
    ],
)
def test_no_text_contains_a_token(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Address.parse(url)
    assert "SEC" not in str(refused.value)
    assert "host" in str(refused.value) or "127.0.0.1" in str(refused.value)
    assert "SECRET" not in repr(Address("http://host/", "SECRET"))


def test_a_server_that_runs_is_found(folder: Path) -> None:
    file = RuntimeFile(folder, INFO)
    file.write()
    try:
        expected = Address("http://127.0.0.1:9999/base/", "secret")
        assert find_server(environment={}) == expected
        assert find_server("http://localhost:9999/base", environment={}) == expected
        assert find_server("http://localhost:9998/base", environment={}).token == ""
        others = {"KBRIDGE_TOKEN": "t", "JUPYTER_TOKEN": "j"}
        assert find_server(INFO["url"], environment=others).token == "secret"
        named = {**others, "KBRIDGE_URL": INFO["url"]}
        assert find_server(environment=named).token == "t"
    finally:
        file.remove()
    with pytest.raises(NoServer, match="KBRIDGE_URL"):
        find_server(environment={})


def test_a_file_without_a_server_gives_no_token_away(folder: Path) -> None:
    (folder / "kbserver-1.json").write_text(json.dumps(INFO))
    (folder / "kbserver-2.json").write_text("{")
    with pytest.raises(NoServer):
        find_server(environment={})
    assert find_server(INFO["url"], environment={}).token == ""


def test_one_of_several_servers_has_to_be_named(folder: Path) -> None:
    first, second = RuntimeFile(folder, INFO), RuntimeFile(folder, {**INFO, "url": "http://b/"})
    second.path = second.path.with_name("kbserver-other.json")
    first.write()
    second.write()
    try:
        with pytest.raises(NoServer, match=r"9999.*http://b/"):
            find_server(environment={})
        assert find_server("http://b/", environment={}).token == "secret"
    finally:
        first.remove()
        second.remove()
