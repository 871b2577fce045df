"""Write and read connection files."""

import inspect
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client import connect as peer

from kbridge import private
from kbridge.connect import LocalPortCache, files, ports
from kbridge.connect.files import (
    port_names,
    read_connection_file,
    write_connection_file,
)
from kbridge.errors import InvalidConnectionInfo, NotPrivate
from tests.support.waiting import TIMEOUT

GIVEN: dict[str, Any] = {
    "shell_port": 1001,
    "iopub_port": 1002,
    "stdin_port": 1003,
    "hb_port": 1004,
    "control_port": 1005,
    "ip": "10.1.2.3",
    "key": b"a key",
}
SECRET = b"\xffthe-key"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "kernel-1.json"


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name, for the paths of unix sockets."""
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def has_ipv6() -> bool:
    try:
        ports.pick_ports("::1", 1)
    except OSError:
        return False
    return True


PEER_ENCRYPTS = "curve_publickey" in inspect.signature(peer.write_connection_file).parameters
ADDRESSES = ["", "127.0.0.1", "0.0.0.0", "localhost", *(["::1", "::"] if has_ipv6() else [])]


# -- what is written ----------------------------------------------------------------------------


@pytest.mark.skipif(not PEER_ENCRYPTS, reason="jupyter_client before 8.10 has no CurveZMQ")
def test_the_signature_is_that_of_jupyter_client() -> None:
    def parameters(function: Any) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    assert parameters(write_connection_file) == parameters(peer.write_connection_file)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"transport": "ipc", "ip": "somewhere"},
        {"kernel_name": "python3", "signature_scheme": "hmac-md5", "jupyter_session": "a.ipynb"},
        *([{"curve_publickey": b"A" * 40, "curve_secretkey": b"B" * 40}] * PEER_ENCRYPTS),
        {"hb_port": 7, "extra": {"nested": [1, None]}},
        {"key": "schlüssel".encode()},
    ],
    ids=lambda more: "+".join(more) or "plain",
)
def test_the_content_is_that_of_jupyter_client(tmp_path: Path, more: dict[str, Any]) -> None:
    ours, theirs = str(tmp_path / "ours.json"), str(tmp_path / "theirs.json")
    name, info = write_connection_file(ours, **(GIVEN | more))
    assert name == ours
    assert info == peer.write_connection_file(theirs, **(GIVEN | more))[1]
    assert list(json.loads(Path(ours).read_text())) == list(json.loads(Path(theirs).read_text()))
    assert json.loads(Path(ours).read_text()) == json.loads(Path(theirs).read_text()) == info


@pytest.mark.parametrize("ip", ADDRESSES)
def test_ports_that_are_not_given_are_chosen_and_differ(target: Path, ip: str) -> None:
    _, info = write_connection_file(str(target), ip=ip, hb_port=-1)
    chosen = {info[name] for name in port_names}
    assert len(chosen) == 5
    assert all(1024 <= port < 65536 for port in chosen)
    assert info["ip"] == (ip or peer.localhost())


def test_given_ports_are_kept_and_not_chosen_again(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict.fromkeys(port_names[:4], 0)
    asked: list[set[int]] = []

    def pick(ip: str, count: int, avoid: set[int]) -> list[int]:
        asked.append(set(avoid))
        return ports.pick_ports(ip, count, avoid)

    monkeypatch.setattr(files, "pick_ports", pick)
    _, info = write_connection_file(str(target), **given, control_port=50123)
    assert info["control_port"] == 50123
    assert asked == [{50123}]
    assert len({info[name] for name in port_names}) == 5


def test_ports_that_were_promised_to_a_kernel_are_not_chosen(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[int]] = []

    def pick(ip: str, count: int, avoid: set[int]) -> list[int]:
        asked.append(set(avoid))
        return ports.pick_ports(ip, count, avoid)

    monkeypatch.setattr(files, "pick_ports", pick)
    try:
        promised = LocalPortCache.instance().find_available_port("127.0.0.1")
        write_connection_file(str(target))
    finally:
        LocalPortCache.clear_instance()
    assert asked == [{promised}]


def test_a_file_without_a_name_is_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name, info = write_connection_file()
    assert Path(name).parent == tmp_path
    assert json.loads(Path(name).read_text()) == info
    assert mode(Path(name)) == 0o600


def test_ipc_numbers_are_the_smallest_that_are_free(short: Path) -> None:
    (short / "k-ipc-1").write_text("taken")
    ip = str(short / "k-ipc")
    _, info = write_connection_file(str(short / "k"), transport="ipc", ip=ip, hb_port=3)
    assert info["hb_port"] == 3
    assert sorted(info[name] for name in port_names) == [2, 3, 4, 5, 6]


def test_ipc_without_an_address_is_beside_the_file(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short)
    _, info = write_connection_file("kernel-7.json", transport="ipc")
    assert info["ip"] == str(short / "kernel-7-ipc")


# -- whole or not at all ------------------------------------------------------------------------


def test_a_reader_never_sees_half_a_file(target: Path) -> None:
    write_connection_file(str(target), **GIVEN, number=0, padding="x" * 20000)
    done = threading.Event()
    seen: list[int] = []
    wrong: list[str] = []

    def read() -> None:
        while not done.is_set():
            text = target.read_text()
            try:
                found = json.loads(text)
                assert len(found["padding"]) == 20000
                assert mode(target) == 0o600
                seen.append(found["number"])
            except (ValueError, AssertionError) as error:
                wrong.append(f"{error}: {text[:40]}...{len(text)}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(500):
            write_connection_file(str(target), **GIVEN, number=number, padding="x" * 20000)
    finally:
        done.set()
        for reader in readers:
            reader.join(TIMEOUT)
    assert not wrong
    assert len(set(seen)) > 1
    assert names(target.parent) == [target.name]


WRITER = """
import os, sys
from pathlib import Path
from kbridge.connect import write_connection_file

def stop(*args):
    print("written", flush=True)
    sys.stdin.read()

Path.replace = stop
write_connection_file(sys.argv[1], ip="10.1.2.3", key=b"new", shell_port=1, iopub_port=2,
                      stdin_port=3, hb_port=4, control_port=5)
"""


@pytest.mark.parametrize("before", ["", '{"old": true}'], ids=["new", "there already"])
def test_a_writer_that_is_killed_leaves_no_half_file(target: Path, before: str) -> None:
    if before:
        target.write_text(before)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait(TIMEOUT)
    assert (target.read_text() if before else target.exists()) == (before or False)

    (leftover,) = (path for path in target.parent.iterdir() if path != target)
    assert mode(leftover) == 0o600
    assert not leftover.match("*.json")
    write_connection_file(str(target), **GIVEN)
    assert leftover.exists(), "its writer may still be running"
    os.utime(leftover, (0, 0))
    write_connection_file(str(target), **GIVEN)
    assert names(target.parent) == [target.name]


@pytest.mark.parametrize("before", ["", "old"], ids=["new", "there already"])
def test_an_error_leaves_the_old_file(
    target: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    if before:
        target.write_text(before)

    def fail(self: Path, to: Path) -> None:
        assert stat.S_IMODE(self.stat().st_mode) == 0o600
        assert json.loads(self.read_text())["key"] == "a key"
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_connection_file(str(target), **GIVEN)
    assert [path.read_text() for path in target.parent.iterdir()] == ([before] if before else [])


@pytest.mark.parametrize("before", ["", "old"], ids=["new", "there already"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(target: Path, before: str) -> None:
    """A limit of file sizes replaces the full disk: the system refuses the same write."""
    if before:
        target.write_text(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/kernel-1\.json'"):
            write_connection_file(str(target), **GIVEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_text() for path in target.parent.iterdir()] == ([before] if before else [])


def test_an_error_leaves_no_temporary_connection_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match=r"No free port on '192\.0\.2\.1'"):
        write_connection_file(ip="192.0.2.1")
    assert not names(tmp_path)


def test_values_that_are_not_json_are_refused_before_anything_is_written(target: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_connection_file(str(target), **GIVEN, extra=object())
    assert not names(target.parent)


def test_a_missing_directory_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/kernel\.json") as caught:
        write_connection_file(str(tmp_path / "nowhere" / "kernel.json"), **GIVEN)
    assert "tmp'" not in str(caught.value)


def test_a_link_is_replaced_and_not_followed(target: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    target.symlink_to(elsewhere)
    write_connection_file(str(target), **GIVEN)
    assert elsewhere.read_text() == "theirs"
    assert not target.is_symlink()


# -- for its owner's eyes -----------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o177, 0o277, 0o777], ids=oct)
def test_the_file_is_private_whatever_the_umask_is(umask: None, target: Path, mask: int) -> None:
    os.umask(mask)
    write_connection_file(str(target), **GIVEN)
    assert mode(target) == 0o600


def test_the_file_is_private_before_its_content_is_written(
    umask: None, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.umask(0)
    seen: list[tuple[int, int]] = []
    opened = os.open

    def watch(path: Any, flags: int, *args: int) -> int:
        descriptor = opened(path, flags, *args)
        found = os.fstat(descriptor)
        seen.append((stat.S_IMODE(found.st_mode), found.st_size))
        assert flags & os.O_EXCL
        return descriptor

    monkeypatch.setattr(os, "open", watch)
    write_connection_file(str(target), **GIVEN)
    assert seen == [(0o600, 0)]


def test_nothing_is_written_if_the_file_cannot_be_private(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTER_ALLOW_INSECURE_WRITES", raising=False)
    monkeypatch.setattr(private, "_mode_of", lambda descriptor: 0o644)
    with pytest.raises(NotPrivate, match="JUPYTER_RUNTIME_DIR") as caught:
        write_connection_file(str(target), **GIVEN)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, RuntimeError), "jupyter_core's type"
    assert caught.value.filename == str(target)
    assert "a key" not in str(caught.value)
    assert not names(target.parent)


def test_insecure_writes_are_allowed_by_a_variable_with_a_warning(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_ALLOW_INSECURE_WRITES", "true")
    monkeypatch.setattr(private, "_mode_of", lambda descriptor: 0o644)
    with pytest.warns(UserWarning, match="can be read by others") as caught:
        write_connection_file(str(target), **GIVEN)
    assert caught[0].filename == __file__
    assert target.exists()


@pytest.mark.parametrize("harmless", [0o700, 0o1600])
def test_harmless_modes_of_some_file_systems_are_accepted(
    target: Path, monkeypatch: pytest.MonkeyPatch, harmless: int
) -> None:
    monkeypatch.setattr(private, "_mode_of", lambda descriptor: harmless)
    write_connection_file(str(target), **GIVEN)
    assert target.exists()


def test_the_directory_gets_the_sticky_bit_and_keeps_the_other_bits(tmp_path: Path) -> None:
    directory = tmp_path / "runtime"
    directory.mkdir()
    directory.chmod(0o750)
    write_connection_file(str(directory / "k.json"), **GIVEN)
    assert mode(directory) == 0o1750


def test_a_directory_of_another_user_is_not_changed(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_connection_file(str(target), **GIVEN)
    assert target.exists()


@pytest.mark.parametrize("name", ["key", "curve_publickey", "curve_secretkey"])
def test_no_error_shows_a_key(target: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is not UTF-8") as caught:
        write_connection_file(str(target), **(GIVEN | {name: SECRET}))
    assert caught.value.__suppress_context__
    assert "the-key" not in repr(caught.value)
    assert not names(target.parent)


# -- reading ------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), st.integers()))
def test_a_file_is_read_whatever_its_members_are(content: dict[str, int]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        assert read_connection_file(file.name) == content


@pytest.mark.parametrize("text", ["", '{"key": "the-key"', "[1]", "null"])
def test_a_file_that_is_not_a_connection_file_is_named_and_not_shown(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(InvalidConnectionInfo, match=r"k\.json is not a connection file") as caught:
        read_connection_file(tmp_path / "k.json")
    assert "the-key" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "k.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(InvalidConnectionInfo, match="too long"):
        read_connection_file(tmp_path / "k.json")
