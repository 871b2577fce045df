"""The manager with real ipykernels; the hub is jupyter_client's own client."""

import asyncio
from collections.abc import Mapping
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.asynchronous import AsyncKernelClient
from nbformat.v4 import new_code_cell, new_notebook

from kbridge.errors import KernelStartError
from kbridge.wire.message import Channel, Message
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel

LOUD = 60


class ClientHub:
    """As much of a hub as the manager needs, over `AsyncKernelClient`."""

    def __init__(self, fake, info: Mapping[str, Any]) -> None:
        self.fake = fake
        self.activity = fake.activity
        self.connections = 0
        self.reconnect(info)

    def reconnect(self, info: Mapping[str, Any]) -> None:
        self.client = AsyncKernelClient()
        self.client.load_connection_info(dict(info))
        self.client.start_channels()
        self.is_ready = asyncio.ensure_future(self.client.wait_for_ready(LOUD))

    async def wait_ready(self, timeout: float | None = None) -> bool:
        await asyncio.wait({self.is_ready}, timeout=timeout)
        return self.is_ready.done()

    async def restarting(self, *, asked: bool = False) -> None:
        await self.aclose()
        await self.fake.restarting(asked=asked)

    async def request(self, msg_type, content, channel=Channel.SHELL, timeout=10.0) -> Message:
        message = self.client.session.msg(msg_type, dict(content))
        self.client.shell_channel.send(message)
        msg_id = message["header"]["msg_id"]
        reply = await self.client._async_recv_reply(msg_id, timeout=timeout)
        return Message(channel, b"{}", b"{}", b"{}", self.client.session.pack(reply["content"]))

    async def evaluate(self, expression: str) -> str:
        reply = await self.request(
            "execute_request",
            # ipykernel 6.29 leaves a request without `silent` unanswered.
            {"code": "", "silent": False, "user_expressions": {"x": expression}},
            timeout=LOUD,
        )
        return reply.content.decode()

    async def aclose(self) -> None:
        self.is_ready.cancel()
        await asyncio.gather(self.is_ready, return_exceptions=True)
        self.client.stop_channels()
        self.client.context.destroy(linger=0)


@pytest.fixture
def client_hubs(hubs, monkeypatch):
    fake_open, fake_close = hubs.open, hubs.close

    def open_(kernel_id, info, **how):
        hubs.hubs[kernel_id] = ClientHub(fake_open(kernel_id, info, **how), info)
        return hubs.hubs[kernel_id]

    async def close(kernel_id):
        await hubs.hubs[kernel_id].aclose()
        await fake_close(kernel_id)

    monkeypatch.setattr(hubs, "open", open_)
    monkeypatch.setattr(hubs, "close", close)
    return hubs


def seed(tmp_path, code):
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), tmp_path / "seed.ipynb")
    return str(tmp_path / "seed.ipynb")


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_start_seed_interrupt_restart_shutdown(
    make_manager, client_hubs, tmp_path, tmp_path_factory, transport
):
    manager = make_manager(
        native=True, start_grace=LOUD, transport=transport, seed_uri=seed(tmp_path, "a = 41")
    )
    manager.connection_dir = str(tmp_path_factory.mktemp("r"))
    kernel_id = await manager.start_kernel()
    hub = client_hubs.hubs[kernel_id]
    process = psutil.Process(manager.get_kernel(kernel_id).provisioner.pid)
    assert "42" in await hub.evaluate("a + 1")

    # Reported through a file, because ipykernel may swallow an interrupt during a print.
    asleep = tmp_path / "asleep"
    code = f"import time; open({str(asleep)!r}, 'w').close(); time.sleep(600)"
    message = hub.client.session.msg("execute_request", {"code": code, "silent": False})
    hub.client.shell_channel.send(message)
    async with asyncio.timeout(LOUD):
        await asyncio.to_thread(eventually, asleep.exists, "the cell runs")
        await manager.interrupt_kernel(kernel_id)
        while (reply := await hub.client.get_iopub_msg())["msg_type"] != "error":
            pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"

    await manager.restart_kernel(kernel_id)
    assert not process.is_running()
    assert "NameError" in await hub.evaluate("a")
    process = psutil.Process(manager.get_kernel(kernel_id).provisioner.pid)
    await manager.shutdown_all()
    assert not process.is_running()


async def test_a_seed_that_kills_its_kernel(make_manager, client_hubs, tmp_path):
    manager = make_manager(
        native=True, seed_uri=seed(tmp_path, "import os; os._exit(3)"), start_grace=LOUD
    )
    with pytest.raises(KernelStartError, match="exit code 3"):
        await manager.start_kernel()
