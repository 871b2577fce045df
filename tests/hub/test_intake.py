"""What becomes of a kernel's messages; seen in the journal."""

import logging

import pytest

from kbridge.errors import KernelMessageError
from kbridge.flow.activity import Activity
from kbridge.flow.inputs import Inputs
from kbridge.flow.journal import Journal, Place
from kbridge.flow.policy import DROP, PASS
from kbridge.hub.broadcast.resume import SessionIndex
from kbridge.hub.intake import Intake
from kbridge.hub.kernel.nudge import Nudge
from kbridge.hub.kernel.requests import Requests
from kbridge.hub.notices import Notices
from kbridge.wire import v1
from kbridge.wire.build import build
from kbridge.wire.frames import payload
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import serialize
from tests.hub.rig import KEY, StoppedClock

ALICE = 1


class Side:
    """An intake among its real neighbours, and a kernel that speaks to it."""

    def __init__(self, *, adopted: bool = False) -> None:
        self.clock = StoppedClock()
        self.inputs = Inputs()
        self.replaced: list[bool] = []
        self.notices = Notices(self.clock)
        self.journal = Journal(1 << 20, 1 << 20)
        self.activity = Activity(self.clock.wall())
        log = logging.getLogger("kbridge.hub")
        self.requests = Requests(
            1 << 20, lambda _: True, log, notices=self.notices, clock=self.clock
        )
        self.nudge = Nudge(self.clock, 60.0, lambda: None, lambda _: None)
        self.intake = Intake(
            "a-kernel",
            self.journal,
            self.activity,
            self.nudge,
            self.requests,
            self.inputs,
            notices=self.notices,
            on_replaced=lambda: self.replaced.append(True),
            policies=[self._judge],
            clock=self.clock,
            log=log,
            answered=SessionIndex() if adopted else None,
        )
        self.signer = Signer(KEY)
        self.intake.begin(self.signer)
        self.nudge.begin()
        self.nudge.stdin(up=True)

    @staticmethod
    def _judge(msg: Message, msg_type: str, now: float):
        if msg_type == "display_data":
            return DROP
        return (msg, msg) if msg_type == "execute_result" else PASS

    def message(self, channel: Channel, msg_type: str, parent: bytes = b"{}", **content) -> Message:
        return build(channel, msg_type, content, session="k", date="now", parent_header=parent)

    def from_process(self, session: str, channel: Channel = Channel.CONTROL) -> None:
        """Let a process answer a probe."""
        probe = self.notices.probe(channel).header
        kind = "status" if channel is Channel.IOPUB else "kernel_info_reply"
        self.say(build(channel, kind, {}, session=session, date="now", parent_header=probe))

    def say(self, *messages: Message, signer: Signer | None = None) -> None:
        frames = [serialize(m, signer or self.signer) for m in messages]
        self.intake.take(messages[0].channel, frames)

    def heard_by(self, client: int) -> list[str]:
        stretch = self.journal.read(Place(0, 0, 0), 1 << 20)
        frames = stretch.frames_for(client) if stretch else []
        return [v1.decode(payload(f)).msg_type for f in frames]


@pytest.fixture
async def side():
    made = Side()
    yield made
    made.nudge.close()
    made.requests.close()


async def test_what_is_said_on_iopub_is_everybodys(side) -> None:
    side.say(side.message(Channel.IOPUB, "stream"), side.message(Channel.IOPUB, "error"))
    assert side.heard_by(ALICE) == side.heard_by(99) == ["stream", "error"]


async def test_an_answer_is_for_who_asked(side) -> None:
    asked = side.message(Channel.SHELL, "execute_request")
    side.requests.submit(asked, ALICE)
    side.say(side.message(Channel.SHELL, "execute_reply", asked.header))
    assert (side.heard_by(ALICE), side.heard_by(99)) == (["execute_reply"], [])


async def test_policies_drop_and_replace(side) -> None:
    kinds = ("display_data", "execute_result", "stream")
    side.say(*(side.message(Channel.IOPUB, kind) for kind in kinds))
    assert side.heard_by(ALICE) == ["execute_result", "execute_result", "stream"]


async def test_what_comes_of_a_probe_is_evidence_but_a_threads_output_is_output(side) -> None:
    probe = side.notices.probe(Channel.CONTROL).header
    side.say(side.message(Channel.CONTROL, "kernel_info_reply", probe, protocol_version="5.4"))
    assert not side.nudge.ready
    side.say(
        side.message(Channel.IOPUB, "status", probe, execution_state="idle"),
        side.message(Channel.IOPUB, "stream", probe),
    )
    assert side.nudge.proven
    assert side.heard_by(ALICE) == ["stream"]


async def test_a_welcome_is_the_bridges(side) -> None:
    side.say(side.message(Channel.IOPUB, "iopub_welcome"))
    assert side.nudge.proven
    assert side.heard_by(ALICE) == []


async def test_what_is_refused_takes_nothing_along_and_is_logged_once(side, caplog) -> None:
    good = side.message(Channel.IOPUB, "stream")
    forged = serialize(good, Signer(b"another key"))
    frames = serialize(good, side.signer)
    side.intake.take(Channel.IOPUB, [frames, forged, [b"rubbish"], [], frames])
    assert side.heard_by(ALICE) == ["stream", "stream"]
    assert side.intake.refused == 3
    side.intake.refuse(Channel.IOPUB, KernelMessageError("as bad"))
    assert len(caplog.records) == 1
    assert KEY.decode() not in caplog.text
    side.clock.now += 61
    side.intake.refuse(Channel.IOPUB, KernelMessageError("as bad"))
    assert "4 message(s) refused" in caplog.text


@pytest.mark.parametrize("version", ["9" * 5000, ["9" * 5000], None, [[]], {}, 4.2, ""])
async def test_no_version_takes_the_rest_of_a_batch_along(side, version) -> None:
    probe = side.notices.probe(Channel.SHELL).header
    side.say(
        side.message(Channel.SHELL, "kernel_info_reply", probe, protocol_version=version),
        side.message(Channel.SHELL, "execute_reply"),
    )
    assert side.heard_by(ALICE) == ["execute_reply"]
    assert side.intake.adapter is None


async def test_an_old_kernel_is_translated_until_another_one_begins(side) -> None:
    probe = side.notices.probe(Channel.SHELL).header
    side.say(side.message(Channel.SHELL, "kernel_info_reply", probe, protocol_version=[4, 1]))
    side.say(side.message(Channel.IOPUB, "pyout", data={}, metadata={}, execution_count=1))
    assert side.heard_by(ALICE) == ["execute_result", "execute_result"]
    side.intake.begin(side.signer)
    assert side.intake.adapter is None


async def test_another_process_is_told_by_the_session_of_its_answers(side) -> None:
    for channel in (Channel.CONTROL, Channel.SHELL, Channel.IOPUB):
        side.from_process("one", channel)
    assert side.replaced == [], "the first is nobody's successor"
    side.nudge.disconnected()
    side.nudge.connected()
    side.from_process("two")
    side.from_process("two", Channel.SHELL)
    assert side.replaced == [True]


async def test_a_session_that_is_not_said_is_no_other_process(side) -> None:
    for session in ("one", "", "one"):
        side.nudge.disconnected()
        side.nudge.connected()
        side.from_process(session)
    assert side.replaced == []


async def test_a_welcome_names_its_process_too(side) -> None:
    side.from_process("one")
    side.nudge.disconnected()
    side.nudge.connected()
    welcome = build(Channel.IOPUB, "iopub_welcome", {}, session="two", date="now")
    side.say(welcome)
    side.from_process("two")
    assert side.replaced == [True]


async def test_once_proven_nobody_asks_which_process_speaks(side) -> None:
    side.from_process("one")
    side.from_process("one", Channel.IOPUB)
    assert side.nudge.proven
    side.say(build(Channel.IOPUB, "stream", {}, session="another", date="now"))
    assert side.replaced == []


async def test_a_kernel_that_begins_anew_is_nobodys_successor(side) -> None:
    side.from_process("one")
    side.intake.begin(side.signer)
    side.nudge.begin()
    side.from_process("two")
    assert side.replaced == []


# -- a kernel that ran before the bridge did ------------------------------------------------------


@pytest.fixture
async def adopted():
    made = Side(adopted=True)
    yield made
    made.nudge.close()
    made.requests.close()


def shown(side: Side) -> list[tuple[str, str]]:
    """Type and parent of all that is journalled; markers by name."""
    stretch = side.journal.read(Place(0, 0, 0), 1 << 20)
    messages = [v1.decode(payload(f)) for f in stretch.frames] if stretch else []
    return [
        (
            "marker" if b"[kbridge: the server was restarted" in m.content else m.msg_type,
            m.parent_id,
        )
        for m in messages
    ]


def cell(side: Side, msg_id: str) -> bytes:
    return build(
        Channel.SHELL, "execute_request", {}, session="c", date="now", msg_id=msg_id
    ).header


def status(side: Side, state: str, parent: bytes) -> Message:
    return side.message(Channel.IOPUB, "status", parent, execution_state=state)


@pytest.mark.parametrize("kind", ["stream", "display_data", "error", "status"])
async def test_a_cell_that_was_under_way_gets_one_marker_before_all_else(adopted, kind) -> None:
    side, old = adopted, cell(adopted, "old")
    side.say(
        status(side, "idle", old) if kind == "status" else side.message(Channel.IOPUB, kind, old)
    )
    for text in ("two", "three"):
        side.say(side.message(Channel.IOPUB, "stream", old, name="stdout", text=text))
    side.say(status(side, "idle", old))
    side.say(side.message(Channel.IOPUB, "stream", cell(side, "older"), name="stdout", text="x"))
    got = shown(side)
    assert got[0] == ("marker", "old")
    assert [kind for kind, _ in got].count("marker") == 1


async def test_a_cell_that_begins_now_gets_none(adopted) -> None:
    side = adopted
    for i in range(3):
        parent = cell(side, f"cell-{i}")
        side.say(status(side, "busy", parent), side.message(Channel.IOPUB, "stream", parent))
        side.say(status(side, "idle", parent))
    assert "marker" not in [kind for kind, _ in shown(side)]
    assert len(shown(side)) == 9


async def test_requests_that_begin_meanwhile_do_not_take_the_marker_away(adopted) -> None:
    """A page that connects asks the debugger, on control, while the cell is silent."""
    side, old, debug = adopted, cell(adopted, "old"), cell(adopted, "debug")
    side.say(status(side, "busy", debug), status(side, "idle", debug))
    side.say(side.message(Channel.IOPUB, "stream", old))
    assert shown(side) == [
        ("status", "debug"),
        ("status", "debug"),
        ("marker", "old"),
        ("stream", "old"),
    ]


async def test_what_has_no_parent_and_what_is_ours_gets_none_and_takes_none(adopted) -> None:
    side = adopted
    side.say(side.message(Channel.IOPUB, "status", execution_state="starting"))
    side.say(side.message(Channel.IOPUB, "stream"))
    probe = side.notices.probe(Channel.CONTROL).header
    side.say(status(side, "busy", probe), side.message(Channel.IOPUB, "stream", probe))
    assert "marker" not in [kind for kind, _ in shown(side)]
    side.say(side.message(Channel.IOPUB, "stream", cell(side, "old")))
    assert shown(side)[-2:] == [("marker", "old"), ("stream", "old")]


async def test_it_counts_as_busy_until_its_shell_answers(adopted) -> None:
    """Control answers beside the cell that runs; who took that for idle would cull the kernel."""
    side, old = adopted, cell(adopted, "old")
    side.activity.alive(side.clock.wall())
    side.from_process("one", Channel.CONTROL)
    side.from_process("one", Channel.IOPUB)
    side.say(status(side, "idle", cell(side, "debug")))
    assert side.activity.execution_state == "busy"
    assert side.activity.at_work
    side.say(status(side, "idle", old))
    side.clock.now += 9
    side.from_process("one", Channel.SHELL)
    assert side.activity.execution_state == "idle"
    assert side.activity.last_activity == side.clock.wall()


async def test_a_kernel_that_was_started_here_gets_none(side) -> None:
    side.say(side.message(Channel.IOPUB, "stream", cell(side, "old")))
    assert shown(side) == [("stream", "old")]


async def test_the_next_process_of_an_adopted_kernel_is_not_adopted(adopted) -> None:
    side = adopted
    side.from_process("one")
    side.intake.begin(side.signer)
    side.say(side.message(Channel.IOPUB, "stream", cell(side, "old")))
    assert shown(side) == [("stream", "old")]


# -- what input is waited for ---------------------------------------------------------------------


async def test_a_question_is_noted_for_who_is_asked_and_where_it_stands(side) -> None:
    side.say(side.message(Channel.IOPUB, "stream"))
    asked = side.message(Channel.SHELL, "execute_request")
    side.requests.submit(asked, ALICE)
    side.say(side.message(Channel.STDIN, "input_request", asked.header, prompt="?"))
    (question,) = side.inputs.open_questions()
    assert (question.client, question.seq) == (ALICE, 1)
    assert side.heard_by(99) == ["stream"]
    side.say(status(side, "busy", asked.header))
    assert side.inputs
    side.say(status(side, "idle", asked.header))
    assert not side.inputs


async def test_whose_session_the_bridge_speaks_under_is_the_process_that_answers(side) -> None:
    side.from_process("first")
    assert side.notices.kernel_session == "first"
    side.intake.begin(side.signer)
    side.nudge.begin()
    side.from_process("second")
    assert side.notices.kernel_session == "second"
