"""The entry of one execution in the log, as the next bridge reads it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.execution import FINISHED, Execution

HEADER = b'{"msg_id": "ask", "msg_type": "execute_request", "session": "\xff"}'
TIMES = st.none() | st.floats(0, 9e10)
COUNTS = st.integers(0, 1 << 62)


def stored(execution: Execution, end: int) -> Execution:
    """Return the execution as the next bridge reads it."""
    entry = json.loads(json.dumps(execution.entry()))
    return Execution.from_entry(execution.msg_id, entry, end)


@given(
    st.builds(
        Execution,
        msg_id=st.just("ask"),
        client=COUNTS,
        session=st.text(),
        cell=st.none() | st.text(),
        code_bytes=COUNTS,
        state=st.sampled_from(sorted(FINISHED)),
        outcome=st.sampled_from(sorted(FINISHED)),
        submitted=st.floats(0, 9e10),
        started=TIMES,
        ended=TIMES,
        count=st.none() | COUNTS,
        messages=COUNTS,
        lines=COUNTS,
        nbytes=COUNTS,
        replied=st.none() | COUNTS,
    )
)
def test_an_execution_survives_the_log(execution: Execution) -> None:
    assert stored(execution, 1 << 62) == execution


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
