import asyncio
import json
import logging
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient

from kbridge.errors import ListenError
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.lifecycle import Server, serve
from kbridge.server.runtime_file import running_servers

TOKEN = "token-of-this-test"


class FakeWebsocket:
    def __init__(self) -> None:
        self.closed: list[tuple[int | None, str | None]] = []

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        self.closed.append((code, reason))


@pytest.fixture
def app(tmp_path: Path) -> KbridgeApp:
    # Under a logger of its own, so that no console is set up for the whole test run.
    return KbridgeApp(
        log=logging.getLogger("kbridge.test.lifecycle"),
        runtime_dir=str(tmp_path / "runtime"),
        token=TOKEN,
        port=0,
    )


@pytest.fixture
async def server(app: KbridgeApp) -> AsyncIterator[Server]:
    server = Server(app)
    yield server
    await server.aclose()


async def get(url: str, **options: Any) -> Any:
    client = AsyncHTTPClient(force_instance=True)
    try:
        headers = {"Authorization": f"token {TOKEN}"}
        reply = await client.fetch(url, headers=headers, raise_error=False, **options)
    finally:
        client.close()
    return json.loads(reply.body)


# ruff: noqa: ASYNC240 - files of a test are near


async def test_open_and_close(app: KbridgeApp, server: Server, capsys: Any) -> None:
    runtime = Path(app.runtime_dir)
    await server.open()
    assert server.url == f"http://127.0.0.1:{server.port}/"
    assert (await get(server.url + "api/status"))["kernels"] == 0
    [info] = running_servers(runtime)
    assert (info["port"], info["token"], info["url"]) == (server.port, TOKEN, server.url)
    assert TOKEN not in capsys.readouterr().out, "who gave the token knows it"
    await server.aclose()
    await server.aclose()
    assert list(runtime.glob("kbserver-*")) == []
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_a_random_token_is_printed_once(app: KbridgeApp, server: Server, capsys: Any) -> None:
    app.token_is_random = True
    await server.open()
    assert capsys.readouterr().out.count(TOKEN) == 1


async def test_no_token_is_warned_about(
    app: KbridgeApp, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    app.token = ""
    await server.open()
    assert "no token is asked for: whoever" in caplog.text


async def test_a_signal_does_not_wait_for_the_opening(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = asyncio.Event()

    async def never(self: Server) -> None:
        opening.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Server, "open", never)
    serving = asyncio.create_task(serve(app))
    await asyncio.wait_for(opening.wait(), 10)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(serving, 10)


async def test_what_fails_to_open_is_raised_and_closed(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Server) -> None:
        raise ListenError("nowhere")

    monkeypatch.setattr(Server, "open", fail)
    with pytest.raises(ListenError, match="nowhere"):
        await serve(app)


async def test_the_end_closes_websockets_before_it_waits_for_kernels(server: Server) -> None:
    await server.open()
    wired = server._wired
    assert wired is not None
    websocket = FakeWebsocket()
    wired.services.websockets.add(websocket)
    seen: list[Any] = []
    shut_down = wired.kernels.shutdown_all

    async def shutdown_all(now: bool = False) -> None:
        seen.append((list(websocket.closed), wired.services.closing, now))
        await shut_down(now)

    wired.kernels.shutdown_all = shutdown_all  # type: ignore[method-assign]
    await server.aclose()
    assert websocket.closed == [(1001, "the server is shutting down")]
    assert seen == [(websocket.closed, True, False)]


async def test_a_hurry_kills(server: Server) -> None:
    await server.open()
    wired = server._wired
    assert wired is not None
    asked = asyncio.Event()
    calls: list[bool] = []

    async def shutdown_all(now: bool = False) -> None:
        calls.append(now)
        if not now:
            asked.set()
            await asyncio.Event().wait()

    wired.kernels.shutdown_all = shutdown_all  # type: ignore[method-assign]
    hurry = asyncio.Event()
    closing = asyncio.create_task(server.aclose(hurry))
    await asyncio.wait_for(asked.wait(), 10)
    hurry.set()
    await asyncio.wait_for(closing, 10)
    assert calls == [False, True]


async def test_kernels_that_cannot_be_shut_down_do_not_keep_the_rest(
    app: KbridgeApp, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.open()
    assert server._wired is not None

    async def shutdown_all(now: bool = False) -> None:
        raise RuntimeError("no")

    server._wired.kernels.shutdown_all = shutdown_all  # type: ignore[method-assign]
    await server.aclose()
    assert "could not be shut down" in caplog.text
    assert running_servers(Path(app.runtime_dir)) == []


async def test_a_unix_socket(app: KbridgeApp, server: Server, tmp_path: Path) -> None:
    app.sock = str(tmp_path / "s")
    await server.open()
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


async def test_a_socket_that_took_our_place_is_left(
    app: KbridgeApp, server: Server, tmp_path: Path
) -> None:
    app.sock = str(tmp_path / "s")
    await server.open()
    ours = Path(app.sock).rename(tmp_path / "moved")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(app.sock)
        await server.aclose()
        assert Path(app.sock).exists()
    assert ours.exists()


async def test_nowhere_to_listen(app: KbridgeApp, server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        app.port, app.port_retries = taken.getsockname()[1], 0
        with pytest.raises(ListenError):
            await server.open()
    await server.aclose()
    assert running_servers(Path(app.runtime_dir)) == []


async def test_addresses_in_urls(app: KbridgeApp) -> None:
    server = Server(app)
    server.port = 1
    for ip, url in (
        ("", "http://127.0.0.1:1/"),
        ("0.0.0.0", "http://127.0.0.1:1/"),
        ("::1", "http://[::1]:1/"),
        ("lab.example", "http://lab.example:1/"),
    ):
        app.ip = ip
        assert server._make_url(secure=False) == url
    app.base_url = "/b"
    assert server._make_url(secure=True) == "https://lab.example:1/b/"


async def test_signals_of_a_loop_that_has_none(
    app: KbridgeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' loops know no `add_signal_handler`."""

    def missing(*_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", missing)
    opened = asyncio.Event()
    usual = Server.open

    async def tell(self: Server) -> None:
        await usual(self)
        opened.set()

    monkeypatch.setattr(Server, "open", tell)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        running = asyncio.create_task(serve(app))
        await asyncio.wait_for(opened.wait(), 20)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(running, 20)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert running_servers(Path(app.runtime_dir)) == []


# What is missing in Windows' Python, taken away from this one. Libraries come first: they choose
# by the platform, too.
_WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, socket, sys
import jupyter_client.adapter, jupyter_client.multikernelmanager, jupyter_client.session
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
"""


def test_everything_can_be_imported_without_posix() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_POSIX], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
