"""`kbridge stop` ends only the server that its argument names."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kbridge.kernels.lifecycle.processes import signal_process, start_id
from kbridge.server.cli.commands import end_server, is_near
from kbridge.server.runtime_file import Place, running_servers
from tests.support.require import require
from tests.support.waiting import TIMEOUT, eventually

HERE = Place.here()
ELSEWHERE = Place("another", "another-boot/1", "another-boot/1")
THERE = "another-boot/1/1"
_SLEEP = "import signal; print('up', flush=True); signal.pause()"


@pytest.fixture
def process() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([sys.executable, "-c", _SLEEP], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == "up\n"
        yield it
        it.kill()


def info(pid: int, born: str, place: Place | None = HERE, **more: Any) -> dict[str, Any]:
    """Return the runtime information of a server whose port refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    there = {n: getattr(place, n) for n in Place.__slots__} if place else {}
    address = {"hostname": "127.0.0.1", "port": port, "sock": "", "base_url": "/", "secure": False}
    return {"pid": pid, "born": born, "token": "secret", **address, **there, **more}


def test_a_server_that_does_not_answer_gets_a_signal(process: "subprocess.Popen[str]") -> None:
    assert end_server(info(process.pid, start_id(process.pid)), HERE) == ""
    assert process.wait(TIMEOUT) == -signal.SIGTERM


def test_a_process_with_the_id_of_a_dead_server_gets_no_signal(
    process: "subprocess.Popen[str]",
) -> None:
    """SIGTERM must not reach another process with the same id."""
    born = start_id(process.pid) + "0"
    assert end_server(info(process.pid, born), HERE) == "", "the server has ended"
    with pytest.raises(ProcessLookupError):
        signal_process(process.pid, born, signal.SIGTERM)
    # Otherwise it would be a zombie without a start time.
    signal_process(process.pid, start_id(process.pid), 0)


def test_a_process_of_another_container_or_machine_gets_no_signal(
    process: "subprocess.Popen[str]",
) -> None:
    problem = end_server(info(process.pid, THERE, ELSEWHERE), HERE)
    for part in (f"process {process.pid}", "another", "Run `kbridge stop` there"):
        assert part in problem
    assert "secret" not in problem
    assert "cannot be seen" in end_server(info(process.pid, "", HERE), HERE)
    assert "too old to tell" in end_server(info(process.pid, start_id(process.pid), None), HERE)
    signal_process(process.pid, start_id(process.pid), 0)


def test_no_token_is_sent_to_a_local_process_on_the_port_of_a_remote_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        found = info(1, THERE, ELSEWHERE, port=trap.getsockname()[1])
        assert end_server(found, HERE)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_servers_near_by_are_found() -> None:
    assert is_near(info(1, "x", HERE), HERE)
    assert is_near(info(1, "x", None), HERE)
    assert not is_near(info(1, THERE, ELSEWHERE), HERE)
    assert is_near(info(1, THERE, ELSEWHERE, sock="/shared/sock"), HERE)


def environment(folder: Path) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "KG_"))}
    return found | {f"JUPYTER_{n}_DIR": str(folder) for n in ("CONFIG", "RUNTIME", "DATA")}


def test_a_server_in_another_pid_namespace_is_asked_over_http(tmp_path: Path) -> None:
    """Its process id is 1: a signal would reach the first process of this machine."""
    require("unshare")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "kbridge", "--port=0", "--registry-url=none"]
    env = environment(tmp_path)
    with log.open("w") as stderr:
        process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", *command],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:

        def listening() -> list[dict[str, Any]]:
            if process.poll() is not None:
                pytest.skip(f"no pid namespaces for this user: {log.read_text()}")
            return running_servers(tmp_path)

        [found] = eventually(listening, "the server tells where it is")
        assert found["pid"] == 1
        done = subprocess.run(
            [sys.executable, "-m", "kbridge", "stop", str(found["port"])],
            env=env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert process.wait(TIMEOUT) == 0
        assert running_servers(tmp_path) == []
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


async def test_the_shutdown_of_a_server_needs_the_token_in_a_header(
    running: Any, error_of: Any
) -> None:
    ended: list[str] = []
    assert error_of(await running.ask("POST", "/api/shutdown"))[0] == 501
    running.services.shutdown = lambda: ended.append("now")
    cookie = {"Cookie": f"kbridge-test={running.services.auth.policy.cookie_value()}"}
    assert (await running.ask("POST", "/api/shutdown", token=None)).code == 403
    assert (await running.ask("POST", "/api/shutdown", token=None, headers=cookie)).code == 403
    assert (await running.ask("GET", "/api/shutdown")).code == 405
    assert ended == []
    reply = await running.ask("POST", "/api/shutdown")
    assert (reply.code, ended) == (200, ["now"])
    assert json.loads(reply.body) == {"message": "the server is shutting down"}
