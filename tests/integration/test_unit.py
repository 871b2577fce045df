"""The commands of examples/deploy/kbridge.service, without systemd."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbridge.link.holder.client import is_supported
from tests.support.client import attach
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import LINK
from tests.support.waiting import TIMEOUT

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not is_supported() or LINK == "pyzmq", reason="connections do not stay"),
]

UNIT = (Path(__file__).parents[2] / "examples" / "deploy" / "kbridge.service").read_text()


def command(name: str) -> list[str]:
    """Return the arguments of a command of the unit."""
    [line] = re.findall(rf"^{name}=(.*)$", UNIT, flags=re.MULTILINE)
    program, *words = shlex.split(line)
    assert program == "/opt/kbridge/bin/kbridge"
    return words


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestartableServer]:
    """A server as the unit starts it, on another port."""
    require("ipykernel")
    words = [word for word in command("ExecStart") if not word.startswith("--port")]
    running = RestartableServer(tmp_path, *words)
    try:
        yield running.start()
    finally:
        running.kill()


def reload(server: RestartableServer) -> None:
    words = [str(server.port) if word == "8888" else word for word in command("ExecReload")]
    done = subprocess.run(
        [sys.executable, "-m", "kbridge", *words],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )
    assert done.returncode == 0, f"{done.stderr}\n{server.tail()}"


async def value(server: RestartableServer, kernel: str) -> str:
    async with attach(server, kernel) as client:
        return (await client.execute("print(x)")).text()


async def test_kernels_outlive_a_reload_and_a_restart_of_the_unit(
    server: RestartableServer,
) -> None:
    kernel = await asyncio.to_thread(server.start_kernel)
    async with attach(server, kernel) as client:
        await client.execute("x = 'kept'")
    await asyncio.to_thread(reload, server)
    assert server.process.poll() is None, "systemd would take the unit for stopped"
    assert await value(server, kernel) == "kept\n"
    # `systemctl restart`: SIGTERM for the main process only (KillMode=process), and a start.
    assert await asyncio.to_thread(server.stop) == 0
    await asyncio.to_thread(server.start)
    assert await value(server, kernel) == "kept\n"
