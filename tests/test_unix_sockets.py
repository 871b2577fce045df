"""Socket files that crashed processes left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from kbridge.unix_sockets import has_listener, remove_stale_socket
from tests.support.waiting import TIMEOUT

LISTENER = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind("ipc://" + sys.argv[1])
print("bound", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short name; pytest's own may be too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def bound(home: Path) -> Iterator[Path]:
    """A socket with a listener."""
    path = home / "bound"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"ipc://{path}")
        yield path


def crash(path: Path) -> None:
    """Leave the socket of a process that was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == b"bound\n"
        assert has_listener(path)
        kernel.send_signal(signal.SIGKILL)
        kernel.wait(TIMEOUT)
    assert path.is_socket()


def test_a_listener_is_detected(bound: Path) -> None:
    assert has_listener(bound)
    assert not remove_stale_socket(bound)
    assert bound.is_socket()


def test_a_listener_with_a_full_backlog_is_detected(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(str(home / "busy"))
        listener.listen(0)
        caller.setblocking(False)
        caller.connect(str(home / "busy"))
        assert has_listener(home / "busy")


def test_the_socket_of_a_killed_process_is_removed(home: Path) -> None:
    path = home / "k-ipc-1"
    crash(path)
    assert not has_listener(path)
    assert remove_stale_socket(path)
    assert not path.exists()
    assert not remove_stale_socket(path)


def test_other_files_are_left(home: Path) -> None:
    (home / "k-ipc-1").write_text("mine")
    (home / "k-ipc-2").symlink_to(home / "nowhere")
    assert not remove_stale_socket(home / "k-ipc-1")
    assert not remove_stale_socket(home / "k-ipc-2")
    assert sorted(path.name for path in home.iterdir()) == ["k-ipc-1", "k-ipc-2"]


def test_the_socket_of_another_user_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "k-ipc-1"))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not remove_stale_socket(home / "k-ipc-1")
    assert (home / "k-ipc-1").exists()


def test_the_socket_of_another_user_is_removed_on_request(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(home / "dead")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert remove_stale_socket(home / "dead", any_owner=True)
    assert not (home / "dead").exists()


def test_a_young_socket_is_left(home: Path) -> None:
    crash(home / "dead")
    assert not remove_stale_socket(home / "dead", min_age=10.0)
    os.utime(home / "dead", (0, 0))
    assert remove_stale_socket(home / "dead", min_age=10.0)
