import asyncio
import dataclasses
import json
import logging
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient

from kbridge.cluster.ownership import Ownership
from kbridge.errors import Busy, Conflict, KernelStartError, ListenError, SetupError
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.cli.serve import serve
from kbridge.server.components import make_cluster
from kbridge.server.config import ClusterConfig, ListenConfig, ServerConfig
from kbridge.server.http.listen import TlsFiles
from kbridge.server.restart import inherited_sockets
from kbridge.server.runtime_file import running_servers
from kbridge.server.server import Server
from tests.support.waiting import TIMEOUT, until

TOKEN = "token-of-this-test"


class FakeWebsocket:
    def __init__(self) -> None:
        self.closed: list[tuple[int | None, str | None]] = []

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        self.closed.append((code, reason))


Make = Callable[..., Server]


@pytest.fixture
def app(tmp_path: Path) -> KbridgeApp:
    # With a separate logger, so that no console is set up for the whole test run.
    return KbridgeApp(
        log=logging.getLogger("kbridge.test.lifecycle"),
        runtime_dir=str(tmp_path / "runtime"),
        token=TOKEN,
        port=0,
    )


@pytest.fixture
async def make(app: KbridgeApp) -> AsyncIterator[Make]:
    """Make servers with settings that the keyword arguments change."""
    made: list[Server] = []

    def make(**settings: Any) -> Server:
        for name, value in settings.items():
            setattr(app, name, value)
        made.append(Server(app.configuration(), app.log))
        return made[-1]

    yield make
    for server in made:
        await server.aclose()


@pytest.fixture
def server(make: Make) -> Server:
    return make()


async def start(server: Server, app: KbridgeApp) -> BridgeKernelManager:
    """Start a server as `serve` does, and return its kernels."""
    kernels = await server.open()
    await app.prepare(kernels)
    server.accept()
    await kernels.open()
    return kernels


async def run(app: KbridgeApp) -> None:
    """Serve with the settings of `app` until a signal arrives."""
    await serve(app.configuration(), app, app.log)


async def get(url: str, **options: Any) -> Any:
    client = AsyncHTTPClient(force_instance=True)
    try:
        headers = {"Authorization": f"token {TOKEN}"}
        reply = await client.fetch(url, headers=headers, raise_error=False, **options)
    finally:
        client.close()
    return json.loads(reply.body)


# ruff: noqa: ASYNC240 - files of a test are near


async def test_open_and_close(app: KbridgeApp, server: Server) -> None:
    runtime = Path(app.runtime_dir)
    await start(server, app)
    assert server.url == f"http://127.0.0.1:{server.port}/"
    assert (await get(server.url + "api/status"))["kernels"] == 0
    [info] = running_servers(runtime)
    assert (info["port"], info["token"], info["url"]) == (server.port, TOKEN, server.url)
    await server.aclose()
    await server.aclose()
    assert list(runtime.glob("kbserver-*")) == []
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_the_live_view_ends_with_the_server(app: KbridgeApp, server: Server) -> None:
    await start(server, app)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"GET /api/live HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: token " + TOKEN.encode() + b"\r\n\r\n"
    )
    async with asyncio.timeout(TIMEOUT):
        event = (await reader.readuntil(b"\n\n")).split(b"data: ")[1]
    sample = json.loads(event)
    assert sample["kernels"] == []
    assert sample["websockets"] == 0
    assert sample["max_kernels"] is None
    await server.aclose()
    async with asyncio.timeout(TIMEOUT):
        assert (await reader.read()).endswith(b"0\r\n\r\n"), "the reply is complete"
    writer.close()


async def served(app: KbridgeApp, monkeypatch: pytest.MonkeyPatch) -> str:
    """Serve until the server is announced; return its URL."""
    urls: list[str] = []

    def stop(url: str) -> None:
        urls.append(url)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(app, "listening", stop)
    await asyncio.wait_for(run(app), TIMEOUT)
    return urls[0]


async def test_a_token_that_was_set_is_not_printed(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    url = await served(app, monkeypatch)
    shown = capsys.readouterr().out
    assert url in shown
    assert TOKEN not in shown


async def test_a_random_token_is_printed_once(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    app.token_is_random = True
    await served(app, monkeypatch)
    assert capsys.readouterr().out.count(TOKEN) == 1


@pytest.mark.parametrize(("origin", "who"), [("", "any client"), ("*", "any page in any browser")])
async def test_no_token_is_warned_about(
    app: KbridgeApp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    origin: str,
    who: str,
) -> None:
    app.token, app.allow_origin = "", origin
    url = await served(app, monkeypatch)
    assert f"authentication is off: {who} that reaches {url} can run code" in caplog.text


async def test_a_client_can_ask_for_the_shutdown(app: KbridgeApp, make: Make) -> None:
    server = make()
    await start(server, app)
    reply = await get(server.url + "api/shutdown", method="POST", body="{}")
    assert reply == {"message": "the server is shutting down"}
    assert server.shutdown_requested.is_set()


async def test_a_signal_does_not_wait_for_the_opening(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = asyncio.Event()

    async def never(self: Server, attached: Any) -> None:
        opening.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Server, "open", never)
    serving = asyncio.create_task(run(app))
    await asyncio.wait_for(opening.wait(), TIMEOUT)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(serving, TIMEOUT)


async def test_a_server_that_fails_to_open_is_closed(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Server, attached: Any) -> None:
        raise ListenError("nowhere")

    monkeypatch.setattr(Server, "open", fail)
    with pytest.raises(ListenError, match="nowhere"):
        await run(app)


async def test_the_shutdown_closes_websockets_before_it_waits_for_kernels(
    app: KbridgeApp, server: Server
) -> None:
    await start(server, app)
    parts = server._components
    assert parts is not None
    websocket = FakeWebsocket()
    parts.services.websockets.add(websocket)
    seen: list[Any] = []
    shut_down = parts.kernels.shutdown_all

    async def shutdown_all(now: bool = False) -> None:
        seen.append((list(websocket.closed), parts.services.closing, now))
        await shut_down(now)

    parts.kernels.shutdown_all = shutdown_all  # type: ignore[method-assign]
    await server.aclose()
    assert websocket.closed == [(1001, "the server is shutting down")]
    assert seen == [(websocket.closed, True, False)]


async def test_a_forced_shutdown_kills(app: KbridgeApp, server: Server) -> None:
    await start(server, app)
    parts = server._components
    assert parts is not None
    asked = asyncio.Event()
    calls: list[bool] = []

    async def shutdown_all(now: bool = False) -> None:
        calls.append(now)
        if not now:
            asked.set()
            await asyncio.Event().wait()

    parts.kernels.shutdown_all = shutdown_all  # type: ignore[method-assign]
    force = asyncio.Event()
    closing = asyncio.create_task(server.aclose(force))
    await asyncio.wait_for(asked.wait(), TIMEOUT)
    force.set()
    await asyncio.wait_for(closing, TIMEOUT)
    assert calls == [False, True]


async def test_kernels_that_cannot_be_shut_down_do_not_delay_the_shutdown(
    app: KbridgeApp, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await start(server, app)
    assert server._components is not None

    async def shutdown_all(now: bool = False) -> None:
        raise RuntimeError("no")

    server._components.kernels.shutdown_all = shutdown_all  # type: ignore[method-assign]
    await server.aclose()
    assert "could not be shut down" in caplog.text
    assert running_servers(Path(app.runtime_dir)) == []


async def test_a_fault_while_kernels_are_given_to_other_replicas_ends_no_kernel(
    app: KbridgeApp,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = make(cluster="lab", registry_url=f"sqlite:///{tmp_path / 'registry.sqlite'}")
    kernels = await start(server, app)
    ends: list[str] = []

    async def end(*, name: str) -> None:
        ends.append(name)

    async def fail(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    for name in ("leave_all", "shutdown_all"):
        monkeypatch.setattr(kernels, name, partial(end, name=name))
    monkeypatch.setattr(Ownership, "drain", fail)
    await server.aclose()
    assert ends == ["leave_all"]
    assert "a fault of ours" in caplog.text


async def test_a_unix_socket(app: KbridgeApp, make: Make, tmp_path: Path) -> None:
    server = make(sock=str(tmp_path / "s"))
    await start(server, app)
    path = Path(app.sock)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert server.url.startswith("http+unix://%2F")
    reader, writer = await asyncio.open_unix_connection(app.sock)
    writer.write(b"GET /api HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()
    await server.aclose()
    assert not path.exists()


async def test_a_random_token_stays_with_its_port(
    app: KbridgeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JUPYTER_TOKEN", "JUPYTER_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "runtime").mkdir()

    def new() -> Server:
        """Return the server of another program with the same command line."""
        program = KbridgeApp(log=app.log, runtime_dir=app.runtime_dir, port=0)
        return Server(program.configuration(), app.log)

    first = new()
    await start(first, app)
    await first.aclose(restart=True)
    second = new()
    await start(second, app)
    auth = second.config.auth
    assert second.port == first.port
    assert (auth.token, auth.cookie_secret) == (
        first.config.auth.token,
        first.config.auth.cookie_secret,
    )
    await second.aclose()
    third = new()
    await start(third, app)
    assert third.config.auth.token != auth.token
    await third.aclose()
    assert list((tmp_path / "runtime").glob("kbridge-credentials-*")) == []


async def test_requests_of_a_restart_share_one_check(
    app: KbridgeApp, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[int] = []
    release = threading.Event()

    def check() -> str:
        checks.append(1)
        assert release.wait(TIMEOUT)
        return "1.2"

    monkeypatch.setattr("kbridge.server.server.installed_version", check)
    await start(server, app)
    requests = [asyncio.create_task(server.request_restart()) for _ in range(3)]
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*requests) == ["1.2"] * 3
    assert len(checks) == 1
    assert server.restart_requested.is_set()


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernelspec `slow`, and the file that its process makes; it then waits for `begun.go`."""
    file = tmp_path / "begun"
    code = (
        "import pathlib, time\n"
        f"pathlib.Path({str(file)!r}).touch()\n"
        f"while not pathlib.Path({str(file) + '.go'!r}).exists(): time.sleep(0.01)\n"
    )
    spec = {"argv": [sys.executable, "-c", code], "display_name": "slow", "language": "python"}
    there = tmp_path / "data" / "kernels" / "slow" / "kernel.json"
    there.parent.mkdir(parents=True)
    there.write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    monkeypatch.setattr("kbridge.server.server.installed_version", lambda: "1.2")
    return file


async def waiting_restart(
    app: KbridgeApp, make: Make, begun: Path, caplog: pytest.LogCaptureFixture
) -> tuple[Server, BridgeKernelManager, asyncio.Task[str], asyncio.Task[str]]:
    """Request a restart while a kernel starts; return when the restart waits for it."""
    caplog.set_level("INFO")
    app.config.BridgeKernelManager.start_grace = TIMEOUT
    app.config.BridgeKernelManager.kernel_info_timeout = TIMEOUT
    server = make()
    kernels = await start(server, app)
    starting = asyncio.create_task(kernels.start_kernel("slow"))
    await until(begun.exists, "the process has begun")
    restarting = asyncio.create_task(server.request_restart(force=True))
    await until(lambda: "waits for 1 kernel(s) that are starting" in caplog.text, "it waits")
    return server, kernels, starting, restarting


async def test_a_restart_waits_for_kernels_that_are_starting(
    app: KbridgeApp, make: Make, begun: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, kernels, starting, restarting = await waiting_restart(app, make, begun, caplog)
    assert not server.restart_requested.is_set()
    Path(f"{begun}.go").touch()  # the process ends, and so does its start
    with pytest.raises(KernelStartError):
        await starting
    assert await restarting == "1.2"
    assert server.restart_requested.is_set()
    with pytest.raises(Busy):
        await kernels.start_kernel("slow")


async def test_a_restart_does_not_wait_for_starts_that_overlap(
    app: KbridgeApp, make: Make, begun: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, kernels, starting, restarting = await waiting_restart(app, make, begun, caplog)
    headers = {"Authorization": f"token {app.token}", "Content-Type": "application/json"}
    reply = await AsyncHTTPClient().fetch(
        f"{server.url}api/kernels",
        method="POST",
        headers=headers,
        body='{"name": "slow"}',
        raise_error=False,
    )
    assert (reply.code, reply.headers["Retry-After"]) == (503, "5")
    assert "about to be restarted" in json.loads(reply.body)["message"]
    with kernels.starting():  # a request that overlaps with the first one
        Path(f"{begun}.go").touch()
        with pytest.raises(KernelStartError):
            await starting
        assert await restarting == "1.2"


@pytest.mark.parametrize("force", [False, True])
async def test_a_restart_does_not_wait_without_end(
    app: KbridgeApp, make: Make, begun: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    app.config.BridgeKernelManager.start_grace = TIMEOUT
    app.config.BridgeKernelManager.kernel_info_timeout = TIMEOUT
    monkeypatch.setattr("kbridge.server.server._LONGEST_START", 0.01)
    server = make()
    kernels = await start(server, app)
    starting = asyncio.create_task(kernels.start_kernel("slow"))
    await until(begun.exists, "the process has begun")
    if force:
        await server.request_restart(force=True)
    else:
        with pytest.raises(Conflict, match=r"1 kernel\(s\) are still starting after 0.01 s"):
            await server.request_restart()
    assert server.restart_requested.is_set() is force
    Path(f"{begun}.go").touch()
    with pytest.raises(KernelStartError):
        await starting
    with pytest.raises(Busy if force else KernelStartError):  # which dies: it has been started
        await kernels.start_kernel("slow")


@pytest.mark.parametrize("change", ["nothing", "mode", "missing", "replaced"])
async def test_a_unix_socket_after_a_restart(
    app: KbridgeApp, make: Make, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "s"
    server = make(sock=str(path))
    await start(server, app)
    if change in ("missing", "replaced"):
        path.rename(tmp_path / "moved")
    if change == "replaced":
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(app.sock)
    await server.aclose(restart=True)
    server = make(sock_mode="0660" if change == "mode" else "0600")
    await start(server, app)
    assert stat.S_IMODE(path.stat().st_mode) == (0o660 if change == "mode" else 0o600)
    _, writer = await asyncio.open_unix_connection(app.sock)
    writer.close()
    await server.aclose()
    assert not path.exists()


async def test_a_socket_file_of_another_server_is_not_removed(
    app: KbridgeApp, make: Make, tmp_path: Path
) -> None:
    server = make(sock=str(tmp_path / "s"))
    await start(server, app)
    ours = Path(app.sock).rename(tmp_path / "moved")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(app.sock)
        await server.aclose()
        assert Path(app.sock).exists()
    assert ours.exists()


async def test_a_server_whose_port_is_in_use_fails_to_open(app: KbridgeApp, make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = make(port=taken.getsockname()[1], port_retries=0)
        with pytest.raises(ListenError):
            await start(server, app)
    await server.aclose()
    assert running_servers(Path(app.runtime_dir)) == []


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        (ListenConfig(ip=""), "http://127.0.0.1:1/b/"),
        (ListenConfig(ip="0.0.0.0"), "http://127.0.0.1:1/b/"),
        (ListenConfig(ip="::1"), "http://[::1]:1/b/"),
        (ListenConfig(ip="lab.example"), "http://lab.example:1/b/"),
        (ListenConfig(ip="lab.example", tls=TlsFiles("a.pem")), "https://lab.example:1/b/"),
        (ListenConfig(sock="/run/s"), "http+unix://%2Frun%2Fs/b/"),
    ],
)
def test_addresses_in_urls(listen: ListenConfig, url: str) -> None:
    assert listen.url(1, "/b/") == url


def test_a_configuration_is_frozen_and_shows_no_secret(app: KbridgeApp) -> None:
    config: ServerConfig = app.configuration()
    assert config.auth.token == TOKEN
    assert TOKEN not in repr(config)
    registry = dataclasses.replace(config, registry_url="postgresql://user:hunter2@host/db")
    assert "hunter2" not in repr(registry)
    with pytest.raises(FrozenInstanceError):
        config.base_url = "/"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("database", "ip", "advertised", "refused"),
    [
        ("db.example", "127.0.0.1", "", True),
        ("db.example", "127.0.0.1", "http://127.0.0.1:8888", False),
        ("db.example", "10.0.0.11", "", False),
        ("127.0.0.1", "127.0.0.1", "", False),
    ],
)
def test_a_loopback_address_is_refused_if_the_database_is_on_another_machine(
    app: KbridgeApp, database: str, ip: str, advertised: str, refused: bool
) -> None:
    config = dataclasses.replace(
        app.configuration(),
        listen=ListenConfig(ip=ip),
        registry_url=f"postgresql+psycopg://k:word@{database}/kb",
        cluster=ClusterConfig(name="lab", advertise_url=advertised),
    )
    if refused:
        with pytest.raises(SetupError, match=r"KbridgeApp\.advertise_url") as caught:
            make_cluster(config, 8888, logging.getLogger("test"))
        assert "http://127.0.0.1:8888" in str(caught.value)
        assert "word" not in str(caught.value)
    else:
        membership, _ = make_cluster(config, 8888, logging.getLogger("test"))
        assert membership.me.url.startswith(advertised or f"http://{ip}:8888")


async def test_signals_of_a_loop_that_has_none(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' loops know no `add_signal_handler`."""

    def missing(*_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", missing)
    opened = asyncio.Event()
    monkeypatch.setattr(app, "listening", lambda _url: opened.set())
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        running = asyncio.create_task(run(app))
        await asyncio.wait_for(opened.wait(), TIMEOUT)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(running, TIMEOUT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert running_servers(Path(app.runtime_dir)) == []


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="needs SIGUSR2")
async def test_signals_are_ignored_before_the_next_program_starts(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "listening", lambda _url: signal.raise_signal(signal.SIGUSR2))
    monkeypatch.setenv("KBRIDGE_SOCKETS", "")  # removed after the test
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR2)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    set_handler, handlers = signal.signal, []

    def record(number: int, handler: Any) -> Any:
        if number == signal.SIGUSR2:
            handlers.append(handler)
        return set_handler(number, handler)

    monkeypatch.setattr(signal, "signal", record)
    try:
        assert await asyncio.wait_for(serve(app.configuration(), app, app.log), TIMEOUT)
        assert [signal.getsignal(number) for number in before] == [signal.SIG_IGN] * 2
        assert signal.SIG_DFL not in handlers, "it would end the process at that moment"
    finally:
        monkeypatch.setattr(signal, "signal", set_handler)
        for number, handler in before.items():
            signal.signal(number, handler)
        assert inherited_sockets("another address") == []  # closes them


# Removes everything that Windows' Python lacks. Libraries come first: they choose
# by the platform, too.
_WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, socket, sys
import jupyter_client.adapter, jupyter_client.multikernelmanager, jupyter_client.session
import mcp.server.mcpserver, opentelemetry.sdk.trace.export
import jupyter_core.application, nbformat, tornado.httpserver, tornado.httpclient
import tornado.websocket, zmq.utils.monitor
sys.modules["fcntl"] = None
for module, names in (
    (signal, ["SIGHUP", "SIGKILL", "SIGUSR1"]),
    (socket, ["AF_UNIX"]),
    (os, ["O_NOFOLLOW", "fchmod", "getuid", "killpg"]),
):
    for name in names:
        delattr(module, name)
sys.platform = "win32"
import kbridge
for found in pkgutil.walk_packages(kbridge.__path__, "kbridge."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from kbridge.link.zmtp.address import usable
assert not usable("tcp")  # so that libzmq connects to kernels
"""


def test_everything_can_be_imported_without_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_POSIX], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
