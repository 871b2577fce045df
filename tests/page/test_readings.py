"""The figures of one kernel."""

from __future__ import annotations

from typing import Any

from kbridge.hub.settings import HubSettings
from kbridge.page.readings import read_hub
from kbridge.wire.dialects import V1
from tests.hub.rig import Peer, Rig


async def test_executions_that_run_wait_and_have_ended(site: Any) -> None:
    script = site.source.script
    for number in range(12):
        script.submit(f"old-{number}")
        script.finish(f"old-{number}")
    script.submit("long")
    script.begin("long")
    for number in range(9):
        script.submit(f"next-{number}")
    site.source.hub.drain()
    found = read_hub(site.source.hub)["executions"]
    assert (found["running"], found["waiting"], found["total"]) == (1, 9, 22)
    assert [each["id"] for each in found["shown"]] == ["long", *(f"next-{n}" for n in range(1, 9))]
    running = found["shown"][0]
    assert running["state"] == "running"
    assert running["started"] is not None
    assert running["ended"] is None
    assert "session" not in running


async def test_clients_that_lag_and_their_round_trips() -> None:
    rig = Rig(HubSettings())
    hub = rig.hub
    try:
        quick, slow = Peer(), Peer()
        cursor = hub.attach(quick, V1, "quick-session")
        quick.hear = lambda payload: hub.on_pong(cursor, payload)
        hub.say(hub.notices.status("busy"))  # with a ping, of which one per second is measured
        hub.attach(slow, V1, "slow-session")
        slow.stalled = True
        for _ in range(3):
            hub.say(hub.notices.status("busy"))
        found = read_hub(hub)
        level, behind = found["clients"]
        assert (behind["session"], level["session"]) == ("slow-ses", "quick-se")
        assert (behind["dialect"], behind["follows"]) == (V1.name, False)
        assert behind["blocked"]
        assert behind["lag_bytes"] == found["lag_bytes"] > 0
        assert level["lag_bytes"] == 0
        assert level["round_trip"] == 0.0, "the clock stands still"
        assert (found["connections"], found["behind"], found["parked"]) == (2, 1, 0)
    finally:
        await hub.aclose()


async def test_of_many_clients_those_that_are_most_behind_are_shown() -> None:
    rig = Rig(HubSettings())
    try:
        peers = [Peer() for _ in range(30)]
        for number, peer in enumerate(peers):
            rig.hub.attach(peer, V1, f"session-{number}")
        peers[29].stalled = True
        for _ in range(2):
            rig.hub.say(rig.hub.notices.status("busy"))
        found = read_hub(rig.hub)
        assert found["connections"] == 30
        assert len(found["clients"]) == 20
        assert found["clients"][-1]["lag_bytes"] > 0
        numbers = [client["number"] for client in found["clients"]]
        assert numbers == sorted(numbers)
    finally:
        await rig.hub.aclose()
