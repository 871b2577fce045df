"""`jupyter console --existing` on kernels whose only other client is the bridge."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.client import KernelClient, attach
from tests.support.jupyter_server import jupyter_server
from tests.support.require import require
from tests.support.server import Server
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel

HOSTS: dict[str, Callable[[Path], Server]] = {
    "standalone": Server,
    "inside Jupyter Server": jupyter_server,
}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of either kind, without the settings of the user."""
    require("jupyter_console", "jupyter_server", "ipykernel")
    running = HOSTS[request.param](tmp_path)
    try:
        running.start()
        assert "kbridge" in running.log.read_text()
        yield running
    finally:
        running.kill()


class Console:
    """A `jupyter console` with input from the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.screen = ""

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def shows(self, text: str) -> None:
        """Wait until a text has arrived after the previous one."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(TIMEOUT):
                while text not in self.screen:
                    chunk = await self.process.stdout.read(4096)
                    assert chunk, f"the console has gone; before that: {self.screen!r}"
                    self.screen += chunk.decode()
        except TimeoutError:
            raise AssertionError(f"no {text!r} in {self.screen!r}") from None
        self.screen = self.screen.partition(text)[2]

    async def ends(self) -> int:
        async with asyncio.timeout(TIMEOUT):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def console_on(server: Server, kernel_id: str) -> AsyncIterator[Console]:
    """Open a console on a kernel, given the name of its connection file."""
    directories = {
        f"JUPYTER_{name.upper()}_DIR": str(server.home / name)
        for name in ("runtime", "data", "config")
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jupyter", "console", "--simple-prompt"),
        *("--existing", f"kernel-{kernel_id}.json"),
        env={**kept, **directories, "IPYTHONDIR": str(server.home), "PYTHONUNBUFFERED": "1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        console = Console(process)
        await console.shows("In [")
        yield console
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def overheard(ws: KernelClient, text: str) -> None:
    """Wait for the output of a request of another client."""
    *_, said = await ws.until(lambda m: m["content"].get("text", "").startswith(text))
    assert said["channel"] == "iopub"
    assert said["parent_header"]["session"] != ws.session
    await ws.finish(said["parent_header"]["msg_id"], reply=False)


async def test_a_console_and_a_browser_share_a_kernel(host: Server, dialect: str) -> None:
    kernel = host.start_kernel()
    async with attach(host, kernel, dialect) as ws:
        await ws.execute("import os; shared = 'of the browser'")
        before = (await ws.execute("print(os.getpid())")).text()
        async with console_on(host, kernel) as console:
            console.type("print('seen in the console,', shared)")
            await console.shows("seen in the console, of the browser")
            await overheard(ws, "seen in the console")

            console.type("shared = 'of the console, ' + input('what? ')")
            await console.shows("what? ")
            console.type("typed")
            await console.shows("In [")
            assert (await ws.execute("print(shared)")).text() == "of the console, typed\n"
            # Only the console received the prompt and the replies.
            heard = {
                m["channel"] for m in ws.seen if m["parent_header"].get("session") != ws.session
            }
            assert heard == {"iopub"}

            console.type("exit(keep_kernel=True)")
            await console.shows("keeping kernel alive")
            assert await console.ends() == 0
        assert (await ws.execute("print(os.getpid())")).text() == before
    model = host.request("GET", f"/api/kernels/{kernel}").json()
    assert model["execution_state"] == "idle"
    assert host.stop() == 0
    host.assert_clean_log()


async def test_a_console_that_shuts_down_its_kernel(host: Server) -> None:
    kernel = host.start_kernel()
    async with attach(host, kernel) as ws:
        before = (await ws.execute("import os; print(os.getpid())")).text()
        async with console_on(host, kernel) as console:
            console.type("exit")
            await console.shows("Shutting down kernel")
            assert await console.ends() == 0
        # A kernel that ended by itself is restarted; the websocket stays open.
        await ws.until(lambda m: m["content"].get("execution_state") == "restarting")
        after = (await ws.execute("import os; print(os.getpid())")).text()
    assert int(after) != int(before)
