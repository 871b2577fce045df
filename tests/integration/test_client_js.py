"""kbridge.js in Node, against real servers and kernels."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kbridge.link.holder.client import is_supported
from tests.integration.test_holder import ARGS, COUNT, number_in
from tests.support.network import network_to
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import LINK, TOKEN, Server
from tests.support.waiting import TIMEOUT, until

pytestmark = pytest.mark.kernel

SCRIPT = Path(__file__).parent / "node" / "kbridge.mjs"
ROOT = Path(__file__).parents[2]
MODULE = ROOT / "client-js" / "kbridge.js"
SERVER_OPTIONS = ARGS
LINES = 1500
MEGABYTES = 48


class Client:
    """The script in Node, and the objects that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any] | None:
        """Return the next object; None at the end, which must be a success."""
        assert self.process.stdout is not None
        try:
            line = await asyncio.wait_for(self.process.stdout.readline(), TIMEOUT)
        except TimeoutError:
            raise AssertionError(f"nothing follows {self.said[-20:]}") from None
        if not line:
            assert await self.process.wait() == 0, self.said
            return None
        self.said.append(json.loads(line))
        return self.said[-1]

    async def until_line(self, number: int) -> None:
        """Wait until the client has received so many lines."""
        while (said := await self.next()) is not None:
            if said.get("lines", 0) > number:
                return
        raise AssertionError(self.said)

    async def until_open(self, times: int) -> None:
        """Wait until a websocket has been opened so many times."""
        while sum(each.get("connection") == "open" for each in self.said) < times:
            assert await self.next() is not None, self.said

    async def finish(self) -> dict[str, Any]:
        """Wait for the end; return the last object."""
        while await self.next() is not None:
            pass
        return self.said[-1]


def node_command() -> list[str]:
    """Return Node, with websockets, which were behind an option until Node 22."""
    node = require("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    flags = ["--experimental-websocket"] if int(version[1:].split(".")[0]) < 22 else []
    return [node, "--no-warnings", *flags]


@asynccontextmanager
async def client(url: str, scenario: str, code: str = "") -> AsyncIterator[Client]:
    """Run a scenario of the script."""
    process = await asyncio.create_subprocess_exec(
        *(*node_command(), str(SCRIPT), scenario),
        stdout=subprocess.PIPE,
        limit=1 << 24,
        env={
            "PATH": os.environ["PATH"],
            "KBRIDGE_MODULE": MODULE.as_uri(),
            "KBRIDGE_URL": url,
            "KBRIDGE_TOKEN": TOKEN,
            "KBRIDGE_CODE": code,
        },
    )
    try:
        yield Client(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def assert_counted(page: Client) -> None:
    """Check that a cell's lines arrived, each once and in order, and nothing else."""
    await page.finish()
    [said] = [each for each in page.said if "text" in each]
    assert said == {"text": "".join(f"{number}\n" for number in range(LINES)), "status": "ok"}


@pytest.mark.slow
async def test_every_method_does_what_it_says(server: Server) -> None:
    async with client(server.url, "methods") as page:
        await page.finish()
    said: dict[str, Any] = {}
    for each in page.said:
        said.update(each)
    assert said == {
        "text": "héllo\n",
        "types": ["execute_input", "stream", "execute_result"],
        "result": {
            "status": "ok",
            "executionCount": 1,
            "userExpressions": {},
            "payload": [],
            "error": None,
        },
        "status": "error",
        "error": "ZeroDivisionError",
        "answered": "who? \n",
        "matches": True,
        "found": True,
        "complete": "incomplete",
        "language": "python",
        "history": "print(input('who? '))",
        "echo": {"got": {"a": 1}},
        "buffer": [1, 2, 255],
        "listed": True,
        "state": "done",
        "followed": ["execute_input", "from a cell\n"],
        "followedResult": "ok",
        "unknown": "NotFound",
        "interrupted": "KeyboardInterrupt",
        "restarted": "KernelDied",
        "afterwards": 1,
        "shutDown": "KernelDied",
        "gone": "NotFound",
        "token": "Forbidden",
        "spec": "NotFound",
    }


# Prints numbered lines in parts. After each part but the last, it waits for a file.
IN_PARTS = """\
import pathlib, time
for i in range({lines}):
    print(i, flush=True)
    while (i + 1) % {part} == 0 and i + 1 < {lines}:
        if pathlib.Path({gate!r} + str((i + 1) // {part})).exists():
            break
        time.sleep(0.01)
"""


@pytest.mark.slow
async def test_a_network_that_breaks_loses_and_repeats_nothing(
    server: Server, tmp_path: Path
) -> None:
    part = LINES // 3
    gates = [tmp_path / "gate1", tmp_path / "gate2"]
    code = IN_PARTS.format(lines=LINES, part=part, gate=str(tmp_path / "gate"))
    async with network_to(server.port) as network, client(network.url, "count", code) as page:
        for number, gate in enumerate(gates):
            await page.until_line(number * part + part // 4)
            await network.reset()
            await page.until_open(number + 2)
            gate.touch()
        await assert_counted(page)


@pytest.mark.slow
@pytest.mark.skipif(not is_supported() or LINK == "pyzmq", reason="connections do not stay")
async def test_a_server_that_is_killed_in_mid_run_loses_and_repeats_nothing(
    own_server: RestartableServer,
) -> None:
    own_server.start()
    at = own_server.home / "at"
    code = COUNT.format(lines=LINES, rate=500, at=str(at))
    async with client(own_server.url, "count", code) as page:
        await page.until_line(100)
        own_server.crash()
        missed = min(number_in(at) + LINES // 5, LINES - 1)
        await until(lambda: number_in(at) >= missed, "more lines were printed")
        await asyncio.to_thread(own_server.start)
        await assert_counted(page)
    own_server.assert_clean_log()


async def test_a_program_that_reads_slowly_receives_everything(server: Server) -> None:
    code = (
        "from IPython.display import display\n"
        f"for i in range({MEGABYTES}):\n"
        "    display({'text/plain': f'{i:09}' + 'x' * 1_000_000}, raw=True)\n"
    )
    async with client(server.url, "lag", code) as page:
        last = await page.finish()
    assert page.said[0] == {"paused": True}
    assert last == {"numbers": list(range(MEGABYTES)), "status": "ok"}


@pytest.mark.parametrize("page", ["docs/client-js.md", "client-js/README.md"])
def test_the_snippets_of_the_documentation_print_what_they_say(
    page: str, server: Server, tmp_path: Path
) -> None:
    snippets = re.findall(r"^```js\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    said = re.findall(r"console\.log\(.*\); // (.+)$", "\n".join(snippets), re.MULTILINE)
    assert said
    code = "\n".join(["const token = process.env.JUPYTER_TOKEN;", *snippets, "server.close();"])
    for name in ("http://localhost:8888/kbridge.js", "'kbridge'"):
        code = code.replace(name, MODULE.as_uri() if "http" in name else f"'{MODULE.as_uri()}'")
    script = tmp_path / "snippets.mjs"
    script.write_text(code.replace("http://localhost:8888", server.url))
    done = subprocess.run(
        [*node_command(), script],
        env={"PATH": os.environ["PATH"], "JUPYTER_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [line for line in done.stdout.splitlines() if line]
    assert printed == [word for comment in said for word in comment.split(", ")]
