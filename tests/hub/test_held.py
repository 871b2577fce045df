"""Requests that are held back while another replica may get the kernel."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kbridge.errors import HubClosed
from kbridge.hub.settings import HubSettings
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from tests.hub.rig import Rig, received, texts


@pytest.fixture
async def rig() -> Rig:
    made = Rig(HubSettings())
    made.prove()
    return made


def execution(username: str = "") -> Message:
    content = {"code": "1"}
    return build(Channel.SHELL, "execute_request", content, session="s", date="", username=username)


def submit(rig: Rig, *messages: Message) -> Any:
    client, cursor = rig.attach("s")
    for msg in messages:
        rig.hub.submit(cursor, msg)
    return client


def types(rig: Rig) -> list[str]:
    return [msg.msg_type for msg in rig.sent()]


async def test_requests_wait_until_the_kernel_stays(rig: Rig) -> None:
    wait = [
        rig.request(code="1"),
        rig.request("complete_request"),
        rig.message(Channel.STDIN, "input_reply", {"value": "x"}),
        rig.message(Channel.CONTROL, "debug_request", {}),
        rig.request("not_a_known_request"),
    ]
    at_once = [rig.request("comm_msg"), rig.message(Channel.CONTROL, "interrupt_request", {})]
    rig.hub.hold()
    client = submit(rig, *wait, *at_once)
    assert types(rig) == ["comm_msg", "interrupt_request"]
    assert rig.hub.executions.find() == []
    rig.hub.release()
    assert types(rig)[2:] == [msg.msg_type for msg in wait]
    assert [each.msg_id for each in rig.hub.executions.find()] == [wait[0].msg_id]
    reply = rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, wait[0].header)
    rig.say(reply)
    assert received(client)[-1].msg_id == reply.msg_id
    more = rig.request("is_complete_request")
    submit(rig, more)
    assert rig.sent()[-1].msg_id == more.msg_id


async def test_requests_that_waited_for_the_kernel_wait_on() -> None:
    rig = Rig(HubSettings())
    before = rig.request(code="1")
    submit(rig, before)
    rig.hub.hold()
    rig.prove()
    rig.link_events.on_writable(Channel.SHELL)
    assert rig.sent() == []
    rig.hub.release()
    assert [msg.msg_id for msg in rig.sent()] == [before.msg_id]


@pytest.mark.parametrize("username", ["", "kbridge-client", "kbridge.js"])
async def test_a_request_that_is_dropped_is_answered_unless_its_client_sends_it_again(
    rig: Rig, username: str
) -> None:
    rig.hub.take_changes()
    rig.hub.hold()
    request = execution(username)
    client = submit(rig, request, rig.request("complete_request"))
    other, _ = rig.attach("other")
    assert request.msg_id not in rig.hub.take_changes().executions
    await rig.hub.aclose(1012, "the server is restarting")
    assert rig.sent() == []
    assert client.closed_with == (1012, "the server is restarting")
    replies = [msg for msg in received(client) if msg.msg_type == "execute_reply"]
    if username:
        assert replies == []
        assert texts(client) == []
    else:
        [reply] = replies
        content = json.loads(reply.content)
        assert (reply.parent_id, content["ename"]) == (request.msg_id, "RequestLost")
        assert "was not run" in texts(client)[0]
        last = received(client)[-1]
        assert json.loads(last.content) == {"execution_state": "idle"}
        assert last.parent_id == request.msg_id
    assert "execute_reply" not in [msg.msg_type for msg in received(other)]


@pytest.mark.parametrize("stays", [True, False])
async def test_a_sender_waits_while_too_much_is_held(stays: bool) -> None:
    rig = Rig(HubSettings(request_limit=1000))
    rig.prove()
    rig.hub.hold()
    _, cursor = rig.attach("s")
    assert rig.hub.submit(cursor, execution()) is None
    room = rig.hub.submit(cursor, rig.request(code="1" * 1000))
    assert isinstance(room, asyncio.Future)
    assert not room.done()
    if stays:
        rig.hub.release()
        await room
        assert len(rig.sent()) == 2
    else:
        await rig.hub.aclose()
        with pytest.raises(HubClosed):
            await room
        with pytest.raises(HubClosed):
            rig.hub.submit(cursor, execution())
