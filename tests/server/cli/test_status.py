import json
import subprocess
import sys
from typing import Any

from kbridge.server.cli.status import describe, state_of
from tests.support.server import TOKEN, Server

INFO: dict[str, Any] = {
    "url": "http://127.0.0.1:1/",
    "base_url": "/",
    "hostname": "127.0.0.1",
    "port": 1,
    "sock": "",
    "secure": False,
    "pid": 17,
    "version": "1.2",
    "token": "t",
}


def status(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "kbridge", "status", *arguments],
        env=server.environment,
        capture_output=True,
        text=True,
    )


def test_a_server_that_does_not_answer() -> None:
    state = state_of(INFO, 1.0)
    assert set(state) == {"url", "pid", "version", "error"}
    assert "does not answer" in describe(state)


def test_a_state_is_shown_in_a_few_lines() -> None:
    state = {"url": "http://h/", "pid": 1, "version": "1", "kernels": 2, "connections": 3}
    state |= {"started": "then", "last_activity": "now", "ready": True}
    assert describe(state).splitlines() == [
        "http://h/  (pid 1, kbridge 1)",
        "    ready",
        "    kernels 2, websockets 3",
        "    started then, last activity now",
    ]
    assert "not ready: no disk" in describe({**state, "ready": False, "problem": "no disk"})


def test_a_running_server_is_shown(server: Server) -> None:
    done = status(server, str(server.port), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    state = json.loads(done.stdout)
    assert (state["pid"], state["ready"]) == (server.process.pid, True)
    assert TOKEN not in done.stdout
    text = status(server)
    assert f"pid {server.process.pid}" in text.stdout
    assert "ready" in text.stdout


def test_no_server_is_an_error(server: Server) -> None:
    done = status(server, "1")
    assert (done.returncode, done.stderr) == (1, "no kbridge server runs on 1\n")
