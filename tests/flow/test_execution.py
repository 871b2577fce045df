"""The entry of one execution in the log, as the next bridge reads it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.execution import FINISHED, RUNNING, WAITING, Execution

HEADER = b'{"msg_id": "ask", "msg_type": "execute_request", "session": "\xff"}'
TIMES = st.none() | st.floats(0, 9e10)
COUNTS = st.integers(0, 1 << 62)


def stored(execution: Execution, end: int) -> Execution:
    """Return the execution as the next bridge reads it."""
    entry = json.loads(json.dumps(execution.entry()))
    return Execution.from_entry(execution.msg_id, entry, end)


STATES = st.sampled_from(sorted(FINISHED | {WAITING, RUNNING}))
TEXT = st.text() | st.text(st.characters())  # with lone surrogates
EXECUTIONS = st.builds(
    Execution,
    msg_id=st.just("ask"),
    client=COUNTS,
    header=st.binary(),
    session=TEXT,
    cell=st.none() | TEXT,
    code_bytes=COUNTS,
    state=STATES,
    outcome=STATES,
    submitted=st.floats(0, 9e10),
    started=TIMES,
    ended=TIMES,
    count=st.none() | COUNTS,
    error=st.none() | st.dictionaries(TEXT, TEXT | st.lists(TEXT)),
    first=st.none() | COUNTS,
    last=st.none() | COUNTS,
    messages=COUNTS,
    lines=COUNTS,
    nbytes=COUNTS,
    displays=st.booleans(),
    replied=st.none() | COUNTS,
    ended_seq=st.none() | COUNTS,
)


def written(execution: Execution) -> Execution:
    """Return the execution that the text of the log describes, as it is."""
    entry = json.loads(execution.to_json())
    header = entry.pop("header", "").encode("utf-8", "surrogateescape")
    return Execution(execution.msg_id, header=header, **entry)


@given(EXECUTIONS, EXECUTIONS)
def test_the_text_for_the_log_has_all_fields(execution: Execution, other: Execution) -> None:
    assert written(execution) == execution
    for name in ("header", "session", "cell", "code_bytes", "submitted", "state"):
        setattr(execution, name, getattr(other, name))
        assert written(execution) == execution, "no text of an earlier value is used"


@given(EXECUTIONS)
def test_an_execution_that_has_finished_survives_the_log(execution: Execution) -> None:
    execution.state, execution.first, execution.last = "done", 3, 4
    assert stored(execution, 1 << 63) == execution


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("session", "s"), ("cell", ""), ("code_bytes", 1), ("state", "aborted")),
        *(("outcome", "error"), ("submitted", 0.1), ("started", 0.0), ("ended", 0.0)),
        *(("count", 0), ("error", {}), ("first", 0), ("last", 0), ("messages", 1), ("lines", 1)),
        *(("nbytes", 1), ("displays", True), ("replied", 0), ("ended_seq", 0), ("header", b"{}")),
    ],
)
def test_each_field_is_written_alone(name: str, value: Any) -> None:
    execution = Execution("ask", 7)
    assert execution.entry() == {"client": 7}
    setattr(execution, name, value)
    assert written(execution) == execution


def test_a_count_that_is_true_is_written_as_a_number() -> None:
    execution = Execution("ask", 7, HEADER)
    execution.reply(b'{"status": "aborted", "execution_count": true}', 3, 1.0)
    assert json.loads(execution.to_json())["count"] == 1
    for name in ("client", "count", "submitted", "started", "messages", "replied"):
        entry = {**execution.entry(), name: True}
        again = Execution.from_entry("ask", entry, 100)
        assert json.loads(again.to_json())[name] == 1


def test_a_header_that_is_not_utf8_survives_the_log() -> None:
    execution = Execution("ask", 7, HEADER, error={"ename": "E", "traceback": ["t"]})
    assert stored(execution, 0) == execution


@pytest.mark.parametrize(
    ("end", "replied", "ended"), [(9, None, None), (10, 10, None), (12, 10, 12)]
)
def test_a_reply_or_status_that_was_not_written_is_missing(
    end: int, replied: int | None, ended: int | None
) -> None:
    entry = Execution("ask", 7, b"{}", state="done", started=1.0, ended=2.0, replied=10)
    entry.ended_seq = 12
    execution = Execution.from_entry("ask", entry.entry(), end)
    assert (execution.replied, execution.ended_seq) == (replied, ended)
    assert execution.over == (end == 12)
    assert execution.state == ("done" if end == 12 else "running")


@pytest.mark.parametrize(("end", "displays"), [(11, False), (12, True)])
def test_an_unfinished_execution_may_have_shown_a_display_after_the_last_entry(
    end: int, displays: bool
) -> None:
    entry = Execution("ask", 7, HEADER, state="running", first=10, last=10).entry()
    assert Execution.from_entry("ask", entry, end).displays == displays


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("client", "x"),
        ("client", None),
        ("client", -1),
        ("header", 1),
        ("session", 1),
        ("cell", []),
        ("code_bytes", 1.5),
        ("state", "asleep"),
        ("outcome", None),
        ("submitted", float("nan")),
        ("started", 1e300),
        ("ended", "now"),
        ("count", []),
        ("error", 1),
        ("first", -1),
        ("replied", "x"),
    ],
)
def test_an_entry_that_no_bridge_wrote_is_refused(field: str, value: Any) -> None:
    entry = Execution("ask", 7, HEADER).entry()
    with pytest.raises((TypeError, ValueError, AttributeError)):
        Execution.from_entry("ask", {**entry, field: value}, 100)
