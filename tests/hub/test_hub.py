"""A hub on links in memory: the messages that clients and the kernel receive, in order."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from kbridge.errors import HubClosed, KernelError
from kbridge.flow.lost_replies import GRACE
from kbridge.flow.readiness import RENEW_SECONDS
from kbridge.hub.hub import Hub
from kbridge.link.memory import MemoryKernel
from kbridge.wire.dialects import LEGACY, V1
from kbridge.wire.message import Channel
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse, serialize
from tests.hub.rig import INFO, Peer, frames_of, received, texts
from tests.support.waiting import TIMEOUT


async def test_nothing_is_sent_before_the_kernel_has_proven_itself(make_rig) -> None:
    rig = make_rig()
    _, attachment = rig.attach()
    held = rig.request(code="1")
    assert rig.hub.submit(attachment, held) is None
    assert {p.channel for p in rig.probes()} == {Channel.SHELL, Channel.CONTROL}
    assert rig.sent() == []
    rig.prove()
    assert rig.sent() == [held]


async def test_what_comes_of_a_probe_reaches_nobody(make_rig) -> None:
    rig = make_rig()
    client, _ = rig.attach()
    rig.prove()
    assert client.written == b""
    assert rig.hub.activity.execution_state == "idle"


async def test_statuses_of_probes_between_other_messages_reach_nobody(make_rig) -> None:
    rig = make_rig()
    client, _ = rig.attach()
    rig.prove()
    probe = rig.message(
        Channel.IOPUB, "status", {"execution_state": "busy"}, rig.probes()[0].header
    )
    cell = rig.request().header
    rig.say(rig.stream("1", cell), probe, rig.stream("2", cell), probe, probe, rig.stream("3"))
    assert texts(client) == ["1", "2", "3"]
    assert len(received(client)) == 3


async def test_a_welcome_proves_as_much_and_is_the_bridges_own(make_rig) -> None:
    rig = make_rig()
    client, _ = rig.attach()
    rig.say(rig.message(Channel.IOPUB, "iopub_welcome", {"subscription": ""}))
    assert rig.hub.ready
    assert client.written == b""


async def test_a_clients_frames_are_not_eaten_while_the_hub_is_not_ready(make_rig) -> None:
    rig = make_rig()
    client, _ = rig.attach()
    rig.say(rig.stream("early"))
    assert texts(client) == ["early"]


async def test_what_a_kernel_says_reaches_all_as_one_write_a_wakeup(rig) -> None:
    clients = [rig.attach()[0] for _ in range(3)]
    rig.say(*(rig.stream(str(i)) for i in range(50)))
    for client in clients:
        assert texts(client) == [str(i) for i in range(50)]
        assert client.writes == 1


async def test_replies_and_input_requests_reach_only_who_asked(rig) -> None:
    one, attached = rig.attach("one")
    other, _ = rig.attach("other")
    asked = rig.request(code="input()")
    rig.hub.submit(attached, asked)
    rig.say(rig.message(Channel.STDIN, "input_request", {"prompt": "?"}, asked.header))
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, asked.header))
    assert [m.msg_type for m in received(one)] == ["input_request", "execute_reply"]
    assert other.written == b""


def statuses(client) -> list[tuple[str, str]]:
    """Return the state and the parent of each status that a client received."""
    return [
        (json.loads(m.content)["execution_state"], m.parent_id)
        for m in received(client)
        if m.msg_type == "status"
    ]


async def test_a_client_that_asks_a_busy_kernel_learns_at_once_that_it_is_busy(rig) -> None:
    page, attached = rig.attach("page")
    cell = rig.request(code="input()")
    rig.hub.submit(attached, cell)
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}, cell.header))
    joined, joining = rig.attach("another page")
    info = rig.request("kernel_info_request")
    rig.hub.submit(joining, info)
    [status] = received(joined)
    assert statuses(joined) == [("busy", "")]
    assert json.loads(status.header)["session"] == rig.process, "the kernel's, or pages drop others"
    assert statuses(page) == [("busy", cell.msg_id)], "it has not asked"
    assert rig.sent() == [cell, info]

    rig.say(
        rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, cell.header),
        *(
            rig.message(Channel.IOPUB, "status", {"execution_state": state}, info.header)
            for state in ("busy", "idle")
        ),
    )
    told = [("idle", cell.msg_id), ("busy", info.msg_id), ("idle", info.msg_id)]
    assert statuses(joined) == [("busy", ""), *told]
    again, _ = rig.attach("another page", since=status.msg_id)
    assert statuses(again) == told, "it has a place among the messages of the kernel"


async def test_a_client_that_asks_an_idle_kernel_or_on_control_is_told_by_the_kernel(rig) -> None:
    page, attached = rig.attach("page")
    rig.hub.submit(attached, rig.request("kernel_info_request"))
    assert received(page) == [], "idle"
    cell = rig.request(code="1")
    rig.hub.submit(attached, cell)
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}, cell.header))
    rig.hub.submit(attached, rig.message(Channel.CONTROL, "kernel_info_request", {}))
    assert statuses(page) == [("busy", cell.msg_id)]
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, cell.header))
    rig.hub.submit(attached, rig.request("kernel_info_request"))
    assert statuses(page) == [("busy", cell.msg_id)], "a reply ends a request whose idle is missing"


async def test_an_adopted_kernel_that_is_presumed_to_be_busy_is_not_reported(rig) -> None:
    """It may be idle, and its answer to the request has no idle that JupyterLab counts."""
    hub = rig.open(former=[b"of the bridge before"])
    page = Peer()
    attached = hub.attach(page, V1, "page")
    assert hub.activity.execution_state == "busy"
    hub.submit(attached, rig.request("kernel_info_request"))
    assert received(page) == []


async def test_a_websocket_is_told_once_per_cell_that_the_kernel_is_busy(rig) -> None:
    page, attached = rig.attach("page")
    for code in ("1", "2"):
        cell = rig.request(code=code)
        rig.hub.submit(attached, cell)
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}, cell.header))
        for _ in range(3):
            rig.hub.submit(attached, rig.request("kernel_info_request"))
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, cell.header))
    again, joining = rig.attach("page")  # as after a break of the connection
    assert [status for status in statuses(page) if not status[1]] == [("busy", "")] * 2
    cell = rig.request(code="3")
    rig.hub.submit(attached, cell)
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}, cell.header))
    for cursor in (attached, joining):
        rig.hub.submit(cursor, rig.request("kernel_info_request"))
    assert [status for status in statuses(again) if not status[1]] == [("busy", "")] * 2


async def test_two_websockets_of_one_session_are_two_readers_of_one_client(rig) -> None:
    first, attached = rig.attach("same")
    second, _ = rig.attach("same")
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, asked.header))
    assert [m.msg_type for m in received(first)] == ["execute_reply"]
    assert first.written == second.written


async def test_a_session_that_comes_back_goes_on_where_it_was(rig) -> None:
    first, attached = rig.attach("s")
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.say(rig.stream("before"))
    rig.hub.detach(attached)
    rig.hub.detach(attached)
    rig.say(rig.stream("meanwhile"))
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, asked.header))
    second, _ = rig.attach("s")
    stranger, _ = rig.attach("t")
    rig.say(rig.stream("after"))
    assert texts(first) == ["before"]
    assert [m.msg_type for m in received(second)] == ["stream", "execute_reply", "stream"]
    assert texts(second) == ["meanwhile", "after"]
    assert texts(stranger) == ["after"]


async def test_a_write_that_never_went_out_is_sent_again_to_who_comes_back(rig) -> None:
    first, attached = rig.attach("s")
    first.stalled = True
    rig.say(rig.stream("on its way"))
    rig.hub.detach(attached)
    second, _ = rig.attach("s")
    assert texts(second) == ["on its way"]


async def test_a_stalled_reader_lags_and_the_others_do_not_notice(rig) -> None:
    slow, _ = rig.attach()
    honest, _ = rig.attach()
    slow.stalled = True
    for i in range(100):
        rig.say(rig.stream(str(i)))
    assert texts(honest) == [str(i) for i in range(100)]
    assert rig.hub.statistics()["clients"]["blocked"] == 1
    slow.resume()
    assert "".join(texts(slow)) == "".join(str(i) for i in range(100))
    assert len(texts(slow)) == 2, "the missed output was joined"
    assert slow.writes == 2, "in one write"


async def test_who_falls_off_the_tail_is_told_what_it_missed_and_keeps_state(make_rig) -> None:
    rig = make_rig(journal_limit=50_000, history_limit=1000, rate_limit_policy="drop")
    rig.prove()
    slow, attached = rig.attach("slow")
    honest, _ = rig.attach()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    slow.stalled = True
    for i in range(1000):
        rig.say(rig.stream(f"{i:0100}", asked.header))
        assert rig.hub.journal.nbytes <= 50_000
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, asked.header))
    slow.resume()
    assert len(texts(honest)) == 1000
    got = received(slow)
    marker = next(m for m in got if b"were dropped" in m.content)
    assert marker.parent_id == asked.msg_id, "shown in the cell that lost output"
    missed = 1000 - (len(texts(slow)) - 1)
    assert f"{missed:,} messages" in json.loads(marker.content)["text"]
    assert "journal_limit" in json.loads(marker.content)["text"]
    assert got[-1].msg_type == "execute_reply"
    assert texts(slow)[-1] == f"{999:0100}"


async def test_the_journal_keeps_little_once_all_have_read(make_rig) -> None:
    rig = make_rig(history_limit=5000)
    rig.prove()
    rig.attach()
    for i in range(200):
        rig.say(rig.stream(f"{i:0100}"))
    assert rig.hub.journal.nbytes <= 5000


async def test_a_full_kernel_makes_its_clients_wait_and_control_passes_by(make_rig) -> None:
    rig = make_rig(request_limit=2000)
    rig.prove()
    _, attached = rig.attach()
    rig.kernel.full = True
    asked = []
    waits = None
    while waits is None:
        asked.append(rig.request(code="x" * 300))
        waits = rig.hub.submit(attached, asked[-1])
        assert len(asked) < 50, "nothing ever waits"
    interrupt = rig.message(Channel.CONTROL, "interrupt_request", {})
    rig.hub.submit(attached, interrupt)
    assert not waits.done()
    rig.kernel.make_room()
    async with asyncio.timeout(TIMEOUT):
        await waits
    assert rig.sent(Channel.SHELL) == asked
    assert rig.sent(Channel.CONTROL) == [interrupt]


async def test_requests_that_were_not_sent_are_counted(make_rig) -> None:
    rig = make_rig()
    _, attached = rig.attach()
    assert rig.hub.waiting_requests == 0
    for _ in range(3):
        rig.hub.submit(attached, rig.request())
    assert rig.hub.waiting_requests == 3, "the kernel is not ready"
    rig.prove()
    assert rig.hub.waiting_requests == 0
    assert len(rig.sent(Channel.SHELL)) == 3


async def test_no_request_goes_out_before_stdin_has_finished_its_handshake(make_rig) -> None:
    """A kernel drops an input_request for an unknown peer, and the cell waits forever."""
    rig = make_rig()
    rig.prove()
    _, attached = rig.attach()
    await rig.hub.restarting(asked=True)
    rig.hub.reconnect(dict(KERNEL_ELSEWHERE))
    asked = rig.request(code="input()")
    rig.hub.submit(attached, asked)
    rig.kernel.without_stdin = True
    rig.kernel.connect()
    rig.say(rig.message(Channel.IOPUB, "iopub_welcome", {}))
    assert not rig.hub.ready
    assert rig.sent() == []
    rig.kernel.without_stdin = False
    rig.kernel.connect()
    assert rig.hub.ready
    assert rig.sent() == [asked]


async def test_a_kernel_that_ignores_our_sockets_gets_new_ones(make_rig) -> None:
    rig = make_rig()
    rig.prove()
    client, attached = rig.attach()
    asked = rig.request(code="1 / 0")
    rig.hub.submit(attached, asked)
    first = rig.kernel.identity
    rig.kernel.disconnect()
    rig.kernel.connect()
    error = {"ename": "E", "evalue": "v", "traceback": []}
    rig.say(rig.message(Channel.IOPUB, "error", error, asked.header))
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, asked.header))
    rig.clock.now += RENEW_SECONDS
    rig.fire_nudge_timer()
    assert rig.kernel.identity not in (first, b"")
    assert rig.kernel.former == [first]
    assert rig.hub.identities == [first, rig.kernel.identity]
    # The reply did not arrive, but iopub had the same information.
    rig.clock.now += GRACE
    rig.fire_recovery_timer()
    [reply] = [m for m in received(client) if m.msg_type == "execute_reply"]
    assert (reply.parent_id, reply.channel) == (asked.msg_id, Channel.SHELL)
    assert json.loads(reply.content).items() >= {"status": "error", **error}.items()
    # The new sockets are answered, and no replies are owed to the old ones.
    rig.prove()
    assert rig.kernel.former == []
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "error"}, asked.header))
    assert [m for m in received(client) if m.msg_type == "execute_reply"] == [reply]


@pytest.mark.parametrize("replied", [False, True])
async def test_a_cell_whose_end_was_lost_with_the_connection_ends_for_its_client(
    rig, replied: bool
) -> None:
    client, attached = rig.attach()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.kernel.disconnect()
    rig.kernel.connect()
    if replied:
        rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "aborted"}, asked.header))
    for _ in range(2):
        probe = next(p for p in reversed(rig.probes()) if p.channel is Channel.SHELL)
        rig.say(rig.message(Channel.SHELL, "kernel_info_reply", {}, probe.header))
    rig.clock.now += GRACE
    rig.fire_recovery_timer()
    [notice, reply, idle] = [m for m in received(client) if m.parent_id == asked.msg_id]
    assert b"the connection to the kernel was interrupted" in notice.content
    assert (reply.msg_type, json.loads(reply.content)["status"]) == ("execute_reply", "aborted")
    assert idle.msg_type == "status"
    assert json.loads(idle.content) == {"execution_state": "idle"}


async def test_an_answer_that_was_lost_with_the_shell_connection_is_asked_for_again(rig) -> None:
    busy = {"execution_state": "busy"}
    rig.say(rig.message(Channel.IOPUB, "status", busy, rig.request(code="1").header))
    rig.hub.verify_busy()
    rig.link_events.on_disconnected(Channel.SHELL)
    rig.link_events.on_connected(Channel.SHELL)
    assert rig.hub.activity.execution_state == "busy"
    rig.say(rig.message(Channel.SHELL, "kernel_info_reply", {}, rig.probes()[-1].header))
    assert rig.hub.activity.execution_state == "idle"


async def test_without_descriptors_a_hub_goes_on_as_it_is(make_rig, monkeypatch) -> None:
    rig = make_rig()
    rig.prove()
    first = rig.kernel.identity

    tries: list[object] = []

    def fail(*args: object, **__: object) -> None:
        tries.append(args)
        raise KernelError("no more sockets are available")

    monkeypatch.setattr(rig.kernel, "renew", fail)
    rig.kernel.disconnect()
    rig.kernel.connect()
    for number in (1, 2):
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}))
        rig.clock.now += number * RENEW_SECONDS
        rig.fire_nudge_timer()
        assert len(tries) == number, "the connection is tried again"
    assert rig.hub.identities == [first]
    monkeypatch.setattr(MemoryKernel, "receive_for", fail)
    hub = rig.open(former=[b"of the dead"])
    await hub.aclose()


async def test_a_reply_that_was_lost_with_the_shell_connection_alone_is_made(rig) -> None:
    """For example when one of the tunnels to a kernel breaks."""
    client, attached = rig.attach()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    probes = len(rig.probes())
    rig.link_events.on_disconnected(Channel.SHELL)
    rig.link_events.on_connected(Channel.SHELL)
    assert rig.hub.ready
    assert [p.channel for p in rig.probes()[probes:]] == [Channel.SHELL]
    shown = {"execution_count": 7, "code": "1"}
    rig.say(rig.message(Channel.IOPUB, "execute_input", shown, asked.header))
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, asked.header))
    rig.clock.now += GRACE
    rig.fire_recovery_timer()
    [reply] = [m for m in received(client) if m.msg_type == "execute_reply"]
    assert json.loads(reply.content).items() >= {"status": "ok", "execution_count": 7}.items()
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, asked.header))
    assert [m for m in received(client) if m.msg_type == "execute_reply"] == [reply]


async def test_a_kernel_that_was_adopted_is_spoken_to_under_a_name_of_our_own(rig) -> None:
    former = [b"of the bridge before"]
    hub = rig.open(former=former)
    assert rig.kernel.former == former
    assert rig.kernel.identity not in (*former, b"")
    assert hub.identities == [*former, rig.kernel.identity]
    rig.link_events.on_connected(Channel.STDIN)
    for _ in range(2):
        probe = parse(*rig.kernel.sent[-1], rig.signer)
        rig.say(rig.message(Channel.SHELL, "kernel_info_reply", {}, probe.header))
    assert rig.kernel.former == former, "an old reply may still be in transit"
    rig.clock.now += GRACE
    rig.fire_recovery_timer(hub)
    assert rig.kernel.former == []
    hub.reconnect(dict(KERNEL_ELSEWHERE))
    assert rig.kernel.former == []
    await hub.aclose()


async def test_no_kernel_is_busy_for_ever_because_an_idle_got_lost(rig) -> None:
    _, attached = rig.attach()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}, asked.header))
    assert rig.hub.activity.execution_state == "busy"
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, asked.header))
    assert rig.hub.activity.execution_state == "idle"


async def test_whoever_doubts_that_a_kernel_is_busy_asks_its_shell_once(rig) -> None:
    others = rig.message(Channel.SHELL, "execute_request", {"code": "1"})
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "busy"}, others.header))
    before = len(rig.probes())
    rig.hub.verify_busy()
    rig.hub.verify_busy()
    [probe] = rig.probes()[before:]
    assert probe.channel is Channel.SHELL
    assert rig.hub.activity.execution_state == "busy"
    rig.say(rig.message(Channel.SHELL, "kernel_info_reply", {}, probe.header))
    assert rig.hub.activity.execution_state == "idle"


@pytest.mark.parametrize("channel", [Channel.IOPUB, Channel.SHELL])
async def test_a_connection_that_libzmq_ends_is_told_with_the_setting(rig, caplog, channel) -> None:
    first = rig.kernel.identity
    for _ in range(3):
        rig.link_events.on_gone(channel)
    assert caplog.text.count("kernel_message_limit") == 1
    assert f"its {channel} port" in caplog.text
    assert (rig.kernel.identity != first) == (channel is Channel.SHELL)


async def test_what_is_missing_of_a_kernel_is_said_as_it_is(make_rig, caplog) -> None:
    rig = make_rig()
    rig.kernel.connect()
    for _ in range(5):
        probe = rig.probes()[-1]
        rig.say(rig.message(probe.channel, "kernel_info_reply", {}, probe.header))
        rig.clock.now += 0.6
        rig.fire_nudge_timer()
    assert rig.hub.ready
    assert not rig.hub.timed_out
    assert "answers kernel_info_request without a status on iopub" in caplog.text
    assert "has not answered" not in caplog.text
    assert rig.hub.activity.execution_state == "idle"


async def test_requests_wait_through_a_restart_for_the_new_kernel(rig) -> None:
    client, attached = rig.attach()
    old = rig.kernel
    before = rig.request(code="before")
    rig.hub.submit(attached, before)
    rig.say(rig.stream("last words"))
    old.disconnect()
    await rig.hub.restarting()
    after = rig.request(code="after")
    rig.hub.submit(attached, after)
    assert old.closed
    rig.hub.reconnect(dict(KERNEL_ELSEWHERE))
    assert rig.kernel is not old
    assert rig.kernel.endpoints.ports[Channel.SHELL] == 11
    assert rig.sent() == []
    rig.prove()
    assert rig.sent() == [after]
    kinds = [(m.msg_type, m.content) for m in received(client)]
    assert [k for k, _ in kinds] == ["stream", "status"]
    assert b"restarting" in kinds[1][1]


async def test_a_connection_that_is_lost_and_found_is_proven_anew(rig) -> None:
    _, attached = rig.attach()
    rig.kernel.disconnect()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    assert not rig.hub.ready
    assert rig.sent() == []
    rig.prove()
    assert rig.sent() == [asked]


async def test_death_is_told_and_requests_of_our_own_fail(rig) -> None:
    client, _ = rig.attach()
    pending = asyncio.ensure_future(rig.hub.request("execute_request", {"code": "1"}))
    await asyncio.sleep(0)
    rig.hub.dead()
    with pytest.raises(HubClosed):
        await pending
    assert b"dead" in received(client)[-1].content
    assert rig.hub.activity.execution_state == "dead"


async def test_the_last_output_of_a_kernel_arrives_before_its_death(rig) -> None:
    client, _ = rig.attach()
    rig.kernel.arrive(Channel.IOPUB, serialize(rig.stream("last words"), rig.signer))
    rig.hub.dead()
    output, death = received(client)[-2:]
    assert b"last words" in output.content
    assert b"dead" in death.content


async def test_a_request_of_our_own_is_answered_to_us_alone(rig) -> None:
    client, _ = rig.attach()
    pending = asyncio.ensure_future(rig.hub.request("history_request", {}))
    await asyncio.sleep(0)
    asked = rig.sent()[-1]
    rig.say(rig.message(Channel.SHELL, "history_reply", {"history": []}, asked.header))
    assert (await pending).msg_type == "history_reply"
    assert client.written == b""


async def test_forged_messages_are_dropped_counted_and_logged_once(rig, caplog) -> None:
    client, _ = rig.attach()
    forged = serialize(rig.stream("forged"), Signer(b"another key"))
    with caplog.at_level("WARNING", logger="kbridge.hub"):
        for _ in range(100):
            rig.kernel.say(Channel.IOPUB, forged)
        rig.kernel.say(Channel.IOPUB, [b"no", b"delimiter"])
    assert client.written == b""
    assert rig.hub.statistics()["refused_kernel_messages"] == 101
    assert len(caplog.records) == 1
    assert "a key" not in caplog.text
    rig.say(rig.stream("true"))
    assert texts(client) == ["true"]


async def test_legacy_clients_get_the_same_in_their_dialect(rig) -> None:
    client, _ = rig.attach(dialect=LEGACY)
    rig.say(rig.stream("ü"))
    rig.say(rig.message(Channel.IOPUB, "comm_msg", {"comm_id": "c"}, buffers=[b"\x00\x01"]))
    (op1, one), (op2, two) = frames_of(client.written)
    assert (op1, op2) == (1, 2)
    assert json.loads(one)["content"]["text"] == "ü"
    assert json.loads(one)["channel"] == "iopub"
    assert two.endswith(b"\x00\x01")


async def test_a_kernel_of_protocol_4_is_translated_both_ways(make_rig) -> None:
    rig = make_rig()
    client, attached = rig.attach()
    rig.prove(protocol=[4, 1])
    asked = rig.request("complete_request", code="imp", cursor_pos=3)
    rig.hub.submit(attached, asked)
    (sent,) = rig.sent()
    assert json.loads(sent.content)["line"] == "imp"
    old = rig.message(Channel.IOPUB, "stream", {"name": "stdout", "data": "old"})
    header = json.loads(old.header)
    del header["version"]
    rig.say(old._replace(header=json.dumps(header).encode()))
    pyout = rig.message(Channel.IOPUB, "pyout", {"execution_count": 1, "data": {}, "metadata": {}})
    rig.say(pyout)
    assert texts(client) == ["old"]
    assert received(client)[-1].msg_type == "execute_result"


async def test_hidden_tracebacks_and_allowed_types(make_rig) -> None:
    rig = make_rig(
        allow_tracebacks=False,
        traceback_replacement_message="hidden",
        allowed_message_types=("kernel_info_request",),
    )
    rig.prove()
    client, attached = rig.attach()
    rig.hub.submit(attached, rig.request("execute_request", code="1"))
    assert rig.sent() == []
    rig.hub.submit(attached, rig.request("kernel_info_request"))
    assert len(rig.sent()) == 1
    error = {"ename": "E", "evalue": "secret", "traceback": ["secret"]}
    rig.say(rig.message(Channel.IOPUB, "error", error))
    assert b"secret" not in client.written
    assert b"hidden" in client.written


async def test_the_rate_limit_is_the_hubs_and_says_so_once(make_rig) -> None:
    rig = make_rig(
        limit_rate=True, rate_limit_policy="drop", iopub_msg_rate_limit=10, rate_limit_window=1
    )
    rig.prove()
    client, _ = rig.attach()
    for i in range(100):
        rig.say(rig.stream(str(i)))
    got = texts(client)
    assert got[:10] == [str(i) for i in range(10)]
    assert len(got) == 11
    assert "iopub_msg_rate_limit" in got[10]


async def test_kernel_info_and_reconnects_are_no_activity(rig) -> None:
    before = rig.hub.activity.last_activity
    rig.clock.now += 100
    _, attached = rig.attach()
    info = rig.request("kernel_info_request")
    rig.hub.submit(attached, info)
    for state in ("busy", "idle"):
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": state}, info.header))
    assert rig.hub.activity.last_activity == before
    rig.hub.submit(attached, rig.request("execute_request", code="1"))
    assert rig.hub.activity.last_activity == rig.clock.wall()


@pytest.mark.parametrize(
    ("channel", "msg_type"),
    [(Channel.SHELL, "comm_info_request"), (Channel.CONTROL, "usage_request")],
)
async def test_what_an_open_page_asks_by_itself_is_no_activity(rig, channel, msg_type) -> None:
    before = rig.hub.activity.last_activity
    rig.clock.now += 100
    _, attached = rig.attach()
    rig.hub.submit(attached, rig.message(channel, msg_type, {}))
    assert rig.hub.activity.last_activity == before


async def test_a_kernel_that_proves_itself_late_is_up_and_ready(make_rig) -> None:
    rig = make_rig(kernel_info_timeout=60.0)
    rig.clock.now += 61
    probe = rig.probes()[0]
    rig.say(rig.message(probe.channel, "kernel_info_reply", {"status": "ok"}, probe.header))
    assert rig.hub.timed_out
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, probe.header))
    assert await rig.hub.wait_ready() is True
    assert rig.hub.activity.execution_state == "idle"


async def test_a_stranger_does_not_write_the_log(make_rig, caplog) -> None:
    rig = make_rig(allowed_message_types=("execute_request",))
    _, attached = rig.attach()
    rig.hub.submit(attached, rig.request("x\nForged line " + 10_000 * "x"))
    (record,) = caplog.records
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) < 200


async def test_closing_twice_closes_once_and_whoever_waits_knows(make_rig) -> None:
    rig = make_rig(request_limit=1)
    client, attached = rig.attach("s")
    waits = rig.hub.submit(attached, rig.request(code="1"))
    ready = asyncio.ensure_future(rig.hub.wait_ready())
    await asyncio.sleep(0)
    await rig.hub.aclose()
    await rig.hub.aclose()
    assert client.closed_with is not None
    for waiting in (waits, ready):
        with pytest.raises(HubClosed):
            await waiting
    with pytest.raises(HubClosed):
        rig.attach("s")
    with pytest.raises(HubClosed):
        rig.hub.submit(attached, rig.request(code="1"))


def leave_messages(rig, count: int) -> list[str]:
    """Let messages wait in the link, one batch each; return their texts."""
    lines = [f"line {n}" for n in range(count)]
    for line in lines:
        rig.kernel.arrive(Channel.IOPUB, serialize(rig.stream(line), rig.signer))
    return lines


async def test_a_hub_that_closes_delivers_a_backlog_in_slices(rig) -> None:
    client, _ = rig.attach("s", verbatim=True)
    lines = leave_messages(rig, 50)
    closing = asyncio.ensure_future(rig.hub.aclose())
    await asyncio.sleep(0)  # the first slice is delivered now
    second = asyncio.ensure_future(rig.hub.aclose())
    await asyncio.sleep(0)
    assert 0 < len(texts(client)) < len(lines), "other work of the event loop comes in between"
    assert client.closed_with is None
    assert not second.done()
    with pytest.raises(HubClosed):
        rig.attach("too late")
    await second
    assert closing.done(), "a second call waits for the first"
    assert texts(client) == lines
    assert client.closed_with is not None


async def test_a_hub_whose_closing_is_cancelled_is_closed(rig) -> None:
    client, _ = rig.attach("s", verbatim=True)
    lines = leave_messages(rig, 50)
    closing = asyncio.ensure_future(rig.hub.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert len(texts(client)) < len(lines)
    assert client.closed_with is not None
    assert rig.kernel.closed
    await rig.hub.aclose()


async def test_a_restart_delivers_a_backlog_in_slices(rig) -> None:
    client, _ = rig.attach("s", verbatim=True)
    lines = leave_messages(rig, 50)
    rig.kernel.disconnect()
    restarting = asyncio.ensure_future(rig.hub.restarting())
    for _ in range(5):
        await asyncio.sleep(0)
    assert 0 < len(texts(client)) < len(lines)
    await restarting
    assert texts(client) == lines
    assert states(client)[-1] == "restarting"


def states(client) -> list[str]:
    told = [json.loads(m.content) for m in received(client) if m.msg_type == "status"]
    return [content["execution_state"] for content in told]


async def test_what_is_announced_comes_after_all_that_the_kernel_said_and_once(rig) -> None:
    (one, _), (other, _) = rig.attach("one"), rig.attach("other")
    rig.kernel.drain = lambda: rig.say(rig.stream("last words"))
    rig.hub.announce("dead")
    rig.hub.announce("dead")
    for client in (one, other):
        assert [m.msg_type for m in received(client)] == ["stream", "status"]
    rig.kernel.drain = lambda: None
    rig.hub.announce("restarting")
    assert states(one) == ["dead", "restarting"], "another status must be announced"
    rig.say(rig.stream("it lives"))
    rig.hub.announce("restarting")
    assert states(one) == ["dead", "restarting", "restarting"], (
        "a status after a message must be announced"
    )


async def test_whoever_wants_to_know_is_told_of_what_is_announced(rig) -> None:
    told: list[str] = []

    class Listener:
        def on_status(self, status: str) -> None:
            told.append(status)
            rig.hub.announce(status)  # like a websocket whose hook sends the same

    (_, one), _ = (rig.attach(name, listener=Listener()) for name in "ab")
    rig.attach("c")
    rig.hub.announce("restarting")
    assert told == ["restarting", "restarting"]
    rig.hub.announce("dead", source=one)
    assert told[2:] == ["dead"], "the websocket of the request knows"


@pytest.mark.parametrize("asked", [True, False])
async def test_a_restart_is_announced_as_what_it_is(rig, asked) -> None:
    told: list[str] = []
    client, _ = rig.attach(listener=SimpleNamespace(on_status=told.append))
    rig.kernel.disconnect()
    await rig.hub.restarting(asked=asked)
    assert states(client) == told == ["starting" if asked else "restarting"]
    assert rig.hub.activity.execution_state == "restarting"


@pytest.mark.parametrize("keep", [True, False])
async def test_requests_that_wait_are_kept_through_a_restart_where_they_are_for_the_new_one(
    rig, keep
) -> None:
    client, attached = rig.attach("s")
    rig.attach("other")
    rig.kernel.disconnect()
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    ours = asyncio.ensure_future(rig.hub.request("history_request", {}))
    await asyncio.sleep(0)
    await rig.hub.restarting(keep=keep)
    with pytest.raises(HubClosed):
        await ours
    rig.hub.reconnect(dict(KERNEL_ELSEWHERE))
    rig.prove()
    assert (asked in rig.sent()) == keep
    reply = rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, asked.header)
    rig.say(reply)
    assert received(client)[-1].msg_type == "execute_reply"


async def test_the_end_of_a_kernel_during_a_restart_is_the_last_word(rig) -> None:
    client, _ = rig.attach()
    old = rig.kernel
    restarting = asyncio.ensure_future(rig.hub.restarting())
    await asyncio.sleep(0)
    rig.hub.dead()
    old.disconnect()
    await restarting
    assert states(client)[0] == "dead"
    assert rig.kernel.closed


async def test_another_process_on_the_same_sockets_is_a_start_told_once(rig) -> None:
    client, attached = rig.attach()
    observer = Observer(rig.hub)
    rig.hub.observe(observer)
    rig.kernel.disconnect()
    early = rig.request(code="early")
    rig.hub.submit(attached, early)
    assert observer.disconnected == 1
    rig.process = "the-second"
    rig.prove()
    rig.say(rig.stream("of the second"))
    assert [m.msg_type for m in received(client)] == ["status", "stream"]
    assert states(client) == ["starting"]
    assert rig.sent() == [early]
    assert rig.hub.activity.execution_state == "idle"


async def test_the_start_is_told_before_what_the_new_process_says(rig) -> None:
    client, _ = rig.attach()
    rig.kernel.disconnect()
    rig.process = "the-second"
    rig.kernel.connect()
    rig.say(rig.message(Channel.IOPUB, "iopub_welcome", {}))
    assert rig.hub.ready
    rig.say(rig.stream("first words"))
    rig.prove()
    assert [m.msg_type for m in received(client)] == ["status", "stream"]
    assert rig.hub.activity.execution_state == "idle"


async def test_a_kernel_whose_every_message_has_a_new_session_is_not_restarting(rig) -> None:
    client, _ = rig.attach()
    for process in "abc":
        rig.process = process
        rig.say(rig.stream(process))
    assert states(client) == []
    rig.kernel.disconnect()
    rig.prove()
    for process in "def":
        rig.process = process
        rig.say(rig.stream(process))
    assert len(states(client)) <= 1


async def test_a_kernel_that_answers_under_two_sessions_has_not_been_replaced(make_rig) -> None:
    rig = make_rig()
    client, _ = rig.attach()
    (one, other) = rig.probes()
    for probe, process in ((one, "a"), (other, "b")):
        rig.process = process
        rig.say(rig.message(probe.channel, "kernel_info_reply", {}, probe.header))
    rig.process = "c"
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, one.header))
    assert rig.hub.ready
    assert states(client) == []
    assert rig.hub.activity.execution_state == "idle"


async def test_a_successor_that_answers_no_probe_is_up_when_it_speaks(make_rig) -> None:
    """The timeout has passed, so requests do not wait for the proof."""
    rig = make_rig(kernel_info_timeout=60.0)
    rig.prove()
    client, _ = rig.attach()
    rig.kernel.disconnect()
    rig.kernel.connect()
    rig.clock.now += 61
    rig.fire_nudge_timer()
    assert rig.hub.timed_out
    rig.process = "the-second"
    rig.say(rig.stream("I never answer"))
    assert [m.msg_type for m in received(client)] == ["status", "stream"]
    assert rig.hub.activity.execution_state == "idle"


class Observer:
    """Records the events, and whether the hub was ready each time."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.heard: list[bool] = []
        self.disconnected = 0

    def on_kernel_activity(self) -> None:
        self.heard.append(self.hub.ready)

    def on_kernel_disconnected(self) -> None:
        self.disconnected += 1


async def test_whoever_keeps_in_step_is_told_once_a_wakeup(make_rig) -> None:
    rig = make_rig()
    observer = Observer(rig.hub)
    rig.hub.observe(observer)
    rig.prove()
    assert observer.heard[-1], "the proof must be reported"
    observer.heard.clear()
    rig.say(*(rig.stream(str(i)) for i in range(50)))
    assert observer.heard == [True]
    rig.hub.unobserve(observer)
    rig.hub.unobserve(observer)
    rig.say(rig.stream("50"))
    rig.kernel.disconnect()
    assert (observer.heard, observer.disconnected) == ([True], 0)


async def test_a_hook_that_comes_back_into_delivery_neither_doubles_nor_swaps(rig) -> None:
    """A link may run user code in `write`, which may call the hub."""
    client, attached = rig.attach()
    honest, _ = rig.attach()
    write, depth = client.write, [0]

    def hook(data: bytes) -> bool:
        assert depth == [0], "written to while it writes"
        depth[0] += 1
        try:
            if b"say" in data:
                rig.hub.say(rig.stream("said in the hook"))
            return write(data)
        finally:
            depth[0] -= 1

    client.write = hook
    rig.say(rig.stream("before"), rig.stream("say"), rig.stream("after"))
    expected = ["before", "say", "after", "said in the hook"]
    assert texts(client) == texts(honest) == expected
    assert attached.delivered == attached.place == rig.hub.journal.end()


async def test_a_hook_that_comes_back_while_its_websocket_is_full_waits_its_turn(rig) -> None:
    client, attached = rig.attach()
    write = client.write

    def hook(data: bytes) -> bool:
        written = write(data)
        if b"say" in data:
            rig.hub.say(rig.stream("later"))
        return written

    client.write = hook
    client.stalled = True
    rig.say(rig.stream("say"))
    assert attached.blocked
    assert texts(client) == []
    client.resume()
    assert texts(client) == ["say", "later"]


async def test_a_hook_that_detaches_hears_no_more(rig) -> None:
    client, attached = rig.attach("s")
    honest, _ = rig.attach()
    write = client.write

    def hook(data: bytes) -> bool:
        rig.hub.detach(attached)
        return write(data)

    client.write = hook
    rig.say(rig.stream("one"))
    rig.say(rig.stream("two"))
    assert texts(client) == ["one"]
    assert texts(honest) == ["one", "two"]


async def test_without_a_time_to_resume_who_comes_back_starts_afresh(make_rig) -> None:
    rig = make_rig(resume_timeout=0.0)
    rig.prove()
    _, attached = rig.attach("s")
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.hub.detach(attached)
    rig.say(rig.stream("meanwhile"))
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, asked.header))
    back, again = rig.attach("s")
    assert back.written == b""
    rig.say(rig.stream("after"))
    assert texts(back) == ["after"]
    assert again.session is attached.session, "replies to its earlier requests are still its own"


KERNEL_ELSEWHERE = {
    "ip": "127.0.0.1",
    "shell_port": 11,
    "iopub_port": 12,
    "stdin_port": 13,
    "control_port": 14,
    "key": b"a key that is no secret",
}


async def test_a_closed_hub_holds_nothing_of_what_its_kernel_said(rig) -> None:
    for i in range(100):
        rig.hub.say(rig.hub.notices.stderr(f"{i}"))
    assert rig.hub.journal.nbytes > 0
    await rig.hub.aclose()
    assert rig.hub.journal.nbytes == 0
    assert not rig.renderer._chunks


async def test_who_was_linked_anew_is_not_taken_for_a_successor(make_rig) -> None:
    """A caller of `reconnect` has announced the restart already."""
    rig = make_rig()
    rig.prove()
    client, _ = rig.attach()
    rig.kernel.disconnect()
    rig.hub.reconnect(INFO)
    for process in ("the-second", "the-third"):
        rig.process = process
        (probe, *_) = rig.probes()
        rig.say(rig.message(probe.channel, "kernel_info_reply", {}, probe.header))
    assert states(client) == []
