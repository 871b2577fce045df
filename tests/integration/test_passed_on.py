"""Kernels of one replica, used through another one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.client import SLEEP, attach
from tests.support.replicas import kernel_at, model_at, replicas
from tests.support.require import require
from tests.support.server import Server

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    require("ipykernel")
    with replicas(tmp_path_factory.mktemp("replicas")) as made:
        yield made


async def test_a_kernel_is_used_through_another_replica(both: list[Server]) -> None:
    one, two = both
    kernel = await asyncio.to_thread(kernel_at, one)
    async with attach(two, kernel) as far, attach(one, kernel) as near:
        done = await far.execute("print(6 * 7)")
        assert done.text() == "42\n"
        await near.until_text("42\n")
        large = "x" * (4 << 20)
        assert (
            (await far.execute(f"s = '{large}'\nprint(len(s), s)")).text().startswith("4194304 x")
        )
    listed = await asyncio.to_thread(two.request, "GET", f"/api/kernels/{kernel}/executions")
    assert [entry["state"] for entry in listed.json()] == ["done", "done"]
    [entry, _] = listed.json()
    path = f"/api/kernels/{kernel}/executions/{entry['id']}"
    assert (await asyncio.to_thread(two.request, "GET", path)).json() == entry
    assert (await asyncio.to_thread(two.request, "DELETE", path)).status == 204
    assert (await asyncio.to_thread(one.request, "GET", path)).status == 404


async def test_a_client_goes_on_at_another_replica(both: list[Server]) -> None:
    """The journal is that of the owner, wherever the websocket is."""
    one, two = both
    kernel = await asyncio.to_thread(kernel_at, one)
    async with attach(two, kernel) as first:
        await first.execute("pass")
        msg_id = await first.start(r"for n in range(2000): print(f'{n}\n', end='')")
        await first.until_text("99\n")
    async with attach(one, kernel, session=first.session) as second:
        done = await second.finish(msg_id)
    text = "".join(
        m["content"]["text"]
        for m in [*first.seen, *done.messages]
        if m["header"]["msg_type"] == "stream" and m["content"]["name"] == "stdout"
    )
    assert {int(line) for line in text.split()} == set(range(2000))


async def test_a_cell_is_interrupted_and_a_kernel_restarted_and_ended(both: list[Server]) -> None:
    one, two = both
    kernel = await asyncio.to_thread(kernel_at, one)
    path = f"/api/kernels/{kernel}"
    async with attach(two, kernel) as client:
        msg_id = await client.start(SLEEP)
        await client.until_text("asleep")
        assert (await asyncio.to_thread(two.request, "POST", f"{path}/interrupt")).status == 204
        assert (await client.finish(msg_id)).reply["ename"] == "KeyboardInterrupt"
        restarted = await asyncio.to_thread(two.request, "POST", f"{path}/restart")
        assert (restarted.status, restarted.json()["id"]) == (200, kernel)
        assert (await client.execute("print(1)")).text() == "1\n"
    await asyncio.to_thread(model_at, two, kernel)
    assert (await asyncio.to_thread(two.request, "DELETE", path)).status == 204
    for server in both:
        listed = (await asyncio.to_thread(server.request, "GET", "/api/kernels")).json()
        assert kernel not in [model["id"] for model in listed]
        assert (await asyncio.to_thread(server.request, "GET", path)).status == 404


def test_the_lists_of_all_replicas_are_the_same(both: list[Server]) -> None:
    kernels = {kernel_at(server) for server in both}
    for server in both:
        listed = server.request("GET", "/api/kernels").json()
        assert kernels <= {model["id"] for model in listed}
    body = b'{"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}'
    created = [server.request("POST", "/api/sessions", body).json() for server in both]
    assert created[0]["id"] == created[1]["id"]
    assert created[0]["kernel"]["id"] == created[1]["kernel"]["id"]
    path = f"/api/sessions/{created[0]['id']}"
    assert both[1].request("DELETE", path).status == 204
    assert both[0].request("GET", path).status == 404
    kernel = f"/api/kernels/{created[0]['kernel']['id']}"
    assert both[1].request("GET", kernel).status == 404


def test_a_browser_that_is_logged_in_may_use_each_replica(both: list[Server]) -> None:
    one, two = both
    reply = one.request("GET", f"/?token={one.token}", headers={"Accept": "text/html"}, token=None)
    cookie = reply.headers["Set-Cookie"].partition(";")[0]
    for server in (one, two):
        assert (
            server.request("GET", "/api/kernels", headers={"Cookie": cookie}, token=None).status
            == 200
        )
