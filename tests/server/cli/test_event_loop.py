"""The event loop of a server; `KBRIDGE_TEST_LOOP=uvloop` runs all tests of servers on the other."""

import asyncio
import sys
from pathlib import Path

import pytest

from kbridge.server.cli.event_loop import loop_factory, run
from tests.support.client import SLEEP, attach
from tests.support.server import PEER, Server

WINDOWS = sys.platform == "win32"


def kind_of_loop(*, use_uvloop: bool) -> str:
    found = []

    async def look() -> None:
        found.append(type(asyncio.get_running_loop()).__module__)

    run(look(), use_uvloop=use_uvloop)
    return found[0].partition(".")[0]


@pytest.mark.skipif(WINDOWS, reason="uvloop is not for Windows")
def test_uvloop_is_used_where_it_is_installed_unless_it_is_turned_off() -> None:
    assert kind_of_loop(use_uvloop=True) == "uvloop"
    assert kind_of_loop(use_uvloop=False) == "asyncio"


def test_without_uvloop_the_loop_of_asyncio_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory(use_uvloop=True) is None
    assert kind_of_loop(use_uvloop=True) == "asyncio"


def mapped(pid: int) -> str:
    """Return the names of the files that are mapped into a process, such as its libraries."""
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.kernel
@pytest.mark.skipif(PEER or WINDOWS, reason="kbridge only; uvloop is not for Windows")
async def test_a_server_on_uvloop_starts_interrupts_restarts_and_ends_kernels(tmp_path) -> None:
    server = Server(tmp_path, command=[sys.executable, "-m", "kbridge"]).start()
    try:
        if sys.platform == "linux":
            assert "uvloop" in mapped(server.process.pid)
        created = await server.call("POST", "/api/kernels", {"name": "python3"})
        kernel = created.json()["id"]
        async with attach(server, kernel) as client:
            assert (await client.execute("print(6 * 7)")).text() == "42\n"
            big = await client.execute("print('x' * 3_000_000)")
            assert len(big.text()) == 3_000_001
            asked = await client.start(SLEEP)
            await client.until(lambda m: "asleep" in m["content"].get("text", ""))
            assert (await server.call("POST", f"/api/kernels/{kernel}/interrupt")).status == 204
            assert (await client.finish(asked)).reply["ename"] == "KeyboardInterrupt"
            assert (await server.call("POST", f"/api/kernels/{kernel}/restart")).status == 200
            assert (await client.execute("print('again')")).text() == "again\n"
            await client.start("import os; os._exit(1)")  # its end is seen by its descriptor
            await client.until(lambda m: m["content"].get("execution_state") == "restarting")
            assert (await client.execute("print('still')")).text() == "still\n"
    finally:
        code = await asyncio.to_thread(server.stop)
    assert code == 0, server.tail()
    assert "Traceback" not in server.log.read_text()
