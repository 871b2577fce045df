"""The hub of a kernel that waits in a queue, on links in memory."""

import asyncio
import json
from types import SimpleNamespace

from kbridge.hub.hub import Hub
from tests.hub.rig import INFO, received, texts


async def waiting_rig(rig) -> None:
    """Replace the hub of a rig by that of a kernel that waits in a queue."""
    settings = rig.hub.settings
    await rig.hub.aclose()
    rig.hub = Hub("a-kernel", None, settings, environment=rig.environment)
    rig.kernels.clear()


async def test_a_hub_without_an_address_holds_requests_until_it_gets_one(rig) -> None:
    await waiting_rig(rig)
    client, attached = rig.attach("s")
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    assert not rig.kernels
    assert rig.hub.activity.execution_state == "starting"
    assert rig.hub.cut_because is None
    rig.hub.reconnect(INFO)
    rig.prove()
    assert rig.sent() == [asked]
    assert [m for m in received(client) if m.msg_type == "status"] == []


async def test_clients_hear_why_a_kernel_waits_and_how_it_ended(rig) -> None:
    await waiting_rig(rig)
    told: list[str] = []
    client, attached = rig.attach(listener=SimpleNamespace(on_status=told.append))
    rig.hub.wait_in_queue("Priority")
    rig.hub.wait_in_queue("Priority")
    late, _ = rig.attach()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.hub.dead("job 1 ended")
    rig.hub.announce("dead", source=attached)  # as a listener does
    waits = {"execution_state": "starting", "reason": "Priority"}
    ended = {"execution_state": "dead", "reason": "job 1 ended"}
    for each in (client, late):
        statuses = [m for m in received(each) if m.msg_type == "status" and not m.parent_id]
        assert [json.loads(m.content) for m in statuses] == [waits, ended]
        assert texts(each) == ["[kbridge: job 1 ended]\n"]
    assert told == ["starting", "dead"]
    notice, reply, idle = [m for m in received(client) if m.parent_id == asked.msg_id]
    assert notice.msg_type == "stream"
    assert json.loads(reply.content) == {"status": "aborted", "execution_count": None}
    assert json.loads(idle.content) == {"execution_state": "idle"}


async def test_reserving_a_kernel_lets_the_bridge_go_first(rig) -> None:
    await waiting_rig(rig)
    _, attached = rig.attach("s")
    early, late = rig.request(code="early"), rig.request(code="late")
    rig.hub.submit(attached, early)
    rig.hub.reconnect(INFO)
    rig.hub.reserve()
    rig.prove()
    rig.hub.submit(attached, late)
    assert rig.sent() == []
    ours = asyncio.ensure_future(rig.hub.request("execute_request", {"code": "ours"}))
    await asyncio.sleep(0)
    rig.hub.reserve(False)
    assert [json.loads(m.content)["code"] for m in rig.sent()] == ["ours", "early", "late"]
    ours.cancel()
