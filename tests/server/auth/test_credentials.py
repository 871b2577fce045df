"""The token and the cookie secret, kept for the next start on the same address."""

import logging
import os
import stat
from pathlib import Path

import pytest

from kbridge.server.auth import credentials
from kbridge.server.auth.credentials import Credentials, path_of, recall

ADDRESS = "127.0.0.1:8888"
LOG = logging.getLogger("kbridge.test")


def draw(folder: Path, address: str = ADDRESS) -> Credentials:
    return recall(folder, address, LOG)


def test_the_next_start_has_the_same(tmp_path: Path) -> None:
    first = draw(tmp_path)
    assert draw(tmp_path) == first
    assert (len(first.token), len(first.cookie_secret)) == (48, 32)
    path = path_of(tmp_path, ADDRESS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert first.token not in repr(first)


def test_each_address_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {draw(tmp_path, f"127.0.0.1:{port}").token for port in (1, 2, 3)}
    assert len(found) == 3
    monkeypatch.setattr(credentials.platform, "node", lambda: "another")
    assert draw(tmp_path, "127.0.0.1:1").token not in found


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o602])
def test_a_file_that_others_could_read_or_write_is_not_used(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTER_ALLOW_INSECURE_WRITES", raising=False)
    first = draw(tmp_path)
    path = path_of(tmp_path, ADDRESS)
    path.chmod(mode)
    second = draw(tmp_path)
    assert second.token != first.token
    assert second.cookie_secret != first.cookie_secret
    assert "every client must log in again" in caplog.text
    assert first.token not in caplog.text
    assert draw(tmp_path) == second
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "runtime", tmp_path / "elsewhere"
    folder.mkdir()
    planted = draw(folder)
    path = path_of(folder, ADDRESS)
    path.rename(elsewhere)
    before = elsewhere.read_bytes()
    path.symlink_to(elsewhere)
    drawn = draw(folder)
    assert drawn.token != planted.token
    assert elsewhere.read_bytes() == before
    assert not path.is_symlink()
    assert draw(folder) == drawn


def test_a_file_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = draw(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert draw(tmp_path).token != first.token


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 4000,
        b"{}",
        b'{"token": "", "cookie_secret": ""}',
        b'{"token": 1, "cookie_secret": 2}',
        b'{"token": "%s", "cookie_secret": "%s"}' % (b"a" * 48, b"a" * 63),
        b'{"token": "%s", "cookie_secret": "%s"}' % (b"A" * 48, b"a" * 64),
        b'{"token": "%s", "cookie_secret": "%s"}' % (b"a" * 48, "é".encode() * 64),
        b" " * 5000,
    ],
)
def test_a_damaged_file_is_replaced(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path)
    path_of(tmp_path, ADDRESS).write_bytes(content)
    drawn = draw(tmp_path)
    assert "it is damaged" in caplog.text
    assert draw(tmp_path) == drawn


def test_without_stored_credentials_the_server_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path_of(tmp_path, ADDRESS).mkdir()
    first, second = draw(tmp_path), draw(tmp_path)
    assert first.token != second.token
    assert "the next start will create a new token" in caplog.text


def test_the_replicas_of_a_cluster_have_the_same_credentials() -> None:
    one = Credentials.of_cluster("the-secret")
    assert one == Credentials.of_cluster("the-secret")
    other = Credentials.of_cluster("another-secret")
    assert one.token != other.token
    assert one.cookie_secret != other.cookie_secret
    assert (len(one.token), len(one.cookie_secret)) == (48, 32)
    assert one.token not in one.cookie_secret.hex()
