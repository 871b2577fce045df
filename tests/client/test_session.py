"""The state machine of a session: messages in; events, and messages to send, out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kbridge.client.outputs import Gap, Result, Stream
from kbridge.client.session import (
    CommEvent,
    Event,
    Failed,
    Finished,
    InputRequested,
    KernelSession,
    Produced,
    ReasonChanged,
    Replaced,
    Replied,
    ReplyOnly,
    closed,
    error_of_status,
    reason_of,
)
from kbridge.errors import (
    BridgeError,
    Busy,
    ClientError,
    Conflict,
    Forbidden,
    FrameTooBig,
    InvalidRequest,
    KbridgeError,
    KernelDied,
    KernelNotFound,
    NetworkError,
    NotSupported,
    Unauthorized,
)
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

DATE = "2026-01-31T12:00:00Z"
OK: dict[str, Any] = {"status": "ok", "execution_count": 1}


@pytest.fixture
def session() -> KernelSession:
    return KernelSession("a-session")


def of(
    parent: Message | None, kind: str, content: dict[str, Any], channel: Channel = Channel.IOPUB
) -> Message:
    """A message of the kernel, in answer to a request."""
    header = b"{}" if parent is None else parent.header
    return build(channel, kind, content, session="k", date=DATE, parent_header=header)


def status(parent: Message | None, state: str) -> Message:
    return of(parent, "status", {"execution_state": state})


def reply(parent: Message, content: dict[str, Any] = OK, kind: str = "execute_reply") -> Message:
    return of(parent, kind, content, Channel.SHELL)


def execute(session: KernelSession, *, sent: bool = True) -> Message:
    request = session.request("execute_request", {"code": "1"}, DATE)
    if sent:
        session.sending(request.msg_id)
    return request


def all_events(session: KernelSession, *messages: Message) -> list[Event]:
    return [event for message in messages for event in session.receive(message)]


def test_a_request_has_the_parts_of_the_protocol(session: KernelSession) -> None:
    request = session.request("execute_request", {"code": "1"}, DATE, metadata={"cellId": "c"})
    header = json.loads(request.header)
    assert request.channel is Channel.SHELL
    assert (header["session"], header["msg_type"]) == ("a-session", "execute_request")
    assert json.loads(request.metadata) == {"cellId": "c"}
    assert json.loads(request.content) == {"code": "1"}


def test_an_execution_has_its_outputs_and_then_its_result(session: KernelSession) -> None:
    request = execute(session)
    text = of(request, "stream", {"name": "stdout", "text": "a"})
    events = all_events(
        session, status(request, "busy"), text, status(request, "idle"), reply(request)
    )
    assert events == [
        Produced(request.msg_id, Stream("stdout", "a"), text.nbytes),
        Finished(request.msg_id, Result("ok", 1)),
    ]


def test_reply_and_idle_may_come_in_either_order(session: KernelSession) -> None:
    for order in (0, 1):
        request = execute(session)
        both = [reply(request), status(request, "idle")]
        first, second = both if order else reversed(both)
        assert session.receive(first) == ([ReplyOnly(request.msg_id)] if order else [])
        assert session.receive(second) == [Finished(request.msg_id, Result("ok", 1))]


def test_output_between_the_reply_and_idle_belongs_to_the_execution(session: KernelSession) -> None:
    request = execute(session)
    text = of(request, "stream", {"name": "stdout", "text": "late"})
    events = all_events(session, reply(request), text, status(request, "idle"))
    assert [type(event) for event in events] == [ReplyOnly, Produced, Finished]


def test_an_aborted_execution_ends_without_idle(session: KernelSession) -> None:
    request = execute(session)
    events = session.receive(reply(request, {"status": "aborted"}))
    assert events == [Finished(request.msg_id, Result("aborted"))]


def test_messages_of_other_clients_are_ignored(session: KernelSession) -> None:
    other = execute(KernelSession("another"))
    execute(session)
    text = of(other, "stream", {"name": "stdout", "text": "a"})
    assert all_events(session, text, status(other, "idle"), reply(other)) == []


def test_a_message_that_arrives_twice_counts_once(session: KernelSession) -> None:
    request = execute(session)
    text = of(request, "stream", {"name": "stdout", "text": "a"})
    assert len(all_events(session, text, text)) == 1


def test_only_the_last_thousand_ids_are_kept(session: KernelSession) -> None:
    request = execute(session)
    first = of(request, "stream", {"name": "stdout", "text": "first"})
    session.receive(first)
    for _ in range(1000):
        session.receive(status(None, "busy"))
    assert len(session.receive(first)) == 1


def test_other_requests_have_replies(session: KernelSession) -> None:
    request = session.request("kernel_info_request", {}, DATE)
    answer = reply(request, {"status": "ok", "banner": "b"}, "kernel_info_reply")
    events = all_events(session, status(request, "busy"), status(request, "idle"), answer)
    assert events == [Replied(request.msg_id, {"status": "ok", "banner": "b"})]


def test_a_forgotten_request_has_no_reply(session: KernelSession) -> None:
    request = session.request("kernel_info_request", {}, DATE)
    session.forget(request.msg_id)
    assert session.receive(reply(request, {}, "kernel_info_reply")) == []


def test_an_execution_asks_and_is_answered_once(session: KernelSession) -> None:
    request = execute(session)
    content = {"prompt": "name? ", "password": True}
    question = of(request, "input_request", content, Channel.STDIN)
    assert session.receive(question) == [InputRequested(request.msg_id, "name? ", True)]
    answer = session.answer(request.msg_id, "bob", DATE)
    assert answer is not None
    assert (answer.channel, answer.msg_type) == (Channel.STDIN, "input_reply")
    assert json.loads(answer.content)["value"] == "bob"
    assert answer.parent_header == question.header
    assert session.answer(request.msg_id, "again", DATE) is None


def test_an_execution_that_has_ended_is_not_answered(session: KernelSession) -> None:
    request = execute(session)
    all_events(session, reply(request), status(request, "idle"))
    assert session.answer(request.msg_id, "bob", DATE) is None


def test_comm_messages(session: KernelSession) -> None:
    sent = session.comm("comm_msg", {"comm_id": "c", "data": {}}, DATE, buffers=[b"xy"])
    assert (sent.channel, sent.buffers) == (Channel.SHELL, (b"xy",))
    received = of(None, "comm_msg", {"comm_id": "c", "data": {"a": 1}})._replace(buffers=(b"z",))
    assert session.receive(received) == [
        CommEvent("comm_msg", "c", "", {"a": 1}, {}, (b"z",), received.nbytes)
    ]


# Resuming.


def test_the_url_names_the_last_message_on_iopub(session: KernelSession) -> None:
    """Another replica does not know the ids of replies and input requests."""
    assert session.query() == {"session_id": "a-session"}
    message = status(None, "busy")
    session.receive(message)
    assert session.query() == {"session_id": "a-session", "since": message.msg_id}
    request = execute(session)
    answer = reply(request)
    all_events(session, answer)
    assert session.query() == {"session_id": "a-session", "since": message.msg_id}
    # The server sends it again, because it is after that place.
    assert session.receive(answer) == []


def test_a_session_that_follows_a_request_says_so() -> None:
    request = execute(KernelSession("another"))
    session = KernelSession("a-session", request.msg_id)
    assert session.query() == {"session_id": "a-session", "parents": request.msg_id}
    events = all_events(session, status(request, "idle"), reply(request))
    assert events == [Finished(request.msg_id, Result("ok", 1))]


def test_an_execution_that_the_server_does_not_know_is_sent_again(session: KernelSession) -> None:
    lost, arrived, waiting = execute(session), execute(session), execute(session, sent=False)
    assert session.unconfirmed()
    events, again = session.reconcile({arrived.msg_id: "running"}, reconnected=True)
    assert (events, again) == ([], [lost])
    assert waiting not in again, "its sender has not sent it, and will"


def test_an_execution_is_never_sent_again_to_a_server_that_lists_none(
    session: KernelSession,
) -> None:
    execute(session)
    assert session.reconcile(None, reconnected=True) == ([], [])


def test_an_execution_that_has_begun_is_never_sent_again(session: KernelSession) -> None:
    request = execute(session)
    session.receive(status(request, "busy"))
    assert not session.unconfirmed()
    assert session.reconcile({}, reconnected=True) == ([], [])


def test_other_requests_are_sent_again_until_they_have_a_reply(session: KernelSession) -> None:
    request = session.request("complete_request", {"code": "a"}, DATE)
    assert session.reconcile({}, reconnected=True) == ([], []), "not sent yet"
    session.sending(request.msg_id)
    assert session.reconcile({}, reconnected=True) == ([], [request])
    session.receive(reply(request, {}, "complete_reply"))
    assert session.reconcile({}, reconnected=True) == ([], [])


def test_an_answer_is_sent_again_until_the_execution_goes_on(session: KernelSession) -> None:
    request = execute(session)
    session.receive(of(request, "input_request", {}, Channel.STDIN))
    answer = session.answer(request.msg_id, "bob", DATE)
    assert session.reconcile({}, reconnected=True) == ([], [answer])
    session.receive(of(request, "stream", {"name": "stdout", "text": "a"}))
    assert session.reconcile({}, reconnected=True) == ([], [])


# The kernel's process.


@pytest.mark.parametrize("state", ["starting", "restarting"])
def test_a_new_process_fails_what_had_begun(session: KernelSession, state: str) -> None:
    begun, waiting, kept = (execute(session) for _ in range(3))
    session.receive(status(begun, "busy"))
    failed, replaced = session.receive(status(None, state))
    assert isinstance(failed, Failed)
    assert failed.msg_id == begun.msg_id
    assert isinstance(failed.error, KernelDied)
    assert replaced == Replaced()
    states = {waiting.msg_id: "aborted", kept.msg_id: "waiting"}
    [ended], again = session.reconcile(states, reconnected=False)
    assert isinstance(ended, Failed)
    assert ended.msg_id == waiting.msg_id
    assert isinstance(ended.error, KernelDied)
    assert again == []


def test_an_aborted_execution_has_its_reply_after_a_reconnection(session: KernelSession) -> None:
    request = execute(session)
    states = {request.msg_id: "aborted"}
    assert session.reconcile(states, reconnected=True) == ([], [])
    assert len(session.receive(reply(request, {"status": "aborted"}))) == 1


def test_a_new_process_is_sent_the_requests_without_replies(session: KernelSession) -> None:
    request = session.request("complete_request", {"code": "a"}, DATE)
    session.sending(request.msg_id)
    assert session.receive(status(None, "restarting")) == [Replaced()]
    assert session.reconcile({}, reconnected=False) == ([], [request])


def test_a_new_process_is_no_event_for_an_idle_session(session: KernelSession) -> None:
    assert session.receive(status(None, "starting")) == []


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_other_states_of_the_kernel_end_nothing(session: KernelSession, state: str) -> None:
    request = execute(session)
    session.receive(status(request, "busy"))
    assert session.receive(status(None, state)) == []


def waits(reason: str) -> Message:
    return of(None, "status", {"execution_state": "starting", "reason": reason})


def test_a_kernel_that_waits_ends_nothing_and_says_why(session: KernelSession) -> None:
    request = execute(session)
    assert session.receive(waits("Priority")) == [ReasonChanged("Priority")]
    assert session.receive(waits("Priority")) == []
    assert session.receive(waits("Resources")) == [ReasonChanged("Resources")]
    assert session.reason == "Resources"
    session.receive(status(request, "busy"))
    events = session.receive(of(request, "execute_reply", OK, Channel.SHELL))
    assert events == [ReasonChanged(""), ReplyOnly(request.msg_id)]
    assert session.reason == ""


def test_a_job_that_has_ended_is_named_in_the_error(session: KernelSession) -> None:
    execute(session)
    dead = {"execution_state": "dead", "reason": "job 1 ended: TIMEOUT"}
    changed, failed = session.receive(of(None, "status", dead))
    assert changed == ReasonChanged("job 1 ended: TIMEOUT")
    assert isinstance(failed, Failed)
    assert str(failed.error) == "the kernel died: job 1 ended: TIMEOUT"


def test_a_dead_kernel_fails_everything(session: KernelSession) -> None:
    waiting = execute(session)
    asked = session.request("complete_request", {"code": "a"}, DATE)
    events = session.receive(status(None, "dead"))
    assert [e.msg_id for e in events if isinstance(e, Failed)] == [waiting.msg_id, asked.msg_id]
    assert len(events) == 2


def test_the_end_fails_everything_once(session: KernelSession) -> None:
    waiting = execute(session)
    asked = session.request("complete_request", {"code": "a"}, DATE)
    error = NetworkError("away")
    assert session.end(error) == [Failed(waiting.msg_id, error), Failed(asked.msg_id, error)]
    assert session.end(error) == []


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (None, "", None),
        (1000, "", None),
        (1001, "", None),
        (1011, "", None),
        (1012, "the server is restarting", None),
        (1012, "the kernel was shut down", KernelDied),
        (1012, "the kernel is gone", None),  # from one replica; another one may have it
        (1012, "the connection info has no shell_port", None),
        (1012, "", None),
        (1009, "", FrameTooBig),
        *((code, "a reason", ClientError) for code in (1002, 1003, 1007, 1008)),
    ],
)
def test_close_codes(code: int | None, reason: str, expected: type[KbridgeError] | None) -> None:
    error = closed(code, reason)
    assert type(error) is (expected or type(None))
    if error is not None and reason:
        assert error.reason == reason


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, InvalidRequest),
        (401, Unauthorized),
        (403, Forbidden),
        (404, KernelNotFound),
        (409, Conflict),
        (418, ClientError),
        (500, BridgeError),
        (501, NotSupported),
        (503, Busy),
    ],
)
def test_http_statuses(status: int, expected: type[KbridgeError]) -> None:
    error = error_of_status(status, "a reason")
    assert type(error) is expected
    assert error.reason == "a reason"


def test_the_idle_status_of_a_later_request_completes_an_execution(session: KernelSession) -> None:
    request = execute(session)
    assert session.receive(reply(request)) == [ReplyOnly(request.msg_id)]
    probe = session.probe(request.msg_id, DATE)
    assert probe is not None
    assert all_events(session, status(probe, "busy")) == []
    gap, finished = session.receive(status(probe, "idle"))
    assert isinstance(gap, Produced)
    assert isinstance(gap.output, Gap)
    assert isinstance(finished, Finished)
    assert session.probe(request.msg_id, DATE) is None


def test_an_execution_that_is_complete_ignores_a_probe(session: KernelSession) -> None:
    request = execute(session)
    session.receive(reply(request))
    probe = session.probe(request.msg_id, DATE)
    assert probe is not None
    assert [type(event) for event in session.receive(status(request, "idle"))] == [Finished]
    assert session.receive(status(probe, "idle")) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"message": "no such kernel", "reason": "Not Found"}', "no such kernel"),
        (b"<html>a proxy</html>", "otherwise"),
        (b'{"message": null}', "otherwise"),
        (b'["message"]', "otherwise"),
        (b"", "otherwise"),
        (b"\xff", "otherwise"),
    ],
)
def test_the_reason_of_a_refusal_is_its_message(body: bytes, reason: str) -> None:
    assert reason_of(body, "otherwise") == reason
