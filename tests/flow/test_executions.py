"""Executions: their states, counters and bounds, and what the next bridge reads of them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.execution import FINISHED, OBSERVED, Execution
from kbridge.flow.executions import LIMIT, Executions
from kbridge.flow.output_counter import OutputCounter
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

ERROR = {"ename": "E", "evalue": "v", "traceback": ["t"]}
STEPS: dict[str, tuple[Channel, str, dict[str, Any]]] = {
    "busy": (Channel.IOPUB, "status", {"execution_state": "busy"}),
    "idle": (Channel.IOPUB, "status", {"execution_state": "idle"}),
    "starting": (Channel.IOPUB, "status", {"execution_state": "starting"}),
    "input": (Channel.IOPUB, "execute_input", {"code": "1", "execution_count": 7}),
    "result": (Channel.IOPUB, "execute_result", {"data": {}, "execution_count": 7}),
    "print": (Channel.IOPUB, "stream", {"name": "stdout", "text": "x\n"}),
    "error": (Channel.IOPUB, "error", ERROR),
    "ok": (Channel.SHELL, "execute_reply", {"status": "ok", "execution_count": 7}),
    "failed": (Channel.SHELL, "execute_reply", {"status": "error", "execution_count": 7}),
    "aborted": (Channel.SHELL, "execute_reply", {"status": "aborted"}),
    "abort": (Channel.SHELL, "execute_reply", {"status": "abort"}),
}


JUPYTERLAB = {"msg_type": "execute_request", "subshell_id": None}  # its header names no subshell


def header_of(msg_id: str, **more: Any) -> bytes:
    return json.dumps({**JUPYTERLAB, "msg_id": msg_id, "session": "a-page", **more}).encode()


def request(
    msg_id: str = "ask", code: str = "1", metadata: dict[str, Any] | None = None, **more: Any
) -> Message:
    content = json.dumps({"code": code, "silent": False}).encode()
    extra = json.dumps(metadata or {}).encode()
    return Message(Channel.SHELL, header_of(msg_id, **more), b"{}", extra, content)


class Table:
    """Executions, the log of their changes, and a journal that is only a number."""

    def __init__(self, saved: "list[Execution] | None" = None, seq: int = 10) -> None:
        self.executions = Executions(saved or ())
        self.counter = OutputCounter(self.executions)
        self.log: dict[str, Any] = {}
        self.seq = seq
        self.now = 100.0

    def submit(self, msg: Message, client: int = 3) -> Execution | None:
        self.now += 1.0
        execution = self.executions.submit(msg, client, self.now)
        self.counter.look_again()
        for msg_id in self.executions.take_forgotten():
            del self.log[msg_id]
        if execution is not None:
            self._write([execution])
        return execution

    def play(self, asked: Message, *steps: str) -> None:
        for step in steps:
            channel, msg_type, content = STEPS[step]
            self.hear(channel, msg_type, content, asked.header)

    def hear(self, channel: Channel, msg_type: str, content: Any, parent: bytes) -> None:
        msg = build(channel, msg_type, content, session="k", date="now", parent_header=parent)
        self.now += 1.0
        if msg.parent_header != self.counter.parent:
            self.counter.turn(msg, self.seq)
        if msg_type == "stream":
            self.counter.add_text(msg.content)
        else:
            self.counter.add(msg.content, msg_type)
        self.seq += 1
        self.counter.count(self.seq)
        if channel is Channel.SHELL:
            self._write(self.executions.replied(msg, self.seq, self.now))
        elif msg_type in OBSERVED:
            self._write(self.executions.observe(msg, msg_type, self.seq, self.now))
        self.check_running()

    def check_running(self) -> None:
        """Those that run are those whose state says so."""
        known = {each.msg_id for each in self.executions.running}
        assert known == {each.msg_id for each in self.executions.find(state={"running"})}

    def replace(self) -> None:
        self._write(self.executions.process_replaced(self.now))
        self.check_running()

    def _write(self, changed: list[Execution]) -> None:
        for execution in changed:
            self.log[execution.msg_id] = json.loads(json.dumps(execution.entry()))

    def crash(self, end: int | None = None) -> "Table":
        """Return the table of the next bridge, which finds the frames before `end` on disk."""
        end = self.seq if end is None else end
        found = [Execution.from_entry(msg_id, entry, end) for msg_id, entry in self.log.items()]
        table = Table(found, end)
        table.check_running()
        return table

    def __getitem__(self, msg_id: str) -> Execution:
        execution = self.executions.get(msg_id)
        assert execution is not None
        return execution

    def states(self) -> dict[str, str]:
        return {execution.msg_id: execution.state for execution in self.executions.find()}


# -- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ("", "waiting"),
        ("busy", "running"),
        ("input", "running"),
        ("starting", "waiting"),
        ("busy input print", "running"),
        ("busy input ok", "running"),
        ("busy input idle", "running"),
        ("busy input ok idle", "done"),
        ("busy input idle ok", "done"),
        ("ok busy input idle", "done"),
        ("ok idle", "done"),
        ("busy input error failed idle", "error"),
        ("busy input error ok idle", "error"),
        ("busy input failed idle", "error"),
        ("busy aborted idle", "aborted"),
        ("busy abort idle", "aborted"),
        ("aborted busy idle", "aborted"),
        ("aborted", "aborted"),
        ("busy ok idle error input busy", "done"),
        ("busy ok idle failed", "done"),
    ],
)
def test_the_state_follows_from_the_messages(steps: str, state: str) -> None:
    table = Table()
    asked = request()
    table.submit(asked)
    table.play(asked, *steps.split())
    assert table["ask"].state == state
    assert table["ask"].finished == (state in FINISHED)
    assert table.crash()["ask"].state == state, "it is written with each change"


def test_an_execution_says_who_asked_from_which_cell_and_when() -> None:
    table = Table()
    asked = request(code="é" * 10, metadata={"cellId": "a-cell"})
    execution = table.submit(asked, client=5)
    assert execution is not None
    assert (execution.client, execution.session, execution.cell) == (5, "a-page", "a-cell")
    assert execution.code_bytes == 20
    assert (execution.submitted, execution.started, execution.ended) == (101.0, None, None)
    table.play(asked, "busy", "input", "print", "ok")
    assert (execution.started, execution.ended, execution.count) == (102.0, None, 7)
    table.play(asked, "idle")
    assert execution.ended == 106.0
    assert "é" not in json.dumps(table.log, ensure_ascii=False), "the code is not kept"


def test_an_aborted_execution_was_never_started() -> None:
    table = Table()
    asked = request()
    table.submit(asked)
    table.play(asked, "busy", "aborted", "idle")
    assert table["ask"].started is None
    assert table["ask"].ended is not None


def test_the_count_of_a_reply_is_taken_if_there_is_no_other() -> None:
    table = Table()
    asked = request()
    table.submit(asked)
    table.play(asked, "busy", "ok", "idle")
    assert table["ask"].count == 7


def test_an_execution_without_idle_ends_when_the_next_one_begins() -> None:
    table = Table()
    first, second, third = (request(name) for name in ("first", "second", "third"))
    for asked in (first, second, third):
        table.submit(asked)
    table.play(first, "busy", "input", "error", "failed")
    table.play(second, "ok")  # shell may be faster than iopub
    assert table.states() == {"first": "running", "second": "waiting", "third": "waiting"}
    table.play(second, "busy")
    assert table.states() == {"first": "error", "second": "running", "third": "waiting"}
    assert table.log["first"]["state"] == "error"
    assert not table["first"].owed, "no idle status will come"
    assert table.crash(table.seq - 1)["first"].owed, "unless the beginning is not on disk"
    table.play(third, "busy")
    assert table.states() == {"first": "error", "second": "done", "third": "running"}
    table.play(first, "idle")
    assert table.states()["first"] == "error"
    assert not table["first"].owed


def test_an_execution_of_which_only_the_reply_came_ends_when_a_later_one_begins() -> None:
    table = Table()
    names = ("mute", "aborted", "runs", "fast")
    mute, aborted, runs, fast = (request(name) for name in names)
    for asked in (mute, aborted, runs, fast):
        table.submit(asked)
    table.play(mute, "ok")
    table.play(aborted, "aborted")
    assert table["aborted"].owed, "its idle status may be lost with the bridge"
    table.play(runs, "ok")
    table.play(fast, "ok")
    table.play(runs, "busy")
    expected = {"mute": "done", "aborted": "aborted", "runs": "running", "fast": "waiting"}
    assert table.states() == table.crash().states() == expected
    assert [name for name in names if table[name].owed] == ["runs", "fast"]
    assert table.executions.forget("mute")


def test_an_execution_without_reply_ends_when_a_later_one_has_its_reply() -> None:
    table = Table()
    names = ("lost", "second", "third", "sub")
    lost, second, third = (request(name) for name in names[:3])
    sub = request("sub", subshell_id="s")
    for asked in (lost, second, third, sub):
        table.submit(asked)
        table.play(asked, "busy", "idle")
    assert set(table.states().values()) == {"running"}, "iopub may be faster than shell"
    table.play(second, "ok")
    expected = {"lost": "done", "second": "done", "third": "running", "sub": "running"}
    assert table.states() == expected
    assert table.crash().states() == expected
    assert table["lost"].owed, "its reply may still be built"
    table.play(lost, "ok")
    assert not table["lost"].owed
    table.play(third, "ok")
    assert table.states()["third"] == "done"


def test_a_crash_does_not_move_the_end_of_an_execution_that_had_finished() -> None:
    table = Table()
    first, last = request("first"), request("last")
    for asked in (first, last):
        table.submit(asked)
    table.play(first, "busy", "input", "error", "failed")
    table.play(last, "aborted")
    at = table["last"].last
    table.play(request("unknown"), *["print"] * 20)
    again = table.crash()
    assert again["last"].last == at
    assert again["first"].last == table.seq - 1, "it may have printed more"


def test_an_execution_in_a_subshell_does_not_end_others() -> None:
    table = Table()
    main, sub = request("main"), request("sub", subshell_id="s")
    for asked in (main, sub):
        table.submit(asked)
    table.play(main, "busy", "ok")
    table.play(sub, "busy", "ok")
    assert table.states() == {"main": "running", "sub": "running"}
    bare = Message(Channel.SHELL, b'{"msg_id":"bare"}', b"{}", b"{}", b"{}")
    table.submit(bare)
    table.play(bare, "busy")
    assert table.states() == {"main": "done", "sub": "running", "bare": "running"}


def test_a_replaced_process_aborts_everything_that_has_not_finished() -> None:
    table = Table()
    done, running, waiting = (request(name) for name in ("done", "running", "waiting"))
    for asked in (done, running, waiting):
        table.submit(asked)
    table.play(done, "busy", "ok", "idle")
    table.play(running, "busy", "input", "error")
    table.replace()
    expected = {"done": "done", "running": "aborted", "waiting": "aborted"}
    assert table.states() == table.crash().states() == expected
    assert table["running"].ended == table.now
    assert not table["running"].owed
    table.play(running, "error", "idle", "ok")
    table.play(waiting, "ok")
    assert table.states() == expected


def test_a_request_that_waited_for_the_next_process_runs_there() -> None:
    table = Table()
    asked = request()
    table.submit(asked)
    table.replace()
    table.play(asked, "busy", "input")
    assert (table["ask"].state, table["ask"].ended) == ("running", None)
    assert table["ask"].owed
    table.play(asked, "ok", "idle")
    assert table.states() == table.crash().states() == {"ask": "done"}


# -- finding, forgetting, bounds ------------------------------------------------------------------


def test_executions_are_found_newest_last() -> None:
    table = Table()
    for number in range(6):
        asked = request(f"r{number}", metadata={"cellId": f"cell-{number % 2}"}, session="s" * 3)
        table.submit(asked)
        if number < 3:
            table.play(asked, "busy", "ok", "idle")

    def found(**properties: Any) -> str:
        return " ".join(e.msg_id for e in table.executions.find(**properties))

    assert found() == "r0 r1 r2 r3 r4 r5"
    assert found(state={"done"}) == "r0 r1 r2"
    assert found(state={"waiting", "running"}, limit=2) == "r4 r5"
    assert found(cell="cell-1") == "r1 r3 r5"
    assert found(cell="cell-1", session="sss", limit=1) == "r5"
    assert found(session="another") == found(cell="") == found(limit=0) == ""


def test_only_a_finished_execution_is_forgotten() -> None:
    table = Table()
    asked = request()
    table.submit(asked)
    table.play(asked, "busy")
    assert not table.executions.forget("ask")
    assert not table.executions.forget("another")
    table.play(asked, "ok", "idle")
    assert table.executions.forget("ask")
    assert table.executions.get("ask") is None
    assert len(table.executions) == 0


def test_those_that_finished_first_are_forgotten_for_newer_ones() -> None:
    table = Table()
    for number in range(LIMIT):
        asked = request(f"r{number}")
        table.submit(asked)
        if number in (5, 7):
            table.play(asked, "busy", "ok", "idle")
    for number in range(3):
        table.submit(request(f"new{number}"))
    assert len(table.executions) == len(table.log) == LIMIT
    gone = {"r5", "r7", "new2"}
    assert gone.isdisjoint(table.states())
    assert gone.isdisjoint(table.log)


def test_one_that_has_not_finished_is_never_forgotten() -> None:
    table = Table()
    asked = [request(f"r{number}") for number in range(LIMIT + 2)]
    for msg in asked[:LIMIT]:
        table.submit(msg)
    table.play(asked[0], "busy", "input")
    assert table.submit(asked[LIMIT]) is None
    assert table.states()["r0"] == "running"
    table.play(asked[LIMIT], "busy")
    table.play(asked[0], "ok", "idle")
    assert table.submit(asked[LIMIT + 1]) is not None
    assert len(table.executions) == len(table.log) == LIMIT
    assert "r0" not in table.states()


def test_an_id_that_is_used_again_is_another_execution_the_newest() -> None:
    table = Table()
    same, other = request("same"), request("other")
    for asked in (same, other):
        table.submit(asked)
        table.play(asked, "busy", "ok", "idle")
    before = table["same"]
    table.submit(same)
    assert table["same"] is not before
    assert list(table.states()) == list(table.crash().states()) == ["other", "same"]
    assert table.states()["same"] == "waiting"


@pytest.mark.parametrize("msg_id", ["", "x" * 5000])
def test_a_request_with_an_impossible_header_is_not_noted(msg_id: str) -> None:
    table = Table()
    assert table.submit(request(msg_id)) is None
    table.play(request(msg_id), "busy", "ok", "idle")
    assert len(table.executions) == 0


def test_after_the_kernel_has_gone_nothing_is_held() -> None:
    table = Table()
    asked = request()
    table.submit(asked)
    table.play(asked, "busy", "ok")
    table.executions.clear()
    table.play(asked, "idle")
    assert table.executions.find() == []


# -- the next bridge ------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [False, True])
@given(
    st.lists(st.sampled_from(sorted(STEPS)), max_size=8),
    st.integers(0, 8),
    st.lists(st.sampled_from(sorted(STEPS)), max_size=4),
)
def test_a_crash_at_any_point_keeps_what_is_on_disk(
    settled: bool, steps: list[str], written: int, later: list[str]
) -> None:
    """Only frames that were written count, and the log is written before the frames."""
    table = Table(seq=10)
    asked = request(metadata={"cellId": "a-cell"})
    table.submit(asked)
    table.play(asked, *steps)
    before = table["ask"]
    end = min(10 + written, table.seq)
    if settled and before.over and end == table.seq:
        before.settle()
        table.log["ask"] = before.entry()
    after = table.crash(end)["ask"]
    assert (after.client, after.session, after.cell) == (3, "a-page", "a-cell")
    assert (after.code_bytes, after.submitted, after.count) == (1, 101.0, before.count)
    heard = set(steps[: end - 10])
    assert after.over == ("idle" in heard and bool(heard & {"ok", "failed", "aborted", "abort"}))
    assert after.finished or not after.over
    if not after.finished:
        assert after.header == asked.header, "a lost reply can be built"
        assert after.ended is None
    assert after.first in (None, 10)
    assert (after.last or 0) < end
    again = Table([after], end)
    again.play(asked, *later, "busy", "ok", "idle")
    assert again["ask"].over
    assert again["ask"].finished


def test_the_end_of_an_execution_that_was_not_over_is_the_end_of_the_journal() -> None:
    table = Table(seq=10)
    asked = request()
    table.submit(asked)
    table.play(asked, "busy", *["print"] * 20)
    after = table.crash()["ask"]
    assert (after.first, after.last) == (10, 30)
    assert after.messages == 1, "counters are as old as the last change of state"


def test_a_place_that_was_not_written_is_not_believed() -> None:
    table = Table(seq=10)
    asked = request()
    table.submit(asked)
    table.play(asked, "busy", "ok", "idle")
    after = table.crash(10)["ask"]
    assert (after.first, after.last, after.state) == (None, None, "running")
    table["ask"].settle()
    table.log["ask"] = table["ask"].entry()
    after = table.crash(12)["ask"]  # the files were damaged later
    assert (after.first, after.last, after.state) == (10, 11, "done")


def test_an_error_is_kept_only_until_its_reply_cannot_be_lost() -> None:
    table = Table()
    asked = request()
    table.submit(asked)
    table.play(asked, "busy", "input", "error")
    assert table.crash()["ask"].error == ERROR
    table.play(asked, "failed", "idle")
    execution = table["ask"]
    execution.settle()
    assert "error" not in execution.entry()
    assert "header" not in execution.entry()
    assert Execution.from_entry("ask", execution.entry(), table.seq) == execution


def test_a_message_that_says_nothing_new_is_not_written_again() -> None:
    table = Table()
    asked = request()
    table.submit(asked)
    table.play(asked, "busy", "input")
    table.log.clear()
    table.play(asked, "busy", "result", "print", "starting")
    assert table.log == {}
