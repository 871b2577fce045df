"""`kbridge mcp` as programs start it: on stdin and stdout, with real servers and kernels."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, ImageContent

from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel

PIXEL = (  # a PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


@asynccontextmanager
async def model(env: dict[str, str], *args: str) -> AsyncIterator[Client]:
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "kbridge", "mcp", *args], env=env
    )
    async with asyncio.timeout(TIMEOUT), Client(command) as client:
        yield client


@pytest.fixture
def named(server: Server) -> dict[str, str]:
    """The environment that names the shared server."""
    return {**os.environ, "KBRIDGE_URL": server.url, "KBRIDGE_TOKEN": TOKEN}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """An empty directory for temporary files, whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def alone(tmp_path: Path, temporary: Path) -> dict[str, str]:
    """The environment of a user without a server."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "KBRIDGE"))}
    folders = {
        f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("RUNTIME", "CONFIG", "DATA")
    }
    return {**env, **folders, "JUPYTER_PLATFORM_DIRS": "1", "TMPDIR": str(temporary)}


def text(result: CallToolResult, index: int = 0) -> str:
    part = result.content[index]
    assert part.type == "text"
    return part.text


def execution_id(result: CallToolResult) -> str:
    return text(result, -1).removeprefix("[execution ").partition(". ")[0]


async def test_a_conversation(named: dict[str, str], server: Server) -> None:
    async with model(named) as client:
        started = await client.call_tool("start_kernel", {"env": {"KERNEL_GREETING": "hello"}})
        kernel = {"kernel_id": json.loads(text(started))["kernel_id"]}

        async def run(code: str, **more: Any) -> CallToolResult:
            return await client.call_tool("run_code", {**kernel, "code": code, **more})

        progress: list[str | None] = []

        async def note(_done: float, _total: float | None, message: str | None) -> None:
            progress.append(message)

        greeting = await client.call_tool(
            "run_code",
            {**kernel, "code": "import os; print(os.environ['KERNEL_GREETING'])\n6 * 7"},
            progress_callback=note,
        )
        assert text(greeting) == "hello\n42\n"
        assert not greeting.is_error

        shown = await run(
            "from IPython.display import Image, display\nimport base64\n"
            f"display(Image(base64.b64decode('{PIXEL}')))"
        )
        assert isinstance(shown.content[0], ImageContent)
        assert shown.content[0].mime_type == "image/png"

        failed = await run("1 / 0")
        assert failed.is_error
        assert text(failed).endswith("ZeroDivisionError: division by zero\n")
        assert "\x1b" not in text(failed)

        asked = await run("print('hello', input('Name: '))")
        assert "prompt 'Name: '" in text(asked, -1)
        answer = {**kernel, "execution_id": execution_id(asked), "text": "Ada"}
        assert text(await client.call_tool("answer_input", answer)) == "hello Ada\n"

        endless = await run("print('begun')\nwhile True: pass", timeout=0)
        assert "still running" in text(endless, -1)

    # Another conversation, as after a restart of the model's program.
    async with model(named) as client:
        [last] = json.loads(text(await client.call_tool("list_executions", {**kernel, "limit": 1})))
        assert last["id"] == execution_id(endless)
        await client.call_tool("interrupt_kernel", kernel)
        wait = {**kernel, "execution_id": last["id"], "timeout": TIMEOUT}
        ended = await client.call_tool("read_output", wait)
        assert ended.is_error
        assert text(ended).startswith("begun\n")
        assert "KeyboardInterrupt" in text(ended)
        assert not (await client.call_tool("shutdown_kernel", kernel)).is_error


async def server_of(client: Client) -> int:
    """Start a kernel; return the process id of the server that has started it."""
    started = await client.call_tool("start_kernel", {})
    kernel_id = json.loads(text(started))["kernel_id"]
    code = {"kernel_id": kernel_id, "code": "import os; print(os.getppid())"}
    return int(text(await client.call_tool("run_code", code)))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_without_a_server_it_starts_one_and_ends_it(alone: dict[str, str]) -> None:
    async with model(alone) as client:
        pid = await server_of(client)
        listing = [sys.executable, "-m", "kbridge", "list", "--json"]
        listed = await asyncio.to_thread(subprocess.check_output, listing, env=alone)
        assert listed == b"", "other programs do not use it"
    await asyncio.to_thread(eventually, lambda: ended(pid), "the server has ended")


@pytest.mark.skipif(sys.platform != "linux", reason="needs the signal of Linux")
async def test_its_server_ends_when_it_is_killed(alone: dict[str, str], temporary: Path) -> None:
    with suppress(Exception):  # the connection breaks
        async with model(alone) as client:
            pid = await server_of(client)
            psutil.Process(pid).parent().kill()
    await asyncio.to_thread(eventually, lambda: ended(pid), "the server has ended")
    [left] = names(temporary)
    async with model(alone) as client:
        await server_of(client)
        assert left not in names(temporary), "the next one removes the directory"
    assert not names(temporary)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_nothing_is_left_of_its_server_after_sigterm(
    alone: dict[str, str], temporary: Path
) -> None:
    command = [sys.executable, "-m", "kbridge", "mcp"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=alone, **pipes) as process:
        eventually(lambda: [*temporary.glob("kbridge-mcp-*/kbserver-*.json")], "the server runs")
        process.terminate()
        assert process.wait(TIMEOUT) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert not [*temporary.glob("kbridge-mcp-*")]


def test_a_client_that_has_ended_is_no_error(named: dict[str, str]) -> None:
    command = [sys.executable, "-m", "kbridge", "mcp"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=named, **pipes) as process:
        assert process.stdout is not None
        process.stdout.close()
        about = {"protocolVersion": "2025-06-18", "capabilities": {}}
        about["clientInfo"] = {"name": "a", "version": "1"}
        request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
        _, errors = process.communicate(json.dumps(request).encode() + b"\n", timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, b"")
