"""The counters of hubs, through the public methods of hubs and of their table."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kbridge.flow.histogram import Histogram
from kbridge.hub.counts import Totals
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import serialize
from tests.hub.rig import INFO, Rig


def counts_of(rig: Rig) -> dict[str, int]:
    """Return the counters with keys joined by spaces, those that are zero left out."""
    return {" ".join(key): value for key, value in rig.hub.counters().items() if value}


@pytest.fixture
async def rig() -> Any:
    made = Rig(HubSettings())
    yield made
    await made.hub.aclose()


async def test_messages_of_the_kernel_are_counted_by_channel(rig: Rig) -> None:
    rig.prove()
    before = counts_of(rig)
    rig.say(rig.stream("a"), rig.stream("b"))
    request = rig.request()
    _, cursor = rig.attach("s")
    rig.hub.submit(cursor, request)
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, request.header))
    after = counts_of(rig)

    def grown(key: str) -> int:
        return after.get(key, 0) - before.get(key, 0)

    assert grown("kernel_messages from_kernel iopub") == 2
    assert grown("kernel_messages from_kernel shell") == 1
    assert grown("kernel_messages to_kernel shell") == 1
    assert grown("kernel_bytes to_kernel shell") == request.nbytes
    assert grown("kernel_bytes from_kernel shell") > 0
    assert grown("kernel_bytes from_kernel iopub") > 0
    sums = [v for k, v in after.items() if k.startswith("kernel_bytes from_kernel")]
    assert sum(sums) == rig.hub.statistics()["journal"]["appended_bytes"]
    assert grown("websockets_opened") == 1
    assert grown("websocket_writes") > 0
    assert grown("websocket_written_bytes") == grown("kernel_bytes from_kernel shell")


async def test_messages_of_the_bridge_do_not_count_as_those_of_the_kernel(rig: Rig) -> None:
    rig.prove()
    before = counts_of(rig)
    rig.say(rig.stream("a"))
    of_kernel = counts_of(rig)["kernel_bytes from_kernel iopub"]
    rig.hub.say(rig.hub.notices.status("idle"))
    rig.hub.announce("restarting")
    assert counts_of(rig)["kernel_bytes from_kernel iopub"] == of_kernel
    messages = counts_of(rig)["kernel_messages from_kernel iopub"]
    assert messages == before.get("kernel_messages from_kernel iopub", 0) + 1


async def test_answers_to_probes_and_refused_messages_are_not_counted(rig: Rig) -> None:
    rig.prove()  # the kernel answers a probe
    rig.kernel.say(Channel.IOPUB, [b"nonsense"])
    rig.kernel.say(Channel.SHELL, serialize(rig.request(), Signer(b"another key")))
    found = counts_of(rig)
    assert found["kernel_probes"] > 0
    assert not [key for key in found if key.startswith("kernel_messages from_kernel")]


async def test_refused_messages_are_counted_by_cause(rig: Rig) -> None:
    rig.prove()
    forged = serialize(rig.stream("forged"), Signer(b"another key"))
    rig.kernel.say(Channel.IOPUB, forged)
    rig.kernel.say(Channel.IOPUB, [b"nonsense"])
    rig.kernel.say(Channel.SHELL, serialize(rig.request(), Signer(b"another key")))
    found = counts_of(rig)
    assert found["refused_messages forged"] == 2
    assert found["refused_messages invalid"] == 1


async def test_probes_restarts_and_deaths(rig: Rig) -> None:
    assert counts_of(rig)["kernel_probes"] == 2, "on shell and on control"
    rig.prove()
    await rig.hub.restarting(asked=True)
    rig.hub.reconnect(INFO)
    await rig.hub.restarting()
    rig.hub.reconnect(INFO)
    rig.hub.dead()
    found = counts_of(rig)
    assert found["kernel_restarts requested"] == 1
    assert found["kernel_restarts automatic"] == 1
    assert found["kernel_deaths"] == 1


async def test_a_restart_that_was_not_reported_is_noticed(rig: Rig) -> None:
    rig.prove()
    rig.process = "another process"
    rig.kernel.disconnect()
    rig.kernel.connect()
    rig.fire_nudge_timer()
    rig.prove()
    assert counts_of(rig)["kernel_restarts noticed"] == 1


async def test_joined_and_left_out_messages(rig: Rig) -> None:
    rig.prove()
    client, _ = rig.attach("s")
    client.stalled = True
    rig.say(rig.stream("first"))
    for text in ("a", "b", "c"):
        rig.say(rig.stream(text))
    parent = rig.request().header
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}, parent))
    rig.say(rig.stream("gone", parent))
    rig.say(rig.message(Channel.IOPUB, "clear_output", {"wait": False}, parent))
    client.resume()
    found = counts_of(rig)
    assert found["coalesced_messages joined"] == 2
    assert found["coalesced_messages left_out"] == 1


async def test_output_that_waits_for_the_rate_limit_is_counted_once() -> None:
    rig = Rig(HubSettings(iopub_data_rate_limit=10, rate_limit_window=1.0))
    try:
        rig.prove()
        rig.attach("s")
        for _ in range(5):
            rig.say(rig.stream("more than ten bytes"))
        assert counts_of(rig)["rate_limit_waits"] == 1
    finally:
        await rig.hub.aclose()


async def test_output_that_the_rate_limit_drops_is_counted() -> None:
    limits: dict[str, Any] = {"iopub_data_rate_limit": 10, "rate_limit_window": 1.0}
    rig = Rig(HubSettings(rate_limit_policy="drop", **limits))
    try:
        rig.prove()
        rig.attach("s")
        for _ in range(5):
            rig.say(rig.stream("more than ten bytes"))
        found = counts_of(rig)
        assert found["rate_limit_dropped_messages"] == 5
        assert found["rate_limit_dropped_bytes"] >= 5 * len("more than ten bytes")
        assert "rate_limit_waits" not in found
    finally:
        await rig.hub.aclose()


async def test_output_does_not_wait_without_a_websocket_that_is_limited() -> None:
    rig = Rig(HubSettings(iopub_data_rate_limit=10, rate_limit_window=1.0))
    try:
        rig.prove()
        rig.hub.attach(MemoryClient(), V1, "s", paced=False)
        for _ in range(5):
            rig.say(rig.stream("more than ten bytes"))
        assert "rate_limit_waits" not in counts_of(rig)
        assert rig.hub.statistics()["pace"]["held_bytes"] == 0
        rig.attach("a page")
        assert rig.hub.statistics()["pace"]["held_bytes"] > 0
    finally:
        await rig.hub.aclose()


async def test_a_round_trip_is_measured(rig: Rig) -> None:
    rig.prove()
    client, _ = rig.attach("s", silent=True)
    rig.say(rig.stream("x"))
    rig.clock.now += 0.2
    client.silent = False
    client.answer()
    assert sum(rig.hub.round_trips.counts) == 1
    assert 0.19 < rig.hub.round_trips.total < 0.21


async def test_lag_is_what_was_not_written(rig: Rig) -> None:
    rig.prove()
    client, _ = rig.attach("s")
    assert rig.hub.statistics()["clients"]["behind"] == 0
    client.stalled = True
    rig.say(rig.stream("first"))
    before = rig.hub.statistics()["journal"]["appended_bytes"]
    rig.say(rig.stream("second"))
    clients = rig.hub.statistics()["clients"]
    written = rig.hub.statistics()["journal"]["appended_bytes"] - before
    assert clients["behind"] == 1
    assert clients["lag_bytes"] == clients["max_lag_bytes"] == written


async def test_the_counters_of_a_closed_hub_stay_in_the_totals() -> None:
    kernels: list[MemoryKernel] = []

    def link(*args: Any) -> MemoryKernel:
        kernels.append(MemoryKernel(*args))
        return kernels[-1]

    table = HubTable(link=link)
    hub = table.open("a", INFO)
    table.open("b", INFO)
    hub.attach(MemoryClient(), V1, "s")
    hub.say(hub.notices.status("idle"))
    before = table.totals().counts
    assert before["websockets_opened",] == 1
    assert before["websocket_written_bytes",] > 0
    closing = asyncio.ensure_future(table.close("a"))
    assert not before - table.totals().counts, "no counter decreases while a hub is closed"
    await closing
    assert not before - table.totals().counts
    await table.aclose()
    assert not before - table.totals().counts


def test_totals_are_sums() -> None:
    totals, trips = Totals(), Histogram(Totals().round_trips.bounds)
    trips.observe(0.5)
    totals.counts["x",] = 1
    totals.add(Totals().counts, trips)
    totals.add(totals.counts.copy(), trips)
    assert totals.counts == {("x",): 2}
    assert sum(totals.round_trips.counts) == 2
