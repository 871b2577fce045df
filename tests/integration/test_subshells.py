"""The REST API of Jupyter Server shows the last status of a kernel with concurrent subshells."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import attach
from tests.support.jupyter_server import jupyter_server
from tests.support.require import lack, require
from tests.support.server import Server
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel


@pytest.fixture(params=["jupyter_server", "extension"])
def jupyter(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Jupyter Server alone, as the reference, and with the extension."""
    require("jupyter_server", "ipykernel")
    enabled = request.param == "extension"
    running = jupyter_server(tmp_path, f"--KbridgeExtension.enabled={enabled}")
    try:
        yield running.start()
    finally:
        running.kill()


async def test_the_state_is_that_of_the_last_status(jupyter: Server, tmp_path: Path) -> None:
    kernel_id = await asyncio.to_thread(jupyter.start_kernel)

    async def says(state: str) -> None:
        def said() -> bool:
            reply = jupyter.request("GET", f"/api/kernels/{kernel_id}")
            return bool(reply.json()["execution_state"] == state)

        await asyncio.to_thread(eventually, said, f"the REST API says {state}")

    async with attach(jupyter, kernel_id) as ws:
        info = (await ws.request("kernel_info_request", {})).reply
        if "kernel subshells" not in info.get("supported_features", []):
            lack("this ipykernel has no subshells; pip install 'ipykernel>=7'")
        made = await ws.request("create_subshell_request", {}, channel="control")
        subshell = made.reply["subshell_id"]

        def until(path: Path) -> str:
            return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.05)"

        for long, short in [(subshell, None), (None, subshell)]:
            done = tmp_path / f"done-{long}"
            work = {"code": until(done), "silent": False}
            asked = await ws.send("execute_request", work, header={"subshell_id": long})
            await says("busy")
            quick = {"code": "1", "silent": False}
            await ws.finish(await ws.send("execute_request", quick, header={"subshell_id": short}))
            await says("idle")
            done.touch()
            await ws.finish(asked)
            await says("idle")
