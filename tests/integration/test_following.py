"""Websockets that follow requests of other sessions (`?parents=`), with real kernels."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import ServerFactory
from tests.integration.test_journal import crash
from tests.support.client import Execution, attach
from tests.support.hostile import RawConnection
from tests.support.jupyter_server import jupyter_server
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import KEPT, Server
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel

LINES = 300
# Prints lines, waits until a file exists, and prints more.
PRINT = f"""\
import pathlib, time
for i in range({LINES}):
    print('line', i, flush=True)
print('waiting', flush=True)
while not pathlib.Path({{gate!r}}).exists():
    time.sleep(0.01)
for i in range({LINES}, 2 * {LINES}):
    print('line', i, flush=True)
"""
MB = 1_000_000
PROGRAM = {"user_agent_header": "a program"}  # which is not paced


def lines(start: int = 0, stop: int = 2 * LINES) -> str:
    """Return what the cell prints."""
    printed = [f"line {i}\n" for i in range(stop)]
    return "".join([*printed[:LINES], "waiting\n", *printed[LINES:]][start:])


@pytest.fixture(params=["standalone", "inside Jupyter Server"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of either kind."""
    require("ipykernel", "jupyter_server")
    (tmp_path / "server").mkdir()
    made = Server if request.param == "standalone" else jupyter_server
    server = made(tmp_path / "server").start()
    try:
        yield server
    finally:
        server.kill()


async def test_another_client_gets_the_whole_output_of_a_running_cell_and_then_live(
    either: Server, dialect: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    kernel = either.start_kernel()
    async with attach(either, kernel) as page:
        await page.execute("print('another cell')")
        msg_id = await page.start(PRINT.format(gate=str(gate)))
        await page.until_text("waiting\n")
        queued = await page.start("print('queued')")
        both = f"{msg_id},{queued}"
        async with attach(either, kernel, dialect, parents=both) as ws:
            before = await ws.until_text("waiting\n")
            gate.touch()
            done, last = await ws.finish_all(msg_id, queued)
    done.messages = before + done.messages
    assert done.types == ["busy", "execute_input", "stream", "idle"]
    assert done.text() == lines()
    assert done.reply["status"] == "ok"
    assert (last.types, last.text()) == (["busy", "execute_input", "stream", "idle"], "queued\n")
    ids = [m["header"]["msg_id"] for m in ws.seen]
    assert len(ids) == len(set(ids))
    assert {m["parent_header"].get("msg_id") for m in ws.seen} == {msg_id, queued}
    either.assert_clean_log()


async def test_a_client_that_is_cut_off_comes_back_with_since(
    either: Server, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    kernel = either.start_kernel()
    async with attach(either, kernel) as page:
        msg_id = await page.start(PRINT.format(gate=str(gate)))
        await page.until_text("waiting\n")
        done = Execution(msg_id)
        since = ""
        for _ in range(4):
            async with attach(either, kernel, session="reader", parents=msg_id, since=since) as ws:
                done.messages.append(await ws.recv())
                ws.cut()
            since = done.messages[-1]["header"]["msg_id"]
            gate.touch()  # after the first cut, it prints on
        async with attach(either, kernel, session="reader", parents=msg_id, since=since) as ws:
            while done.types[-1:] != ["idle"]:
                done.messages.append(await ws.recv())
    assert done.text() == lines()


async def test_the_input_of_a_page_that_was_closed_is_asked_for_and_answered(
    either: Server,
) -> None:
    kernel = either.start_kernel()
    async with attach(either, kernel) as page:
        msg_id = await page.start("print('hello, ' + input('name? '))", allow_stdin=True)
        await page.until(lambda m: m["channel"] == "stdin")
        async with attach(either, kernel, parents=msg_id) as early:
            await early.until(lambda m: m["header"]["msg_type"] == "execute_input")
            await page.ws.close()
            asked = await early.recv()
            assert asked["header"]["msg_type"] == "input_request"
            async with attach(either, kernel, parents=msg_id) as late:
                *_, again = await late.until(lambda m: m["channel"] == "stdin")
                assert again["header"]["msg_id"] == asked["header"]["msg_id"]
                for ws, name in ((late, "Ada"), (early, "Grace")):
                    await ws.send(
                        "input_reply", {"value": name}, channel="stdin", parent=asked["header"]
                    )
                    assert (await ws.finish(msg_id)).text() == "hello, Ada\n"


@pytest.mark.parametrize(
    ("parents", "reason"),
    [(",", "parents names no request"), (",".join(map(str, range(101))), "more than 100")],
)
async def test_parents_beyond_the_limits_are_refused(
    either: Server, parents: str, reason: str
) -> None:
    kernel = either.start_kernel()
    with pytest.raises(InvalidStatus) as caught:
        async with attach(either, kernel, parents=parents):
            pass
    response = caught.value.response
    assert response.status_code == 400
    assert reason in (response.body or b"").decode() + response.reason_phrase


async def test_after_a_crash_of_the_server_the_whole_output_is_there_once(
    own_server: RestartableServer, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    own_server.start()
    kernel = own_server.start_kernel()
    async with attach(own_server, kernel) as page:
        msg_id = await page.start(PRINT.format(gate=str(gate)))
        *_, last = await page.until_text("waiting\n")
        async with attach(own_server, kernel, session="reader", parents=msg_id) as ws:
            first = await ws.until_text("waiting\n")
        await crash(own_server, kernel, last["header"]["msg_id"])
    own_server.start()
    async with attach(own_server, kernel, parents=msg_id) as fresh:
        before = await fresh.until_text("waiting\n")
        since = first[-1]["header"]["msg_id"]
        async with attach(
            own_server, kernel, session="reader", parents=msg_id, since=since
        ) as again:
            gate.touch()
            for ws, seen in ((fresh, before), (again, first)):
                done = await ws.finish(msg_id)
                done.messages = seen + done.messages
                assert done.types == ["busy", "execute_input", "stream", "idle"]
                assert done.text() == lines()
                # A notice that the server was away, unless a holder has received everything.
                assert done.text("stderr").count("[kbridge: ") == (0 if KEPT else 1)


async def test_while_50_megabytes_are_replayed_other_clients_are_served(
    new_server: ServerFactory,
) -> None:
    """The requests of one client are answered between parts of what the other one reads."""
    server = new_server()
    kernel = server.start_kernel()
    async with attach(server, kernel, **PROGRAM) as page:
        code = f"for i in range(5000): print('{'x' * 9_995}', end=f'{{i:04}}\\n')"
        msg_id = await page.start(code)
        await page.finish(msg_id)
        page.seen.clear()
        query = f"parents={msg_id}"
        async with await RawConnection.upgrade(server, kernel, query=query) as wire:
            for _ in range(10):  # most of the output stays unread
                async with asyncio.timeout(TIMEOUT):
                    await wire.reader.readexactly(MB)
                await page.request("kernel_info_request", {}, channel="control")
        async with attach(server, kernel, parents=msg_id, **PROGRAM) as ws:
            done = await ws.finish(msg_id)
    assert len(done.text()) == 50 * MB
    assert done.types == ["busy", "execute_input", "stream", "idle"]
