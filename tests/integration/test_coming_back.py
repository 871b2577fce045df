"""Clients that reconnect to a real kernel: input requests, running cells, floods."""

from __future__ import annotations

import asyncio
import re
import textwrap
import uuid

import pytest

from tests.conftest import ServerFactory
from tests.support.client import KernelClient, attach
from tests.support.server import Server
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel


def is_question(msg: dict) -> bool:
    return bool(msg["header"]["msg_type"] == "input_request")


async def until_gone(server: Server, kernel_id: str) -> None:
    """Wait until the server has noticed the disconnect."""

    def alone() -> bool:
        reply = server.request("GET", f"/api/kernels/{kernel_id}")
        return bool(reply.json()["connections"] == 0)

    await asyncio.to_thread(eventually, alone, "the websocket has gone")


async def test_an_input_request_waits_for_the_reconnect_and_is_answered_once(
    server: Server, own_kernel: str, dialect: str
) -> None:
    session = uuid.uuid4().hex
    async with attach(server, own_kernel, dialect, session=session) as ws:
        asked = await ws.start("print('hello, ' + input('name? '))", allow_stdin=True)
        *_, question = await ws.until(is_question)
        await (await ws.ws.ping())  # the pong to the server's ping was sent before
        ws.cut()
    await until_gone(server, own_kernel)
    async with attach(server, own_kernel, dialect, session=session) as ws:
        *_, again = await ws.until(is_question)
        assert again["header"]["msg_id"] == question["header"]["msg_id"]
        for name in ("Ada", "Grace"):
            await ws.send("input_reply", {"value": name}, channel="stdin", parent=again["header"])
        done = await ws.finish(asked)
        assert done.text() == "hello, Ada\n"
        next_one = await ws.start("print(input())", allow_stdin=True)
        *_, question = await ws.until(is_question)
        assert question["parent_header"]["msg_id"] == next_one
        await ws.send("input_reply", {"value": "x"}, channel="stdin", parent=question["header"])
        assert (await ws.finish(next_one)).text() == "x\n", "the second answer must be dropped"


async def test_a_new_page_receives_the_input_request_of_a_running_cell(
    server: Server, own_kernel: str, dialect: str
) -> None:
    async with attach(server, own_kernel, dialect) as ws:
        asked = await ws.start(
            "for i in range(300): print(i)\nprint('so ' + input('?'))", allow_stdin=True
        )
        await ws.until(is_question)
        ws.cut()
    await until_gone(server, own_kernel)
    async with attach(server, own_kernel, dialect, since="start") as page:
        came = await page.until(is_question)
        texts = [m["content"]["text"] for m in came if m["content"].get("name") == "stdout"]
        assert "".join(texts) == "".join(f"{i}\n" for i in range(300))
        header = came[-1]["header"]
        await page.send("input_reply", {"value": "be it"}, channel="stdin", parent=header)
        # The reply is for the session of the request; output and idle are for all clients.
        *more, _ = await page.until(
            lambda m: (
                m["parent_header"].get("msg_id") == asked
                and m["content"].get("execution_state") == "idle"
            )
        )
        assert "so be it\n" in "".join(m["content"].get("text", "") for m in more)


async def test_a_client_with_since_receives_the_rest_once(
    server: Server, own_kernel: str, dialect: str
) -> None:
    async with attach(server, own_kernel, dialect) as ws:
        asked = await ws.start("for i in range(3): display(i)")
        *_, seen = await ws.until(lambda m: m["header"]["msg_type"] == "display_data")
        await ws.finish(asked)
    async with attach(server, own_kernel, dialect, since=seen["header"]["msg_id"]) as other:
        came = await other.until(lambda m: m["content"].get("execution_state") == "idle")
    shown = [m["content"]["data"] for m in came if m["header"]["msg_type"] == "display_data"]
    assert shown == [{"text/plain": "1"}, {"text/plain": "2"}]


async def test_an_unknown_since_is_answered_with_a_notice(
    server: Server, own_kernel: str, dialect: str
) -> None:
    async with attach(server, own_kernel, dialect, since="no-such-message") as ws:
        await ws.until(lambda m: "missing here" in m["content"].get("text", ""))
        assert (await ws.execute("print('on')")).text() == "on\n"


async def flood(ws: KernelClient, lines: int, width: int) -> str:
    code = f"for i in range({lines}): print(f'{{i:0{width}}}', flush=True)"
    return (await ws.execute(code)).text()


async def test_a_flood_arrives_completely_with_the_default_limits(
    new_server: ServerFactory, dialect: str
) -> None:
    """Three tries: on a machine that is overloaded, a kernel drops messages, which is reported."""
    server = new_server()
    whole = "".join(f"{i:05}\n" for i in range(10_000))
    for _ in range(3):
        async with attach(server, server.start_kernel(), dialect) as ws:
            text = await flood(ws, 10_000, 5)
            story = [m["header"]["msg_type"] for m in ws.seen].count("stream")
            errors = "".join(
                m["content"]["text"]
                for m in ws.seen
                if m["header"]["msg_type"] == "stream" and m["content"]["name"] == "stderr"
            )
        if text == whole:
            break
        assert "the kernel seems to have dropped about" in errors, (
            "lines are missing, and nothing says so"
        )
    assert text == whole
    assert story < 10_000, "none was joined"


async def test_the_cell_says_how_much_output_the_kernel_dropped(
    server: Server, own_kernel: str, dialect: str
) -> None:
    code = """
        thread = get_ipython().kernel.iopub_socket.io_thread
        send, n = thread._really_send, 0
        def drop_some(msg, *args, **options):  # as a PUB does when its queue is full
            global n
            n += 1
            if not 1000 < n <= 1500:
                send(msg, *args, **options)
        thread._really_send = drop_some
        for i in range(3000): print(i, flush=True)
        thread._really_send = send
    """
    async with attach(server, own_kernel, dialect) as ws:
        await ws.execute("1")
        done = await ws.execute(textwrap.dedent(code))
        lost = 3000 - len(done.text().split())
        assert 400 < lost <= 500
        told = re.search(r"dropped about ([\d,]+) messages", done.text("stderr"))
        assert told is not None, done.text("stderr")
        assert abs(int(told[1].replace(",", "")) - lost) < 20
        again = await ws.execute("print('on')")
        assert (again.text(), again.text("stderr")) == ("on\n", "")


async def test_a_cell_ends_though_the_kernel_dropped_its_idle_status(
    server: Server, own_kernel: str, dialect: str
) -> None:
    code = """
        thread = get_ipython().kernel.iopub_socket.io_thread
        send = thread._really_send
        def drop_idle(msg, *args, **options):
            if any(b'"idle"' in bytes(part) for part in msg):
                thread._really_send = send
            else:
                send(msg, *args, **options)
        thread._really_send = drop_idle
        print("done")
    """
    async with attach(server, own_kernel, dialect) as ws:
        assert (await ws.execute(textwrap.dedent(code))).text() == "done\n"
        assert (await ws.execute("print('on')")).text() == "on\n"


async def test_text_above_the_data_limit_arrives_completely_at_the_limit(
    new_server: ServerFactory,
) -> None:
    server = new_server("--ZMQChannelsWebsocketConnection.iopub_data_rate_limit=100000")
    kernel_id = server.start_kernel()
    async with attach(server, kernel_id) as ws:
        async with asyncio.timeout(TIMEOUT):  # 300 kB immediately, then 100 kB per second
            text = await flood(ws, 600, 1000)
        assert text == "".join(f"{i:01000}\n" for i in range(600))
