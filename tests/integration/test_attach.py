"""`kbridge attach` and a watched directory, with kernels that the test itself starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbridge.connect import write_connection_file
from kbridge.kernels.attached.connection_file import kernel_id_for
from tests.support.client import SLEEP, attach
from tests.support.server import Server
from tests.support.sshd import Sshd
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel

_ATTACH = [sys.executable, "-m", "kbridge", "attach", "--ip=127.0.0.1"]


class Elsewhere:
    """A kernel that no server has started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        write_connection_file(str(path), key=b"a key of its own", kernel_name="elsewhere")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ipykernel_launcher", "-f", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def id(self) -> str:
        return kernel_id_for(self.path)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    kernel = Elsewhere(folder / "kernel-4711.json")
    yield kernel
    kernel.end()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[object]:
    servers = []

    def start(*args: str, command: list[str] | None = _ATTACH) -> Server:
        home = tmp_path / f"server{len(servers)}"
        home.mkdir()
        servers.append(Server(home, *args, command=command))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


async def evaluate(server: Server, kernel_id: str, code: str, dialect: str = "v1") -> str:
    async with attach(server, kernel_id, dialect) as ws:
        return (await ws.execute(code)).text()


async def test_an_attached_kernel_is_served_and_outlives_the_server(serve, elsewhere, dialect):
    server = serve(str(elsewhere.path), "--name=mine")
    (model,) = server.request("GET", "/api/kernels").json()
    assert (model["id"], model["name"]) == (elsewhere.id, "mine")
    assert await evaluate(server, elsewhere.id, "x = 6; print(x)", dialect) == "6\n"
    restart = server.request("POST", f"/api/kernels/{elsewhere.id}/restart")
    assert restart.status == 501
    assert "started elsewhere" in restart.json()["message"]
    assert server.stop() == 0
    assert elsewhere.process.poll() is None, "a kernel of another program was ended"
    again = serve(str(elsewhere.path))
    assert again.request("GET", "/api/kernels").json()[0]["name"] == "elsewhere"
    assert await evaluate(again, elsewhere.id, "print(x)", dialect) == "6\n"


async def test_deleting_an_attached_kernel_detaches_it(serve, elsewhere):
    server = serve(str(elsewhere.path))
    assert await evaluate(server, elsewhere.id, "print(1)") == "1\n"
    assert server.request("DELETE", f"/api/kernels/{elsewhere.id}").status == 204
    assert server.request("GET", f"/api/kernels/{elsewhere.id}").status == 404
    assert elsewhere.process.poll() is None


async def test_an_attached_kernel_is_interrupted_by_message(serve, elsewhere):
    server = serve(str(elsewhere.path))
    async with attach(server, elsewhere.id, "v1") as ws:
        asked = await ws.start(SLEEP)
        # A kernel that has just started may write warnings first, which are streams too.
        await ws.until(lambda m: "asleep" in m["content"].get("text", ""))
        reply = await server.call("POST", f"/api/kernels/{elsewhere.id}/interrupt")
        assert reply.status == 204, reply
        assert (await ws.finish(asked)).reply["ename"] == "KeyboardInterrupt"


async def test_kernels_follow_the_files_in_a_directory(serve, tmp_path, elsewhere):
    dropped = tmp_path / "dropped"
    dropped.mkdir()
    server = serve(f"--attach-dir={dropped}", command=None)
    assert server.request("GET", "/api/kernels").json() == []
    there = dropped / elsewhere.path.name
    there.write_text(elsewhere.path.read_text())
    kernel_id = kernel_id_for(there)
    eventually(lambda: server.request("GET", "/api/kernels").json(), "it is served")
    assert await evaluate(server, kernel_id, "print('found')") == "found\n"
    there.unlink()
    eventually(lambda: not server.request("GET", "/api/kernels").json(), "it is gone")
    assert elsewhere.process.poll() is None


@pytest.mark.parametrize("there", ["no-such-kernel", "broken"])
def test_an_invalid_connection_file_ends_the_command_with_an_explanation(tmp_path, there):
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"key": "a secret"}))
    name = str(broken) if there == "broken" else there
    done = subprocess.run(
        [*_ATTACH, name, "--port=0"], capture_output=True, text=True, timeout=TIMEOUT, cwd=tmp_path
    )
    assert done.returncode == 1
    assert there in done.stderr
    assert "Traceback" not in done.stderr
    assert "a secret" not in done.stderr


def test_without_a_file_the_command_says_what_is_missing(tmp_path):
    done = subprocess.run(_ATTACH, capture_output=True, text=True, timeout=TIMEOUT, cwd=tmp_path)
    assert done.returncode == 2
    assert "needs a connection file" in done.stderr


# Behind ssh


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    home = tmp_path / "sshd"
    home.mkdir()
    daemon = Sshd(home).start()
    yield daemon
    daemon.stop()


def from_home(path: Path) -> str:
    """Return the path of a file relative to the home directory, as ssh resolves it."""
    return os.path.relpath(path, Path.home())


def state(server: Server) -> str:
    return str(server.request("GET", "/api/kernels").json()[0]["execution_state"])


def over(daemon: Sshd) -> list[str]:
    return ["--ssh=box", *(f"--AttachApp.ssh_options={option}" for option in daemon.options)]


async def test_a_kernel_behind_ssh_is_served_and_survives_the_loss_of_the_connection(
    serve, elsewhere, sshd
):
    server = serve(str(elsewhere.path), *over(sshd))
    async with attach(server, elsewhere.id, "v1") as ws:
        assert (await ws.execute("x = 1; print(x)")).text() == "1\n"
        lost = sshd.sessions()
        for process in lost:
            process.kill()
        # Messages in transit when a connection breaks are lost, because neither end has noticed
        # yet.
        eventually(lambda: set(sshd.sessions()) - set(lost), "the tunnel comes back")
        eventually(lambda: state(server) == "idle", "the kernel is proven anew")
        assert (await ws.execute("print(x + 1)")).text() == "2\n"
    assert server.stop() == 0
    assert elsewhere.process.poll() is None


async def test_a_kernel_behind_ssh_that_hangs_is_reported_until_it_continues(
    serve, elsewhere, sshd, tmp_path
):
    server = serve(
        *(str(elsewhere.path), *over(sshd)),
        *(
            "--BridgeKernelManager.heartbeat_interval=0.1",
            "--BridgeKernelManager.heartbeat_misses=10",
        ),
    )
    go_on = tmp_path / "go on"
    cell = f"""
import pathlib, time
while not pathlib.Path({str(go_on)!r}).exists():
    print("at work", flush=True)
    time.sleep(0.1)
print("the end")
"""
    async with attach(server, elsewhere.id, "v1") as ws:
        asked = await ws.start(cell)
        for _ in range(20):  # until the kernel has answered some pings during the cell
            await ws.until(lambda m: "at work" in m["content"].get("text", ""))
        elsewhere.process.send_signal(signal.SIGSTOP)
        await ws.until(lambda m: m["content"].get("execution_state") == "unknown")
        # The kernel may also have been silent before, for lack of a processor.
        eventually(lambda: state(server) == "unknown", "the server says so")
        elsewhere.process.send_signal(signal.SIGCONT)
        await ws.until(lambda m: m["content"].get("execution_state") == "busy")
        eventually(lambda: state(server) == "busy", "the server says so")
        go_on.touch()
        assert (await ws.finish(asked)).text().endswith("the end\n")
        eventually(lambda: state(server) == "idle", "the server says so")


async def test_a_remote_connection_file_is_read_over_ssh(serve, elsewhere, sshd):
    hidden = elsewhere.path.with_name("with a space.json")
    hidden.write_text(elsewhere.path.read_text())
    server = serve(from_home(hidden), *over(sshd))
    (model,) = server.request("GET", "/api/kernels").json()
    assert await evaluate(server, model["id"], "print('over')") == "over\n"


def test_an_ssh_error_ends_the_command_with_the_message_of_ssh(tmp_path, elsewhere, sshd):
    sshd.stop()
    done = subprocess.run(
        [*_ATTACH, str(elsewhere.path), *over(sshd), "--port=0"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr
