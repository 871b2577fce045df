"""The manager and its hubs with real ipykernels."""

import asyncio
import json

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from kbridge.errors import KernelStartError
from kbridge.hub import Hub
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel


async def evaluate(hub: Hub, expression: str) -> str:
    """Return the text of the reply with the value of an expression."""
    # ipykernel 6.29 leaves a request without `silent` unanswered.
    content = {"code": "", "silent": False, "user_expressions": {"x": expression}}
    reply = await hub.request("execute_request", content, timeout=TIMEOUT)
    return bytes(reply.content).decode()


def seed(tmp_path, code):
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), tmp_path / "seed.ipynb")
    return str(tmp_path / "seed.ipynb")


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_a_real_kernel_is_seeded_interrupted_restarted_and_shut_down(
    make_manager, hubs, tmp_path, tmp_path_factory, transport
):
    manager = make_manager(
        native=True, start_grace=TIMEOUT, transport=transport, seed_uri=seed(tmp_path, "a = 41")
    )
    manager.connection_dir = str(tmp_path_factory.mktemp("r"))
    kernel_id = await manager.start_kernel()
    hub = hubs[kernel_id]
    process = psutil.Process(manager.get_kernel(kernel_id).provisioner.pid)
    assert "42" in await evaluate(hub, "a + 1")

    # Reported through a file, because ipykernel may swallow an interrupt during a print.
    asleep = tmp_path / "asleep"
    code = f"import time; open({str(asleep)!r}, 'w').close(); time.sleep(600)"
    content = {"code": code, "silent": False}
    cell = asyncio.create_task(hub.request("execute_request", content, timeout=TIMEOUT))
    async with asyncio.timeout(TIMEOUT):
        await asyncio.to_thread(eventually, asleep.exists, "the cell runs")
        await manager.interrupt_kernel(kernel_id)
        reply = await cell
    assert json.loads(bytes(reply.content))["ename"] == "KeyboardInterrupt"

    await manager.restart_kernel(kernel_id)
    assert not process.is_running()
    assert "NameError" in await evaluate(hub, "a")
    process = psutil.Process(manager.get_kernel(kernel_id).provisioner.pid)
    await manager.shutdown_all()
    assert not process.is_running()


async def test_a_seed_that_kills_the_kernel_fails_the_start(make_manager, hubs, tmp_path):
    manager = make_manager(
        native=True, seed_uri=seed(tmp_path, "import os; os._exit(3)"), start_grace=TIMEOUT
    )
    with pytest.raises(KernelStartError, match="exit code 3"):
        await manager.start_kernel()
