"""Each example runs, as it stands (the page for a browser: tests/integration/test_browser.py)."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.client import dial
from tests.support.network import network_to
from tests.support.require import require
from tests.support.server import TOKEN, Server, free_port
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel

EXAMPLES = Path(__file__).parents[1] / "examples"
HELD = {"browser.html", "client.py", "embed.py", "never_lost.py"}


def client(
    server: Server, code: str, *options: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "client.py"), server.url, *options, "--", code]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT)


def test_every_example_is_held_by_a_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == HELD


def test_the_client_prints_what_comes(server: Server) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); print(input('who? ')); 6 * 7"
    done = client(server, code, "--token", TOKEN, stdin="me\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\nwho? me\n42\n"
    assert done.stderr == "err\n"


def test_the_client_uses_a_kernel_that_runs(server: Server, kernel: str) -> None:
    options = ("--token", TOKEN, "--kernel-id", kernel)
    assert client(server, "-", *options, stdin="x = 'kept'").returncode == 0
    done = client(server, "x", *options)
    assert (done.returncode, done.stdout) == (0, "'kept'\n"), done.stderr
    failed = client(server, "1 / 0", *options)
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr


def test_the_client_shuts_down_what_it_started(server: Server) -> None:
    before = server.request("GET", "/api/kernels").json()
    done = client(server, "1 / 0", "--token", TOKEN, "--kernel", "python3")
    assert done.returncode == 1
    after = server.request("GET", "/api/kernels").json()
    assert {k["id"] for k in after} <= {k["id"] for k in before}


async def test_what_is_never_lost(server: Server, kernel: str) -> None:
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


async def test_the_embedder(dialect: str) -> None:
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
