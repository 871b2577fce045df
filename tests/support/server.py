"""Server processes for tests: kbridge as a user starts it, in separate directories.

`KBRIDGE_TEST_SERVER=jupyter_server` uses Jupyter Server instead, to compare it in the same tests.
It fails those for which kbridge was written.

`KBRIDGE_TEST_LINK` (auto, zmtp or pyzmq) is the value of the setting `link` in all tests that
do not set it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import kbridge
from kbridge.link import choice
from kbridge.link.holder.client import is_supported
from tests.support.waiting import TIMEOUT, eventually

__all__ = [
    "KEPT",
    "LINK",
    "LINK_PYZMQ",
    "PEER",
    "TOKEN",
    "Reply",
    "Server",
    "free_port",
    "gone",
    "kill_all",
]

_KBRIDGE = str(Path(kbridge.__file__).parent)
PEER = os.environ.get("KBRIDGE_TEST_SERVER", "kbridge") == "jupyter_server"
LINK = os.environ.get("KBRIDGE_TEST_LINK", "")
_LINK_OPTION = "--ZMQChannelsWebsocketConnection.link="
LINK_PYZMQ = f"{_LINK_OPTION}pyzmq"  # connections to kernels end with the server
# True if the connections to kernels outlive the servers of these tests.
KEPT = (LINK or choice.DEFAULT) != choice.LinkKind.PYZMQ and is_supported()
TOKEN = "correct-horse-battery-staple"

# The usual event loop; `KBRIDGE_TEST_LOOP=uvloop` uses the other one.
_UVLOOP = os.environ.get("KBRIDGE_TEST_LOOP", "asyncio") == "uvloop"
_COMMAND = [
    *(sys.executable, "-m", "kbridge", "--ip=127.0.0.1", f"--KbridgeApp.use_uvloop={_UVLOOP}")
]
_PEER_COMMAND = [
    *(sys.executable, "-m", "jupyter_server", "--ip=127.0.0.1", "--no-browser", "--allow-root"),
    *("--ServerApp.disable_check_xsrf=True", "--ServerApp.jpserver_extensions=kbridge=False"),
]
# Kernelspecs of every test server, in addition to ipykernel's python3.
_SPECS = {
    "broken": "import sys; print('this kernel has no engine', file=sys.stderr); sys.exit(3)",
    "mute": "import signal; signal.pause()",
}


class Reply(NamedTuple):
    """The reply to a REST request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A server process, from its start to its exit.

    Parameters
    ----------
    home : Path
        An empty directory for all files of the server.
    *args : str
        More command line options.
    env : mapping, optional
        More environment variables.
    command : list of str, optional
        Another program than kbridge, which writes a runtime file as Jupyter servers do.
    """

    def __init__(
        self,
        home: Path,
        *args: str,
        env: Mapping[str, str] | None = None,
        command: list[str] | None = None,
        port: int = 0,
    ) -> None:
        self.home = home
        self._wanted = port  # 0: a free one at each start
        self.log = home / "server.log"
        self.token = TOKEN
        self.port = 0
        self._args = args
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "KG_"))},
            "JUPYTER_TOKEN": TOKEN,
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "IPYTHONDIR": str(home / "ipython"),
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        self.command = command or (_PEER_COMMAND if PEER else _COMMAND)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the server, also for other commands of kbridge."""
        return self._env

    def _options(self, *args: str) -> list[str]:
        """Return the options of the server, and those of this start."""
        options = [*self._args, *args]
        given = any(option.startswith(_LINK_OPTION) for option in options)
        return options if given or not LINK else [*options, _LINK_OPTION + LINK]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Server:
        for name, code in _SPECS.items():
            spec = self.home / "data" / "kernels" / name / "kernel.json"
            spec.parent.mkdir(parents=True, exist_ok=True)
            argv = [sys.executable, "-c", code, "{connection_file}"]
            spec.write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))
        command = [*self.command, f"--port={self._wanted or free_port()}", *self._options()]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.home,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.port = eventually(self._listening, f"{' '.join(command)} listens")
        except AssertionError as late:
            self.kill()
            raise AssertionError(f"{late}\n{self.tail()}") from None
        return self

    def _listening(self) -> int:
        """Read the port from the runtime file, because the server may have used another one."""
        assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
        for path in (self.home / "runtime").glob(f"*-{self.process.pid}.json"):
            try:
                port = int(json.loads(path.read_text())["port"])
            except ValueError:  # half written
                continue
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return port
        return 0

    def tail(self, lines: int = 40) -> str:
        """Give the last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> int:
        """Stop the server with SIGTERM; return its exit code.

        Blocks. A coroutine whose event loop forwards the traffic of the server calls it in a
        thread: the server may end only after it has written something to its clients.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM did not end the server:\n{self.tail()}") from None

    def end(self, grace: float = 10.0) -> None:
        """Stop the server with SIGTERM; kill it if it still runs after `grace` seconds. Blocks.

        For Jupyter Server, whose process may never end by itself. It stops its event loop while
        requests are under way. A thread of anyio that read a file for one of them then waits
        forever for the end of that request, and the interpreter waits for the thread.
        """
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        self.kill()

    def kill(self) -> None:
        """Kill the server and all processes that it started."""
        kill_all(self)

    def kill_family(self) -> None:
        """Kill the server and its children, as the first half of `kill_all`."""
        if self._process is None:
            return
        family = []
        try:
            parent = psutil.Process(self.process.pid)
            family = [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            pass
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(TIMEOUT)

    def kill_kernels(self) -> None:
        """Kill the kernels that outlive a server that was killed, and are then not its children."""
        for process, _ in self.started():
            process.kill()
        eventually(lambda: not self.started(), "no kernel is left")

    def started(self) -> list[tuple[psutil.Process, str]]:
        """Return the running kernels of this server, with their connection files."""
        files = str(self.home / "runtime" / "kernel-")
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            ours = [a for a in process.info["cmdline"] or [] if a.startswith(files)]
            if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append((process, ours[-1]))
        return found

    def rss(self) -> int:
        """Return the resident memory of the server process in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def children(self) -> set[int]:
        """Return the pids of the running processes that the server has started."""
        return {p.pid for p in psutil.Process(self.process.pid).children(recursive=True)}

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Reply:
        """Send one REST request; `body` is sent as JSON unless it is bytes."""
        given = {"Authorization": f"token {token}"} if token is not None else {}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, data, {**given, **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    async def call(self, method: str, path: str, body: Any = None) -> Reply:
        """Make a `request` without blocking the event loop."""
        return await asyncio.to_thread(self.request, method, path, body)

    def start_kernel(self, name: str = "python3", **more: Any) -> str:
        """Start a kernel; return its id."""
        reply = self.request("POST", "/api/kernels", {"name": name, **more})
        assert reply.status == 201, f"{reply.status} {reply.body!r}\n{self.tail()}"
        return str(reply.json()["id"])

    def stop_kernel(self, kernel_id: str) -> None:
        """Shut a kernel down; ignore a kernel that has ended already."""
        reply = self.request("DELETE", f"/api/kernels/{kernel_id}")
        assert reply.status in {204, 404}, f"{reply.status} {reply.body!r}\n{self.tail()}"

    def assert_clean_log(self, *, foreign: bool = False) -> None:
        """Fail if the log has an internal error of the server, or the token.

        Kernels write to the same log. ipykernel reports errors of its own when it ends in the
        middle of a cell, and Python does when a kernel is interrupted before ipykernel is loaded.

        Parameters
        ----------
        foreign : bool
            True if the server has other extensions: only errors in code of kbridge count.
        """
        text = self.log.read_text(errors="replace")
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if "Traceback" in line and "[IPKernelApp] ERROR" not in lines[number - 1]:
                frames = _frames(lines[number + 1 :])
                if _is_of_kernel(frames) or (foreign and not _is_in(_KBRIDGE, frames)):
                    continue
                raise AssertionError("\n".join(lines[max(0, number - 20) : number + 40]))
        assert TOKEN not in text, "the log contains the token"


def _frames(lines: list[str]) -> list[str]:
    """Return the lines of the traceback that goes on in these lines of a log."""
    return list(itertools.takewhile(lambda line: not line.startswith("["), lines))


def _is_of_kernel(frames: list[str]) -> bool:
    """Return True if a kernel wrote a traceback, in ipykernel or because it was interrupted."""
    interrupted = "KeyboardInterrupt" in frames and not _is_in(_KBRIDGE, frames)
    return interrupted or _is_in("/ipykernel/", frames)


def _is_in(package: str, frames: list[str]) -> bool:
    """Return True if a traceback has code of a package, whose path has this part."""
    return any(package in line for line in frames if 'File "' in line)


def _ports() -> Iterator[int]:
    """Yield ports that no other process takes while a test has none of its servers on them.

    They are below the ephemeral range, so that kernels and clients do not use them. Each worker of
    pytest has its own ports. Two runs at the same time begin at different places.
    """
    try:
        end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:  # not Linux
        end = 32_768
    if end < 15_000:  # no room below it
        end = 32_768
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(end - 12_000 + worker, end, workers)
    yield from itertools.islice(itertools.cycle(ports), os.getpid() * 20 % len(ports), None)


_PORTS = _ports()


def free_port() -> int:
    """Return a free port on 127.0.0.1."""
    for port in _PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("unreachable: the ports are a cycle")


def gone(pid: int) -> bool:
    """Return True if a process has ended; a zombie counts as ended."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def kill_all(*servers: Server) -> None:
    """Kill servers and all processes that they started.

    Replicas are killed together: one that lives would start the kernels of the others again.
    """
    for server in servers:
        server.kill_family()
    for server in servers:
        server.kill_kernels()
