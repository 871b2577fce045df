"""Messages that a kernel dropped, as the clients of its hub see them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kbridge.flow.lost_idle import GRACE
from kbridge.hub.settings import HubSettings
from kbridge.wire.message import Channel, Message
from tests.hub.rig import Rig, received, texts


@pytest.fixture
async def rig(twin: object) -> Any:
    made = Rig(HubSettings())
    yield made
    await made.hub.aclose()


CELL = b'{"msg_id": "cell", "msg_type": "execute_request", "session": "s"}'


def counted(rig: Rig, number: int, msg_type: str, content: dict, parent: bytes = CELL) -> Message:
    """Return a message with an id as ipykernel counts them."""
    msg_id = f"{rig.process}_17_{number}"
    return rig.message(Channel.IOPUB, msg_type, content, parent, msg_id=msg_id)


def idle(rig: Rig, number: int, parent: bytes = CELL) -> Message:
    return counted(rig, number, "status", {"execution_state": "idle"}, parent)


def line(rig: Rig, number: int) -> Message:
    return counted(rig, number, "stream", {"name": "stdout", "text": "x\n"})


async def test_the_cell_says_before_its_idle_how_much_the_kernel_dropped(rig: Rig) -> None:
    rig.prove()
    client, _ = rig.attach("s")
    rig.say(idle(rig, 10))
    rig.say(line(rig, 11), line(rig, 512), idle(rig, 513), line(rig, 514), line(rig, 515))
    rig.say(idle(rig, 516))
    assert [m.msg_type for m in received(client)] == [
        "status", *["stream"] * 3, "status", *["stream"] * 2, "status"
    ]  # fmt: skip
    assert "the kernel seems to have dropped about 500 messages" in texts(client)[2]
    assert received(client)[3].parent_header == CELL
    assert rig.hub.counters()["kernel_unsent_messages",] == 500


async def test_messages_behind_an_idle_in_one_batch_are_not_missing_later(rig: Rig) -> None:
    rig.prove()
    client, _ = rig.attach("s")
    rig.say(idle(rig, 10), *(line(rig, number) for number in range(11, 1000)))
    rig.say(idle(rig, 1000))
    assert rig.hub.counters()["kernel_unsent_messages",] == 0
    assert not [text for text in texts(client) if "dropped" in text]


async def test_an_idle_of_a_page_in_mid_run_leaves_the_notice_to_the_cell(rig: Rig) -> None:
    rig.prove()
    client, _ = rig.attach("s")
    rig.say(idle(rig, 10))
    info = b'{"msg_id": "info", "msg_type": "kernel_info_request", "session": "s"}'
    rig.say(idle(rig, 1000, info))
    assert texts(client) == []
    rig.say(idle(rig, 1001))
    assert "the kernel seems to have dropped about 989 messages" in texts(client)[0]


async def test_answers_to_probes_are_not_missing(rig: Rig) -> None:
    rig.prove()
    rig.say(idle(rig, 10))
    probe = rig.probes()[-1].header
    rig.say(*(idle(rig, number, probe) for number in range(11, 700)))
    rig.say(idle(rig, 700))
    assert rig.hub.counters()["kernel_unsent_messages",] == 0


async def test_a_cell_whose_idle_the_kernel_dropped_is_ended_by_the_bridge(rig: Rig) -> None:
    rig.prove()
    client, cursor = rig.attach("s")
    rig.say(idle(rig, 10))
    request = rig.request()
    rig.hub.submit(cursor, request)
    rig.say(counted(rig, 11, "status", {"execution_state": "busy"}, request.header))
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, request.header))
    rig.clock.now += GRACE
    rig.fire_recovery_timer()
    probe = rig.probes()[-1]
    assert probe.channel is Channel.SHELL
    before = len(received(client))
    rig.say(counted(rig, 812, "status", {"execution_state": "busy"}, probe.header))
    assert received(client)[before:] == []
    rig.say(idle(rig, 814, probe.header))
    notice, end = received(client)[before:]
    assert "dropped about 800 messages" in json.loads(notice.content)["text"]
    assert json.loads(end.content) == {"execution_state": "idle"}
    assert notice.parent_header == end.parent_header == request.header


async def test_a_cell_whose_idle_is_still_on_its_way_is_not_ended_by_the_bridge(rig: Rig) -> None:
    rig.prove()
    client, cursor = rig.attach("s")
    request = rig.request()
    rig.hub.submit(cursor, request)
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, request.header))
    rig.clock.now += GRACE
    rig.fire_recovery_timer()
    rig.say(idle(rig, 11, request.header))
    before = len(received(client))
    rig.say(idle(rig, 12, rig.probes()[-1].header))
    assert received(client)[before:] == []
    sent = len(rig.probes())
    rig.clock.now += 1000
    rig.fire_recovery_timer()
    assert len(rig.probes()) == sent


async def test_what_is_missing_after_a_broken_connection_is_not_called_dropped(rig: Rig) -> None:
    rig.prove()
    rig.say(idle(rig, 10))
    rig.link_events.on_disconnected(Channel.IOPUB)
    rig.prove()
    rig.say(idle(rig, 5000))
    assert rig.hub.counters()["kernel_unsent_messages",] == 0
