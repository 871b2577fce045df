"""The hub notes each request to execute code: its client, its cell, its state and its output."""

import json
from typing import Any

import pytest

from kbridge.errors import Conflict, NotFound
from kbridge.flow import executions as flow_executions
from kbridge.flow.activity import state_of
from kbridge.hub.settings import HubSettings
from kbridge.wire.message import Channel, Message
from kbridge.wire.zmq import serialize
from tests.hub.rig import INFO, Rig, received

SAYS: dict[str, tuple[Channel, str, dict[str, Any]]] = {
    "busy": (Channel.IOPUB, "status", {"execution_state": "busy"}),
    "idle": (Channel.IOPUB, "status", {"execution_state": "idle"}),
    "input": (Channel.IOPUB, "execute_input", {"code": "1", "execution_count": 7}),
    "print": (Channel.IOPUB, "stream", {"name": "stdout", "text": "a\nb\n"}),
    "error": (Channel.IOPUB, "error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
    "reply": (Channel.SHELL, "execute_reply", {"status": "ok", "execution_count": 7}),
    "aborted": (Channel.SHELL, "execute_reply", {"status": "aborted"}),
}


@pytest.fixture
async def rig() -> Rig:
    made = Rig(HubSettings(limit_rate=False))
    made.prove()
    return made


def execute(rig: Rig, cursor: Any, msg_id: str = "ask", cell: str | None = "a-cell") -> Message:
    msg = rig.message(Channel.SHELL, "execute_request", {"code": "1 + 1"}, msg_id=msg_id)
    if cell is not None:
        msg = msg._replace(metadata=json.dumps({"cellId": cell}).encode())
    rig.hub.submit(cursor, msg)
    return msg


def say(rig: Rig, asked: Message, *kinds: str) -> None:
    for kind in kinds:
        channel, msg_type, content = SAYS[kind]
        rig.say(rig.message(channel, msg_type, content, asked.header))


def described(rig: Rig, msg_id: str = "ask") -> dict[str, Any]:
    execution = rig.hub.executions.get(msg_id)
    assert execution is not None
    return rig.hub.describe(execution)


async def test_an_execution_is_described_at_each_point_of_its_life(rig: Rig) -> None:
    client, cursor = rig.attach("a-page")
    rig.clock.now = 1000.5
    asked = execute(rig, cursor)
    assert described(rig) == {
        "id": "ask",
        "session_id": "the-kernel",
        "cell_id": "a-cell",
        "state": "waiting",
        "code_bytes": 5,
        "submitted": "2023-11-14T22:30:00.500000Z",
        "started": None,
        "ended": None,
        "execution_count": None,
        "first_seq": None,
        "last_seq": None,
        "messages": 0,
        "lines": 0,
        "output_bytes": 0,
        "displays": False,
        "connected": True,
    }
    rig.clock.now += 1
    begin = rig.ack_origin + rig.hub.journal.next_seq
    say(rig, asked, "busy", "input", "print")
    running = described(rig)
    assert running["state"] == "running"
    assert running["started"] == "2023-11-14T22:30:01.500000Z"
    assert (running["first_seq"], running["last_seq"]) == (begin, begin + 2)
    assert (running["messages"], running["lines"]) == (3, 2)
    assert running["execution_count"] == 7
    rig.clock.now += 1
    say(rig, asked, "reply", "idle")
    done = described(rig)
    assert (done["state"], done["ended"]) == ("done", "2023-11-14T22:30:02.500000Z")
    assert done["last_seq"] == begin + 4
    rig.hub.detach(cursor)
    assert not described(rig)["connected"]
    assert len(received(client)) == 5


async def test_the_numbers_name_places_of_since(rig: Rig) -> None:
    _, cursor = rig.attach("a-page")
    first, second = execute(rig, cursor, "first"), execute(rig, cursor, "second")
    say(rig, first, "busy", "input", "reply", "idle")
    say(rig, second, "busy", "input", "print", "reply", "idle")
    since = described(rig, "second")["first_seq"] - 1
    late, _ = rig.attach("another", since=str(since))
    assert [m.parent_id for m in received(late)] == ["second"] * 4, "the reply is for another page"
    assert state_of(received(late)[0].content) == "busy"


async def test_a_request_without_a_cell_is_noted_too(rig: Rig) -> None:
    _, cursor = rig.attach()
    execute(rig, cursor, cell=None)
    other = rig.message(Channel.SHELL, "complete_request", {"code": "a"}, msg_id="complete")
    rig.hub.submit(cursor, other)
    assert [each.msg_id for each in rig.hub.executions.find()] == ["ask"]
    assert described(rig)["cell_id"] is None


async def test_an_error_aborts_the_cells_behind_it(rig: Rig) -> None:
    _, cursor = rig.attach("a-page")
    asked = [execute(rig, cursor, name) for name in ("first", "second", "third")]
    say(rig, asked[0], "busy", "input", "error")
    reply = {"status": "error", "execution_count": 7, "ename": "E"}
    rig.say(rig.message(Channel.SHELL, "execute_reply", reply, asked[0].header))
    say(rig, asked[0], "idle")
    say(rig, asked[1], "busy", "aborted", "idle")
    states = {each.msg_id: each.state for each in rig.hub.executions.find()}
    assert states == {"first": "error", "second": "aborted", "third": "waiting"}


@pytest.mark.parametrize("how", ["restart", "death", "unannounced"])
async def test_the_end_of_the_process_aborts_its_executions(rig: Rig, how: str) -> None:
    _, cursor = rig.attach("a-page")
    asked = execute(rig, cursor, "running")
    execute(rig, cursor, "waiting")
    say(rig, asked, "busy", "input")
    if how == "restart":
        await rig.hub.restarting(asked=True)
    elif how == "death":
        rig.hub.dead()
    else:
        rig.link_events.on_disconnected(Channel.IOPUB)
        rig.process = "the-next-process"
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "starting"}))
    assert {each.state for each in rig.hub.executions.find()} == {"aborted"}
    assert described(rig, "running")["ended"] is not None


@pytest.mark.parametrize("announced", [True, False])
async def test_a_request_that_waits_for_the_next_process_is_not_aborted(
    rig: Rig, announced: bool
) -> None:
    _, cursor = rig.attach()
    say(rig, execute(rig, cursor, "runs"), "busy", "input")
    rig.kernel.disconnect()
    asked = execute(rig, cursor, "waits")
    if announced:
        await rig.hub.restarting(asked=True, keep=True)
        rig.hub.reconnect(dict(INFO))
    else:
        rig.kernel.connect()
        rig.process = "the-next"
    with pytest.raises(Conflict):
        rig.hub.forget_execution("waits")
    rig.prove()
    assert [msg.msg_id for msg in rig.sent()][-1] == "waits"
    states = {each.msg_id: each.state for each in rig.hub.executions.find()}
    assert states == {"runs": "aborted", "waits": "waiting"}
    assert described(rig, "waits")["ended"] is None
    say(rig, asked, "busy", "input", "reply", "idle")
    assert described(rig, "waits")["state"] == "done"


async def test_a_lost_reply_that_is_built_ends_the_execution(rig: Rig) -> None:
    _, cursor = rig.attach("a-page")
    asked = execute(rig, cursor)
    say(rig, asked, "busy", "input")
    rig.link_events.on_disconnected(Channel.SHELL)
    say(rig, asked, "idle")
    assert described(rig)["state"] == "running"
    rig.clock.now += 10.0
    rig.fire_recovery_timer()
    assert described(rig)["state"] == "done"


async def test_messages_that_policies_drop_are_not_counted() -> None:
    rig = Rig(HubSettings(limit_rate=False, allow_tracebacks=False))
    rig.prove()
    _, cursor = rig.attach("a-page")
    asked = execute(rig, cursor)
    say(rig, asked, "busy", "error")
    execution = rig.hub.executions.get("ask")
    assert execution is not None
    assert execution.messages == rig.hub.journal.next_seq - (execution.first or 0)
    assert execution.error is not None
    assert "t" not in execution.error.get("traceback", [])


async def test_only_an_execution_that_has_finished_can_be_forgotten(rig: Rig) -> None:
    _, cursor = rig.attach("a-page")
    asked = execute(rig, cursor)
    with pytest.raises(Conflict):
        rig.hub.forget_execution("ask")
    with pytest.raises(NotFound):
        rig.hub.forget_execution("another")
    say(rig, asked, "busy", "reply", "idle")
    rig.hub.forget_execution("ask")
    assert rig.hub.executions.find() == []


async def test_forgetting_a_running_execution_clears_its_output_so_far(rig: Rig) -> None:
    _, cursor = rig.attach("a-page")
    asked = execute(rig, cursor)
    say(rig, asked, "busy", "print")
    rig.hub.forget_execution("ask")
    say(rig, asked, "print")
    reader, _ = rig.attach("a-reader", silent=False, parents=["ask"])
    messages = received(reader)
    # The text before was not sent, because it would be cleared.
    assert [msg.msg_type for msg in messages] == ["status", "clear_output", "stream"]
    assert json.loads(messages[1].content) == {"wait": False}
    assert messages[1].parent_id == "ask"
    assert described(rig)["state"] == "running"


async def test_the_number_of_executions_is_bounded(rig: Rig, monkeypatch) -> None:
    monkeypatch.setattr(flow_executions, "LIMIT", 3)
    _, cursor = rig.attach("a-page")
    for number in range(5):
        say(rig, execute(rig, cursor, f"r{number}"), "busy", "reply", "idle")
    assert [each.msg_id for each in rig.hub.executions.find()] == ["r2", "r3", "r4"]


async def test_a_closed_hub_holds_no_executions(rig: Rig) -> None:
    _, cursor = rig.attach("a-page")
    execute(rig, cursor)
    await rig.hub.aclose()
    assert rig.hub.executions.find() == []


async def test_frames_are_written_before_executions_are_noted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, cursor = rig.attach("a-page")
    asked = execute(rig, cursor)
    before, write = rig.clock.wall(), client.write

    def write_for_a_second(data: bytes) -> bool:
        rig.clock.now += 1
        return write(data)

    monkeypatch.setattr(client, "write", write_for_a_second)
    say(rig, asked, "busy")
    execution = rig.hub.executions.get("ask")
    assert execution is not None
    assert execution.started == before + 1


@pytest.mark.parametrize(("size", "count"), [(100_000, 1), (0, 100)])
async def test_few_messages_are_held_until_the_end_of_a_wake_up(
    rig: Rig, size: int, count: int
) -> None:
    _, cursor = rig.attach("a-page")
    asked = execute(rig, cursor)
    content = {"ename": "E", "evalue": "v" * size, "traceback": []}
    error = rig.message(Channel.IOPUB, "error", content, asked.header)
    before = rig.clock.wall()
    frames = [serialize(error, rig.signer)] * count
    rig.link_events.on_messages(Channel.IOPUB, frames)  # the wake-up does not end here
    rig.clock.now += 1
    execution = rig.hub.executions.get("ask")
    assert execution is not None
    assert execution.started == before


async def test_who_asks_for_executions_in_between_gets_their_present_state(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook of a subclass runs while frames are written."""
    client, cursor = rig.attach("a-page")
    asked = execute(rig, cursor)
    states, write = [], client.write

    def write_and_ask(data: bytes) -> bool:
        states.append(described(rig)["state"])
        return write(data)

    monkeypatch.setattr(client, "write", write_and_ask)
    say(rig, asked, "busy", "reply", "idle")
    assert states == ["running", "running", "done"]
