"""Several websockets to one kernel: their messages, and lost connections without lost messages."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from tests.support.client import KernelClient, attach
from tests.support.server import Server

pytestmark = pytest.mark.kernel

# CI runs 300; the full test runs 10,000.
CYCLES = int(os.environ.get("KBRIDGE_CYCLES", "300"))


async def test_two_clients_receive_the_same_output(server: Server, kernel: str) -> None:
    async with attach(server, kernel, "v1") as one, attach(server, kernel, "legacy") as two:
        mine = await one.execute("print('for both')")
        theirs = await two.finish(mine.msg_id, reply=False)
        assert [m["header"]["msg_id"] for m in theirs.messages] == [
            m["header"]["msg_id"] for m in mine.iopub
        ]
        assert mine.text() == theirs.text() == "for both\n"
        # All messages to the second client have arrived before the answer to a later request.
        await two.request("kernel_info_request", {})
        strays = [m for m in two.seen if m["parent_header"].get("msg_id") == mine.msg_id]
        assert {m["channel"] for m in strays} == {"iopub"}, (
            "this client must not receive the reply of the other one"
        )


async def test_an_input_request_goes_to_the_client_of_the_execution(
    server: Server, kernel: str, dialect: str
) -> None:
    async with attach(server, kernel, dialect) as asker, attach(server, kernel, dialect) as other:
        asked = await asker.start("print(input('who? '))", allow_stdin=True)
        *_, prompt = await asker.until(lambda m: m["channel"] == "stdin")
        await asker.send("input_reply", {"value": "me"}, channel="stdin", parent=prompt["header"])
        assert (await asker.finish(asked)).text() == "me\n"
        await other.request("kernel_info_request", {})
        assert not [m for m in other.seen if m["channel"] == "stdin"]


async def test_two_clients_can_share_a_session_id(
    server: Server, kernel: str, dialect: str
) -> None:
    session = uuid.uuid4().hex
    async with (
        attach(server, kernel, dialect, session=session) as one,
        attach(server, kernel, dialect, session=session) as two,
    ):
        first = await one.execute("print('one')")
        second = await two.execute("print('two')")
        third = await one.execute("print('three')")
        assert (first.text(), second.text(), third.text()) == ("one\n", "two\n", "three\n")
        assert (await two.finish(third.msg_id, reply=False)).text() == "three\n"


async def test_a_client_needs_no_session_id(server: Server, kernel: str, dialect: str) -> None:
    async with attach(server, kernel, dialect, session=None) as ws:
        assert (await ws.execute("print('nameless')")).text() == "nameless\n"


@pytest.mark.parametrize("how", ["close", "cut"])
async def test_missed_messages_arrive_after_the_reconnect(
    server: Server, kernel: str, dialect: str, how: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = f"""
for i in range(20): print(i, flush=True)
open({str(gate)!r}).read()
for i in range(20, 40): print(i, flush=True)
40
"""
    session = uuid.uuid4().hex
    async with attach(server, kernel, dialect) as witness:
        async with attach(server, kernel, dialect, session=session) as before:
            asked = await before.start(code)
            # ipykernel may split a line.
            await before.until(lambda _: "".join(said(before, asked)).endswith("19\n"))
            if how == "cut":
                before.cut()
        gate.write_text("on")
        # Its client is disconnected when the cell ends.
        await witness.finish(asked, reply=False)
        async with attach(server, kernel, dialect, session=session) as after:
            done = await after.finish(asked)
    first, second = said(before, asked), said(after, asked)
    # At least once: lines in transit when the connection broke may arrive again.
    lines = "".join(first).split() + "".join(second).split()
    assert sorted(set(map(int, lines))) == list(range(40))
    replayed = [int(n) for n in "".join(second).split()]
    assert replayed == sorted(set(replayed)), "the replay is out of order"
    assert done.of("execute_result")[0]["content"]["data"] == {"text/plain": "40"}
    assert done.reply["status"] == "ok"


async def test_a_reconnect_does_not_repeat_acknowledged_messages(
    server: Server, kernel: str, dialect: str
) -> None:
    """A clean close acknowledges messages; messages of another session are not replayed."""
    async with attach(server, kernel, dialect) as first:
        await first.execute("print('long ago')")
    async with attach(server, kernel, dialect) as second:
        await second.request("kernel_info_request", {})
    assert not [m for m in second.seen if "long ago" in str(m["content"])]


@pytest.mark.slow
@pytest.mark.timeout(600 + CYCLES // 5)
async def test_short_connections_lose_nothing(server: Server, kernel: str) -> None:
    for i in range(CYCLES):
        async with attach(server, kernel, ("v1", "legacy")[i % 2]) as ws:
            done = await ws.execute(f"print({i})")
        assert done.types == ["busy", "execute_input", "stream", "idle"], (i, ws.story())
        assert done.text() == f"{i}\n"


def said(client: KernelClient, asked: str) -> list[str]:
    return [
        m["content"]["text"]
        for m in client.seen
        if m["header"]["msg_type"] == "stream" and m["parent_header"].get("msg_id") == asked
    ]
