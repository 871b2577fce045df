"""The frames that belong to some requests: case by case, and for any journal and any cut of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import InvalidRequest
from kbridge.flow.coalesce import coalesce
from kbridge.flow.input_requests import InputRequests
from kbridge.flow.journal import EVERYONE, Place, Stretch
from kbridge.flow.selection import MAX_BYTES, MAX_PARENTS, Selection, parse_parents
from kbridge.wire import v1
from kbridge.wire.frames import payload
from kbridge.wire.message import Channel, Message

READER, OWNER, OTHER = 1, 2, 3


class Said(NamedTuple):
    """A frame, and its audience."""

    frame: bytes
    audience: int = EVERYONE


def message(
    msg_type: str,
    content: Any = None,
    parent: Any = "a",
    *,
    channel: Channel = Channel.IOPUB,
    msg_id: str = "id",
    buffers: tuple[bytes, ...] = (),
) -> Message:
    header = {"msg_id": msg_id, "msg_type": msg_type, "session": "k"}
    above = {} if parent is None else {"msg_id": parent, "msg_type": "execute_request"}
    if isinstance(parent, bytes):
        above = parent
    parts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (above,)]
    return Message(
        channel,
        json.dumps(header).encode(),
        *parts,
        b"{}",
        json.dumps(content or {}).encode(),
        buffers,
    )


def iopub(msg_type: str, content: Any = None, parent: Any = "a", **more: Any) -> Said:
    return Said(v1.encode_frame(message(msg_type, content, parent, **more)))


def private(
    channel: Channel, msg_type: str, parent: Any = "a", to: int = OWNER, **more: Any
) -> Said:
    return Said(v1.encode_frame(message(msg_type, {}, parent, channel=channel, **more)), to)


def stream(text: str, parent: Any = "a", **more: Any) -> Said:
    return iopub("stream", {"name": "stdout", "text": text}, parent, **more)


def display(display_id: str | None, parent: Any = "a", size: int = 0) -> Said:
    content = {"data": {"text/plain": "x" * size}, "metadata": {}, "transient": {}}
    if display_id is not None:
        content["transient"] = {"display_id": display_id}
    return iopub("display_data", content, parent)


def status(state: str, parent: Any = "a") -> Said:
    return iopub("status", {"execution_state": state}, parent)


def stretch(said: Iterable[Said], first: int = 0, *, sparse: bool = False) -> Stretch:
    said = list(said)
    frames = [each.frame for each in said]
    audiences = {i: each.audience for i, each in enumerate(said) if each.audience != EVERYONE}
    seqs = range(first, first + 2 * len(said), 2) if sparse else None
    end = first + (2 * len(said) - 1 if sparse else len(said))
    return Stretch(frames, audiences, sum(map(len, frames)), Place(end, end, 0), None, seqs)


def select(said: Iterable[Said], *parents: str, inputs: InputRequests | None = None) -> list[bytes]:
    selection = Selection(parents or ("a",), (inputs or InputRequests()).open)
    return selection.select(stretch(said), READER)


# -- case by case ---------------------------------------------------------------------------------

SELECTED = {
    "stream": stream("x"),
    "busy": status("busy"),
    "idle": status("idle"),
    "execute_input": iopub("execute_input", {"code": "1", "execution_count": 1}),
    "execute_result": iopub("execute_result"),
    "error": iopub("error"),
    "display": display(None),
    "clear_output": iopub("clear_output"),
    "comm_open": iopub("comm_open"),
    "comm_msg with buffers": iopub("comm_msg", buffers=(b"x" * 10, b"")),
    "a type that nobody knows": iopub("debug_event"),
    "large": stream("x" * 100_000),
    "small": Said(v1.encode_frame(Message(Channel.IOPUB, b"{}", b'{"msg_id":"a"}', b"", b"", ()))),
    "another spelling of the parent": iopub("stream", parent=b'{"x":{}, "msg_id" : "a"}'),
    "update of another parent": iopub("update_display_data", parent="b"),
    "update without a parent": iopub("update_display_data", parent=None),
    "display of another parent with an id": display("d", "b"),
    "starting": status("starting", None),
    "restarting": status("restarting", None),
    "dead": status("dead", None),
    "reply to another session": private(Channel.SHELL, "execute_reply"),
    "reply to nobody knows whom": private(Channel.SHELL, "execute_reply", to=EVERYONE),
    "its own reply": private(Channel.SHELL, "complete_reply", "z", READER),
    "its own reply on control": private(Channel.CONTROL, "debug_reply", "z", READER),
    "its own input request": private(Channel.STDIN, "input_request", "z", READER),
    "busy, to itself": private(Channel.IOPUB, "status", None, READER),
}

LEFT_OUT = {
    "stream of another parent": stream("x", "b"),
    "stream of a parent with a similar id": stream("x", "aa"),
    "stream without a parent": stream("x", None),
    "stream of a parent that is not JSON": iopub("stream", parent=b"a"),
    "status of another parent": status("busy", "b"),
    "display of another parent": display(None, "b"),
    "text like the type of an update": stream("update_display_data", "b"),
    "comm of another parent": iopub("comm_msg", parent="b"),
    "comm without a parent": iopub("comm_msg", parent=None),
    "reply to another parent": private(Channel.SHELL, "execute_reply", "b"),
    "another reply": private(Channel.SHELL, "complete_reply"),
    "another reply, nobody knows to whom": private(Channel.SHELL, "complete_reply", to=EVERYONE),
    "execute_reply on control": private(Channel.CONTROL, "execute_reply"),
    "input request that has an answer": private(Channel.STDIN, "input_request"),
    "busy, to another session": private(Channel.IOPUB, "status", None),
}


@pytest.mark.parametrize("name", SELECTED)
def test_it_is_selected(name) -> None:
    said = SELECTED[name]
    (found,) = select([said])
    assert found is said.frame


@pytest.mark.parametrize("name", LEFT_OUT)
def test_it_is_left_out(name) -> None:
    assert select([LEFT_OUT[name]]) == []


def test_several_requests_are_followed_in_the_order_of_the_journal() -> None:
    said = [stream("1", "a"), stream("2", "b"), stream("3", "c"), stream("4", "a"), stream("5")]
    wanted = [said[0].frame, said[2].frame, said[3].frame, said[4].frame]
    assert select(said, "c", "a", "a") == wanted


def test_only_the_end_of_a_large_display_is_searched_for_an_id() -> None:
    assert select([display("d", "b", size=10 << 20)]), "ipykernel writes the id last"
    data = {"transient": {"display_id": "d"}, "data": {"text/plain": "x" * (64 << 10)}}
    assert not select([iopub("display_data", data, "b")])


# -- any journal, and any cut of it ---------------------------------------------------------------

_PARENTS = st.sampled_from(["a", "b", "c", None])
_ANY = st.one_of(
    st.builds(stream, st.text("xyz", max_size=3), _PARENTS),
    st.builds(status, st.sampled_from(["busy", "idle", "starting"]), _PARENTS),
    st.builds(iopub, st.sampled_from(["update_display_data", "error"]), parent=_PARENTS),
    st.builds(
        private,
        st.sampled_from([Channel.SHELL, Channel.CONTROL]),
        st.sampled_from(["execute_reply", "complete_reply"]),
        _PARENTS,
        st.sampled_from([READER, OWNER, OTHER, EVERYONE]),
    ),
)


def is_wanted(said: Said, parents: set[str]) -> bool:
    """Return True by the rules as the documentation has them, from the parsed message."""
    msg = v1.split(payload(said.frame))
    msg_type = json.loads(msg.header)["msg_type"]
    parent = json.loads(msg.parent_header).get("msg_id")
    if msg.channel is Channel.IOPUB:
        if parent is None and msg_type == "status":
            return True
        return parent in parents or msg_type == "update_display_data"
    if said.audience == READER:
        return True
    return msg.channel is Channel.SHELL and msg_type == "execute_reply" and parent in parents


@given(said=st.lists(_ANY, max_size=30), parents=st.sets(st.sampled_from("abc"), min_size=1),
       cuts=st.sets(st.integers(0, 30)), joins=st.booleans())  # fmt: skip
def test_any_cut_of_the_journal_gives_the_filter_of_the_whole(said, parents, cuts, joins) -> None:
    said = [
        Said(v1.encode_frame(_numbered(each.frame, i)), each.audience)
        for i, each in enumerate(said)
    ]
    whole = [each.frame for each in said if is_wanted(each, parents)]
    selection = Selection(parents, InputRequests().open)
    found: list[bytes] = []
    bounds = [0, *sorted(c for c in cuts if c < len(said)), len(said)]
    for first, stop in itertools.pairwise(bounds):
        part = selection.select(stretch(said[first:stop], first), READER)
        found += coalesce(part) if joins else part
    if not joins:
        assert found == whole
        return
    assert texts(found) == texts(whole)
    kept = [each for each in whole if kind(each) not in {"stream", "update_display_data"}]
    assert [each for each in found if kind(each) not in {"stream", "update_display_data"}] == kept
    assert ids(found)[-1:] == ids(whole)[-1:], "a client that names it resumes behind all of them"
    assert ids(found) == sorted(ids(found)), "in order, each once"


def _numbered(frame: bytes, number: int) -> Message:
    msg = v1.split(payload(frame))
    header = json.loads(msg.header) | {"msg_id": f"{number:03}"}
    return msg._replace(header=json.dumps(header).encode())


def ids(frames: Iterable[bytes]) -> list[str]:
    return [v1.split(payload(each)).msg_id for each in frames]


def kind(frame: bytes) -> str:
    return v1.split(payload(frame)).msg_type


def texts(frames: Iterable[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for msg in (v1.split(payload(each)) for each in frames if kind(each) == "stream"):
        found[msg.parent_id] = found.get(msg.parent_id, "") + json.loads(msg.content)["text"]
    return {parent: text for parent, text in found.items() if text}


# -- gaps -----------------------------------------------------------------------------------------

A, B = (json.dumps({"msg_id": each, "msg_type": "execute_request"}).encode() for each in "ab")


def test_a_gap_in_the_output_of_a_request_is_marked_there() -> None:
    selection = Selection(["a", "b"], {})
    assert selection.parent_of_gap(A) == A
    assert selection.parent_of_gap(B) == B


def test_a_gap_in_other_output_may_have_some_of_a_request_that_has_not_ended() -> None:
    selection = Selection(["a", "b"], {})
    selection.select(stretch([status("busy", "b"), stream("x", "b")]), READER)
    assert selection.parent_of_gap(b"{}") == B
    selection.select(stretch([status("busy", "a")]), READER)
    assert selection.parent_of_gap(b"{}") == A, "the one with the latest message"
    selection.select(stretch([status("idle", "a")]), READER)
    assert selection.parent_of_gap(b"{}") == B
    selection.select(stretch([status("idle", "b")]), READER)
    assert selection.parent_of_gap(b"{}") is None
    assert selection.parent_of_gap(A) == A, "late output"


def test_a_gap_before_the_first_message_is_marked_in_the_first_request() -> None:
    selection = Selection(["a", "b"], {})
    found = selection.parent_of_gap(b"{}")
    assert found is not None
    assert json.loads(found) == {"msg_id": "a"}


def test_the_gap_behind_a_sparse_run_is_in_requests_that_have_ended_in_it() -> None:
    """A reader gets the frames with state first, and then one marker for all that is missing."""
    selection = Selection(["a"], {})
    selection.select(stretch([status("busy"), status("idle")], sparse=True), READER)
    assert selection.parent_of_gap(b"{}") == A
    assert selection.parent_of_gap(b"{}") is None, "the next gap is behind its end"


# -- input requests of other clients --------------------------------------------------------------


@pytest.fixture
def inputs() -> InputRequests:
    return InputRequests()


def question(inputs: InputRequests, msg_id: str = "q", seq: int = 0, *, away: bool = True) -> Said:
    msg = message("input_request", {"prompt": ""}, channel=Channel.STDIN, msg_id=msg_id)
    inputs.asked(msg, OWNER, seq, away=away)
    return Said(v1.encode_frame(msg), OWNER)


@pytest.mark.parametrize("away", [True, False])
def test_an_input_request_is_selected_while_its_client_is_away(inputs, away) -> None:
    said = question(inputs, away=not away)
    inputs.set_away(OWNER, away=away)
    assert select([said], inputs=inputs) == [said.frame] * away


def test_an_input_request_of_another_request_is_not_selected(inputs) -> None:
    assert select([question(inputs)], "b", inputs=inputs) == []


def test_one_of_a_client_that_is_not_known_is_selected(inputs) -> None:
    said = question(inputs, away=False)
    ((msg_id, one),) = inputs.open.items()
    inputs.asked(one.msg, EVERYONE, 0)
    assert inputs.open[msg_id].away
    assert select([Said(said.frame)], inputs=inputs) == [said.frame]


def test_an_input_request_that_was_read_beyond_is_given_later_once(inputs) -> None:
    selection = Selection(["a"], inputs.open)
    said = question(inputs, away=False)
    assert selection.select(stretch([said]), READER) == []
    (one,) = inputs.set_away(OWNER, away=True)
    assert selection.ask(one, READER, 7)
    assert not selection.ask(one, READER, 9), "it has it"
    assert selection.take_late() == [said.frame]
    assert selection.take_late() == []
    assert inputs.shown("q", READER) == 7
    assert selection.select(stretch([said]), READER) == []


def test_where_it_was_given_is_known_after_the_answer_too(inputs) -> None:
    said = question(inputs, seq=4)
    select([said], inputs=inputs)
    assert inputs.shown("q", READER) == 5
    inputs.done("a")
    assert not inputs.open
    assert inputs.shown("q", READER) == 5
    assert inputs.shown("q", OWNER) is None
    assert inputs.shown("no such id", READER) is None


def test_one_that_the_reader_has_received_before_is_not_given_again(inputs) -> None:
    selection = Selection(["a"], inputs.open)
    question(inputs)
    selection.skip(inputs.open["q"])
    assert not selection.ask(inputs.open["q"], READER, 1)


# -- the argument of the URL ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ([], ()),
        (["a"], ("a",)),
        (["a,b"], ("a", "b")),
        (["b,a", "c"], ("b", "a", "c")),
        (["a,,b,", ",a"], ("a", "b")),
        (["é \U0001f600\ud800"], ("é \U0001f600\ud800",)),
        ([",".join(map(str, range(MAX_PARENTS)))], tuple(map(str, range(MAX_PARENTS)))),
        (["x" * MAX_BYTES], ("x" * MAX_BYTES,)),
    ],
    ids=ascii,
)
def test_ids_are_separated_by_commas_or_repeated(values, ids) -> None:
    assert parse_parents(values) == ids


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([""], "names no request"),
        ([",", ""], "names no request"),
        ([",".join(map(str, range(MAX_PARENTS + 1)))], "more than 100 requests"),
        (list(map(str, range(MAX_PARENTS + 1))), "more than 100 requests"),
        (["x" * (MAX_BYTES + 1)], "more than 16,384 bytes"),
        (["x" * (MAX_BYTES // 2), "x" * (MAX_BYTES // 2)], "more than 16,384 bytes"),
        (["é" * (MAX_BYTES // 2 + 1)], "more than 16,384 bytes"),
        ([","] * (MAX_BYTES + 1), "more than 16,384 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_too_many_ids_and_none_are_refused(values, reason) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_parents(values)


def test_a_selection_does_not_depend_on_the_order_of_the_ids() -> None:
    assert Selection("ab", {}).digest == Selection("ba", {}).digest != Selection("a", {}).digest
