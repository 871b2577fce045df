import errno
import logging
import os
import socket
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from kbridge.errors import ListenError
from kbridge.server.http import listen
from kbridge.server.http.listen import TlsFiles, bind_tcp, bind_unix, make_context

LOG = logging.getLogger("kbridge.test.listen")


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def test_any_port() -> None:
    sockets, port = bind_tcp("127.0.0.1", 0, 0, LOG)
    close(sockets)
    assert port > 0


@pytest.mark.parametrize("ip", ["", "localhost"])
def test_all_addresses_have_one_port(ip: str) -> None:
    sockets, port = bind_tcp(ip, 0, 0, LOG)
    try:
        assert {sock.getsockname()[1] for sock in sockets} == {port}
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    finally:
        close(sockets)


def test_the_next_free_port() -> None:
    taken, port = bind_tcp("127.0.0.1", 0, 0, LOG)
    try:
        sockets, found = bind_tcp("127.0.0.1", port, 50, LOG)
        close(sockets)
        assert port < found <= port + 50
        with pytest.raises(ListenError, match="in use"):
            bind_tcp("127.0.0.1", port, 0, LOG)
    finally:
        close(taken)


def test_errors_of_listening_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 203\.0\.113\.1"):
        bind_tcp("203.0.113.1", 0, 0, LOG)

    def refuse(*_: object, **__: object) -> list[socket.socket]:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(listen, "bind_all", refuse)
    with pytest.raises(ListenError, match="no permission to listen on port 80"):
        bind_tcp("127.0.0.1", 80, 5, LOG)


def test_a_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        with bind_unix(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.unlink()
        with bind_unix(path, 0o660):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    bind_unix(path).close()
    with bind_unix(path), pytest.raises(ListenError, match="another server"):
        bind_unix(path)
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ListenError, match="is not a socket"):
        bind_unix(file)
    assert file.read_text() == "precious"


def test_paths_that_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="bytes"):
        bind_unix(tmp_path / ("x" * 110))
    with pytest.raises(ListenError, match="cannot listen"):
        bind_unix(tmp_path / "nowhere" / "s")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls(pem: tuple[str, str]) -> None:
    cert, key = pem
    assert make_context(TlsFiles()) is None
    context = make_context(TlsFiles(cert, key))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    only = make_context(TlsFiles(cert, key, version=5))
    assert only is not None
    assert only.maximum_version == ssl.TLSVersion.TLSv1_2
    mutual = make_context(TlsFiles(cert, key, client_ca=cert))
    assert mutual is not None
    assert mutual.verify_mode == ssl.CERT_REQUIRED


def test_tls_faults(pem: tuple[str, str], tmp_path: Path) -> None:
    cert, key = pem
    empty = tmp_path / "empty.pem"
    empty.touch()
    for files, says in (
        (TlsFiles("", key), "needs a certificate"),
        (TlsFiles("nowhere.pem", key), "no file nowhere.pem"),
        (TlsFiles(cert, "lost.pem"), "no file lost.pem"),
        (TlsFiles(str(empty), key), "cannot use"),
        (TlsFiles(cert, key, client_ca=str(empty)), "cannot use"),
        (TlsFiles(cert, key, version=99), "99"),
    ):
        with pytest.raises(ListenError, match=says):
            make_context(files)


def test_a_system_without_unix_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ListenError, match="unix sockets do not exist"):
        bind_unix(tmp_path / "s")
