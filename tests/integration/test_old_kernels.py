"""Old ipykernels and kernels of other languages, from start to shutdown.

The first cell after a start or a restart requests input: an `input_request` is lost if the kernel's
stdin socket does not know its peer yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Execution, KernelClient, attach
from tests.support.foreign_kernels import KERNELS, ForeignKernel
from tests.support.restartable_server import RestartableServer

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(1200)]

STARTS = 3
RESTARTS = 3
STOPPED = ("error", "abort", "aborted")


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> ForeignKernel:
    return KERNELS[request.param]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, kernel: ForeignKernel) -> Iterator[Any]:
    made = RestartableServer(tmp_path_factory.mktemp("home"))
    install(made.home, kernel)
    made.start()
    yield made
    made.assert_clean_log()
    made.kill()


def install(home: Path, kernel: ForeignKernel) -> None:
    spec = {
        "argv": kernel.installed(),
        "display_name": "foreign",
        "language": "any",
        "interrupt_mode": kernel.interrupt_mode,
    }
    path = home / "data" / "kernels" / "foreign" / "kernel.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(spec))


async def first_cell(ws: KernelClient, kernel: ForeignKernel) -> None:
    """Run the first cell of a new process, which requests input if the kernel supports it."""
    if not kernel.ask:
        await said(ws, kernel)
        return
    msg_id = await ws.start(kernel.ask, allow_stdin=True)
    [*_, question] = await ws.until(lambda m: m["header"]["msg_type"] == "input_request")
    assert question["parent_header"]["msg_id"] == msg_id
    await ws.send("input_reply", {"value": "it"}, channel="stdin", parent=question["header"])
    done = await ws.finish(msg_id)
    await printed(ws, kernel, done, "got it")
    assert done.reply["status"] == "ok"


async def said(ws: KernelClient, kernel: ForeignKernel) -> None:
    await printed(ws, kernel, await ws.execute(kernel.say), "hello")


async def printed(ws: KernelClient, kernel: ForeignKernel, done: Execution, text: str) -> None:
    """Check the output of a cell; wait for it if the kernel may print after its idle."""
    if kernel.late_output and text not in done.text():
        late = await ws.until(lambda m: text in m["content"].get("text", ""))
        assert late[-1]["parent_header"]["msg_id"] == done.msg_id
    else:
        assert text in done.text(), ws.story()


async def test_an_old_kernel_passes_its_whole_life_cycle(
    server: RestartableServer, kernel: ForeignKernel
) -> None:
    ids = [await start(server) for _ in range(STARTS)]
    for kernel_id in ids:
        async with attach(server, kernel_id) as ws:
            await first_cell(ws, kernel)
    for kernel_id in ids[1:]:
        assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204
    kernel_id = ids[0]
    async with attach(server, kernel_id, session="mine") as ws:
        await said(ws, kernel)
        failed = await ws.execute(kernel.fail, stop_on_error=False)
        assert failed.reply["status"] == "error", ws.story()
        assert "bad" in json.dumps([m["content"] for m in failed.messages])
        await interrupted(server, kernel_id, ws, kernel)
        for _ in range(RESTARTS):
            reply = await server.call("POST", f"/api/kernels/{kernel_id}/restart")
            assert reply.status == 200, reply
            await first_cell(ws, kernel)
        # Otherwise old ipykernels abort requests that arrive right after an error.
        under_way = await ws.start(kernel.loop or kernel.say, stop_on_error=False)
        await ws.until(lambda m: m["content"].get("text", "").strip() in ("looping", "hello"))
        server.crash()
    server.start()
    async with attach(server, kernel_id, session="mine") as ws:
        if kernel.loop:
            await server.call("POST", f"/api/kernels/{kernel_id}/interrupt")
            assert (await ws.finish(under_way)).reply["status"] in STOPPED
        await said(ws, kernel)
        await first_cell(ws, kernel)
    model = (await server.call("GET", f"/api/kernels/{kernel_id}")).json()
    assert model["execution_state"] == "idle"


async def start(server: RestartableServer) -> str:
    reply = await server.call("POST", "/api/kernels", {"name": "foreign"})
    assert reply.status == 201, f"{reply}\n{server.tail()}"
    return str(reply.json()["id"])


async def interrupted(
    server: RestartableServer, kernel_id: str, ws: KernelClient, kernel: ForeignKernel
) -> None:
    if not kernel.loop:
        return
    msg_id = await ws.start(kernel.loop, stop_on_error=False)
    await ws.until(lambda m: "looping" in m["content"].get("text", ""))
    reply = await server.call("POST", f"/api/kernels/{kernel_id}/interrupt")
    assert reply.status == 204, reply
    assert (await ws.finish(msg_id)).reply["status"] in STOPPED
    await said(ws, kernel)
