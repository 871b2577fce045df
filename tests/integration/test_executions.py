"""The executions of a real kernel, with the cells of a notebook, before and after a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.client import SLEEP, KernelClient, attach
from tests.support.restartable_server import RestartableServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.kernel

# Waits for a file, then fails.
FAIL = """\
import pathlib, time
while not pathlib.Path({go!r}).exists(): time.sleep(0.01)
print(1)
1 / 0
"""
STATES = {"prints": "done", "fails": "error", "behind": "aborted", "sleeps": "running"}


async def run(ws: KernelClient, cell: str, code: str) -> str:
    """Send the code of a cell, as JupyterLab does; return the id of the request."""
    content = {"code": code, "silent": False, "store_history": True, "stop_on_error": True}
    return await ws.send("execute_request", content, metadata={"cellId": cell})


async def test_a_page_that_joins_learns_at_once_that_its_kernel_is_busy(
    own_server: RestartableServer,
) -> None:
    own_server.start()
    kernel_id = own_server.start_kernel()
    async with attach(own_server, kernel_id, session="a-page") as ws:
        await run(ws, "sleeps", SLEEP)
        await ws.until(lambda m: "asleep" in m["content"].get("text", ""))
    async with attach(own_server, kernel_id, session="the-page-after-a-reload") as ws:
        await ws.send("kernel_info_request", {})
        first = await ws.recv()
        assert (first["channel"], first["header"]["msg_type"]) == ("iopub", "status")
        assert (first["content"], first["parent_header"]) == ({"execution_state": "busy"}, {})


async def test_executions_of_cells_are_listed_before_and_after_a_crash(
    own_server: RestartableServer, tmp_path: Path
) -> None:
    own_server.start()
    kernel_id = own_server.start_kernel()
    path = f"/api/kernels/{kernel_id}/executions"

    def listed() -> list[dict[str, Any]]:
        return list(own_server.request("GET", path).json())

    async with attach(own_server, kernel_id, session="a-page") as ws:
        await ws.finish(await run(ws, "prints", "for i in range(1000): print(i)"))
        go = tmp_path / "go"
        fails = await run(ws, "fails", FAIL.format(go=str(go)))
        await run(ws, "behind", "print(2)")
        eventually(lambda: len(listed()) == 3, "both requests are in the queue of the kernel")
        go.touch()
        assert (await ws.finish(fails)).reply["ename"] == "ZeroDivisionError"
        eventually(lambda: listed()[2]["state"] == "aborted", "the request behind is aborted")
        await run(ws, "sleeps", SLEEP)
        await ws.until(lambda m: "asleep" in m["content"].get("text", ""))
        before = listed()
        assert {each["cell_id"]: each["state"] for each in before} == STATES
        prints, fails_, behind_, sleeps = before
        assert prints["lines"] == 1000
        assert (prints["execution_count"], fails_["execution_count"]) == (1, 2)
        assert {each["session_id"] for each in before} == {"a-page"}
        assert all(each["connected"] for each in before)
        assert behind_["started"] is None
        assert sleeps["ended"] is None
        assert prints["submitted"] <= prints["started"] <= prints["ended"]
        assert prints["last_seq"] < fails_["first_seq"] <= fails_["last_seq"] < sleeps["first_seq"]
    eventually(lambda: not listed()[0]["connected"], "the page has gone")
    # The log is written some milliseconds after the messages.
    eventually(lambda: _on_disk(own_server, kernel_id, sleeps["id"]), "the last record is on disk")

    own_server.crash()
    own_server.start()
    after = listed()
    assert {each["cell_id"]: each["state"] for each in after} == STATES
    for old, new in zip(before[:3], after[:3], strict=True):
        numbers = {"first_seq": new["first_seq"], "last_seq": new["last_seq"]}
        assert new == {**old, **numbers, "connected": False}
        assert new["last_seq"] - new["first_seq"] == old["last_seq"] - old["first_seq"]
    reply = await own_server.call("POST", f"/api/kernels/{kernel_id}/restart")
    assert reply.status == 200
    # ipykernel may still send the KeyboardInterrupt of the cell that it ends.
    assert [each["state"] for each in listed()][:3] == ["done", "error", "aborted"]
    assert listed()[3]["state"] in ("aborted", "error")


def _on_disk(server: RestartableServer, kernel_id: str, msg_id: str) -> bool:
    """Return True if the running state of an execution is in the state log."""
    log = server.home / "runtime" / "kbridge-journal" / kernel_id / "state.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return any(f"execution/{msg_id}" in line and '"running"' in line for line in lines)
