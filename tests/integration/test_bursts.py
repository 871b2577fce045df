"""A real kernel sends much more than the journal holds, and one client reads it slowly."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest

from benchmarks.client import Websocket
from benchmarks.servers import OURS, Server
from tests.conftest import ServerFactory
from tests.support.client import attach
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel

MB = 1_000_000
NUMBER = re.compile(rb'"text/plain": ?"(\d+)"')
SHOW = """\
for i in range({count}):
    display({{'image/png': 'A' * {size}, 'text/plain': str(i)}}, raw=True)
"""


async def read_all(client, msg_id: str, rate: float | None) -> list[int]:
    """Read up to the reply and the idle of a request; return the numbers of the images."""
    shown: list[int] = []
    due = time.monotonic()
    missing = {"execute_reply", "idle"}
    while missing:
        msg = await client.recv()
        client.seen.clear()
        if msg["parent_header"].get("msg_id") != msg_id:
            continue
        content = msg["content"]
        missing.discard(msg["header"]["msg_type"])
        missing.discard(content.get("execution_state"))
        assert msg["header"]["msg_type"] != "stream", content
        if "data" in content:
            shown.append(int(content["data"]["text/plain"]))
            if rate is not None:  # simulates the network of the client; does not wait for an event
                due += len(content["data"]["image/png"]) / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
    return shown


@pytest.mark.parametrize("rate", [12, 25, 60, 100, None])
async def test_all_of_150_images_of_a_megabyte_arrive(new_server: ServerFactory, rate) -> None:
    server = new_server()
    kernel = server.start_kernel()
    async with attach(server, kernel, max_queue=1) as client:
        await client.request("kernel_info_request", {})
        code = SHOW.format(count=150, size=MB)
        msg_id = await client.send("execute_request", {"code": code, "allow_stdin": False})
        shown = await read_all(client, msg_id, None if rate is None else rate * MB)
    assert shown == list(range(150))
    server.assert_clean_log()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_of_a_gigabyte_arrives(tmp_path: Path) -> None:
    """Read with a fast client, because parsing a gigabyte would limit the speed."""
    shown = []
    with (
        Server(OURS, tmp_path, options=()) as server,
        server.kernel("python3") as kernel,
        Websocket.open(server, kernel) as client,
    ):
        client.ready()
        msg_id = client.execute(SHOW.format(count=1000, size=MB))
        missing = {b"execute_reply", b"idle"}
        while missing:
            payload = client.payload(TIMEOUT)
            if len(payload) > MB:
                assert msg_id.encode() in payload[:2000]
                found = NUMBER.search(payload, len(payload) - 200) or NUMBER.search(payload)
                assert found is not None
                shown.append(int(found[1]))
            else:
                assert b'"stream"' not in payload, payload
                missing -= {word for word in missing if b'"%s"' % word in payload}
    assert shown == list(range(1000))


async def test_control_stdin_and_rest_work_during_a_burst(new_server: ServerFactory) -> None:
    """Control, stdin and REST work during a burst to a slow reader."""
    server = new_server()
    kernel = server.start_kernel()
    async with attach(server, kernel, max_queue=1) as client:
        await client.request("kernel_info_request", {})
        code = SHOW.format(count=200, size=MB) + "import time; time.sleep(3600)"
        msg_id = await client.send("execute_request", {"code": code, "allow_stdin": False})
        for n in range(20):  # then it does not read for a while
            await client.until(
                lambda m, n=n: m["content"].get("data", {}).get("text/plain") == f"{n}"
            )
        reply = await server.call("POST", f"/api/kernels/{kernel}/interrupt")
        assert reply.status == 204
        async with asyncio.timeout(TIMEOUT):
            ends = await client.until(lambda m: m["header"]["msg_type"] == "error")
        assert ends[-1]["parent_header"]["msg_id"] == msg_id
        shown = [m for m in client.seen if m["header"]["msg_type"] == "display_data"]
        numbers = [int(m["content"]["data"]["text/plain"]) for m in shown]
        assert numbers == list(range(len(numbers)))
