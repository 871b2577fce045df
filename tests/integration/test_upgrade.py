"""`kbridge restart` and SIGUSR2: another program in the same process, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kbridge.link.holder.client import is_supported
from tests.integration.test_holder import (
    ARGS,
    FULL_DISK,
    ONE_THREAD,
    assert_whole,
    number_in,
    numbers,
)
from tests.support.client import attach
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import LINK, LINK_PYZMQ, kill_all
from tests.support.waiting import TIMEOUT, eventually, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not is_supported() or LINK == "pyzmq", reason="connections do not stay"),
]

# Prints numbered lines until a file exists, then {after} more of them, and writes their number.
# However long a restart takes, the cell runs before and after it.
COUNT_ON = """\
import pathlib, time
go, at = pathlib.Path({go!r}), pathlib.Path({at!r})
start, i, end = time.monotonic(), 0, None
while end is None or i < end:
    print(i, flush=True)
    i += 1
    if end is None and go.exists():
        end = i + {after}
    time.sleep(max(0, start + i / 500 - time.monotonic()))
at.write_text(str(i))
"""
SERVER_OPTIONS = ARGS
RESTARTING = (1012, "the server is restarting")


@pytest.fixture
def server(own_server: RestartableServer) -> RestartableServer:
    own_server.install("one_thread", ONE_THREAD)
    return own_server


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
        await until(
            lambda: server.process.poll() or info(server).get("run", before) != before,
            "the next program listens",
        )
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
    at, go = server.home / "at", server.home / "go"
    async with attach(server, kernel, session="mine") as ws:
        msg_id = await ws.start(COUNT_ON.format(go=str(go), at=str(at), after=500))
        await ws.until(lambda m: "500" in m["content"].get("text", ""))
        async with knocking(server):
            restarting = asyncio.create_task(restart_by(server, how))
            assert await ws.closed() == RESTARTING
            seen = list(ws.seen)
            await restarting
    go.touch()
    since = seen[-1]["header"]["msg_id"] if named else ""
    async with attach(server, kernel, session="mine", since=since) as ws:
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        assert done.text("stderr") == ""
        after = numbers(ws.seen)
    before, lines = numbers(seen), number_in(at)
    assert_whole(before, after, lines, named=named)
    server.assert_clean_log()


async def test_a_kernel_that_is_starting_is_waited_for(server: RestartableServer) -> None:
    go = server.home / "go"
    code = (
        f"import pathlib, runpy, sys, time\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        f"sys.argv = ['', *sys.argv[1:]]\n"
        f"runpy.run_path({str(ONE_THREAD)!r}, run_name='__main__')\n"
    )
    server.install("slow", code)
    server.start(
        "--BridgeKernelManager.start_grace=180", "--BridgeKernelManager.kernel_info_timeout=180"
    )
    starting = asyncio.create_task(server.call("POST", "/api/kernels", {"name": "slow"}))
    await until(server.kernels, "the process has begun")
    before = info(server)["run"]
    server.process.send_signal(signal.SIGUSR2)
    await until(lambda: server.said("waits for 1 kernel(s) that are starting"), "it waits")
    go.touch()
    reply = await starting
    assert reply.status == 201
    await until(lambda: info(server).get("run", before) != before, "the next program listens")
    kernel = reply.json()["id"]
    async with attach(server, kernel) as ws:
        assert (await ws.execute("print(1 + 1)")).text() == "2\n"
    server.assert_clean_log()


async def test_what_would_be_lost_is_refused(tmp_path: Path) -> None:
    require("ipykernel")
    server = RestartableServer(tmp_path, LINK_PYZMQ)
    try:
        server.start()
        run = info(server)["run"]
        kernel = server.start_kernel()
        async with attach(server, kernel) as ws:
            refused = await asyncio.to_thread(restart, server)
            assert refused.returncode == 1
            for part in ("output, replies and input requests", kernel, "link is pyzmq", "--force"):
                assert part in refused.stderr
            assert refused.stderr.startswith("not restarted: output, replies")
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


async def test_a_replica_gives_its_kernels_away_before_it_is_restarted(tmp_path: Path) -> None:
    require("ipykernel", "sqlalchemy")
    options = ("--cluster=lab", f"--registry-url=sqlite:///{tmp_path / 'registry.sqlite'}")
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    first, second = (RestartableServer(home, *options, "--drain-seconds=0") for home in homes)
    try:
        first.start()
        run = info(first)["run"]
        kernel = first.start_kernel()
        async with attach(first, kernel) as ws:
            assert (await ws.execute("x = 3; print(x)")).text() == "3\n"
            refused = await asyncio.to_thread(restart, first)
            assert refused.returncode == 1
            for part in (kernel, "no other replica of the cluster", "--force"):
                assert part in refused.stderr
            assert info(first)["run"] == run
            await asyncio.to_thread(second.start)
            await until(lambda: second.said(f"Following kernel {kernel}"), "it follows")
            restarted = asyncio.create_task(asyncio.to_thread(restart, first))
            assert await ws.closed() == RESTARTING
            done = await restarted
            assert done.returncode == 0, done.stderr
        assert info(first)["run"] != run
        await until(lambda: second.said(f"Kernel taken over: {kernel}"), "it was taken over")
        async with attach(second, kernel) as ws:
            assert (await ws.execute("print(x)")).text() == "3\n"
        # The restarted replica is in the cluster again, so the other one can be restarted, too.
        await until(
            lambda: first.log.read_text().count(f"Following kernel {kernel}") == 1, "it follows"
        )
        assert (await asyncio.to_thread(restart, second)).returncode == 0
        await until(lambda: first.said(f"Kernel taken over: {kernel}"), "it has the kernel again")
        async with attach(first, kernel) as ws:
            assert (await ws.execute("print(x)")).text() == "3\n"
        assert len(first.started()) == 1
        for server in (first, second):
            server.assert_clean_log()
    finally:
        kill_all(first, second)


async def test_output_in_memory_only_is_not_given_up(tmp_path: Path) -> None:
    require("ipykernel")
    server = RestartableServer(tmp_path, *ARGS, FULL_DISK)
    try:
        server.start()
        run = info(server)["run"]
        kernel = server.start_kernel()
        async with attach(server, kernel) as ws:
            await ws.execute("print(1)")
            await until(
                lambda: server.request("GET", "/api/status?statistics=1").json()["journals"][
                    "failing_kernels"
                ],
                "the journal is in memory only",
            )
            refused = await asyncio.to_thread(restart, server)
            assert refused.returncode == 1
            assert "journals cannot be written" in refused.stderr
            assert (await ws.execute("print(2)")).text() == "2\n"
        assert info(server)["run"] == run
    finally:
        server.kill()


async def test_a_signal_does_not_end_a_server_that_starts(server: RestartableServer) -> None:
    """`systemctl reload` may be called right after the start."""
    config = server.home / "config" / "kbridge_config.py"
    config.parent.mkdir(exist_ok=True)
    config.write_text("import os, signal; os.kill(os.getpid(), signal.SIGUSR2)")
    server.start()
    server.start_kernel()


async def test_an_ignored_interrupt_stays_ignored(server: RestartableServer) -> None:
    """As of a server that a script has started in the background: Ctrl-C is for others."""
    server.command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *server.command]
    server.start()
    await restart_by(server, "signal")
    server.process.send_signal(signal.SIGINT)
    await restart_by(server, "signal")  # and it was not shut down
    assert server.said("SIGINT") == 0


async def test_a_program_that_does_not_start_leaves_everything_to_the_next(
    server: RestartableServer,
) -> None:
    server.start()
    kernel = server.start_kernel()
    at, go = server.home / "at", server.home / "go"
    async with attach(server, kernel, session="mine") as ws:
        msg_id = await ws.start(COUNT_ON.format(go=str(go), at=str(at), after=1500))
        await ws.until(lambda m: "100" in m["content"].get("text", ""))
        config = server.home / "config" / "kbridge_config.py"
        config.parent.mkdir(exist_ok=True)
        config.write_text("raise SystemExit('a mistake of the operator')")
        server.process.send_signal(signal.SIGUSR2)
        assert await ws.closed() == RESTARTING
        seen = list(ws.seen)
    assert await asyncio.to_thread(server.process.wait, TIMEOUT) != 0
    go.touch()
    eventually(at.exists, "all lines were printed")
    config.unlink()
    server.start()
    async with attach(server, kernel, session="mine", since=seen[-1]["header"]["msg_id"]) as ws:
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        assert numbers(seen) + numbers(ws.seen) == list(range(number_in(at)))


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
