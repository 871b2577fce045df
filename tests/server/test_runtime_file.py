import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kbridge.kernels.lifecycle.processes import namespace, start_id
from kbridge.server import runtime_file
from kbridge.server.runtime_file import Place, RuntimeFile, answers, is_running, running_servers
from tests.support.require import require
from tests.support.waiting import TIMEOUT, eventually

INFO: dict[str, Any] = {"port": 8888, "sock": "", "url": "http://127.0.0.1:8888/"}
HERE = Place.here()
ELSEWHERE = {
    "host": "another",
    "pid_namespace": "another-boot/1",
    "net_namespace": "another-boot/1",
    "born": "another-boot/1/1",
}


def left(folder: Path, name: str = "kbserver-tag-1.json", **more: Any) -> Path:
    """Write a file without a lock, as a crash leaves it."""
    path = folder / name
    there = {"host": HERE.host, "pid_namespace": HERE.pid_namespace}
    there |= {
        "net_namespace": HERE.net_namespace,
        "pid": os.getpid(),
        "born": start_id(os.getpid()),
    }
    path.write_text(json.dumps({**INFO, **there, **more}))
    path.chmod(0o600)
    return path


def test_the_runtime_file_is_removed_with_its_server(tmp_path: Path) -> None:
    file = RuntimeFile(tmp_path, INFO)
    file.write()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    [found] = running_servers(tmp_path)
    assert found.items() >= INFO.items()
    assert (found["pid"], found["born"]) == (os.getpid(), start_id(os.getpid()))
    assert Place.of(found) == HERE
    assert is_running(file.path) == found, "a query must not end it"
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []
    assert running_servers(tmp_path) == []


def test_the_file_of_a_dead_server_is_removed_although_its_pid_is_in_use(tmp_path: Path) -> None:
    path = left(tmp_path)
    assert running_servers(tmp_path) == []
    assert not path.exists()


def test_a_file_of_an_earlier_version_is_removed(tmp_path: Path) -> None:
    path = tmp_path / f"kbserver-{os.getpid()}.json"
    path.write_text(json.dumps({**INFO, "pid": os.getpid()}))
    assert running_servers(tmp_path) == []
    assert not path.exists()


def test_an_incomplete_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "kbserver-1.json").write_text('{"pid"')
    (tmp_path / "kbserver-2.json").write_text("[]")
    assert running_servers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_programs_are_not_touched(tmp_path: Path) -> None:
    theirs = tmp_path / "jpserver-1.json"
    theirs.write_text("{}")
    assert running_servers(tmp_path) == []
    assert theirs.exists()


def test_a_file_of_another_user_is_neither_used_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could have `kbridge stop` end any process, or send a token to anybody."""
    file = RuntimeFile(tmp_path, INFO)
    file.write()
    dead = left(tmp_path)
    link = tmp_path / "kbserver-tag-2.json"
    link.symlink_to(file.path)
    fifo = tmp_path / "kbserver-tag-3.json"
    os.mkfifo(fifo)
    assert len(running_servers(tmp_path)) == 1, "a link or a pipe is not a runtime file"
    dead = left(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert running_servers(tmp_path) == []
    assert dead.exists()
    file.remove()


def test_the_file_of_a_server_on_another_machine_stays(tmp_path: Path) -> None:
    path = left(tmp_path, **ELSEWHERE)
    assert running_servers(tmp_path) == [], "it may be running or not"
    assert path.exists()


@pytest.mark.skipif(not namespace(), reason="this system has no pid namespaces")
def test_the_file_of_a_dead_server_in_another_container_is_removed(tmp_path: Path) -> None:
    """Its lock would be visible here."""
    boot = HERE.pid_namespace.partition("/")[0]
    path = left(tmp_path, **ELSEWHERE | {"pid_namespace": f"{boot}/1", "born": f"{boot}/1/1"})
    assert running_servers(tmp_path) == []
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no locks on Windows")
@pytest.mark.parametrize("lives", [True, False])
def test_without_locks_the_process_is_checked_by_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    born = start_id(os.getpid()) + "0" * (not lives)

    def refuse(*_: object) -> None:
        raise OSError("locks do not work here")

    monkeypatch.setattr(runtime_file.fcntl, "flock", refuse)
    path = left(tmp_path, born=born)
    foreign = left(tmp_path, "kbserver-tag-2.json", **ELSEWHERE)
    assert [info["born"] for info in running_servers(tmp_path)] == [born] * lives
    assert path.exists() is lives
    assert foreign.exists()


def test_two_containers_have_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both containers have a process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    first = RuntimeFile(tmp_path, INFO)
    monkeypatch.setattr(
        runtime_file.Place, "here", classmethod(lambda cls: cls("another", "another-boot/1", ""))
    )
    second = RuntimeFile(tmp_path, INFO)
    assert first.path != second.path
    assert first.path.name.endswith("-1.json")


def test_a_renamed_machine_is_the_same() -> None:
    renamed = Place("other", HERE.pid_namespace, HERE.net_namespace)
    assert renamed.shares_processes(HERE) is bool(HERE.pid_namespace)
    assert Place("a", "", "").shares_network(Place("a", "", ""))
    assert not Place("a", "", "").shares_processes(Place("b", "", ""))
    assert not Place("a", "x", "").shares_processes(Place("a", "", ""))


@pytest.mark.parametrize("whole", [False, True], ids=["the file", "the directory"])
async def test_a_runtime_file_that_was_deleted_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: bool
) -> None:
    folder = tmp_path / "runtime"
    folder.mkdir()
    file = RuntimeFile(folder, INFO)
    file.write()
    file.path.unlink()
    if whole:
        folder.rmdir()
    caplog.set_level(logging.INFO)
    keeping = asyncio.create_task(file.keep(logging.getLogger("test"), 0.01))
    await asyncio.to_thread(eventually, file.path.exists, "the file is back")
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    assert [info["url"] for info in running_servers(folder)] == [INFO["url"]], "locked again"
    assert stat.S_IMODE(folder.stat().st_mode) & 0o022 == 0
    assert "had been removed" in caplog.text
    file.remove()
    assert list(folder.iterdir()) == []


async def test_a_directory_that_cannot_be_recreated_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RuntimeFile(tmp_path, INFO)
    file.write()
    file.path.unlink()
    tries = 0
    thrice = asyncio.Event()

    def refuse(path: Path) -> str:
        nonlocal tries
        tries += 1
        if tries == 3:
            thrice.set()
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(runtime_file, "prepare_directory", refuse)
    keeping = asyncio.create_task(file.keep(logging.getLogger("test"), 0.01))
    await asyncio.wait_for(thrice.wait(), 60)
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    assert caplog.text.count("cannot write the runtime file") == 1
    file.remove()


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    file = RuntimeFile(tmp_path, INFO)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    file.path.symlink_to(elsewhere)
    file.write()
    assert elsewhere.read_text() == "theirs"
    file.write()
    assert len(running_servers(tmp_path)) == 1
    file.remove()


def test_a_missing_directory_has_no_servers(tmp_path: Path) -> None:
    assert running_servers(tmp_path / "nowhere") == []


def test_without_locks_a_server_is_alive_if_it_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        info = {"hostname": "127.0.0.1", "port": server.getsockname()[1]}
        assert answers(info)
        assert answers(info | {"hostname": "*"})
    assert not answers(info)


_IN_ANOTHER = """
import os, sys
from pathlib import Path
from kbridge.server.runtime_file import RuntimeFile
file = RuntimeFile(Path(sys.argv[1]), {"port": 8888, "sock": "", "url": "u"})
file.write()
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_server_in_another_pid_namespace_is_seen_by_its_lock(tmp_path: Path) -> None:
    require("unshare")
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", _IN_ANOTHER]
    with subprocess.Popen(
        [*command, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline().strip() != "1":
            process.stdin.close()
            pytest.skip(f"no pid namespaces for this user: {process.stderr.read()}")
        [info] = running_servers(tmp_path)
        assert info["pid"] == 1
        place = Place.of(info)
        assert place is not None
        assert not place.shares_processes(HERE)
        assert place.shares_network(HERE)
        process.stdin.close()
        process.wait(TIMEOUT)
    assert running_servers(tmp_path) == []
    assert list(tmp_path.iterdir()) == [], "the machine is the same, so its lock would be visible"
