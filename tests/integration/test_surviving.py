"""Kernels that outlive their server: real kernels, and servers that are killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import SLEEP, KernelClient, attach
from tests.support.require import lack, require
from tests.support.restartable_server import RestartableServer
from tests.support.server import _COMMAND, TOKEN, gone
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel

STUB = Path(__file__).parents[1] / "kernels" / "stub_kernel.py"
ENDED = "ended while no server ran"
LOCKER = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "connection.execute('BEGIN EXCLUSIVE')\n"
    "print('locked', flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def server(own_server: RestartableServer) -> RestartableServer:
    """A server that also has a kernel that starts fast."""
    own_server.install("stub", STUB)
    return own_server


def registry(server: RestartableServer) -> Path:
    return server.home / "runtime" / "kbridge-registry.sqlite"


def rows(server: RestartableServer, table: str = "kernels") -> list[dict[str, Any]]:
    with closing(sqlite3.connect(registry(server))) as connection:
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(f"SELECT * FROM kbridge_{table}")]
        except sqlite3.OperationalError:  # the registry is not written yet
            return []


def ids(server: RestartableServer) -> set[str]:
    return {model["id"] for model in server.request("GET", "/api/kernels").json()}


async def value(server: RestartableServer, kernel_id: str, expression: str) -> str:
    async with attach(server, kernel_id) as ws:
        return (await ws.execute(f"print({expression})")).text().strip()


def session(server: RestartableServer, path: str, name: str = "python3") -> dict[str, Any]:
    body = {"path": path, "type": "notebook", "name": path, "kernel": {"name": name}}
    reply = server.request("POST", "/api/sessions", body)
    assert reply.status == 201, f"{reply}\n{server.tail()}"
    return dict(reply.json())


async def test_after_a_crash_every_kernel_is_found_again(server: RestartableServer) -> None:
    server.start()
    one, two = session(server, "one.ipynb"), session(server, "two.ipynb")
    lonely = server.start_kernel()
    everyone = {one["kernel"]["id"], two["kernel"]["id"], lonely}
    for kernel_id in everyone:
        assert await value(server, kernel_id, f"kept := {kernel_id!r}") == kernel_id
    before = server.kernels()
    server.crash()
    assert server.kernels() == before, "the kernels must not change"

    server.launch()
    eventually(server._listening, "the server is back")
    # The first client finds them as soon as the server listens; the test does not wait.
    assert ids(server) == everyone
    assert {s["id"]: s["path"] for s in server.request("GET", "/api/sessions").json()} == {
        one["id"]: "one.ipynb",
        two["id"]: "two.ipynb",
    }
    for kernel_id in everyone:
        assert await value(server, kernel_id, "kept") == kernel_id
    assert server.kernels() == before

    await interrupt_restart_stop(server, lonely, before[lonely])
    # Later shutdowns and starts are recorded as usual.
    assert server.request("DELETE", f"/api/sessions/{one['id']}").status == 204
    third = session(server, "three.ipynb")
    server.crash()
    server.start()
    assert ids(server) == {two["kernel"]["id"], third["kernel"]["id"]}
    assert {s["id"] for s in server.request("GET", "/api/sessions").json()} == {
        two["id"],
        third["id"],
    }
    assert server.said(ENDED) == 0
    assert server.stop() == 0
    assert server.kernels() == {}
    assert rows(server) == rows(server, "sessions") == []
    server.assert_clean_log()


async def interrupt_restart_stop(server: RestartableServer, kernel_id: str, pid: int) -> None:
    async with attach(server, kernel_id) as ws:
        msg_id = await ws.start(SLEEP)
        # A kernel that has just started may write warnings first, which are streams too.
        await ws.until(lambda m: "asleep" in m["content"].get("text", ""))
        assert server.request("POST", f"/api/kernels/{kernel_id}/interrupt").status == 204
        assert (await ws.finish(msg_id)).reply["ename"] == "KeyboardInterrupt"

        reply = await server.call("POST", f"/api/kernels/{kernel_id}/restart")
        assert reply.status == 200, reply
        assert (await ws.execute("kept")).reply["ename"] == "NameError"
        assert gone(pid)
        assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204
        await ws.closed()
    assert kernel_id not in ids(server)
    assert kernel_id not in server.kernels()


def test_a_kernel_that_died_meanwhile_is_reported_once(server: RestartableServer) -> None:
    server.start()
    lost, kept = session(server, "lost.ipynb", "stub"), session(server, "kept.ipynb", "stub")
    lost_id = lost["kernel"]["id"]
    log = server.home / "runtime" / f"kernel-{lost_id}.log"
    server.crash()
    pid = server.kernels()[lost_id]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid), "the kernel is gone")

    server.start()
    assert ids(server) == {kept["kernel"]["id"]}
    assert [s["id"] for s in server.request("GET", "/api/sessions").json()] == [kept["id"]]
    assert server.request("GET", f"/api/kernels/{lost_id}").status == 404
    assert server.said(f"Kernel {lost_id} (stub) {ENDED}; its output is in {log}") == 1
    assert log.exists()
    assert not log.with_suffix(".json").exists(), "its key must be removed"
    server.crash()
    server.start()
    assert server.said(ENDED) == 1, "not again at the third start"
    assert ids(server) == {kept["kernel"]["id"]}


async def test_an_adopted_kernel_is_restarted_when_it_dies(
    server: RestartableServer,
) -> None:
    server.start()
    kernel_id = server.start_kernel()
    server.crash()
    pid = server.kernels()[kernel_id]
    server.start()
    async with attach(server, kernel_id) as ws:
        await ws.execute("kept = 1")
        os.kill(pid, signal.SIGKILL)
        await ws.until(lambda m: m["content"].get("execution_state") == "restarting")
        done = await ws.execute("import os; print(os.getpid(), 'JPY_PARENT_PID' in os.environ)")
    assert done.text().split() == [str(server.kernels()[kernel_id]), "False"]
    server.crash()
    server.start()
    assert ids(server) == {kernel_id}, "the new process is recorded, too"
    assert await value(server, kernel_id, "6 * 7") == "42"


async def test_a_cell_that_runs_during_a_crash_is_answered(
    server: RestartableServer, dialect: str
) -> None:
    server.start()
    kernel_id = server.start_kernel()
    go = server.home / "go"
    code = (
        "import pathlib, time\n"
        "print('before', flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        "print('after', flush=True)"
    )
    async with attach(server, kernel_id, dialect, session="mine") as ws:
        msg_id = await ws.start(code)
        await ws.until_text("before\n")
        server.crash()
    server.start()
    assert server.request("GET", f"/api/kernels/{kernel_id}").status == 200
    async with attach(server, kernel_id, dialect, session="mine") as ws:
        # A reply on control, which works during a cell, proves that the new bridge is connected.
        await ws.request("kernel_info_request", {}, channel="control")
        go.touch()
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        assert "after" in done.text()
        assert (await ws.execute("print('next')")).text() == "next\n"
    state = server.request("GET", f"/api/kernels/{kernel_id}").json()["execution_state"]
    assert state == "idle"


def test_pooled_kernels_survive_a_crash(server: RestartableServer) -> None:
    server.start("--pool=stub=1")
    eventually(lambda: [r["standing"] for r in rows(server)] == ["pooled"], "one waits")
    [waiting] = server.kernels()
    assert ids(server) == set()
    server.crash()
    server.start("--pool=stub=1")
    assert ids(server) == set()
    assert server.start_kernel("stub") == waiting, "the pool must return it"
    eventually(lambda: len(server.kernels()) == 2, "another one waits in its place")
    server.crash()
    server.start()
    eventually(lambda: set(server.kernels()) == {waiting}, "who has no place to wait is ended")
    assert ids(server) == {waiting}


def test_kernels_end_with_a_server_that_is_stopped(server: RestartableServer) -> None:
    server.start()
    server.start_kernel("stub")
    server.start_kernel("stub")
    assert server.stop() == 0
    assert server.said("SIGTERM: shutting down 2 kernels and closing all connections") == 1
    assert server.kernels() == {}
    server.start()
    assert ids(server) == set()
    assert server.said(ENDED) == 0


def stop_by_command(server: RestartableServer) -> str:
    command = [sys.executable, "-m", "kbridge", "stop", str(server.port)]
    return subprocess.run(command, env=server._env, capture_output=True, text=True).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_kernels_outlive_the_server_if_configured(
    server: RestartableServer, number: signal.Signals
) -> None:
    server.start("--shutdown-kernels-on-exit=false")
    kernel_id = session(server, "a.ipynb")["kernel"]["id"]
    assert await value(server, kernel_id, "kept := 5") == "5"
    before = server.kernels()
    if number == signal.SIGTERM:
        said = stop_by_command(server)
        assert said == f"stopped {server.port}; its kernels stay for the next start\n"
    else:
        server.process.send_signal(number)
    assert server.process.wait(TIMEOUT) == 0
    assert server.said("1 kernel will stay for the next start") == 1
    assert server.kernels() == before
    assert (server.home / "runtime" / f"kernel-{kernel_id}.json").exists()
    server.start()
    assert await value(server, kernel_id, "kept") == "5"
    assert len(server.request("GET", "/api/sessions").json()) == 1
    assert server.stop() == 0
    assert server.kernels() == {}
    server.assert_clean_log()


def test_a_failed_start_ends_no_kernel(server: RestartableServer) -> None:
    server.start()
    kernel_id = server.start_kernel("stub")
    server.crash()
    failing = server.launch("--pool=nosuchkernel=1")
    assert failing.wait(TIMEOUT) == 1
    assert server.said("There is no kernelspec 'nosuchkernel', which BridgeKernelManager.pool") == 1
    assert server.said("serves kernels at") == 1, "the start ended before its banner"
    server.start()
    assert ids(server) == {kernel_id}


def test_two_servers_with_one_registry_adopt_their_own_kernels(
    server: RestartableServer, tmp_path: Path
) -> None:
    other = RestartableServer(tmp_path)
    server.start()
    other.start()
    try:
        mine, theirs = server.start_kernel("stub"), other.start_kernel("stub")
        assert len({row["address"] for row in rows(server)}) == 2
        other.crash()
        server.crash()
        server.start()
        assert ids(server) == {mine}, "another address's kernels wait for their own server"
        assert server.said("1 kernel(s) of an ended server wait") == 1
        other.start()
        assert ids(other) == {theirs}
        server.crash()
        server.start()
        assert ids(server) == {mine}, "kernels of a running server must not be taken over"
    finally:
        assert other.stop() == 0
        assert server.stop() == 0
    assert server.kernels() == {}


def start_in_a_namespace(server: RestartableServer, log: Path) -> subprocess.Popen[bytes]:
    """Start a second server with the same settings, which gets another port."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *_COMMAND]
    with log.open("wb") as out:
        return subprocess.Popen(
            [*command, f"--port={server.port}"],
            cwd=server.home,
            env=server._env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has pid namespaces")
async def test_a_server_in_another_pid_namespace_leaves_the_kernels_alone(
    server: RestartableServer, tmp_path: Path
) -> None:
    require("unshare")
    server.start()
    kernel_id = server.start_kernel("stub")
    file = server.home / "runtime" / f"kernel-{kernel_id}.json"
    before = rows(server)
    log = tmp_path / "other.log"
    other = start_in_a_namespace(server, log)
    try:
        eventually(
            lambda: other.poll() is not None or "serves kernels at" in log.read_text(),
            "the other server listens",
        )
        if "Operation not permitted" in log.read_text():
            lack("only root may make a pid namespace here")
        assert other.poll() is None, log.read_text()
        assert "1 kernel(s)" in log.read_text()
        assert "another container or pid namespace" in log.read_text()
        assert rows(server) == before
        assert file.exists()
        assert ids(server) == {kernel_id}
        async with attach(server, kernel_id) as client:
            assert (await client.execute("1")).reply["status"] == "ok"
    finally:
        other.kill()
        other.wait(TIMEOUT)
    server.crash()
    server.start()
    assert ids(server) == {kernel_id}


async def test_without_a_registry_kernels_end_with_the_server(server: RestartableServer) -> None:
    server.start("--registry-url=none")
    kernel_id = server.start_kernel()
    assert set(server.kernels()) == {kernel_id}
    assert not registry(server).exists()
    server.crash()
    eventually(lambda: not server.kernels(), "it notices that its parent has gone")
    server.start("--registry-url=none")
    assert ids(server) == set()


def fails(server: RestartableServer, *args: str) -> str:
    """Start a server that cannot start; return its output."""
    before = len(server.log.read_text()) if server.log.exists() else 0
    assert server.launch(*args).wait(TIMEOUT) == 1, server.tail()
    said = server.log.read_text()[before:]
    assert "Traceback" not in said
    return said


def test_keeping_kernels_requires_a_registry(server: RestartableServer) -> None:
    for url in ("none", ""):
        said = fails(server, f"--registry-url={url}", "--shutdown-kernels-on-exit=false")
        assert "shutdown_kernels_on_exit=False needs a registry" in said


def test_a_damaged_registry_is_reported(server: RestartableServer) -> None:
    server.start()
    kernel_id = server.start_kernel("stub")
    server.crash()
    whole = registry(server).read_bytes()
    registry(server).write_bytes(b"what is this?" * 1000)
    said = fails(server)
    assert str(registry(server)) in said
    assert "it is damaged" in said
    assert "--registry-url=none" in said
    # As it says.
    server.start("--registry-url=none")
    assert ids(server) == set()
    assert server.stop() == 0
    assert set(server.kernels()) == {kernel_id}
    registry(server).write_bytes(whole)
    server.start()
    assert ids(server) == {kernel_id}


def test_a_locked_registry_is_reported(server: RestartableServer) -> None:
    server.start()
    kernel_id = server.start_kernel("stub")
    server.crash()
    locker = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(registry(server))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert locker.stdout is not None
    assert locker.stdin is not None
    try:
        assert locker.stdout.readline() == b"locked\n"
        said = fails(server)
        assert f"The registry {registry(server)} cannot be read: another program" in said
    finally:
        locker.stdin.close()
        locker.stdout.close()
        locker.wait(TIMEOUT)
    server.start()
    assert ids(server) == {kernel_id}


def test_a_registry_that_cannot_be_created_is_reported(server: RestartableServer) -> None:
    (server.home / "file").touch()
    place = server.home / "file" / "registry"
    assert f"The registry {place} cannot be opened" in fails(server, f"--registry-url={place}")


def test_a_password_is_never_shown(server: RestartableServer) -> None:
    said = fails(
        server, "--debug", "--registry-url=postgresql+pg8000://me:hunter2@db.example/kbridge"
    )
    assert "the Python module pg8000 is missing" in said
    assert "db.example" in said
    assert "hunter2" not in said


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits a running process")
async def test_kernels_are_served_when_the_disk_is_full(server: RestartableServer) -> None:
    server.start()
    first = server.start_kernel("stub")
    pid = server.process.pid
    # From now on, no file may grow beyond the size of the registry. Kernels write almost nothing.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (registry(server).stat().st_size, -1))
    others = [server.start_kernel("stub") for _ in range(8)]
    assert server.said("cannot be written to") == 1, "told once"
    assert server.said(str(registry(server))) == 1
    assert ids(server) == {first, *others}, "and served nevertheless"
    for kernel_id in others:
        assert server.request("POST", f"/api/kernels/{kernel_id}/restart").status == 200
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (-1, -1))
    eventually(lambda: len(rows(server)) == 9, "what was missing is written when there is room")
    eventually(lambda: server.said("can be written again") == 1, "it says so")
    server.crash()
    server.start()
    assert ids(server) == {first, *others}
    assert server.stop() == 0
    assert server.kernels() == {}


def test_files_are_readable_by_their_owner_only(server: RestartableServer) -> None:
    server.start()
    kernel_id = server.start_kernel("stub")
    [row] = rows(server)
    assert row["kernel_id"] == kernel_id
    assert row["pid"] == server.kernels()[kernel_id]
    assert "key" in json.loads(row["details"])["connection"]
    assert stat.S_IMODE(registry(server).stat().st_mode) == 0o600
    assert TOKEN not in registry(server).read_bytes().decode("latin-1")


async def test_changes_of_sessions_are_recorded(server: RestartableServer) -> None:
    server.start()
    made = session(server, "old.ipynb")
    [before] = rows(server)
    patch = {"path": "new.ipynb", "name": "new", "kernel": {"name": "python3"}}
    patched = server.request("PATCH", f"/api/sessions/{made['id']}", patch).json()
    kernel_id = patched["kernel"]["id"]
    assert kernel_id != before["kernel_id"]
    server.crash()
    server.start()
    assert ids(server) == {kernel_id}
    [after] = server.request("GET", "/api/sessions").json()
    assert (after["id"], after["path"], after["name"]) == (made["id"], "new.ipynb", "new")
    # In its environment too: the next process of the kernel has the new name.
    assert server.request("POST", f"/api/kernels/{kernel_id}/restart").status == 200
    assert await value(server, kernel_id, "__import__('os').environ['JPY_SESSION_NAME']") == "new"


async def test_the_environment_of_a_request_survives_a_crash(server: RestartableServer) -> None:
    server.start()
    kernel_id = server.start_kernel(env={"KERNEL_MINE": "yes"}, path="sub")
    server.crash()
    server.start()
    assert server.request("POST", f"/api/kernels/{kernel_id}/restart").status == 200
    environ = "sorted(__import__('os').environ)"
    async with attach(server, kernel_id) as ws:
        assert isinstance(ws, KernelClient)
        names = (await ws.execute(f"print(*{environ})")).text().split()
    assert "KERNEL_MINE" in names
    assert "PYTHONUNBUFFERED" not in names, "the kernels of the server must not be listed"


def test_a_kernel_whose_server_crashed_can_be_attached(server: RestartableServer) -> None:
    server.start()
    kernel_id = server.start_kernel("stub")
    server.crash()
    server.command = [sys.executable, "-m", "kbridge", "attach", f"kernel-{kernel_id}.json"]
    server.start()
    assert ids(server) == {kernel_id}
    server.stop()
    assert set(server.kernels()) == {kernel_id}, "attached kernels are never ended"
