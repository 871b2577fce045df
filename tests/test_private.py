"""Files and directories that only their owner may read."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbridge import private
from kbridge.errors import NotPrivate
from kbridge.kernels.lifecycle.kernel_log import KernelLog
from kbridge.kernels.registry.registry import Registry
from kbridge.private import (
    open_private,
    prepare_directory,
    read_private,
    write_private,
)

SECRET = b"a secret"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def no_chmod(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a file system that refuses chmod and shows the same mode for every file."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(private, "_mode_of", lambda descriptor: 0o777)


def make_log(folder: Path) -> None:
    KernelLog(folder / "kernel.log").open().close()


def make_registry(folder: Path) -> None:
    Registry(str(folder / "registry.sqlite")).prepare()


def make_file(folder: Path) -> None:
    write_private(folder / "file", SECRET)


WRITERS = [make_log, make_registry, make_file]


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_system_without_modes_needs_permission(
    write: object, tmp_path: Path, no_chmod: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(write)
    monkeypatch.delenv("JUPYTER_ALLOW_INSECURE_WRITES", raising=False)
    with pytest.raises(Exception, match="JUPYTER_ALLOW_INSECURE_WRITES=1"):
        write(tmp_path)
    monkeypatch.setenv("JUPYTER_ALLOW_INSECURE_WRITES", "1")
    with pytest.warns(UserWarning, match="can be read by others"):
        write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_that_others_could_read_is_closed_to_them(write: object, tmp_path: Path) -> None:
    assert callable(write)
    before = os.umask(0)
    try:
        write(tmp_path)
        [path] = tmp_path.iterdir()
        path.chmod(0o666)
        write(tmp_path)
        assert mode(path) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("write", [make_log, make_registry])
def test_a_symbolic_link_is_not_followed(write: object, tmp_path: Path) -> None:
    assert callable(write)
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder)
    [path] = folder.iterdir()
    path.rename(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="symbolic link"):
        write(folder)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")
    write_private(path, SECRET)
    assert read_private(path, 100) == SECRET
    assert read_private(path, 3) == SECRET[:3]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_files_that_others_may_have_written_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTER_ALLOW_INSECURE_WRITES", raising=False)
    path = tmp_path / "file"
    write_private(path, SECRET)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic link"):
        read_private(tmp_path / "link", 100)
    for bad in (0o640, 0o604, 0o620):
        path.chmod(bad)
        with pytest.raises(NotPrivate):
            read_private(path, 100)
    monkeypatch.setenv("JUPYTER_ALLOW_INSECURE_WRITES", "1")
    assert read_private(path, 100) == SECRET
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(NotPrivate):
        read_private(path, 100)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(NotPrivate):
        read_private(tmp_path / "fifo", 100)


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    assert prepare_directory(tmp_path / "a" / "b") == ""
    assert mode(tmp_path / "a" / "b") == 0o700


@pytest.mark.parametrize("before", [0o777, 0o775, 0o1777])
def test_a_directory_that_others_may_write_to_is_closed_to_them(
    tmp_path: Path, before: int
) -> None:
    tmp_path.chmod(before)
    assert "could be written to by other users" in prepare_directory(tmp_path)
    assert mode(tmp_path) == before & ~0o022
    assert prepare_directory(tmp_path) == ""


def test_a_directory_that_cannot_be_closed_needs_permission(
    tmp_path: Path, no_chmod: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTER_ALLOW_INSECURE_WRITES", raising=False)
    os.chmod(tmp_path, 0o777)  # noqa: PTH101 - Path.chmod is replaced here
    with pytest.raises(NotPrivate, match="JUPYTER_RUNTIME_DIR"):
        prepare_directory(tmp_path)
    monkeypatch.setenv("JUPYTER_ALLOW_INSECURE_WRITES", "1")
    assert "JUPYTER_ALLOW_INSECURE_WRITES is set" in prepare_directory(tmp_path)


def test_a_directory_of_another_user_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert f"belongs to user {os.getuid()}" in prepare_directory(tmp_path)


def test_an_open_that_fails_leaves_no_descriptor(
    tmp_path: Path, no_chmod: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTER_ALLOW_INSECURE_WRITES", raising=False)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    with pytest.raises(NotPrivate):
        open_private(tmp_path / "file", os.O_RDWR)
    again = os.open(os.devnull, os.O_RDONLY)
    os.close(again)
    assert again == free


_START = """
import os, sys
from kbridge.server.cli.app import KbridgeApp
import kbridge.server.cli.serve
if os.geteuid() == 0: os.seteuid(65534)  # root may write everywhere
KbridgeApp.launch_instance(["--port=0", *sys.argv[1:]])
"""


def start(home: Path, *args: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Start a server whose home cannot be written to."""
    folders = [home, *home.rglob("*")]
    for path in folders:
        path.chmod(0o555)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "XDG"))}
    done = subprocess.run(
        [sys.executable, "-c", _START, *args],
        env={**env, "HOME": str(home), **more},
        capture_output=True,
        text=True,
        timeout=120,
    )
    for path in folders:
        path.chmod(0o755)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that other users can access, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.mark.parametrize("there", [True, False], ids=["there", "missing"])
def test_a_start_without_a_writable_home_names_the_variable(home: Path, there: bool) -> None:
    runtime = home / ".local" / "share" / "jupyter" / "runtime"
    (runtime if there else home).mkdir(parents=True, exist_ok=True)
    done = start(home)
    assert done.returncode == 1
    assert "JUPYTER_RUNTIME_DIR" in done.stderr
    assert str(home) in done.stderr


def test_a_config_file_that_cannot_be_written_names_the_variable(home: Path) -> None:
    done = start(home, "--generate-config")
    assert done.returncode == 1
    assert "JUPYTER_CONFIG_DIR" in done.stderr
