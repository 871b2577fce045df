"""Output, replies and input requests of kernels from the time in which no bridge runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import attach
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import LINK
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel

LINES = int(os.environ.get("KBRIDGE_CRASH_LINES", "4000"))
ONE_THREAD = Path(__file__).parents[1] / "support" / "one_thread.py"
ARGS = ["--ZMQChannelsWebsocketConnection.link=auto"] if not LINK else []
# Prints numbered lines at a rate.
COUNT = """\
import pathlib, time
start = time.monotonic()
for i in range({lines}):
    print(i, flush=True)
    pathlib.Path({at!r}).write_text(str(i))
    time.sleep(max(0, start + i / {rate} - time.monotonic()))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestartableServer]:
    require("ipykernel")
    made = RestartableServer(tmp_path, *ARGS)
    made.install("one_thread", ONE_THREAD)
    try:
        yield made
    finally:
        made.kill()


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    """Return the numbers that a cell has printed; a kernel that starts prints warnings, too."""
    text = "".join(
        m["content"]["text"]
        for m in messages
        if m["header"]["msg_type"] == "stream"
        and m["parent_header"].get("msg_type") == "execute_request"
    )
    return [int(number) for number in text.split()]  # a newline may come in a separate message


def number_in(path: Path) -> int:
    """Return the number in a file that a kernel may be writing."""
    return int(eventually(path.read_text, f"there is a number in {path}"))


@pytest.mark.parametrize("named", [False, True], ids=["session", "since"])
@pytest.mark.parametrize("name", ["python3", "one_thread"])
async def test_no_line_is_lost(server: RestartableServer, name: str, named: bool) -> None:
    """A fifth of the lines is printed while no server runs: 2 s with 20,000 lines."""
    server.start()
    kernel = server.start_kernel(name)
    at = server.home / "at"
    lines = LINES
    async with attach(server, kernel, session="mine") as ws:
        msg_id = await ws.start(COUNT.format(lines=lines, rate=2000, at=str(at)))
        await ws.until(lambda m: str(lines // 4) in m["content"].get("text", ""))
        server.crash()
        seen = list(ws.seen)
    missed = min(number_in(at) + lines // 5, lines - 1)
    eventually(lambda: number_in(at) >= missed, "more lines were printed")
    server.start()
    since = seen[-1]["header"]["msg_id"] if named else ""
    async with attach(server, kernel, session="mine", since=since) as ws:
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        assert done.types[-1] == "idle"
        assert done.text("stderr") == ""
        after = numbers(ws.seen)
    before = numbers(seen)
    assert before == list(range(len(before)))
    if named:
        assert before + after == list(range(lines))
    else:
        assert after == list(range(after[0], lines))
        assert after[0] <= len(before)
    server.assert_clean_log()


async def test_an_input_request_of_a_kernel_without_a_server_is_answered(
    server: RestartableServer,
) -> None:
    server.start()
    kernel = server.start_kernel()
    go, over = server.home / "go", server.home / "over"
    code = (
        "import pathlib, time\n"
        "print('before', flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        f"pathlib.Path({str(over)!r}).touch()\n"
        "print('hello', input('name? '))"
    )
    async with attach(server, kernel, session="mine") as ws:
        msg_id = await ws.start(code, allow_stdin=True)
        await ws.until_text("before\n")
        server.crash()
    go.touch()
    eventually(over.exists, "the kernel asks")
    server.start()
    async with attach(server, kernel, session="mine") as ws:
        await ws.until(lambda m: m["header"]["msg_type"] == "input_request")
        await ws.send("input_reply", {"value": "you"}, channel="stdin")
        done = await ws.finish(msg_id)
    assert done.reply["status"] == "ok"
    assert done.text().endswith("hello you\n")
    assert done.text("stderr") == ""
    server.assert_clean_log()


async def test_a_server_that_leaves_its_kernels_loses_nothing(tmp_path: Path) -> None:
    require("ipykernel")
    server = RestartableServer(tmp_path, *ARGS, "--KbridgeApp.shutdown_kernels_on_exit=False")
    try:
        server.start()
        kernel = server.start_kernel()
        at = server.home / "at"
        async with attach(server, kernel, session="mine") as ws:
            msg_id = await ws.start(COUNT.format(lines=2000, rate=1000, at=str(at)))
            await ws.until(lambda m: "100" in m["content"].get("text", ""))
            server.stop()
            seen = list(ws.seen)
        server.start()
        async with attach(server, kernel, session="mine", since=seen[-1]["header"]["msg_id"]) as ws:
            done = await ws.finish(msg_id)
            assert done.reply["status"] == "ok"
            assert numbers(seen) + numbers(ws.seen) == list(range(2000))
        server.assert_clean_log()
    finally:
        server.kill()
