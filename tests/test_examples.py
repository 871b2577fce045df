"""Each example runs unchanged (the page for a browser: tests/integration/test_browser.py)."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager
from websockets.exceptions import InvalidStatus

from kbridge import HubSettings, HubTable
from tests.support.client import SLEEP, dial
from tests.support.network import network_to
from tests.support.require import require
from tests.support.server import TOKEN, Server, free_port
from tests.support.waiting import TIMEOUT, eventually, until

pytestmark = pytest.mark.kernel

EXAMPLES = Path(__file__).parents[1] / "examples"
# The test of asgi.py is tests/test_asgi_example.py.
HELD = {"asgi.py", "browser.html", "client.py", "embed.py", "never_lost.py"}
# Print a line, wait for a file, print a hundred more lines.
IN_TWO_PARTS = """import pathlib, time
print("first")
while not pathlib.Path({gate!r}).exists(): time.sleep(0.01)
for n in range(100): print("line", n, flush=True)"""


def client(
    server: Server, code: str, *options: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "client.py"), server.url, *options, "--", code]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT)


def test_every_example_has_a_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == HELD


def test_the_client_prints_the_output(server: Server) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); print(input('who? ')); 6 * 7"
    done = client(server, code, "--token", TOKEN, stdin="me\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\nwho? me\n42\n"
    assert done.stderr == "err\n"


def test_the_client_uses_a_running_kernel(server: Server, kernel: str) -> None:
    options = ("--token", TOKEN, "--kernel-id", kernel)
    assert client(server, "-", *options, stdin="x = 'kept'").returncode == 0
    done = client(server, "x", *options)
    assert (done.returncode, done.stdout) == (0, "'kept'\n"), done.stderr
    failed = client(server, "1 / 0", *options)
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr


def test_the_client_shuts_down_the_kernel_that_it_started(server: Server) -> None:
    before = server.request("GET", "/api/kernels").json()
    done = client(server, "1 / 0", "--token", TOKEN, "--kernel", "python3")
    assert done.returncode == 1
    after = server.request("GET", "/api/kernels").json()
    assert {k["id"] for k in after} <= {k["id"] for k in before}


async def test_the_reconnecting_client_loses_no_message(server: Server, kernel: str) -> None:
    code = "import time\nfor n in range(2000): print('line', n, flush=True); time.sleep(0.001)"
    async with network_to(server.port) as network:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(EXAMPLES / "never_lost.py"), network.url, "--token", TOKEN),
            *(kernel, code),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            shown = b""
            async with asyncio.timeout(TIMEOUT):
                for number in (100, 200, 300, 600, 1000):
                    shown += await process.stdout.readuntil(b"line %d\n" % number)
                    await network.reset()
                rest, told = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, told
    assert (shown + rest).decode() == "".join(f"line {n}\n" for n in range(2000))
    assert told.count(b"lost the connection") == 5, told


class NeverLost:
    """A process of never_lost.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdout is not None
        self._stdout = process.stdout

    async def line(self) -> str:
        return (await asyncio.wait_for(self._stdout.readline(), TIMEOUT)).decode()

    async def end(self) -> tuple[int | None, str, str]:
        """Wait for the end; return the exit code and the rest of stdout and stderr."""
        out, err = await asyncio.wait_for(self._process.communicate(), TIMEOUT)
        return self._process.returncode, out.decode(), err.decode()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def never_lost(url: str, kernel: str, *more: str) -> AsyncIterator[NeverLost]:
    program = NeverLost(
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(EXAMPLES / "never_lost.py"), url, "--token", TOKEN, kernel),
            *more,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    )
    try:
        yield program
    finally:
        await program.kill()


async def test_a_client_that_was_away_gets_its_executions(
    server: Server, own_kernel: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    code = IN_TWO_PARTS.format(gate=str(gate))
    mine = "--session", "mine"
    async with never_lost(server.url, own_kernel, "print('of another session')") as program:
        assert await program.end() == (0, "of another session\n", "")
    async with never_lost(server.url, own_kernel, *mine, "6 * 7") as program:
        assert await program.end() == (0, "42\n", "")
    async with never_lost(server.url, own_kernel, *mine, code) as program:
        assert await program.line() == "first\n"
    async with (
        network_to(server.port) as network,
        never_lost(network.url, own_kernel, *mine) as program,
    ):
        shown = [await program.line() for _ in range(len(code.splitlines()) + 3)]
        whole = f"In [2]: 6 * 7\n42\nIn [3]: {code}\nfirst\n"
        assert "".join(shown) == whole
        await network.reset()
        gate.touch()
        exit_code, rest, told = await program.end()
    lines = "".join(f"line {n}\n" for n in range(100))
    assert (exit_code, rest) == (0, lines), told
    assert "lost the connection" in told
    async with never_lost(server.url, own_kernel, *mine) as program:
        assert await program.end() == (0, whole + lines, "")


async def test_an_execution_that_a_restart_of_its_kernel_ended_is_not_waited_for(
    server: Server, own_kernel: str, tmp_path: Path
) -> None:
    async with never_lost(server.url, own_kernel, f"print('on', flush=True)\n{SLEEP}") as first:
        assert await first.line() == "on\n"
        async with never_lost(server.url, own_kernel, "print('waits')") as second:
            await until_listed(server, own_kernel, 2)
            reply = await server.call("POST", f"/api/kernels/{own_kernel}/restart")
            assert reply.status == 200
            assert (await first.end())[0] == 0
            assert (await second.end())[0] == 0
    async with never_lost(server.url, own_kernel, "print('after')") as program:
        assert await program.end() == (0, "after\n", "")
    async with never_lost(server.url, own_kernel) as program:
        exit_code, shown, _ = await program.end()
    assert exit_code == 0
    assert shown.startswith("In [1]: print('on', flush=True)")
    assert shown.endswith("In [1]: print('after')\nafter\n")


async def until_listed(server: Server, kernel: str, count: int) -> None:
    """Wait until a kernel has a number of executions."""

    def listed() -> bool:
        reply = server.request("GET", f"/api/kernels/{kernel}/executions")
        return len(reply.json()) == count

    await asyncio.to_thread(eventually, listed, f"{count} executions")


async def test_the_embedder_serves_a_kernel(dialect: str) -> None:
    require("ipykernel")
    command = [sys.executable, str(EXAMPLES / "embed.py"), str(free_port()), "secret"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT)
        url = line.decode().strip()
        assert url.endswith("/channels?token=secret"), url
        with pytest.raises(InvalidStatus, match="403"):
            await dial(url.replace("secret", "guess"), dialect).__aenter__()
        async with dial(url, dialect) as one, dial(url, dialect) as two:
            done = await one.execute("print('embedded')")
            assert done.text() == "embedded\n"
            assert (await two.finish(done.msg_id, reply=False)).text() == "embedded\n"
            process.send_signal(signal.SIGTERM)
            assert (await one.closed())[0] == 1001
        assert await asyncio.wait_for(process.wait(), TIMEOUT) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def embed() -> Any:
    spec = importlib.util.spec_from_file_location("embed", EXAMPLES / "embed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_a_client_of_the_embedder_comes_back_and_sees_each_message_once(
    dialect: str, tmp_path: Path
) -> None:
    require("ipykernel")
    kernel = AsyncKernelManager(kernel_name="python3")
    await kernel.start_kernel()
    # Drop output as soon as every client has acknowledged it.
    hubs = HubTable(HubSettings(history_limit=0))
    port = free_port()
    server = embed().make_app(kernel, hubs, "secret").listen(port, "127.0.0.1")
    url = f"ws://127.0.0.1:{port}/channels?token=secret&session_id=s"
    gate = tmp_path / "gate"
    seen: list[dict[str, Any]] = []
    try:
        async with dial(url, dialect, session="s") as client:
            await client.execute("'warm'")
            msg_id = await client.start(IN_TWO_PARTS.format(gate=str(gate)))
            await client.until(lambda m: m["header"]["msg_type"] == "stream")
            seen += client.seen
            [hub] = hubs
            await until(lambda: hub.journal.nbytes == 0, "the journal is acknowledged")
            client.cut()
        await until(lambda: hub.connections == 0, "the client is gone")
        gate.touch()
        await until(lambda: hub.activity.execution_state == "idle", "the code has run")
        async with dial(url, dialect, session="s") as client:
            await client.finish(msg_id)
            await until(lambda: hub.journal.nbytes == 0, "the journal is acknowledged")
            seen += client.seen
            assert (await client.execute("'after'")).reply["status"] == "ok"
    finally:
        server.stop()
        await hubs.aclose()
        await kernel.shutdown_kernel(now=True)
    ids = [(m["channel"], m["header"]["msg_id"]) for m in seen]
    assert len(ids) == len(set(ids)), "a message came twice"
    of_code = [m for m in seen if m["parent_header"].get("msg_id") == msg_id]
    text = "".join(m["content"]["text"] for m in of_code if m["header"]["msg_type"] == "stream")
    assert text == "first\n" + "".join(f"line {n}\n" for n in range(100))
    types = [m["header"]["msg_type"] for m in of_code]
    assert types.count("execute_reply") == 1
    assert types.count("execute_input") == 1
