"""`/api/kernels/{id}/executions` on a real server; the kernel behind it is in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kbridge.hub.table import HubTable
from tests.hub.rig import INFO, KEY
from tests.support.execution_script import ExecutionScript
from tests.support.memory import MemoryKernels


class Served:
    """A server with one kernel, whose first execution has ended and whose second one runs."""

    def __init__(self, running: Any, kernel_id: str, hubs: HubTable, links: MemoryKernels) -> None:
        self.running = running
        self.path = f"/api/kernels/{kernel_id}/executions"
        hub = hubs.open(kernel_id, INFO)
        script = ExecutionScript(hub, links.latest, KEY)
        script.submit("a/b", cell="c1")
        script.submit("second", cell="c2")
        script.finish("a/b")
        script.begin("second")

    async def ask(self, below: str = "", method: str = "GET", **options: Any) -> Any:
        return await self.running.ask(method, self.path + below, **options)


@pytest.fixture
async def served(start: Any) -> AsyncIterator[Served]:
    links = MemoryKernels()
    hubs = HubTable(link=links)
    running = await start(hubs=hubs)
    kernel_id = await running.kernels.start_kernel("fake")
    running.services.activity.last_request = 0.0

    yield Served(running, kernel_id, hubs, links)
    await hubs.aclose()


async def test_executions_are_listed_and_described(served: Served) -> None:
    reply = await served.ask()
    first, second = json.loads(reply.body)
    assert reply.headers["Content-Type"].startswith("application/json")
    assert (first["id"], first["state"]) == ("a/b", "done")
    assert (second["id"], second["state"]) == ("second", "running")
    assert json.loads((await served.ask("?state=running&limit=1")).body) == [second]
    assert json.loads((await served.ask("?cell_id=c1")).body) == [first]
    assert json.loads((await served.ask("/second")).body) == second
    assert json.loads((await served.ask("/a%2Fb")).body) == first


async def test_the_record_of_an_execution_that_has_ended_is_deleted(
    served: Served, error_of: Any
) -> None:
    reply = await served.ask("/a%2Fb", "DELETE")
    assert (reply.code, reply.body) == (204, b"")
    assert error_of(await served.ask("/a%2Fb", "DELETE"))[0] == 404
    assert error_of(await served.ask("/a%2Fb"))[0] == 404
    assert (await served.ask("/second", "DELETE")).code == 204
    assert json.loads((await served.ask("/second")).body)["state"] == "running"
    assert [e["id"] for e in json.loads((await served.ask()).body)] == ["second"]


async def test_invalid_queries_are_refused_with_the_reason(served: Served, error_of: Any) -> None:
    status, _, message = error_of(await served.ask("?state=busy"))
    assert (status, message[:22]) == (400, "'busy' is not a state;")
    assert error_of(await served.ask("?limit=0"))[0] == 400


async def test_unknown_kernels_and_executions_are_not_found(served: Served, error_of: Any) -> None:
    for path in ("/api/kernels/none/executions", "/api/kernels/none/executions/second"):
        status, _, message = error_of(await served.running.ask("GET", path))
        assert (status, message) == (404, "no kernel has the id none")
    status, _, message = error_of(await served.ask("/third"))
    assert (status, message) == (404, "no execution has the id 'third'")


async def test_a_kernel_that_no_client_has_used_has_none(start: Any, error_of: Any) -> None:
    hubs = HubTable(link=MemoryKernels())
    running = await start(hubs=hubs)
    kernel_id = await running.kernels.start_kernel("fake")
    path = f"/api/kernels/{kernel_id}/executions"
    assert json.loads((await running.ask("GET", path)).body) == []
    for method in ("GET", "DELETE"):
        assert error_of(await running.ask(method, f"{path}/x"))[0] == 404


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_the_access_control_is_that_of_all_routes(
    served: Served, error_of: Any, method: str
) -> None:
    for options in ({"token": None}, {"token": "wrong"}):
        assert error_of(await served.ask("/a%2Fb", method, **options))[0] == 403
    elsewhere = {"Origin": "http://elsewhere.example"}
    assert error_of(await served.ask("", "GET", token=None, headers=elsewhere))[0] == 403
    assert len(json.loads((await served.ask()).body)) == 2


async def test_other_methods_do_not_exist(served: Served, error_of: Any) -> None:
    for below, method, allowed in (
        ("", "POST", "GET, OPTIONS"),
        ("", "DELETE", "GET, OPTIONS"),
        ("/second", "PUT", "GET, DELETE, OPTIONS"),
    ):
        reply = await served.ask(below, method)
        assert error_of(reply)[0] == 405
        assert set(reply.headers["Allow"].split(", ")) == set(allowed.split(", "))


async def test_requests_for_executions_are_not_activity(served: Served) -> None:
    await served.ask()
    await served.ask("/second")
    await served.ask("/a%2Fb", "DELETE")
    assert served.running.services.activity.last_request == 0.0
