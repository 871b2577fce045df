"""Output, replies and input requests of kernels from the time in which no bridge runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kbridge.connect import write_connection_file
from tests.support.client import Execution, attach
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.waiting import eventually, until

pytestmark = pytest.mark.kernel

LINES = int(os.environ.get("KBRIDGE_CRASH_LINES", "4000"))
ONE_THREAD = Path(__file__).parents[1] / "support" / "one_thread.py"
ARGS = ["--ZMQChannelsWebsocketConnection.link=auto"]
FULL_DISK = "--ZMQChannelsWebsocketConnection.journal_disk_reserve=0.999999"
SERVER_OPTIONS = ARGS
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
def server(own_server: RestartableServer) -> RestartableServer:
    own_server.install("one_thread", ONE_THREAD)
    return own_server


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    """Return the numbers that a cell has printed; a kernel that starts prints warnings, too."""
    text = "".join(
        m["content"]["text"]
        for m in messages
        if m["header"]["msg_type"] == "stream"
        and m["parent_header"].get("msg_type") == "execute_request"
    )
    return [int(number) for number in text.split()]  # a newline may come in a separate message


def assert_whole(before: list[int], after: list[int], lines: int, *, named: bool) -> None:
    """Check the numbers that a client received before it lost its connection, and afterwards.

    Each comes once if the client has named the last message that it received.
    """
    if named:
        assert before + after == list(range(lines))
    else:
        assert after == list(range(after[0], lines))
        assert after[0] <= len(before)


async def cut_while_counting(
    server: RestartableServer, kernel: str, end: Callable[[], object]
) -> tuple[str, list[dict[str, Any]]]:
    """Call `end`, which ends the server, while a cell prints 2,000 numbers in 2 s.

    Returns
    -------
    str
        The id of the request.
    list of dict
        The messages that the client has received.
    """
    async with attach(server, kernel, session="mine") as ws:
        at = server.home / "at"
        msg_id = await ws.start(COUNT.format(lines=2000, rate=1000, at=str(at)))
        await ws.until(lambda m: "100" in m["content"].get("text", ""))
        end()
        return msg_id, list(ws.seen)


def number_in(path: Path) -> int:
    """Return the number in a file that a kernel may be writing."""
    return int(eventually(path.read_text, f"there is a number in {path}"))


async def test_a_request_that_was_just_sent_is_known(server: RestartableServer) -> None:
    """Its entry in the log is written later than the server ends."""
    server.start()
    kernel = server.start_kernel("python3")
    go = server.home / "go"
    async with attach(server, kernel, session="mine") as ws:
        first = await ws.start(
            f"import os\nprint('runs')\nwhile not os.path.exists({str(go)!r}): pass"
        )
        await ws.until_text("runs")
        second = await ws.start("print('second')")
        listed = f"/api/kernels/{kernel}/executions"
        eventually(lambda: len(server.request("GET", listed).json()) == 2, "both are known")
        server.crash()
    server.start()
    found = {entry["id"]: entry["state"] for entry in server.request("GET", listed).json()}
    assert found == {first: "running", second: "waiting"}
    go.touch()
    async with attach(server, kernel, session="mine") as ws:
        done = await ws.finish(second)
    assert done.reply["status"] == "ok"
    assert done.text() == "second\n"
    server.assert_clean_log()


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
    assert_whole(before, after, lines, named=named)
    server.assert_clean_log()


async def test_output_that_was_never_in_a_file_comes_again(tmp_path: Path) -> None:
    """The journal is in memory only, because the disk is full."""
    require("ipykernel")
    server = RestartableServer(tmp_path, *ARGS, FULL_DISK)
    try:
        server.start()
        kernel = server.start_kernel()
        msg_id, seen = await cut_while_counting(server, kernel, server.crash)
        eventually(lambda: number_in(server.home / "at") == 1999, "all lines were printed")
        server.start()
        since = seen[-1]["header"]["msg_id"]  # sessions were in memory only, too
        async with attach(server, kernel, session="mine", since=since) as ws:
            done = await ws.finish(msg_id)
            assert done.reply["status"] == "ok"
            assert numbers(seen) + numbers(ws.seen) == list(range(2000))
        assert server.said("invalid flags") == 0
    finally:
        server.kill()


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


def holders(server: RestartableServer) -> list[psutil.Process]:
    """Return the processes that keep the connections of a server."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if is_holder(child)]


def is_holder(process: psutil.Process) -> bool:
    try:
        return any("holder/__main__.py" in word for word in process.cmdline())
    except psutil.Error:  # it has ended
        return False


def keeps_a_kernel(process: psutil.Process) -> bool:
    """Return True if a process has the four connections of a kernel."""
    try:
        opened = process.net_connections("tcp")
    except psutil.Error:
        return False
    return len([each for each in opened if each.status == psutil.CONN_ESTABLISHED]) >= 4


async def test_a_holder_that_was_killed_is_replaced(server: RestartableServer) -> None:
    server.start()
    kernel = server.start_kernel()
    at = server.home / "at"
    async with attach(server, kernel, session="mine") as ws:
        msg_id = await ws.start(COUNT.format(lines=3000, rate=500, at=str(at)))
        await ws.until(lambda m: "100" in m["content"].get("text", ""))
        [first] = holders(server)
        first.kill()
        await until(
            lambda: [h for h in holders(server) if h.pid != first.pid and keeps_a_kernel(h)],
            "another holder has the connections",
        )
        server.crash()
        seen = list(ws.seen)
    missed = min(number_in(at) + 300, 2999)
    eventually(lambda: number_in(at) >= missed, "more lines were printed")
    server.start()
    async with attach(server, kernel, session="mine", since=seen[-1]["header"]["msg_id"]) as ws:
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        assert numbers(seen) + numbers(ws.seen) == list(range(3000))
    server.assert_clean_log()


@pytest.fixture
def dropped(tmp_path: Path) -> Iterator[Path]:
    """A directory with the connection file of a kernel that another program has started."""
    file = tmp_path / "dropped" / "kernel-4711.json"
    file.parent.mkdir()
    write_connection_file(str(file), key=b"a key", kernel_name="elsewhere")
    with subprocess.Popen([sys.executable, str(ONE_THREAD), str(file)]) as process:
        yield file.parent
        process.kill()


async def test_a_kernel_of_attach_dir_goes_on(tmp_path: Path, dropped: Path) -> None:
    server = RestartableServer(tmp_path, *ARGS, f"--attach-dir={dropped}")
    try:
        server.start()
        [kernel] = eventually(lambda: server.request("GET", "/api/kernels").json(), "attached")
        msg_id, seen = await cut_while_counting(server, kernel["id"], server.crash)
        eventually(lambda: number_in(server.home / "at") == 1999, "all lines were printed")
        server.start()
        since = seen[-1]["header"]["msg_id"]
        async with attach(server, kernel["id"], session="mine", since=since) as ws:
            done = await ws.finish(msg_id)
            assert done.reply["status"] == "ok"
            assert done.text("stderr") == ""
            assert numbers(seen) + numbers(ws.seen) == list(range(2000))
        server.assert_clean_log()
    finally:
        server.kill()


async def test_a_server_that_leaves_its_kernels_loses_nothing(tmp_path: Path) -> None:
    require("ipykernel")
    server = RestartableServer(tmp_path, *ARGS, "--KbridgeApp.shutdown_kernels_on_exit=False")
    try:
        server.start()
        kernel = server.start_kernel()
        msg_id, seen = await cut_while_counting(server, kernel, server.stop)
        server.start()
        async with attach(server, kernel, session="mine", since=seen[-1]["header"]["msg_id"]) as ws:
            done = await ws.finish(msg_id)
            assert done.reply["status"] == "ok"
            assert numbers(seen) + numbers(ws.seen) == list(range(2000))
        server.assert_clean_log()
    finally:
        server.kill()


# Prints 40 MB once a file is there.
MUCH = """\
import pathlib, time
print(-1, flush=True)
while not pathlib.Path({go!r}).exists():
    time.sleep(0.01)
for i in range(8000):
    print("x" * 5000, i, flush=True)
pathlib.Path({at!r}).write_text("done")
"""


async def away_while_printing(server: RestartableServer, *, end: Callable[[], object]) -> Execution:
    """Print 40 MB while no server runs; return the cell as the next server shows it."""
    kernel = server.start_kernel()
    go, at = server.home / "go", server.home / "at"
    async with attach(server, kernel, session="mine") as ws:
        msg_id = await ws.start(MUCH.format(go=str(go), at=str(at)))
        await ws.until(lambda m: "-1" in m["content"].get("text", ""))
        since = ws.seen[-1]["header"]["msg_id"]
        end()
    go.touch()
    eventually(at.exists, "all lines were printed")
    server.start()
    async with attach(server, kernel, session="mine", since=since) as ws:
        return await ws.finish(msg_id)


async def test_what_was_stored_up_to_the_limit_is_kept(tmp_path: Path) -> None:
    require("ipykernel")
    limit = "--ZMQChannelsWebsocketConnection.journal_disk_total=8388608"
    server = RestartableServer(tmp_path, *ARGS, limit)
    try:
        server.start()
        done = await away_while_printing(server, end=server.crash)
        assert done.reply["status"] == "ok"
        assert done.types[-1] == "idle"
        assert done.text("stderr").count("up to the limit journal_disk_total") == 1
        printed = [int(word) for word in done.text().split() if not word.startswith("x")]
        assert printed == sorted(set(printed))
        if "were dropped" not in done.text("stderr"):  # by the journal, which has the same limit
            assert printed == list(range(len(printed))), "the earliest lines"
            assert len(printed) * 5000 > 8388608
        assert "is missing: journal_disk_total was reached" in server.log.read_text()
        server.assert_clean_log()
    finally:
        server.kill()


def crash_with_holder(server: RestartableServer) -> None:
    [holder] = holders(server)
    server.crash()
    holder.kill()
    holder.wait()


async def test_a_notice_says_that_the_holder_had_ended(server: RestartableServer) -> None:
    server.start()
    done = await away_while_printing(server, end=lambda: crash_with_holder(server))
    assert "because the process that keeps the connections had ended, too." in done.text("stderr")
    server.assert_clean_log()


async def test_a_notice_names_the_setting_link(tmp_path: Path) -> None:
    require("ipykernel")
    server = RestartableServer(tmp_path, "--ZMQChannelsWebsocketConnection.link=pyzmq")
    try:
        server.start()
        done = await away_while_printing(server, end=server.crash)
        assert "because link is pyzmq (auto keeps connections)" in done.text("stderr")
        server.assert_clean_log()
    finally:
        server.kill()
