"""Messages that the bridge itself sends."""

import json
from typing import Any

import pytest

from kbridge.flow.journal import Gap
from kbridge.hub.notices import BROKEN, Notices
from kbridge.wire import v1
from kbridge.wire.message import Channel, Message
from tests.hub.rig import StoppedClock

PARENT = b'{"msg_id": "cell", "msg_type": "execute_request"}'


def notices() -> Notices:
    return Notices(StoppedClock())


def content(msg: Message) -> Any:
    return json.loads(msg.content)


def test_all_have_one_session_and_ids_of_their_own() -> None:
    made = notices()
    messages = [
        made.request(Channel.SHELL, "kernel_info_request", {}),
        made.probe(Channel.CONTROL),
        made.probe(Channel.SHELL),
        made.status("restarting"),
        made.stderr("oh"),
    ]
    headers = [json.loads(m.header) for m in messages]
    assert len({h["session"] for h in headers}) == 1
    assert len({h["msg_id"] for h in headers}) == len(headers)
    assert {h["date"] for h in headers} == {StoppedClock().iso()}
    for msg in messages:
        assert v1.decode(v1.encode(msg)) == msg


def test_only_probes_bear_the_mark_and_each_bridge_has_its_own() -> None:
    made, other = notices(), notices()
    probe = made.probe(Channel.CONTROL)
    assert (probe.channel, probe.msg_type) == (Channel.CONTROL, "kernel_info_request")
    assert made.mark in probe.header
    assert other.mark not in probe.header
    assert made.mark not in made.request(Channel.SHELL, "execute_request", {}).header
    assert made.mark not in made.status("dead").header


def test_a_request_says_what_it_was_given() -> None:
    msg = notices().request(Channel.CONTROL, "debug_request", {"seq": 1})
    assert (msg.channel, msg.msg_type, content(msg)) == (
        Channel.CONTROL,
        "debug_request",
        {"seq": 1},
    )


def test_a_status_is_what_a_kernel_says_of_itself() -> None:
    msg = notices().status("dead")
    assert (msg.channel, msg.msg_type, content(msg), msg.parent_id) == (
        Channel.IOPUB,
        "status",
        {"execution_state": "dead"},
        "",
    )


def test_a_line_on_stderr_belongs_to_its_cell() -> None:
    msg = notices().stderr("naïve", PARENT)
    assert (msg.channel, msg.msg_type, msg.parent_header) == (Channel.IOPUB, "stream", PARENT)
    assert content(msg) == {"name": "stderr", "text": "naïve\n"}


def test_a_gap_says_how_much_is_missing_and_what_to_raise() -> None:
    msg = notices().lost(Gap(1234, 5_678_901, b""), PARENT, 6)
    assert content(msg)["text"] == (
        "[kbridge: 1,234 messages (5,678,901 bytes) of output were dropped because this client"
        " fell behind. Raise journal_limit (unread output) or history_limit (output already"
        " delivered) to keep more.]\n"
    )
    assert msg.parent_header == PARENT
    one = content(notices().lost(Gap(1, 0, b""), PARENT, 6))["text"]
    assert one.startswith("[kbridge: 1 message of output was dropped because")
    disk = Notices(StoppedClock(), on_disk=True)
    assert "raise journal_disk_limit" in content(disk.lost(Gap(2, 0, b""), PARENT, 6))["text"]


@pytest.mark.parametrize(
    ("adopted", "seq", "blames_restart", "names_settings"),
    [(True, -1, True, False), (True, 0, True, True), (False, -1, False, True)],
)
def test_a_gap_of_unknown_size_says_what_is_known_of_its_cause(
    adopted, seq, blames_restart, names_settings
) -> None:
    made = Notices(StoppedClock(), adopted=adopted)
    text = content(made.lost(Gap(0, 0, b""), PARENT, seq))["text"]
    assert "missing here" in text
    assert not any(map(str.isdigit, text))
    assert ("the server was restarted" in text) is blames_restart
    assert ("journal_limit" in text) is names_settings


def test_the_id_of_a_marker_says_where_it_stands() -> None:
    made = notices()
    assert made.lost(Gap(1, 1, b""), PARENT, 41).msg_id == f"{made.markers}41"
    assert made.markers != notices().markers


def test_a_cell_that_was_taken_over_says_so() -> None:
    msg = notices().taken_over(PARENT)
    assert (msg.msg_type, msg.parent_header) == ("stream", PARENT)
    assert "restarted" in content(msg)["text"]
    assert "because" not in content(msg)["text"]


def test_the_cause_of_missing_output_is_named() -> None:
    made = Notices(StoppedClock(), adopted=True, because="link is pyzmq")
    for msg in (made.taken_over(PARENT), made.lost(Gap(0, 0, b""), PARENT, -1)):
        assert content(msg)["text"].endswith("is missing here, because link is pyzmq.]\n")


def test_a_connection_that_broke_before_the_server_began_is_named_once() -> None:
    made = notices()
    made.interruption = BROKEN
    texts = [content(made.disconnected(PARENT))["text"] for _ in range(2)]
    assert ["tunnel" in text for text in texts] == [True, False]
    assert ["The log of the server" in text for text in texts] == [False, True]


def test_what_is_said_in_the_kernels_place_is_of_its_session_and_probes_are_not() -> None:
    made = notices()
    made.speak_as("the-kernel")
    own = json.loads(made.probe(Channel.CONTROL).header)["session"]
    assert own != "the-kernel"
    for said in (made.status("dead"), made.stderr("x"), made.lost(Gap(1, 1, b""), PARENT, 6)):
        assert json.loads(said.header)["session"] == "the-kernel"
