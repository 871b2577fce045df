"""Kernels that wait in a scheduler's queue, on a server process that is killed and started again.

The scheduler is a directory of files (`tests.support.file_queue`); its kernels are real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from kbridge.client import Gap, Stream, connect
from kbridge.client import Server as Client
from kbridge.errors import KernelDied
from tests.support.file_queue import FileQueue
from tests.support.restartable_server import RestartableServer
from tests.support.server import PEER, TOKEN
from tests.support.waiting import TIMEOUT

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(PEER, reason="Jupyter Server waits with the request"),
]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[FileQueue]:
    queue = FileQueue(tmp_path)
    yield queue
    queue.aclose()


@pytest.fixture
def server(tmp_path: Path, queue: FileQueue) -> Iterator[RestartableServer]:
    server = RestartableServer(tmp_path, f"--config={queue.config}").start()
    yield server
    server.kill()
    server.assert_clean_log()


@pytest.fixture
async def client(server: RestartableServer) -> AsyncIterator[Client]:
    async with asyncio.timeout(TIMEOUT), connect(server.url, TOKEN) as client:
        yield client


def model_of(server: RestartableServer, kernel_id: str) -> dict[str, Any]:
    return dict(server.request("GET", f"/api/kernels/{kernel_id}").json())


def restart(server: RestartableServer) -> None:
    server.crash()
    server.start()


async def text_of(client: Client, kernel_id: str, code: str) -> str:
    kernel = await client.kernel(kernel_id)
    outputs = await (await kernel.execute(code)).collect()
    await kernel.aclose()
    return "".join(output.text for output in outputs if isinstance(output, Stream))


async def test_a_killed_server_goes_on_with_its_jobs(
    server: RestartableServer, queue: FileQueue, client: Client
) -> None:
    reply = await server.call("POST", "/api/kernels", {"name": "queued"})
    assert reply.status == 201
    kernel_id = reply.json()["id"]
    assert reply.json()["execution_state"] == "starting"
    assert reply.json()["reason"] == "job 1 waits: Priority"
    kernel = await client.kernel(kernel_id)
    early = await kernel.execute("1")
    while not await kernel.executions():  # noqa: ASYNC110 - the server sets no event
        await asyncio.sleep(0)
    queue.wait_because("Resources")
    await asyncio.to_thread(restart, server)
    model = await asyncio.to_thread(model_of, server, kernel_id)
    assert model["execution_state"] == "starting"
    assert model["reason"] == "job 1 waits: Resources"
    execution = await kernel.execute(r"x = 6 * 7; print(f'{x}\n', end='')")
    queue.run()
    [output] = await execution.collect()
    assert isinstance(output, Stream)
    assert output.text == "42\n"
    # If the server had the request on disk when it was killed, it answers that it was not run;
    # otherwise the client has sent it again.
    lost = (await early).error
    assert lost is None or lost.ename == "RequestLost"
    await asyncio.to_thread(restart, server)
    assert await text_of(client, kernel_id, "print(x)") == "42\n"
    assert queue.jobs == 1
    assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204
    assert queue.end_of(1) == "job 1 ended: by the server"


async def test_a_start_of_the_client_tells_why_it_waits(queue: FileQueue, client: Client) -> None:
    stages: list[str] = []

    def on_progress(stage: str) -> None:
        stages.append(stage)
        if stage == "waiting: job 1 waits: Priority":
            queue.wait_because("Resources")
        elif stage == "waiting: job 1 waits: Resources":
            queue.run()

    kernel = await client.start_kernel("queued", on_progress=on_progress)
    told = ["waiting: job 1 waits: Priority", "waiting: job 1 waits: Resources"]
    assert stages == ["starting", "connecting", "waiting", *told, "ready"]
    await kernel.shutdown()


async def test_a_time_limit_is_told_to_clients(
    server: RestartableServer, queue: FileQueue, client: Client
) -> None:
    kernel_id = await asyncio.to_thread(server.start_kernel, "queued")
    kernel = await client.kernel(kernel_id)
    # One write, so one output: ipykernel may send a text and the end of its line apart.
    code = "import time; print('begun\\n', end='', flush=True); time.sleep(600)"
    execution = await kernel.execute(code)
    queue.run()
    texts = []

    async def read() -> None:
        async for output in execution:
            assert isinstance(output, Stream | Gap)
            texts.append(output.text)
            if output.text == "begun\n":
                await asyncio.to_thread(queue.end, "job 1 ended: TIMEOUT")
        await execution

    with pytest.raises(KernelDied, match="TIMEOUT"):
        await read()
    assert texts == ["begun\n", "job 1 ended: TIMEOUT"]
    model = await asyncio.to_thread(model_of, server, kernel_id)
    assert (model["execution_state"], model["reason"]) == ("dead", "job 1 ended: TIMEOUT")
    assert kernel.reason == "job 1 ended: TIMEOUT"
    assert (await server.call("POST", f"/api/kernels/{kernel_id}/restart")).status == 200
    queue.run(2)
    assert await text_of(client, kernel_id, "print(1)") == "1\n"
