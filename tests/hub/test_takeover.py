"""Two hubs on one kernel: the first one serves, the second one follows and then takes over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kbridge.flow.handover import Handover
from kbridge.hub.hub import Hub
from kbridge.hub.settings import HubSettings
from kbridge.link.memory import MemoryKernel
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel, Message
from kbridge.wire.zmq import serialize
from tests.hub.rig import INFO, Peer, Rig, received, texts


class Cluster(Rig):
    """A kernel with a hub of each replica; what the first one writes is read by the second."""

    def __init__(self, *, late: bool = False, settings: HubSettings | None = None) -> None:
        super().__init__(settings or HubSettings(limit_rate=False))
        self.prove()
        self.first = self.kernel
        self.places: dict[str, str] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.joined: str | None = None
        self.second: MemoryKernel | None = None
        self.follower: Hub | None = None
        self.write()
        if not late:
            self.follow()

    def follow(self) -> None:
        """Let the second replica follow the kernel."""
        self.write()
        self.joined = self.places.get("")
        self.follower = Hub(
            "a-kernel", INFO, self.hub.settings, environment=self.environment, following=True
        )
        self.second = self.kernels[-1]
        self.second.connect()
        self.probe_follower()

    def probe_follower(self) -> None:
        """Answer the latest probe of the follower on each channel."""
        assert self.second is not None
        assert self.follower is not None
        for channel in (Channel.CONTROL, Channel.SHELL):
            probe = next(
                (p for p in reversed(self.sent_by(self.second)) if p.channel is channel), None
            )
            if probe is None or probe.msg_type != "kernel_info_request":
                continue
            info = {"protocol_version": "5.3", "status": "ok"}
            reply = self.message(channel, "kernel_info_reply", info, probe.header)
            self.second.say(channel, serialize(reply, self.signer))
            idle = self.message(Channel.IOPUB, "status", {"execution_state": "idle"}, probe.header)
            self.second.say(Channel.IOPUB, serialize(idle, self.signer))
        assert self.follower.ready

    def sent_by(self, kernel: MemoryKernel) -> list[Message]:
        from kbridge.wire.zmq import parse

        return [parse(c, frames, self.signer) for c, frames in kernel.sent]

    def publish(self, *messages: Message) -> None:
        """Send messages on iopub to both replicas."""
        frames = [serialize(m, self.signer) for m in messages]
        if not self.hub.closed:
            self.first.say(Channel.IOPUB, *frames)
        if self.second is not None:
            self.second.say(Channel.IOPUB, *frames)

    def answer(self, msg: Message, *, to: MemoryKernel | None = None) -> None:
        (to or self.first).say(msg.channel, serialize(msg, self.signer))

    def status(self, state: str, parent: bytes) -> Message:
        return self.message(Channel.IOPUB, "status", {"execution_state": state}, parent)

    def begin(self, request: Message, count: int = 1) -> None:
        self.publish(
            self.status("busy", request.header),
            self.message(
                Channel.IOPUB,
                "execute_input",
                {"code": "", "execution_count": count},
                request.header,
            ),
        )

    def reply_to(self, request: Message, **content: Any) -> Message:
        content = {"status": "ok", "execution_count": 1, **content}
        return self.message(Channel.SHELL, "execute_reply", content, request.header)

    def write(self) -> None:
        """Write the changes to the database of the cluster."""
        changes = self.hub.take_changes()
        self.places |= changes.places
        for msg_id, entry in json.loads(json.dumps(changes.executions)).items():
            if entry is None:
                self.entries.pop(msg_id, None)
            else:
                self.entries[msg_id] = entry

    async def kill(self) -> None:
        """End the first replica, and let the second one take over."""
        identities = tuple(self.hub.identities)
        await self.hub.aclose(drain=False)
        if self.follower is None:
            self.follower = self.open(self.hub.settings, former=identities)
            self.second = self.kernels[-1]
        await self.follower.take_over(Handover(self.places, self.entries, identities), self.joined)

    def calm(self) -> None:
        """Let the shell answer twice, and let the time for lost replies pass."""
        assert self.second is not None
        for _ in range(2):
            probe = [p for p in self.sent_by(self.second) if p.channel is Channel.SHELL][-1]
            info = {"protocol_version": "5.3", "status": "ok"}
            reply = self.message(Channel.SHELL, "kernel_info_reply", info, probe.header)
            self.second.say(Channel.SHELL, serialize(reply, self.signer))
        self.clock.now += 3
        self.fire_recovery_timer(self.follower)

    def again(self, session_id: str = "s", **more: Any) -> tuple[Peer, Any]:
        """Attach a client to the second replica."""
        assert self.follower is not None
        hub, client = self.follower, Peer()
        cursor = hub.attach(client, V1, session_id, **more)
        client.hear = lambda payload: hub.on_pong(cursor, payload)
        client.answer()
        return client, cursor


def replies(client: Peer) -> list[tuple[str, dict[str, Any]]]:
    return [
        (m.parent_id, json.loads(m.content))
        for m in received(client)
        if m.msg_type == "execute_reply"
    ]


def numbers(client: Peer) -> list[int]:
    """Return the numbered lines of a client; notices of the bridge fail."""
    return [int(line) for text in texts(client) for line in text.splitlines()]


async def test_a_client_goes_on_in_the_midst_of_output() -> None:
    rig = Cluster()
    client, cursor = rig.attach("s")
    request = rig.request(code="print")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    for number in range(100):
        rig.publish(rig.stream(f"{number}\n", request.header))
    rig.fire_ping_timer()
    rig.write()
    before = numbers(client)
    for number in range(100, 150):
        rig.publish(rig.stream(f"{number}\n", request.header))
    last = received(client)[-1].msg_id
    since, count = last, len(numbers(client))
    await rig.kill()
    for number in range(150, 200):
        rig.publish(rig.stream(f"{number}\n", request.header))
    resumed, _ = rig.again()
    exact, _ = rig.again("another", since=since)
    assert before == list(range(100))
    assert numbers(resumed) == list(range(100, 200))
    assert numbers(exact) == list(range(count, 200))
    rig.answer(rig.reply_to(request), to=rig.second)  # to the identity of the first replica
    rig.publish(rig.status("idle", request.header))
    assert [parent for parent, _ in replies(resumed)] == [request.msg_id]


async def test_the_identity_of_the_first_replica_receives_replies() -> None:
    rig = Cluster()
    identity = rig.hub.identities[-1]
    await rig.kill()
    assert rig.second is not None
    assert rig.second.former == [identity]


@pytest.mark.parametrize("acknowledged", [True, False])
async def test_a_reply_is_built_if_the_client_may_not_have_it(acknowledged: bool) -> None:
    rig = Cluster()
    _, cursor = rig.attach("s", silent=not acknowledged)
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request, 7)
    rig.answer(rig.reply_to(request))
    rig.publish(rig.status("idle", request.header))
    rig.fire_ping_timer()
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    found = replies(client)
    if acknowledged:
        assert found == []
        assert rig.entries[request.msg_id]["owed"] is False
    else:
        assert [(p, c["status"], c["execution_count"]) for p, c in found] == [
            (request.msg_id, "ok", 7)
        ]
    states = [e.state for e in rig.follower.executions.find()]
    assert states == ["done"]


async def test_a_request_that_never_reached_the_kernel_is_answered() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    assert replies(client) == []
    rig.calm()
    [(parent, content)] = replies(client)
    assert (parent, content["status"], content["ename"]) == (
        request.msg_id,
        "error",
        "RequestLost",
    )
    assert "was not run" in texts(client)[0]
    assert [m.msg_type for m in received(client)][-1] == "status"


async def test_a_request_in_the_queue_of_the_kernel_runs() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    rig.begin(request)
    rig.publish(rig.stream("0\n", request.header), rig.status("idle", request.header))
    rig.calm()
    assert numbers(client) == [0]
    [(parent, content)] = replies(client)
    assert (parent, content["status"]) == (request.msg_id, "ok")


async def test_a_request_of_the_last_second_gets_a_reply() -> None:
    """The first replica had no time to write it; the follower knows it from iopub."""
    rig = Cluster()
    _, cursor = rig.attach("s")
    rig.write()
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.publish(rig.status("idle", request.header))
    await rig.kill()
    client, _ = rig.again()
    rig.calm()
    assert [parent for parent, _ in replies(client)] == [request.msg_id]


async def test_an_aborted_request_is_answered_as_aborted() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s", silent=True)
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.publish(rig.status("busy", request.header))
    rig.answer(rig.reply_to(request, status="aborted"))
    rig.publish(rig.status("idle", request.header))
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    [(_, content)] = replies(client)
    assert content["status"] == "aborted"


async def test_an_error_is_in_the_reply_that_is_built() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s", silent=True)
    request = rig.request(code="1/0")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    error = {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": []}
    rig.publish(
        rig.message(Channel.IOPUB, "error", error, request.header),
        rig.status("idle", request.header),
    )
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    [(_, content)] = replies(client)
    assert (content["status"], content["ename"]) == ("error", "ZeroDivisionError")


# -- input requests ---------------------------------------------------------------------------


def ask(rig: Cluster, request: Message, *, to: MemoryKernel | None = None) -> Message:
    msg = rig.message(
        Channel.STDIN, "input_request", {"prompt": "?", "password": False}, request.header
    )
    rig.answer(msg, to=to)
    return msg


def questions(client: Peer) -> list[str]:
    return [m.msg_id for m in received(client) if m.msg_type == "input_request"]


async def waiting_input() -> tuple[Cluster, Message, Message]:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="input()")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.publish(rig.stream("0\n", request.header))
    question = ask(rig, request)
    rig.fire_ping_timer()
    rig.write()
    await rig.kill()
    return rig, request, question


async def test_an_input_request_that_waits_is_asked_again() -> None:
    rig, request, question = await waiting_input()
    client, cursor = rig.again()
    assert questions(client) == [question.msg_id]
    answer = rig.message(Channel.STDIN, "input_reply", {"value": "1"}, question.header)
    rig.follower.submit(cursor, answer)
    assert [m.msg_type for m in rig.sent_by(rig.second) if m.channel is Channel.STDIN] == [
        "input_reply"
    ]
    rig.publish(rig.stream("1\n", request.header))
    assert numbers(client) == [1]


async def test_an_input_request_is_not_asked_again_of_a_client_that_names_it() -> None:
    rig, request, question = await waiting_input()
    client, _ = rig.again(since=question.msg_id)
    assert questions(client) == []
    rig.publish(rig.stream("1\n", request.header))
    assert numbers(client) == [1]


async def test_an_input_request_is_asked_of_a_client_that_names_the_message_before() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="input()")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    line = rig.stream("0\n", request.header)
    rig.publish(line)
    question = ask(rig, request)
    rig.write()
    await rig.kill()
    client, _ = rig.again(since=line.msg_id)
    assert (questions(client), numbers(client)) == ([question.msg_id], [])


async def test_an_input_request_of_an_ended_cell_is_not_asked_again() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="input()")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    ask(rig, request)
    rig.write()
    rig.publish(rig.status("idle", request.header))
    await rig.kill()
    client, _ = rig.again()
    assert questions(client) == []


async def test_an_input_request_after_the_takeover_arrives() -> None:
    rig = Cluster()
    client, cursor = rig.attach("s")
    request = rig.request(code="input()")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    other, _ = rig.again("another")
    question = ask(rig, request, to=rig.second)  # to the former identity
    assert (questions(client), questions(other)) == ([question.msg_id], [])


# -- places -----------------------------------------------------------------------------------


async def test_since_a_reply_that_the_follower_never_saw() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.publish(rig.stream("0\n", request.header), rig.status("idle", request.header))
    reply = rig.reply_to(request)
    rig.answer(reply)
    rig.fire_ping_timer()
    rig.write()
    rig.publish(rig.stream("1\n"))
    await rig.kill()
    client, _ = rig.again("another", since=reply.msg_id)
    assert (numbers(client), replies(client)) == ([1], [])


async def test_since_a_reply_of_the_last_second_repeats_only_that_second() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.publish(rig.stream("0\n", request.header))
    rig.fire_ping_timer()
    rig.write()
    rig.publish(rig.stream("1\n", request.header), rig.status("idle", request.header))
    reply = rig.reply_to(request)
    rig.answer(reply)
    await rig.kill()
    client, _ = rig.again(since=reply.msg_id)
    assert numbers(client) == [1]


async def test_a_follower_that_came_late_reports_no_gap_where_none_is() -> None:
    rig = Cluster(late=True)
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.publish(rig.stream("0\n", request.header), rig.status("idle", request.header))
    rig.answer(rig.reply_to(request))
    rig.fire_ping_timer()
    rig.follow()
    rig.write()
    last = received(rig.attach("s")[0])
    assert last == []
    await rig.kill()
    client, _ = rig.again()
    rig.publish(rig.stream("1\n"))
    assert numbers(client) == [1]


async def test_a_client_that_was_away_when_the_follower_came_misses_nothing() -> None:
    """The end of the journal at that time is known, and nothing was lost in between."""
    rig = Cluster(late=True)
    _, cursor = rig.attach("s")
    rig.publish(rig.stream("0\n"))
    rig.fire_ping_timer()
    rig.hub.detach(cursor)
    rig.follow()
    rig.publish(rig.stream("1\n"))
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    assert numbers(client) == [1]


async def test_a_gap_is_reported_where_the_follower_may_have_missed_output() -> None:
    rig = Cluster(late=True)
    _, cursor = rig.attach("s")
    rig.publish(rig.stream("0\n"))
    rig.fire_ping_timer()
    rig.hub.detach(cursor)
    rig.publish(rig.stream("1\n"))
    rig.follow()
    rig.publish(rig.stream("2\n"))
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    notice, line = texts(client)
    assert "another replica" in notice
    assert line == "2\n"


async def test_a_cell_that_ran_when_the_follower_came_says_that_output_is_missing() -> None:
    rig = Cluster(late=True)
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.follow()
    rig.publish(rig.stream("1\n", request.header))
    client, _ = rig.again("new", since="start")
    notice, line = texts(client)
    assert "began to follow" in notice
    assert line == "1\n"


@pytest.mark.parametrize("known", [True, False])
async def test_an_end_from_before_the_follower_came_hides_nothing(known: bool) -> None:
    """The database was down when the follower came: what it has missed was not written."""
    rig = Cluster(late=True)
    rig.attach("s")
    rig.publish(rig.stream("1\n"))
    rig.fire_ping_timer()
    rig.write()
    places = dict(rig.places)
    if not known:
        rig.publish(rig.stream("2\n"))
    rig.follow()
    rig.places = places
    rig.joined = places[""] if known else None
    rig.publish(rig.stream("3\n"))
    await rig.kill()
    client, _ = rig.again()
    *notices, line = texts(client)
    assert line == "3\n"
    assert len(notices) == (0 if known else 1)
    assert known or "from before it followed the kernel is missing" in notices[0]


async def test_without_a_follower_the_state_is_taken_over_all_the_same() -> None:
    rig = Cluster(late=True)
    _, cursor = rig.attach("s", silent=True)
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request, 3)
    rig.answer(rig.reply_to(request))
    rig.publish(rig.status("idle", request.header))
    rig.write()
    await rig.kill()
    client, _ = rig.again()
    [(parent, content)] = replies(client)
    assert (parent, content["execution_count"]) == (request.msg_id, 3)


async def test_a_follower_keeps_what_no_client_is_known_to_have() -> None:
    rig = Cluster(settings=HubSettings(history_limit=0, journal_limit=1 << 20))
    rig.attach("s")
    for number in range(100):
        rig.publish(rig.stream(f"{number}\n"))
    assert rig.follower.journal.next_seq - rig.follower.journal.first_seq >= 100


async def test_a_follower_forgets_ended_executions_beyond_the_limit() -> None:
    from kbridge.flow.executions import LIMIT

    rig = Cluster()
    for _ in range(LIMIT + 5):
        request = rig.request(code="1")
        rig.publish(rig.status("busy", request.header), rig.status("idle", request.header))
    found = rig.follower.executions
    assert len(found) == LIMIT
    assert found.get(request.msg_id).state == "done"


async def test_a_follower_knows_where_the_output_of_an_execution_is() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.publish(rig.stream("0\n", request.header), rig.status("idle", request.header))
    rig.answer(rig.reply_to(request))
    rig.fire_ping_timer()
    rig.write()
    own = rig.hub.executions.get(request.msg_id)
    counted = (own.lines, own.first is not None)
    await rig.kill()
    client, _ = rig.again("new", parents=(request.msg_id,))
    execution = rig.follower.executions.get(request.msg_id)
    assert (execution.lines, execution.first is not None) == counted
    assert numbers(client) == [0]
    assert [m.msg_type for m in received(client)] == ["status", "execute_input", "stream", "status"]


async def test_a_restart_that_the_follower_sees_ends_the_requests() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.second.disconnect()
    rig.process = "the next process"
    rig.second.connect()
    rig.second.say(Channel.IOPUB, serialize(rig.status("starting", b"{}"), rig.signer))
    assert rig.follower.executions.get(request.msg_id).state == "aborted"


async def test_a_follower_sends_nothing_but_probes() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.publish(rig.status("idle", request.header))
    assert {m.msg_type for m in rig.sent_by(rig.second)} == {"kernel_info_request"}


async def test_nothing_is_written_when_nothing_has_changed() -> None:
    rig = Cluster()
    _, cursor = rig.attach("s")
    request = rig.request(code="1")
    rig.hub.submit(cursor, request)
    rig.begin(request)
    rig.fire_ping_timer()
    assert rig.hub.take_changes()
    assert not rig.hub.take_changes()
    rig.publish(rig.stream("0\n", request.header))
    rig.fire_ping_timer()
    changes = rig.hub.take_changes()
    assert set(changes.places) == {"", "s"}
    assert not changes.executions
