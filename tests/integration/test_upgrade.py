"""`kbridge restart` and SIGUSR2: another program in the same process, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kbridge.link.holder.client import is_supported
from tests.integration.test_holder import ARGS, COUNT, ONE_THREAD, number_in, numbers
from tests.support.client import attach
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import LINK
from tests.support.waiting import TIMEOUT, eventually, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not is_supported() or LINK == "pyzmq", reason="connections do not stay"),
]

RESTARTING = (1012, "the server is restarting")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestartableServer]:
    require("ipykernel")
    made = RestartableServer(tmp_path, *ARGS)
    made.install("one_thread", ONE_THREAD)
    try:
        yield made
    finally:
        made.kill()


def info(server: RestartableServer) -> dict[str, Any]:
    """Return the content of the server's runtime file; empty while there is none."""
    for path in (server.home / "runtime").glob("kbserver-*.json"):
        with suppress(OSError):  # it is removed at this moment
            return dict(json.loads(path.read_text()))
    return {}


def restart(server: RestartableServer, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `kbridge restart`."""
    return subprocess.run(
        [sys.executable, "-m", "kbridge", "restart", str(server.port), *options],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
        check=False,
    )


async def restart_by(server: RestartableServer, how: str) -> None:
    before = info(server)["run"]
    if how == "command":
        done = await asyncio.to_thread(restart, server)
        assert done.returncode == 0, f"{done.stderr}\n{server.tail()}"
        assert done.stdout.startswith(f"restarted {server.port}: kbridge ")
    else:
        server.process.send_signal(signal.SIGUSR2)
        await until(lambda: info(server).get("run", before) != before, "the next program listens")
    assert server.process.poll() is None
    assert info(server)["pid"] == server.process.pid


@asynccontextmanager
async def knocking(server: RestartableServer) -> AsyncIterator[None]:
    """Send requests to the server, one after the other; fail if a connection is refused."""
    over = asyncio.Event()

    async def knock() -> None:
        while not over.is_set():
            # Connections that were accepted may be closed, but new ones must not be refused.
            with suppress(ConnectionResetError, BrokenPipeError):
                reply = await server.call("GET", "/api")
                assert reply.status in {200, 503}

    task = asyncio.create_task(knock())
    try:
        yield
    finally:
        over.set()
        await task


@pytest.mark.parametrize(
    ("how", "name", "named"),
    [("command", "python3", True), ("signal", "python3", False), ("command", "one_thread", True)],
)
async def test_no_line_is_lost(server: RestartableServer, how: str, name: str, named: bool) -> None:
    server.start()
    kernel = server.start_kernel(name)
    at = server.home / "at"
    lines = 6000
    async with attach(server, kernel, session="mine") as ws:
        msg_id = await ws.start(COUNT.format(lines=lines, rate=1000, at=str(at)))
        await ws.until(lambda m: "500" in m["content"].get("text", ""))
        async with knocking(server):
            restarting = asyncio.create_task(restart_by(server, how))
            assert await ws.closed() == RESTARTING
            seen = list(ws.seen)
            await restarting
    since = seen[-1]["header"]["msg_id"] if named else ""
    async with attach(server, kernel, session="mine", since=since) as ws:
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        assert done.text("stderr") == ""
        after = numbers(ws.seen)
    before = numbers(seen)
    if named:
        assert before + after == list(range(lines))
    else:
        assert after == list(range(after[0], lines))
        assert after[0] <= len(before)
    server.assert_clean_log()


async def test_what_would_be_lost_is_refused(tmp_path: Path) -> None:
    require("ipykernel")
    server = RestartableServer(tmp_path, "--ZMQChannelsWebsocketConnection.link=pyzmq")
    if LINK:
        pytest.skip("needs the link with libzmq")
    try:
        server.start()
        run = info(server)["run"]
        kernel = server.start_kernel()
        async with attach(server, kernel) as ws:
            refused = await asyncio.to_thread(restart, server)
            assert refused.returncode == 1
            for part in ("output, replies and input requests", kernel, "link is pyzmq", "--force"):
                assert part in refused.stderr
            server.process.send_signal(signal.SIGUSR2)
            await until(lambda: server.said("SIGUSR2: output, replies"), "the signal is refused")
            assert (await ws.execute("x = 3")).reply["status"] == "ok"
            assert info(server)["run"] == run
            forced = asyncio.create_task(asyncio.to_thread(restart, server, "--force"))
            assert await ws.closed() == RESTARTING
            assert (await forced).returncode == 0
        assert info(server)["run"] != run
        async with attach(server, kernel) as ws:
            assert (await ws.execute("print(x)")).text() == "3\n"
        server.assert_clean_log()
    finally:
        server.kill()


async def test_a_program_that_does_not_start_leaves_everything_to_the_next(
    server: RestartableServer,
) -> None:
    server.start()
    kernel = server.start_kernel()
    at = server.home / "at"
    async with attach(server, kernel, session="mine") as ws:
        msg_id = await ws.start(COUNT.format(lines=3000, rate=1000, at=str(at)))
        await ws.until(lambda m: "100" in m["content"].get("text", ""))
        config = server.home / "config" / "kbridge_config.py"
        config.parent.mkdir(exist_ok=True)
        config.write_text("raise SystemExit('a mistake of the operator')")
        server.process.send_signal(signal.SIGUSR2)
        assert await ws.closed() == RESTARTING
        seen = list(ws.seen)
    assert await asyncio.to_thread(server.process.wait, TIMEOUT) != 0
    eventually(lambda: number_in(at) == 2999, "all lines were printed")
    config.unlink()
    server.start()
    async with attach(server, kernel, session="mine", since=seen[-1]["header"]["msg_id"]) as ws:
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        assert numbers(seen) + numbers(ws.seen) == list(range(3000))


async def test_a_kernel_that_dies_after_a_restart_is_no_zombie(server: RestartableServer) -> None:
    server.start()
    kernel = server.start_kernel()
    [before] = server.kernels().values()
    await restart_by(server, "signal")
    psutil.Process(before).kill()
    eventually(lambda: set(server.kernels().values()) - {before}, "the kernel was restarted")
    eventually(lambda: not psutil.pid_exists(before), "the kernel was reaped")
    async with attach(server, kernel) as ws:
        assert (await ws.execute("print(1)")).text() == "1\n"


async def test_sigterm_ends_a_restart(server: RestartableServer) -> None:
    """A supervisor that stops the server must not find another one."""
    server.start()
    server.start_kernel()
    server.process.send_signal(signal.SIGUSR2)
    await until(lambda: server.said("restarting: kernels stay"), "it restarts")
    server.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(server.process.wait, TIMEOUT)
