"""Output of real kernels that does not fit into memory, and output from before a crash."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kbridge.connect import write_connection_file
from kbridge.kernels.attached.connection_file import kernel_id_for
from tests.conftest import ServerFactory
from tests.support.client import KernelClient, attach
from tests.support.gates import Gates
from tests.support.jupyter_server import jupyter_server
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import LINK_PYZMQ, Server, gone
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel

MB = 1_000_000
AWAY = float(os.environ.get("KBRIDGE_AWAY", "5"))  # seconds
ATTACH = [sys.executable, "-m", "kbridge", "attach", "--ip=127.0.0.1"]
CUT = "the server was restarted while this cell was running"
SHOW = """\
for i in range({count}):
    display({{'image/png': 'A' * {size}, 'text/plain': str(i)}}, raw=True)
"""
# Prints numbered lines until a file exists; another file has the number of the last one.
COUNT = """\
import itertools, pathlib, time
stop, at = pathlib.Path({stop!r}), pathlib.Path({at!r})
for i in itertools.count():
    print(i, flush=True)
    at.write_text(str(i))
    time.sleep(0.002)
    if stop.exists(): break
print('end')
"""


# Prints numbered lines for some seconds.
PRINT = """\
import itertools, time
end = time.monotonic() + {seconds}
for i in itertools.count():
    print(i, 'x' * 1000, flush=True)
    time.sleep(0.002)
    if time.monotonic() > end: break
"""


def journal(server: Server) -> Path:
    return server.home / "runtime" / "kbridge-journal"


def on_disk(server: Server) -> set[str]:
    """Return the names of the kernels that have files."""
    root = journal(server)
    try:
        return {path.name for path in root.iterdir() if path.is_dir()}
    except FileNotFoundError:  # it is removed with the last kernel
        return set()


def is_on_disk(server: Server, kernel_id: str, text: str) -> bool:
    """Return True if a text is in the files of a kernel; that takes some milliseconds."""
    files = [path for path in (journal(server) / kernel_id).rglob("*") if path.is_file()]
    return any(text.encode() in path.read_bytes() for path in files)


async def crash(server: RestartableServer, kernel_id: str, text: str) -> None:
    """Kill the server once a text is on disk."""
    await asyncio.to_thread(
        eventually, lambda: is_on_disk(server, kernel_id, text), f"{text} is on disk"
    )
    server.crash()


def in_memory(server: Server, kernel_id: str) -> int:
    """Return the bytes of a journal that are in memory."""
    status = server.request("GET", "/api/status?statistics=1").json()
    [hub] = [each for each in status["hubs"] if each["kernel_id"] == kernel_id]
    return int(hub["journal"]["bytes"])


def state(server: Server, kernel_id: str) -> str:
    return str(server.request("GET", f"/api/kernels/{kernel_id}").json()["execution_state"])


def msg_id_of(msg: dict[str, Any]) -> str:
    return str(msg["header"]["msg_id"])


def is_idle(msg: dict[str, Any], msg_id: str) -> bool:
    return (
        msg["parent_header"].get("msg_id") == msg_id
        and msg["content"].get("execution_state") == "idle"
    )


def is_text(msg: dict[str, Any]) -> bool:
    """Return True for text of a cell; a kernel that starts may print warnings of its debugger."""
    return (
        msg["header"]["msg_type"] == "stream"
        and msg["parent_header"].get("msg_type") == "execute_request"
    )


def lines(messages: list[dict[str, Any]]) -> list[str]:
    """Return the lines that cells print on both streams, in order."""
    return "".join(m["content"]["text"] for m in messages if is_text(m)).splitlines()


def number_in(path: Path) -> int:
    """Return the number in a file that a kernel may be writing."""
    return int(eventually(path.read_text, f"there is a number in {path}"))


def numbers(printed: list[str]) -> list[int]:
    return [int(line) for line in printed if line.isdecimal()]


async def shown(client: KernelClient, msg_id: str, rate: float | None = None) -> list[int]:
    """Read up to the idle of a request; return the numbers of the images in its output."""
    found: list[int] = []
    due = time.monotonic()
    while True:
        msg = await client.recv()
        client.seen.clear()  # they are large
        content = msg["content"]
        assert not is_text(msg), content
        if "data" in content:
            found.append(int(content["data"]["text/plain"]))
            if rate is not None:  # simulates the network of the client; does not wait for an event
                due += len(content["data"]["image/png"]) / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        if is_idle(msg, msg_id):
            return found


async def say_alone(server: Server, kernel_id: str, code: str, timeout: float = TIMEOUT) -> str:
    """Start code, disconnect, and wait until the kernel has run it; return the request's id."""
    async with attach(server, kernel_id) as ws:
        await ws.request("kernel_info_request", {})
        msg_id = await ws.start(code)
        await ws.until(lambda m: m["header"]["msg_type"] == "execute_input")
        ws.cut()
    await asyncio.to_thread(
        eventually, lambda: state(server, kernel_id) == "idle", "it has ended", timeout
    )
    return msg_id


# -- more than the memory holds -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_600_images_of_a_megabyte_all_arrive_at_60_megabytes_per_second(
    new_server: ServerFactory,
) -> None:
    server = new_server()
    kernel = server.start_kernel()
    async with attach(server, kernel, max_queue=1) as client:
        await client.request("kernel_info_request", {})
        msg_id = await client.start(SHOW.format(count=600, size=MB))
        assert await shown(client, msg_id, rate=60 * MB) == list(range(600))
        # Frames that are not written yet may exceed the limit, within `burst_limit`.
        await asyncio.to_thread(
            eventually, lambda: in_memory(server, kernel) <= 64 << 20, "memory is within its limit"
        )
    server.assert_clean_log()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_100_megabytes_that_nobody_heard_are_there_for_a_later_client(
    new_server: ServerFactory,
) -> None:
    server = new_server()
    kernel = server.start_kernel()
    msg_id = await say_alone(server, kernel, SHOW.format(count=100, size=MB))
    async with attach(server, kernel, since="start", max_queue=1) as client:
        assert await shown(client, msg_id) == list(range(100))
    server.assert_clean_log()


@pytest.mark.timeout(600 + 2 * AWAY)
async def test_a_client_that_comes_minutes_later_gets_every_line(new_server: ServerFactory) -> None:
    server = new_server("--ZMQChannelsWebsocketConnection.journal_limit=1000000")
    kernel = server.start_kernel()
    code = PRINT.format(seconds=AWAY)
    msg_id = await say_alone(server, kernel, code, timeout=TIMEOUT + AWAY)
    async with attach(server, kernel, since="start") as client:
        await client.until(lambda m: is_idle(m, msg_id))
        printed = [line.split()[0] for line in lines(client.seen)]
    assert printed == [str(i) for i in range(len(printed))]
    assert len(printed) > 20 * AWAY
    server.assert_clean_log()


async def test_a_small_memory_loses_nothing(new_server: ServerFactory, dialect: str) -> None:
    limit = "--ZMQChannelsWebsocketConnection.journal_limit=4000000"
    server = new_server(limit)
    kernel = server.start_kernel()
    first = await say_alone(server, kernel, SHOW.format(count=30, size=MB // 2))
    async with attach(server, kernel, dialect, since="start") as client:
        assert await shown(client, first) == list(range(30))
        second = await client.start(SHOW.format(count=30, size=MB // 2))
        assert await shown(client, second) == list(range(30))
    server.assert_clean_log()


async def test_without_a_directory_nothing_is_on_disk(new_server: ServerFactory) -> None:
    server = new_server("--ZMQChannelsWebsocketConnection.journal_dir=")
    kernel = server.start_kernel()
    async with attach(server, kernel) as client:
        assert (await client.execute("print(1)")).text() == "1\n"
    assert not journal(server).exists()


# -- across a crash -------------------------------------------------------------------------------


@pytest.mark.parametrize("names_message", [False, True], ids=["session", "since"])
async def test_a_cell_that_prints_across_a_crash(
    own_server: RestartableServer, names_message: bool
) -> None:
    """All lines arrive, except those that the kernel printed while no server ran.

    See `test_holder.py` for connections that stay: those lines arrive, too.
    """
    own_server.start(LINK_PYZMQ)
    kernel = own_server.start_kernel()
    stop, at = own_server.home / "stop", own_server.home / "at"
    async with attach(own_server, kernel, session="mine") as ws:
        msg_id = await ws.start(COUNT.format(stop=str(stop), at=str(at)))
        await ws.until(lambda m: is_text(m) and "200" in m["content"]["text"])
        first = next(msg for msg in ws.seen if is_text(msg))
        await crash(own_server, kernel, msg_id_of(first))
        before, seen = numbers(lines(ws.seen)), list(ws.seen)
    assert before == list(range(len(before))), "once each"
    since, known = "", len(before)
    if names_message:
        # The last few milliseconds may not be on disk: the client names a message that is.
        named = max(i for i, m in enumerate(seen) if is_on_disk(own_server, kernel, msg_id_of(m)))
        since = msg_id_of(seen[named])
        known = len(numbers(lines(seen[: named + 1])))

    own_server.start(LINK_PYZMQ)
    async with attach(own_server, kernel, session="mine", since=since) as ws:
        await ws.request("kernel_info_request", {}, channel="control")
        heard_from = number_in(at) + 1  # the new server is connected by now
        stop.touch()
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        after = lines(ws.seen)
    assert [CUT in line for line in after].count(True) == 1
    cut = next(i for i, line in enumerate(after) if CUT in line)
    recovered, resumed = numbers(after[:cut]), numbers(after[cut:])
    # Lines that the client has not acknowledged may come twice, but none that it has named.
    start = recovered[0] if recovered else len(before)
    assert start <= len(before)
    assert not names_message or start == known
    assert recovered == list(range(start, start + len(recovered)))
    last = number_in(at)
    assert resumed == list(range(resumed[0], last + 1))
    assert len(before) <= resumed[0] <= heard_from
    assert after[-1] == "end"
    own_server.assert_clean_log()


async def test_an_old_message_is_known_after_a_crash(
    own_server: RestartableServer, dialect: str
) -> None:
    own_server.start()
    kernel = own_server.start_kernel()
    async with attach(own_server, kernel, dialect) as ws:
        first = await ws.execute("for i in range(5): display(i)")
        last = await ws.execute("print('between')")
    named = first.of("display_data")[1]["header"]["msg_id"]
    await crash(own_server, kernel, last.iopub[-1]["header"]["msg_id"])
    own_server.start()
    for since, left in ((named, ["2", "3", "4"]), ("start", ["0", "1", "2", "3", "4"])):
        async with attach(own_server, kernel, dialect, since=since) as ws:
            await ws.until_text("between\n")
            data = [m["content"]["data"] for m in ws.seen if "data" in m["content"]]
            assert [each["text/plain"] for each in data] == left
    own_server.assert_clean_log()


async def test_a_cell_that_ends_while_no_server_runs_ends_for_its_client(
    own_server: RestartableServer, dialect: str, gates: Gates
) -> None:
    own_server.start(LINK_PYZMQ)
    kernel = own_server.start_kernel()
    code = "print('before', flush=True)\ngate('go')\nprint('unheard', flush=True)\ngate('over')"
    gates.open("over")
    async with attach(own_server, kernel, dialect, session="mine") as ws:
        await ws.execute(gates.code, store_history=True)
        msg_id = await ws.start(code, store_history=True)
        *_, started = await ws.until(lambda m: m["header"]["msg_type"] == "execute_input")
        await ws.until_text("before\n")
        await crash(own_server, kernel, "before")
    gates.open("go")
    await gates.reached("over")
    own_server.start(LINK_PYZMQ)
    async with attach(own_server, kernel, dialect, session="mine") as ws:
        done = await ws.finish(msg_id)
        assert done.reply["status"] == "ok"
        assert done.reply["execution_count"] == started["content"]["execution_count"]
        assert done.text("stderr").count(CUT) == 1
        assert "unheard" not in done.text()
        assert (await ws.execute("print('next')")).text() == "next\n"
    assert state(own_server, kernel) == "idle"
    own_server.assert_clean_log()


async def test_output_of_three_servers(own_server: RestartableServer) -> None:
    """Each goes on with the journal of the one before, and a client may name any message."""
    kernel = ""
    named = []
    for n in range(3):
        own_server.start()
        kernel = kernel or own_server.start_kernel()
        async with attach(own_server, kernel, session=f"session-{n}") as ws:
            done = await ws.execute(f"print({n})")
            named.append(done.of("stream")[-1]["header"]["msg_id"])
        await crash(own_server, kernel, done.iopub[-1]["header"]["msg_id"])
    own_server.start()
    for n in range(3):
        async with attach(own_server, kernel, since=named[n]) as ws:
            came = (await ws.request("kernel_info_request", {})).iopub and ws.seen
            assert numbers(lines(came)) == list(range(n + 1, 3))
    own_server.assert_clean_log()


async def test_a_restart_of_the_kernel_keeps_its_output(own_server: RestartableServer) -> None:
    own_server.start()
    kernel = own_server.start_kernel()
    async with attach(own_server, kernel) as ws:
        await ws.execute("print('first process')")
        reply = await own_server.call("POST", f"/api/kernels/{kernel}/restart")
        assert reply.status == 200
        done = await ws.execute("print('second process')")
    await crash(own_server, kernel, done.iopub[-1]["header"]["msg_id"])
    own_server.start()
    async with attach(own_server, kernel, since="start") as ws:
        await ws.request("kernel_info_request", {})
        assert lines(ws.seen) == ["first process", "second process"]
    own_server.assert_clean_log()


# -- files ----------------------------------------------------------------------------------------


async def test_files_are_private_and_removed_with_their_kernel(
    own_server: RestartableServer,
) -> None:
    own_server.start()
    one, two = own_server.start_kernel(), own_server.start_kernel()
    for kernel in (one, two):
        async with attach(own_server, kernel) as ws:
            await ws.execute("print('secret')")
    eventually(lambda: on_disk(own_server) == {one, two}, "both have files")
    for path in (journal(own_server), *journal(own_server).rglob("*")):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            continue  # a temporary file that was renamed meanwhile
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"
    own_server.stop_kernel(one)
    eventually(lambda: on_disk(own_server) == {two}, "the files of the other kernel are removed")
    assert own_server.stop() == 0
    assert on_disk(own_server) == set()


async def test_files_of_a_kernel_that_died_with_its_server_are_removed(
    own_server: RestartableServer,
) -> None:
    own_server.start()
    lost, kept = own_server.start_kernel(), own_server.start_kernel()
    for kernel in (lost, kept):
        async with attach(own_server, kernel) as ws:
            await ws.execute("print('secret')")
    eventually(lambda: on_disk(own_server) == {lost, kept}, "both have files")
    pid = own_server.kernels()[lost]
    own_server.crash()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid), "the kernel is gone")
    own_server.start()
    assert on_disk(own_server) == {kept}


async def test_files_stay_if_kernels_outlive_the_server(own_server: RestartableServer) -> None:
    own_server.start("--shutdown-kernels-on-exit=false")
    kernel = own_server.start_kernel()
    async with attach(own_server, kernel) as ws:
        await ws.execute("print('said before')")
    assert own_server.stop() == 0
    assert on_disk(own_server) == {kernel}
    own_server.start()
    async with attach(own_server, kernel, since="start") as ws:
        await ws.until_text("said before\n")
    assert own_server.stop() == 0
    assert on_disk(own_server) == set()


async def test_a_directory_that_is_removed_while_the_server_runs(
    own_server: RestartableServer,
) -> None:
    own_server.start()
    kernel = own_server.start_kernel()
    async with attach(own_server, kernel) as ws:
        await ws.execute("print(1)")
        eventually(lambda: on_disk(own_server) == {kernel}, "it has files")
        shutil.rmtree(journal(own_server))
        for n in range(2, 6):
            assert (await ws.execute(f"print({n})")).text() == f"{n}\n"
    async with attach(own_server, kernel, since="start") as ws:
        await ws.request("kernel_info_request", {})
        assert numbers(lines(ws.seen))[-4:] == [2, 3, 4, 5]
    own_server.assert_clean_log()


@pytest.mark.skipif(sys.platform != "linux", reason="/sys is Linux's")
async def test_a_directory_that_cannot_be_written(own_server: RestartableServer) -> None:
    own_server.start("--ZMQChannelsWebsocketConnection.journal_dir=/sys/kbridge-journal")
    kernel = own_server.start_kernel()
    async with attach(own_server, kernel) as ws:
        for n in range(5):
            assert (await ws.execute(f"print({n})")).text() == f"{n}\n"
    assert own_server.said("journal_dir") == 1, own_server.tail()
    own_server.assert_clean_log()


async def test_an_attached_kernel_after_a_crash(tmp_path: Path) -> None:
    """A file with the same name and another key belongs to another kernel."""
    require("ipykernel")
    file = tmp_path / "kernel.json"
    server = RestartableServer(tmp_path, str(file), command=[*ATTACH])
    kernel = kernel_id_for(file)
    process = start_kernel(file, b"one key")
    try:
        server.start()
        async with attach(server, kernel) as ws:
            done = await ws.execute("print('kept')")
        await crash(server, kernel, msg_id_of(done.iopub[-1]))
        server.start()
        async with attach(server, kernel, since="start") as ws:
            await ws.until_text("kept\n")
        server.crash()
        process.kill()
        process.wait()
        process = start_kernel(file, b"another key")
        server.start()
        async with attach(server, kernel, since="start") as ws:
            await ws.request("kernel_info_request", {})
            assert lines(ws.seen) == []
        server.assert_clean_log()
    finally:
        server.kill()
        process.kill()
        process.wait()


def start_kernel(file: Path, key: bytes) -> subprocess.Popen[bytes]:
    """Start a kernel that no server manages."""
    write_connection_file(str(file), key=key)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", str(file)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# -- other servers --------------------------------------------------------------------------------


async def test_in_jupyter_server(tmp_path: Path) -> None:
    """Kernels end with Jupyter Server, and so do their files."""
    require("ipykernel")
    server = jupyter_server(tmp_path)
    try:
        server.start()
        kernel, other = server.start_kernel(), server.start_kernel()
        msg_id = await say_alone(server, kernel, SHOW.format(count=3, size=1000))
        async with attach(server, kernel, since="start") as ws:
            assert await shown(ws, msg_id) == [0, 1, 2]
        async with attach(server, other) as ws:
            await ws.execute("print('secret')")
        eventually(lambda: on_disk(server) == {kernel, other}, "both have files")
        server.stop_kernel(kernel)
        eventually(lambda: on_disk(server) == {other}, "files end with their kernel")
        assert server.stop() == 0
        assert on_disk(server) == set()
    finally:
        server.kill()


async def test_after_a_crash_of_jupyter_server(tmp_path: Path) -> None:
    require("ipykernel")
    first, second = jupyter_server(tmp_path / "first"), jupyter_server(tmp_path / "second")
    (second.home / "runtime").symlink_to(first.home / "runtime")
    try:
        first.start()
        lost = first.start_kernel()
        async with attach(first, lost) as ws:
            await ws.execute("print('secret')")
        eventually(lambda: on_disk(first) == {lost}, "it has files")
        first.kill()
        second.start()
        kernel = second.start_kernel()
        async with attach(second, kernel) as ws:
            await ws.execute("print('secret')")
        eventually(lambda: on_disk(first) == {kernel}, "the next server removes them")
    finally:
        second.kill()
        first.kill()
