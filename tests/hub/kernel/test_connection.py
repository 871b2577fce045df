"""The messages and events that a kernel connection reports to its listener, and its readiness."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kbridge.errors import HubClosed, MessageTooBig, NotZmtp
from kbridge.flow.journal import EVERYONE
from kbridge.hub.kernel.connection import KernelConnection
from kbridge.hub.settings import HubSettings
from kbridge.link.choice import LinkKind, make_link
from kbridge.link.holder.client import Holder
from kbridge.link.holder.keeper import KeptKernel
from kbridge.link.memory import MemoryKernel
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message, message_key
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import serialize
from tests.hub.rig import INFO, KEY, StoppedClock, make_context
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.usefixtures("twin")

ALICE, BOB = 1, 99
# Signature, revision, socket type ROUTER, empty identity.
OLD_GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x01\x06" + b"\0\0"


class Listener:
    """Records the events of a connection."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, Message]] = []
        self.runs: list[list[str]] = []  # the ids of messages that came together
        self.replaced = 0
        self.ready = 0
        self.disconnected = 0
        self.drained = 0

    def on_output(self, msg: Message, msg_type: str, key: int, now: float) -> None:
        assert msg_type == msg.msg_type
        self.messages.append((EVERYONE, msg))
        self.runs.append([msg.msg_id])

    def on_texts(self, texts: Sequence[Message], keys: Sequence[int], now: float) -> None:
        assert {msg.msg_type for msg in texts} == {"stream"}
        assert [*keys] == [message_key(msg.header) for msg in texts]
        assert len({msg.parent_header for msg in texts}) == 1
        self.messages += [(EVERYONE, msg) for msg in texts]
        self.runs.append([msg.msg_id for msg in texts])

    def on_reply(self, msg: Message, msg_type: str, key: int, client: int, now: float) -> None:
        assert msg_type == msg.msg_type
        assert key == message_key(msg.header)
        self.messages.append((client, msg))

    def on_notice(self, msg: Message) -> None:
        self.messages.append((EVERYONE, msg))

    def on_replaced(self, waiting: frozenset[str]) -> None:
        self.replaced += 1
        self.waiting = waiting

    def on_ready(self) -> None:
        self.ready += 1

    def on_disconnected(self) -> None:
        self.disconnected += 1

    def on_drained(self) -> None:
        self.drained += 1


class ProbedKernel(MemoryKernel):
    """A kernel in memory; `probed` is set when a message is sent to it."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.probed = asyncio.Event()

    def send(self, channel, frames) -> bool:
        self.probed.set()
        return super().send(channel, frames)


class Side:
    """A connection on a link in memory, and the kernel's side of it."""

    def __init__(
        self, *, adopted: bool = False, timeout: float = 60.0, link: str = "pyzmq", **more: Any
    ) -> None:
        self.clock = StoppedClock()
        self.listener = Listener()
        settings = HubSettings(kernel_info_timeout=timeout, link=link)
        context = replace(make_context(self.clock, settings, adopted=adopted), **more)
        self.notices, self.rejected = context.notices, context.rejected
        self.kernels: list[ProbedKernel] = []
        self.connection = KernelConnection(context, self.listener, self._link)
        self.signer = Signer(KEY)
        self.connection.connect(INFO)

    def _link(self, endpoints, events, identity):
        self.kernels.append(ProbedKernel(endpoints, events, identity))
        return self.kernels[-1]

    @property
    def kernel(self) -> ProbedKernel:
        return self.kernels[-1]

    @property
    def probed(self) -> list[Channel]:
        """The channels of the messages to the kernel; without requests, all are probes."""
        return [channel for channel, _ in self.kernel.sent]

    def message(self, channel: Channel, msg_type: str, parent: bytes = b"{}", **content) -> Message:
        return build(channel, msg_type, content, session="k", date="now", parent_header=parent)

    def answer_as(self, session: str, channel: Channel = Channel.CONTROL) -> None:
        """Let a process answer a probe."""
        probe = self.notices.probe(channel).header
        kind = "status" if channel is Channel.IOPUB else "kernel_info_reply"
        self.say(build(channel, kind, {}, session=session, date="now", parent_header=probe))

    def say(self, *messages: Message) -> None:
        frames = [serialize(m, self.signer) for m in messages]
        self.kernel.say(messages[0].channel, *frames)

    def prove(self) -> None:
        self.kernel.connect()
        self.answer_as("k")
        self.answer_as("k", Channel.IOPUB)
        assert self.connection.ready

    def welcome(self) -> None:
        self.say(self.message(Channel.IOPUB, "iopub_welcome"))

    def lose(self) -> None:
        """Disconnect the kernel, and start another one on the same ports."""
        self.kernel.disconnect()
        self.kernel.connect()

    def heard_by(self, client: int) -> list[str]:
        return [m.msg_type for to, m in self.listener.messages if to in (EVERYONE, client)]


@pytest.fixture
async def side():
    made = Side()
    yield made
    made.connection.close()


@pytest.fixture
async def adopted():
    made = Side(adopted=True)
    yield made
    made.connection.close()


async def test_iopub_messages_are_for_everyone(side) -> None:
    side.say(side.message(Channel.IOPUB, "stream"), side.message(Channel.IOPUB, "error"))
    assert side.heard_by(ALICE) == side.heard_by(BOB) == ["stream", "error"]
    assert side.listener.drained == 1, "once per wake-up"


async def test_streams_in_a_row_with_one_parent_are_passed_on_together(side) -> None:
    side.prove()
    side.listener.runs.clear()
    streams = [side.message(Channel.IOPUB, "stream") for _ in range(6)]
    other = side.message(Channel.IOPUB, "stream", b'{"msg_id": "another parent"}')
    error = side.message(Channel.IOPUB, "error")
    said = [*streams[:3], error, streams[3], *streams[4:], other]
    forged = serialize(streams[0], Signer(b"another key"))
    frames = [serialize(msg, side.signer) for msg in said]
    side.kernel.say(Channel.IOPUB, *frames[:5], forged, *frames[5:])
    ids = [msg.msg_id for msg in said]
    assert side.listener.runs == [ids[:3], ids[3:4], ids[4:5], ids[5:7], ids[7:]]
    assert [msg for _, msg in side.listener.messages if msg in said] == said


async def test_streams_keep_their_order_around_the_answer_to_a_probe(side) -> None:
    side.prove()
    side.listener.runs.clear()
    probe = side.notices.probe(Channel.SHELL).header
    one, two, three = (side.message(Channel.IOPUB, "stream") for _ in range(3))
    printed_later = side.message(Channel.IOPUB, "stream", probe)
    side.say(one, two, side.message(Channel.IOPUB, "status", probe), printed_later, three)
    ids = [msg.msg_id for msg in (one, two, printed_later, three)]
    assert [each for run in side.listener.runs for each in run] == ids


async def test_a_reply_is_for_the_client_that_made_the_request(side) -> None:
    asked = side.message(Channel.SHELL, "execute_request")
    side.connection.submit(asked, ALICE)
    side.say(side.message(Channel.SHELL, "execute_reply", asked.header))
    assert (side.heard_by(ALICE), side.heard_by(BOB)) == (["execute_reply"], [])


async def test_answers_to_probes_are_dropped_but_output_with_such_a_parent_is_passed_on(
    side,
) -> None:
    """A thread prints with the latest request as its parent, which may be a probe."""
    side.kernel.connect()
    probe = side.notices.probe(Channel.CONTROL).header
    side.say(side.message(Channel.CONTROL, "kernel_info_reply", probe, protocol_version="5.4"))
    assert not side.connection.ready
    side.say(
        side.message(Channel.IOPUB, "status", probe, execution_state="idle"),
        side.message(Channel.IOPUB, "stream", probe),
    )
    assert side.connection.ready
    assert side.listener.ready == 1
    assert side.heard_by(ALICE) == ["stream"]


async def test_an_iopub_welcome_proves_the_subscription_and_is_dropped(side) -> None:
    side.say(side.message(Channel.IOPUB, "iopub_welcome"))
    assert side.connection.ready
    assert not side.connection.timed_out
    assert side.heard_by(ALICE) == []


async def test_invalid_messages_are_rejected_counted_and_logged_once_per_minute(
    side, caplog
) -> None:
    good = side.message(Channel.IOPUB, "stream")
    forged = serialize(good, Signer(b"another key"))
    frames = serialize(good, side.signer)
    side.kernel.say(Channel.IOPUB, frames, forged, [b"rubbish"], [], frames)
    assert side.heard_by(ALICE) == ["stream", "stream"]
    assert side.rejected.total == 3
    side.kernel.say(Channel.IOPUB, forged)
    assert len(caplog.records) == 1
    assert KEY.decode() not in caplog.text
    side.clock.now += 61
    side.kernel.say(Channel.IOPUB, forged)
    assert "Rejected 4 message(s)" in caplog.text


@pytest.mark.parametrize("version", ["9" * 5000, ["9" * 5000], None, [[]], {}, 4.2, ""])
async def test_an_odd_protocol_version_does_not_affect_the_rest_of_the_batch(side, version) -> None:
    probe = side.notices.probe(Channel.SHELL).header
    side.say(
        side.message(Channel.SHELL, "kernel_info_reply", probe, protocol_version=version),
        side.message(Channel.SHELL, "execute_reply"),
    )
    side.say(side.message(Channel.IOPUB, "pyout", data={}, metadata={}, execution_count=1))
    assert side.heard_by(ALICE) == ["execute_reply", "pyout"], "nothing is translated"


async def test_a_kernel_of_protocol_4_is_translated_until_the_next_process(side) -> None:
    probe = side.notices.probe(Channel.SHELL).header
    old = side.message(Channel.IOPUB, "pyout", data={}, metadata={}, execution_count=1)
    side.say(side.message(Channel.SHELL, "kernel_info_reply", probe, protocol_version=[4, 1]))
    side.say(old)
    side.connection.connect(INFO)
    side.say(old)
    assert side.heard_by(ALICE) == ["execute_result", "pyout"]


async def test_another_session_after_a_lost_connection_is_another_process(side) -> None:
    for channel in (Channel.CONTROL, Channel.SHELL, Channel.IOPUB):
        side.answer_as("one", channel)
    assert side.listener.replaced == 0, "the first process does not replace another one"
    side.lose()
    side.answer_as("two")
    side.answer_as("two", Channel.SHELL)
    assert side.listener.replaced == 1
    assert side.listener.disconnected == 1


async def test_another_session_without_a_lost_connection_is_the_same_process(side) -> None:
    side.answer_as("one")
    side.answer_as("two")
    assert side.listener.replaced == 0


async def test_a_message_without_a_session_is_not_from_another_process(side) -> None:
    for session in ("one", "", "one"):
        side.answer_as(session)
        side.lose()
    assert side.listener.replaced == 0


async def test_a_welcome_tells_the_process_too(side) -> None:
    side.answer_as("one")
    side.lose()
    side.say(build(Channel.IOPUB, "iopub_welcome", {}, session="two", date="now"))
    side.answer_as("two")
    assert side.listener.replaced == 1


async def test_the_session_of_output_does_not_matter_once_the_kernel_is_proven(side) -> None:
    side.prove()
    side.lose()
    side.prove()
    side.say(build(Channel.IOPUB, "stream", {}, session="another", date="now"))
    assert side.listener.replaced == 0


async def test_the_process_after_connect_replaces_none(side) -> None:
    side.answer_as("one")
    side.connection.connect(INFO)
    side.answer_as("two")
    assert side.listener.replaced == 0


async def test_the_bridge_speaks_under_the_session_of_the_process_that_answers(side) -> None:
    for session in ("first", "second"):
        side.connection.connect(INFO)
        side.answer_as(session)
        assert f'"session": "{session}"'.encode() in side.notices.status("busy").header


async def test_an_adopted_kernel_is_busy_until_its_shell_answers(adopted) -> None:
    """Control answers while a cell runs; a kernel that seems idle would be culled."""
    side = adopted
    cells = [
        build(Channel.SHELL, "execute_request", {}, session="c", date="now", msg_id=name).header
        for name in ("debug", "old")
    ]
    side.kernel.connect()
    side.answer_as("one", Channel.CONTROL)
    side.answer_as("one", Channel.IOPUB)
    for cell in cells:
        side.say(side.message(Channel.IOPUB, "status", cell, execution_state="idle"))
        assert side.connection.activity.execution_state == "busy"
        assert side.connection.activity.at_work
    side.clock.now += 9
    side.answer_as("one", Channel.SHELL)
    assert side.connection.activity.execution_state == "idle"
    assert side.connection.activity.last_activity == side.clock.wall()


async def test_a_process_that_has_ended_delivers_its_last_messages_first(side) -> None:
    side.prove()
    side.kernel.disconnect()
    last = side.message(Channel.IOPUB, "stream")
    side.kernel.arrive(Channel.IOPUB, serialize(last, side.connection.signer))
    await side.connection.restarting(keep=False)
    assert side.heard_by(ALICE) == ["stream"]


async def test_the_next_process_is_waited_for_until_it_disconnects_as_well(side, caplog) -> None:
    """A disconnect of the previous process must not count for the current one."""
    side.kernel.disconnect()
    await side.connection.restarting(keep=False)
    side.connection.connect(INFO)
    with caplog.at_level("DEBUG", logger="kbridge.hub"):
        await side.connection.restarting(keep=False)
    assert "still connected" in caplog.text


# -- readiness ------------------------------------------------------------------------------

ROUND = [Channel.SHELL, Channel.CONTROL]


@pytest.fixture
async def impatient():
    made = Side(timeout=0.0)
    yield made
    made.connection.close()


async def test_a_kernel_is_probed_at_once_and_after_its_handshake(side) -> None:
    assert side.probed == ROUND
    assert not side.connection.ready
    side.kernel.connect()
    assert side.probed == 2 * ROUND


async def test_a_reply_and_an_iopub_message_are_reported_once_and_end_the_probes(side) -> None:
    side.answer_as("k")
    assert not side.connection.ready
    side.answer_as("k", Channel.IOPUB)
    for _ in range(2):
        assert side.connection.ready
        assert side.listener.ready == 1
        side.clock.now += 10
        side.connection.poll()
        side.answer_as("k")
        side.answer_as("k", Channel.IOPUB)
    assert side.probed == ROUND


async def test_a_kernel_whose_stdin_is_not_connected_is_not_ready(side) -> None:
    side.kernel.without_stdin = True
    side.welcome()
    assert not side.connection.ready
    side.connection.on_connected(Channel.STDIN)
    assert (side.connection.ready, side.listener.ready) == (True, 1)
    side.connection.on_disconnected(Channel.STDIN)
    assert not side.connection.ready
    side.connection.on_connected(Channel.STDIN)
    assert (side.connection.ready, side.listener.ready) == (True, 2)


async def test_a_kernel_that_does_not_answer_is_probed_again(side) -> None:
    side.kernel.probed.clear()
    side.clock.now += 10  # the next probe is due for any timer
    async with asyncio.timeout(TIMEOUT):
        await side.kernel.probed.wait()
    assert side.probed == 2 * ROUND


async def test_a_lost_connection_is_proven_and_reported_again(side) -> None:
    side.prove()
    side.kernel.disconnect()
    assert not side.connection.ready
    side.answer_as("k")
    side.answer_as("k", Channel.IOPUB)
    assert not side.connection.ready, "messages of the old process do not prove the new one"
    side.prove()
    assert side.listener.ready == 2


async def test_a_kernel_that_has_ended_is_not_ready(side) -> None:
    side.prove()
    side.connection.dead()
    assert not side.connection.ready
    assert side.connection.activity.execution_state == "dead"


async def test_a_kernel_that_is_not_waited_for_is_ready_without_proof(impatient) -> None:
    connection = impatient.connection
    assert (connection.ready, connection.timed_out) == (True, True)
    assert await connection.wait_ready(None) is False
    assert impatient.listener.ready == 1
    assert connection.activity.execution_state == "starting"


async def test_a_slow_kernel_can_still_be_proven_after_the_timeout(side) -> None:
    side.clock.now += 61
    side.answer_as("k")
    assert (side.connection.timed_out, side.listener.ready) == (True, 1)
    side.answer_as("k", Channel.IOPUB)
    assert (side.connection.timed_out, side.listener.ready) == (False, 2)
    assert await side.connection.wait_ready(None) is True
    assert side.connection.activity.execution_state == "idle"


async def test_callers_that_wait_are_told_that_the_kernel_is_ready(side) -> None:
    waits = [asyncio.ensure_future(side.connection.wait_ready(None)) for _ in range(2)]
    await asyncio.sleep(0)
    side.prove()
    assert await asyncio.gather(*waits) == [True, True]
    assert await side.connection.wait_ready(None) is True


async def test_a_caller_that_stops_waiting_does_not_affect_others(side) -> None:
    assert await side.connection.wait_ready(0) is False
    gone, stays = (asyncio.ensure_future(side.connection.wait_ready(None)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    side.prove()
    assert await stays is True
    assert gone.cancelled()


async def test_close_fails_callers_that_wait_and_those_that_come_later(side) -> None:
    waits = asyncio.ensure_future(side.connection.wait_ready(None))
    await asyncio.sleep(0)
    side.connection.close()
    side.connection.close()
    for waiting in (waits, side.connection.wait_ready(None)):
        with pytest.raises(HubClosed):
            async with asyncio.timeout(TIMEOUT):
                await waiting


async def test_a_connection_that_is_closed_during_a_batch_does_not_act_on_the_rest(side) -> None:
    side.listener.on_output = lambda *_: side.connection.close()
    probes = len(side.probed)
    side.say(
        side.message(Channel.IOPUB, "stream"),
        side.message(Channel.IOPUB, "iopub_welcome"),
        side.message(Channel.IOPUB, "stream"),
    )
    side.clock.now += 100
    side.connection.poll()
    assert side.listener.ready == 0
    assert len(side.probed) == probes
    with pytest.raises(HubClosed):
        await side.connection.wait_ready(None)


async def test_a_kernel_with_an_old_zmtp_is_connected_with_libzmq(caplog) -> None:
    """The shell's port speaks ZMTP 2.0 (RFC 15); the others accept connections only."""
    caplog.set_level("INFO")
    loop = asyncio.get_running_loop()
    ports = {channel: socket.create_server(("127.0.0.1", 0)) for channel in Channel}
    for sock in ports.values():
        sock.setblocking(False)
    settings, listener = HubSettings(link="auto"), Listener()
    context = make_context(StoppedClock(), settings)
    connection = KernelConnection(context, listener, make_link(LinkKind.AUTO))
    info = {f"{channel}_port": sock.getsockname()[1] for channel, sock in ports.items()}
    connection.connect(INFO | info)
    try:
        async with asyncio.timeout(TIMEOUT):
            plain, _ = await loop.sock_accept(ports[Channel.SHELL])
            await loop.sock_sendall(plain, OLD_GREETING)
            while await loop.sock_recv(plain, 1000):
                pass
            plain.close()
            old, _ = await loop.sock_accept(ports[Channel.SHELL])
            await loop.sock_sendall(old, OLD_GREETING)
            data = b""
            while b'"kernel_info_request"' not in data:
                data += await loop.sock_recv(old, 1000)
            old.close()
        assert caplog.text.count("speaks an old ZMTP") == 1
    finally:
        connection.close()
        for sock in ports.values():
            sock.close()


async def test_the_next_process_of_a_kernel_with_an_old_zmtp_is_connected_with_libzmq(
    caplog,
) -> None:
    caplog.set_level("INFO")
    side = Side(link="auto")
    side.connection.on_unsupported(Channel.SHELL)
    assert side.kernel.closed
    side.connection.connect(INFO)
    assert len(side.kernels) == 1
    assert caplog.text.count("speaks an old ZMTP") == 1
    side.connection.close()


async def test_with_plain_sockets_by_setting_an_old_zmtp_is_told_with_the_setting(caplog) -> None:
    side = Side(link="zmtp")
    for channel in (Channel.SHELL, Channel.IOPUB, Channel.SHELL):
        side.connection.on_unsupported(channel)
    assert not side.kernel.closed
    assert caplog.text.count("set link to auto or pyzmq") == 1


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (MessageTooBig("a part of a message has more than 9 bytes", 9), "see kernel_message_limit"),
        (NotZmtp("the port does not speak ZeroMQ"), "the port does not speak ZeroMQ. Connecting"),
    ],
)
async def test_a_fault_at_a_port_is_told_with_its_reason(side, caplog, fault, text) -> None:
    for _ in range(3):
        side.connection.on_gone(Channel.IOPUB, fault)
    assert caplog.text.count(text) == 1


class Records:
    """The records of a journal's history, in the order in which they were made."""

    def __init__(self) -> None:
        self.made: list[tuple[str, object]] = []

    def record(self, key: str, value: object) -> None:
        self.made.append((key, value))


async def test_the_next_bridge_is_told_once_why_a_connection_is_not_kept(tmp_path: Path) -> None:
    kept = KeptKernel("a-kernel", Holder(tmp_path / "holder", None, 1, 1.0), {})
    records = Records()
    side = Side(kept=kept, history=records)
    kept.give_up("memory was missing for it")  # by a port, while it connects
    side.kernel.connect()
    side.lose()
    assert records.made == [("cut", "memory was missing for it")]
    side.connection.close()
