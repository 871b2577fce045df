"""The paths of unix sockets, and private directories for them."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from kbridge.connect import ipc, write_connection_file
from kbridge.errors import NotPrivate


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short name, for the paths of unix sockets."""
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as name:
        yield Path(name)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def crash(path: Path) -> None:
    """Leave a socket file that nobody listens on, as a kernel does that is killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()


@pytest.fixture
def bound(home: Path) -> Iterator[Path]:
    """A socket with a listener."""
    path = home / "k-ipc-1"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"ipc://{path}")
        yield path


def test_a_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.chdir(home)
    assert ipc.absolute("k-ipc") == str(home / "k-ipc")
    assert ipc.absolute("./x/../k-ipc") == str(home / "k-ipc")
    assert ipc.absolute("/somewhere/k") == "/somewhere/k"
    assert ipc.absolute("@abstract") == "@abstract"
    assert ipc.beside("/run/kernel-1.json") == "/run/kernel-1-ipc"
    assert ipc.beside("kernel-1") == str(home / "kernel-1-ipc")


def test_the_limit_is_zeromqs(home: Path) -> None:
    longest = str(home / "x").ljust(ipc.LIMIT, "x")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"ipc://{longest}")
        with pytest.raises(zmq.ZMQError, match=str(ipc.LIMIT)):
            router.bind(f"ipc://{longest}x")


def test_a_path_that_is_too_long_is_refused_with_advice() -> None:
    assert ipc.checked("a" * (ipc.LIMIT - 2), 1) == "a" * (ipc.LIMIT - 2) + "-1"
    with pytest.raises(ValueError, match=rf"{ipc.LIMIT} bytes here.*JUPYTER_RUNTIME_DIR"):
        ipc.checked("a" * (ipc.LIMIT - 2), 10)
    with pytest.raises(ValueError, match=f"has {ipc.LIMIT + 1}"):
        ipc.checked("ü" * (ipc.LIMIT // 2), 1)


def test_nothing_is_written_for_a_path_that_is_too_long(home: Path) -> None:
    with pytest.raises(ValueError, match="JUPYTER_RUNTIME_DIR"):
        write_connection_file(str(home / "k.json"), transport="ipc", ip="a" * ipc.LIMIT)
    with pytest.raises(ValueError, match="JUPYTER_RUNTIME_DIR"):
        write_connection_file(
            str(home / "k.json"), transport="ipc", ip="a" * ipc.LIMIT, shell_port=3
        )
    assert not names(home)


def test_numbers_are_the_smallest_that_are_free(bound: Path, home: Path) -> None:
    (home / "k-ipc-3").write_text("mine")
    crash(home / "k-ipc-4")
    assert ipc.pick_numbers(str(home / "k-ipc"), 3, taken=[5]) == [2, 4, 6]
    assert not (home / "k-ipc-4").exists()
    assert bound.exists()


def test_a_path_is_free_again_after_a_crash(home: Path) -> None:
    crash(home / "k-ipc-2")
    _, info = write_connection_file(str(home / "k.json"), transport="ipc", shell_port=2)
    assert info["shell_port"] == 2
    assert not (home / "k-ipc-2").exists()


def test_only_old_dead_sockets_of_this_user_are_swept(bound: Path, home: Path) -> None:
    old, young, other = home / "j-ipc-1", home / "j-ipc-2", home / "socket"
    for path in (old, young, other):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    for path in (old, other, bound):
        os.utime(path, (0, 0))
    assert ipc.sweep(str(home)) == [str(old)]
    assert names(home) == ["j-ipc-2", "k-ipc-1", "socket"]
    assert ipc.sweep(str(home / "missing")) == []


# Private directories


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o377])
def test_a_private_directory_does_not_depend_on_the_umask(home: Path, umask: int) -> None:
    ip = ipc.private_beside(str(home / "kernel-1.json"))
    assert ip == str(home / "kernel-1-ipc" / "s")
    before = os.umask(umask)
    try:
        ipc.make_private(ip)
        ipc.make_private(ip)
    finally:
        os.umask(before)
    assert stat.S_IMODE((home / "kernel-1-ipc").stat().st_mode) == 0o700
    ipc.remove_private(ip)
    ipc.remove_private(ip)
    assert names(home) == []


def test_a_directory_that_others_may_enter_is_closed_to_them(home: Path) -> None:
    there = home / "kernel-1-ipc"
    there.mkdir()
    there.chmod(0o777)
    ipc.make_private(str(there / "s"))
    assert stat.S_IMODE(there.stat().st_mode) == 0o700


def test_files_links_and_directories_of_other_users_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "elsewhere").mkdir()
    (home / "kernel-1-ipc").symlink_to(home / "elsewhere")
    (home / "kernel-2-ipc").write_text("a file")
    for number in (1, 2):
        with pytest.raises(NotPrivate):
            ipc.make_private(str(home / f"kernel-{number}-ipc" / "s"))
    (home / "kernel-3-ipc").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(NotPrivate):
        ipc.make_private(str(home / "kernel-3-ipc" / "s"))


def test_a_path_of_the_users_choice_gets_no_directory(home: Path) -> None:
    for ip in (str(home / "chosen"), str(home / "other" / "s"), "@abstract", "kernel-ipc/s"):
        ipc.make_private(ip)
        ipc.remove_private(ip)
    assert names(home) == []


def test_private_directories_of_dead_kernels_are_swept(home: Path) -> None:
    for number in (1, 2, 3):
        ipc.make_private(ipc.private_beside(str(home / f"k{number}.json")))
    (home / "k1.json").write_text("{}")  # the kernel starts, and has no socket yet
    dead = home / "k2-ipc" / "s-1"
    crash(dead)
    os.utime(dead, (1, 1))
    (home / "k3-ipc" / "s-1").write_text("something else")
    assert ipc.sweep(str(home)) == [str(dead)]
    assert names(home) == ["k1-ipc", "k1.json", "k3-ipc"]
