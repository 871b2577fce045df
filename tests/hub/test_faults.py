"""A hub with faulty kernels and clients."""

import json

import pytest

from kbridge.errors import IgnoredMessage, InvalidMessage
from kbridge.wire.dialects import LEGACY
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse
from tests.hub.rig import INFO, frames_of, texts


async def test_requests_from_before_the_first_answer_are_translated_too(make_rig) -> None:
    """The protocol of a kernel is known only after it has answered."""
    rig = make_rig()
    _, attached = rig.attach()
    assert (
        rig.hub.submit(attached, rig.request("complete_request", code="imp", cursor_pos=3)) is None
    )
    rig.prove(protocol=[4, 1])
    (sent,) = rig.sent()
    assert json.loads(sent.content)["line"] == "imp"


async def test_what_cannot_be_translated_closes_its_sender_or_is_dropped_when_late(
    make_rig, caplog
) -> None:
    rig = make_rig()
    _, attached = rig.attach()
    rig.hub.submit(attached, rig.request("complete_request"))
    rig.hub.submit(attached, rig.request("complete_request", code="x", cursor_pos=1))
    with caplog.at_level("WARNING", logger="kbridge.hub"):
        rig.prove(protocol=[4, 1])
    assert len(rig.sent()) == 1, "the next valid message must pass"
    assert "complete_request" in caplog.text
    with pytest.raises(InvalidMessage):
        rig.hub.submit(attached, rig.request("complete_request"))


async def test_requests_that_wait_are_signed_with_the_new_kernels_key(rig) -> None:
    _, attached = rig.attach()
    rig.kernel.disconnect()
    await rig.hub.restarting()
    rig.hub.submit(attached, rig.request(code="1"))
    rig.hub.reconnect({**INFO, "key": b"another key"})
    rig.signer = Signer(b"another key")
    rig.prove()
    channel, frames = rig.kernel.sent[-1]
    assert parse(channel, frames, Signer(b"another key")).msg_type == "execute_request"


async def test_an_answer_to_a_probe_that_is_none_is_refused_and_takes_nothing_along(
    make_rig,
) -> None:
    rig = make_rig()
    client, _ = rig.attach()
    rig.kernel.connect()
    probe = rig.probes()[0]
    odd = rig.message(Channel.SHELL, "kernel_info_reply", {}, probe.header)
    rig.say(odd._replace(content=b"[]"), rig.message(Channel.SHELL, "other_reply", {}))
    assert not rig.hub.ready
    assert rig.hub.statistics()["refused_kernel_messages"] == 1
    assert b"other_reply" in client.written


async def test_a_client_that_has_caught_up_hears_the_next_word_at_once(rig) -> None:
    client, _ = rig.attach()
    client.stalled = True
    rig.say(rig.stream("one"))
    client.resume()
    rig.say(rig.stream("two"))
    assert texts(client) == ["one", "two"]


@pytest.mark.parametrize("how", ["resume", "detach"])
async def test_the_journal_shrinks_when_the_last_laggard_is_done(make_rig, how) -> None:
    """A silent kernel must not retain frames that no client needs."""
    rig = make_rig(history_limit=1000)
    rig.prove()
    client, attached = rig.attach()
    client.stalled = True
    for i in range(100):
        rig.say(rig.stream(f"{i:0100}"))
    assert rig.hub.journal.nbytes > 10_000
    client.resume() if how == "resume" else rig.hub.detach(attached)
    assert rig.hub.journal.nbytes <= 1000


async def test_bytes_that_are_no_text_harm_nobody_else(rig, caplog) -> None:
    old, _ = rig.attach(dialect=LEGACY)
    strict, _ = rig.attach()
    bad = rig.stream("x")._replace(content=b'{"name":"stdout","text":"\xff"}')
    with caplog.at_level("WARNING", logger="kbridge.hub"):
        rig.say(rig.stream("before"), bad, rig.stream("after"))
        rig.say(rig.stream("later"))
    got = [json.loads(p)["content"]["text"] for _, p in frames_of(old.written)]
    assert got == ["before", "after", "later"]
    assert len(frames_of(strict.written)) == 4
    assert len(caplog.records) == 1
    assert rig.hub.statistics()["refused_kernel_messages"] == 1


async def test_a_message_that_is_hardly_one_passes_as_it_came(rig) -> None:
    clients = [rig.attach()[0], rig.attach(dialect=LEGACY)[0]]
    for channel in Channel:
        rig.say(Message(channel, b"{}", b"{}", b"{}", b"{}"))
    rig.say(Message(Channel.IOPUB, b"[]", b"7", b'""', b"null"))
    assert [len(frames_of(c.written)) for c in clients] == [5, 5]


async def test_what_is_for_one_client_is_kept_as_long_as_it_carries_state(make_rig) -> None:
    rig = make_rig(journal_limit=20_000, history_limit=0)
    rig.prove()
    client, attached = rig.attach()
    client.stalled = True
    rig.say(rig.stream("on its way"))
    asked = rig.request(code="1")
    rig.hub.submit(attached, asked)
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "kept"}, asked.header))
    for i in range(500):
        rig.say(rig.stream(f"{i:0100}"))
    client.resume()
    assert b'"status": "kept"' in client.written


async def test_requests_on_iopub_are_for_nobody(rig) -> None:
    _, attached = rig.attach()
    with pytest.raises(IgnoredMessage):
        rig.hub.submit(attached, rig.message(Channel.IOPUB, "execute_request", {}))
    assert rig.sent() == []


# -- a wall clock that is set ---------------------------------------------------------------

HOURS = [pytest.param(hours * 3600, id=f"{hours:+} h") for hours in (5, -5, 100_000)]


def jump(rig, seconds: float) -> None:
    rig.clock.wall = lambda: 1.7e9 + rig.clock.now + seconds


@pytest.mark.parametrize("seconds", HOURS)
async def test_a_clock_that_jumps_neither_opens_nor_closes_the_rate_limit(
    make_rig, seconds
) -> None:
    rig = make_rig(
        limit_rate=True, rate_limit_policy="drop", iopub_msg_rate_limit=1, rate_limit_window=10
    )
    rig.prove()
    client, _ = rig.attach()
    rig.say(*(rig.stream("x") for _ in range(100)))
    passed = texts(client).count("x")
    assert passed < 100
    jump(rig, seconds)
    rig.say(rig.stream("x"))
    assert texts(client).count("x") == passed, "both messages arrive in the same second"
    rig.clock.now += 1000
    rig.say(rig.stream("a thousand seconds later"))
    assert texts(client)[-1] == "a thousand seconds later"


@pytest.mark.parametrize("seconds", HOURS)
async def test_a_clock_that_jumps_ends_no_session_that_may_come_back(make_rig, seconds) -> None:
    rig = make_rig(history_limit=0, resume_timeout=60)
    rig.prove()
    _, attached = rig.attach("me")
    rig.hub.detach(attached)
    jump(rig, seconds)
    rig.say(*(rig.stream(f"{i}") for i in range(10)))
    rig.clock.now += 30
    rig.say(rig.stream("the last"))
    again, _ = rig.attach("me")
    assert "".join(texts(again)) == "0123456789the last"


@pytest.mark.parametrize("seconds", HOURS)
async def test_a_clock_that_jumps_gives_up_on_no_kernel(make_rig, seconds) -> None:
    rig = make_rig(kernel_info_timeout=60)
    rig.kernel.connect()
    jump(rig, seconds)
    rig.say(rig.stream("it speaks"))
    assert not rig.hub.timed_out
    rig.prove()
    assert rig.hub.ready
    assert not rig.hub.timed_out


@pytest.mark.parametrize("seconds", HOURS)
async def test_what_people_read_has_the_new_time(rig, seconds) -> None:
    client, _ = rig.attach()
    jump(rig, seconds)
    rig.say(rig.stream("now"))
    assert rig.hub.activity.last_activity == rig.clock.wall()
    rig.hub.announce("dead")
    said = rig.clock.iso().encode()
    assert said in client.written
