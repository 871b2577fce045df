"""Websockets of a hub: acknowledgements, resuming, turns, and repeated input requests."""

import asyncio
import itertools
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.errors import InvalidRequest
from kbridge.hub.broadcast import client_sessions, cursor, delivery, rendering
from kbridge.hub.settings import HubSettings
from kbridge.wire import legacy, v1
from kbridge.wire.build import build
from kbridge.wire.dialects import LEGACY, V1, Dialect
from kbridge.wire.frames import PING, ping
from kbridge.wire.message import Channel, Message
from tests.hub.rig import Peer, Rig, received, texts
from tests.support.waiting import TIMEOUT

MARKER = re.compile(
    r"\[kbridge: (?:([\d,]+) messages?(?: \(([\d,]+) bytes\))? of output w|.*missing here)"
)


async def until(probe, what: str) -> None:
    try:
        async with asyncio.timeout(TIMEOUT):
            while not probe():  # noqa: ASYNC110 - timers of the hub have no events
                await asyncio.sleep(0.001)
    except TimeoutError:
        pytest.fail(f"never: {what}")


def kinds(client: Peer) -> list[str]:
    return [m.msg_type for m in received(client)]


def number(rig: Rig, attachment) -> int:
    """Return the external sequence number of the last written frame."""
    return rig.ack_origin + attachment.place.seq - 1


def behind(rig: Rig, attachment) -> int:
    """Return the frames that are written but not acknowledged."""
    return attachment.place.seq - attachment.delivered.seq


# -- pings ----------------------------------------------------------------------------------------


async def test_numbers_in_pings_are_held_exactly_by_a_float(rig) -> None:
    """As JavaScript parses numbers, for as long as the bridge may exist."""
    rig.clock.now = 4_102_444_800 - 1.7e9  # the year 2100
    rig.hub = rig.open(rig.hub.settings)
    client, _ = rig.attach("s", silent=True)
    rig.say(rig.stream("one"))
    (payload,) = client.pings
    assert int(payload) == 4_102_444_800_000_000 + rig.hub.journal.next_seq - 1
    assert int(float(payload)) == int(payload)


async def test_a_ping_goes_out_in_one_write_with_the_first_batch(rig) -> None:
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("one"), rig.stream("two"))
    assert client.writes == 1
    assert client.written.endswith(ping(b"%d" % number(rig, attachment)))
    assert texts(client) == ["one", "two"]
    assert behind(rig, attachment) == 2


async def test_one_ping_is_under_way_and_the_next_goes_with_the_first_batch_after_its_pong(
    rig,
) -> None:
    client, attachment = rig.attach("s", silent=True)
    for i in range(5):
        rig.say(rig.stream(str(i)))
    assert len(client.pings) == 1
    assert behind(rig, attachment) == 5
    client.hear(client.pings.pop())
    assert behind(rig, attachment) == 4
    assert client.writes == 5, "a pong alone must not cause a ping"
    rig.say(rig.stream("5"))
    assert client.pings == [b"%d" % number(rig, attachment)]
    client.hear(client.pings.pop())
    assert behind(rig, attachment) == 0


@pytest.mark.rare_pings
async def test_a_websocket_that_receives_little_is_pinged_from_time_to_time(rig) -> None:
    _, attachment = rig.attach("s")
    for _ in range(10):
        rig.say(rig.stream("line"))
    assert behind(rig, attachment) == 9, "the first write had a ping"
    assert rig.ping_delay is not None, "the last frames will be asked about in any case"
    assert rig.ping_delay <= delivery.PING_INTERVAL
    rig.clock.now += delivery.PING_INTERVAL
    rig.say(rig.stream("line"))
    assert behind(rig, attachment) == 0
    rig.say(rig.stream("the last one"))
    assert behind(rig, attachment) == 1
    rig.fire_ping_timer()
    assert behind(rig, attachment) == 0
    assert not rig.pings_later
    rig.say(rig.stream("again"))
    assert rig.pings_later


@pytest.mark.rare_pings
async def test_a_ping_of_the_timer_counts_for_the_interval(rig) -> None:
    _, attachment = rig.attach("s")
    rig.say(rig.stream("one"))
    rig.say(rig.stream("two"))
    rig.clock.now += delivery.PING_INTERVAL
    rig.fire_ping_timer()
    assert behind(rig, attachment) == 0
    rig.clock.now += delivery.PING_INTERVAL / 2
    rig.say(rig.stream("three"))
    assert behind(rig, attachment) == 1
    assert rig.ping_delay is not None
    assert rig.ping_delay <= delivery.PING_INTERVAL / 2


@pytest.mark.rare_pings
async def test_a_ping_that_is_due_soon_does_not_wait_for_a_later_one(rig) -> None:
    slow, _ = rig.attach("slow", silent=True)
    rig.attach("s")
    rig.say(rig.stream("one"))
    rig.say(rig.stream("two"))
    rig.fire_ping_timer()
    rig.say(rig.stream("three"))
    slow.hear(slow.pings.pop())
    assert rig.ping_delay is not None
    assert rig.ping_delay <= delivery.PING_INTERVAL


@pytest.mark.rare_pings
async def test_a_websocket_that_receives_much_is_pinged_after_each_pong(rig) -> None:
    _, attachment = rig.attach("s", verbatim=True)
    for _ in range(100):
        rig.say(rig.stream("x" * 10_000))
        unanswered = attachment.place.nbytes - attachment.delivered.nbytes
        assert unanswered < 64 << 10
    assert unanswered > 0


@pytest.mark.rare_pings
async def test_a_status_that_ends_websockets_is_pinged_at_once(rig) -> None:
    _, attachment = rig.attach("s")
    rig.say(rig.stream("one"))
    rig.say(rig.stream("two"))
    assert behind(rig, attachment) == 1
    rig.hub.announce("restarting")
    assert behind(rig, attachment) == 0


async def test_a_client_that_closes_at_restarting_is_not_told_twice(rig) -> None:
    """JupyterLab opens another websocket at `restarting`, and shows a dialog for each of them."""
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("one"))
    rig.hub.announce("restarting")
    assert [int(each) for each in client.pings] == [
        number(rig, attachment) - 1,
        number(rig, attachment),
    ]
    for payload in client.pings:
        client.hear(payload)
    assert behind(rig, attachment) == 0
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert b"restarting" not in again.written


async def test_one_answer_to_two_pings_is_enough(rig) -> None:
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("one"))
    rig.hub.announce("restarting")
    client.hear(client.pings[0])
    assert behind(rig, attachment) == 2
    client.hear(client.pings[1])
    assert behind(rig, attachment) == 0


async def test_when_nothing_more_is_written_the_rest_is_asked_about_a_moment_later(
    rig, monkeypatch
) -> None:
    monkeypatch.setattr(delivery, "PING_DELAY", 0.001)
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("one"))
    rig.say(rig.stream("two"))
    client.hear(client.pings.pop())
    await until(lambda: client.pings, "the second ping")
    assert client.pings == [b"%d" % number(rig, attachment)]
    client.hear(client.pings.pop())
    assert behind(rig, attachment) == 0
    assert not rig.pings_later, "everything is acknowledged"


@pytest.mark.parametrize("dialect", [V1, LEGACY])
async def test_one_that_cannot_come_back_is_never_pinged_and_holds_nothing(dialect) -> None:
    """Zed's client treats a ping between two messages as an error."""
    rig = Rig(HubSettings(history_limit=0))
    client, attachment = rig.attach("", dialect, silent=True)
    for i in range(5):
        rig.say(rig.stream(str(i)))
    client.stalled = True
    rig.say(rig.stream("the one that waits"))
    assert behind(rig, attachment) > 0, "it is still in transit"
    client.resume()
    assert client.pings == []
    assert behind(rig, attachment) == 0
    assert rig.hub.journal.nbytes == 0
    assert not rig.pings_later
    await rig.hub.aclose()


@pytest.mark.parametrize("how", [{"session_id": "s"}, {"since": "start"}, {"since": "no such id"}])
async def test_one_that_says_who_it_is_or_what_it_saw_is_asked_what_has_arrived(rig, how) -> None:
    client, attachment = rig.attach(silent=True, **how)
    rig.say(rig.stream("one"))
    assert len(client.pings) == 1
    assert attachment.pinged is not None


def test_a_moment_is_what_the_issue_says() -> None:
    assert delivery.PING_DELAY == 0.25


async def test_a_keepalives_pong_in_place_of_ours_is_asked_about_anew(rig, monkeypatch) -> None:
    monkeypatch.setattr(delivery, "PING_DELAY", 0.001)
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("one"))
    (first,) = client.pings
    client.pings.clear()
    client.hear(b"")
    assert behind(rig, attachment) == 1
    await until(lambda: client.pings, "the same ping again")
    assert client.pings == [first]
    client.hear(client.pings.pop())
    assert behind(rig, attachment) == 0


async def test_keepalives_pongs_before_ours_lose_nothing(rig) -> None:
    """The pong of the earlier ping arrives first, and the other pong late."""
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("one"))
    first = client.pings.pop()
    client.hear(b"")
    client.hear(first)
    rig.say(rig.stream("two"))
    client.hear(client.pings.pop())
    assert behind(rig, attachment) == 0


@pytest.mark.parametrize("forged", ["next", "before", "huge", "text"])
async def test_a_forged_pong_acknowledges_nothing(rig, forged) -> None:
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("one"))
    asked = int(client.pings[0])
    payloads = {"next": asked + 1, "before": asked - 1, "huge": 10**40}
    client.hear(b"%d" % payloads[forged] if forged in payloads else b"not a number")
    assert behind(rig, attachment) == 1
    client.hear(client.pings.pop())
    assert behind(rig, attachment) == 0


async def test_a_pong_from_one_websocket_says_nothing_of_another(rig) -> None:
    one, first = rig.attach("s", silent=True)
    _, second = rig.attach("t", silent=True)
    rig.say(rig.stream("x"))
    one.hear(one.pings.pop())
    assert (behind(rig, first), behind(rig, second)) == (0, 1)


async def test_a_pong_after_its_websocket_went_changes_nothing(rig) -> None:
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("x"))
    rig.hub.detach(attachment)
    again, _ = rig.attach("s", silent=True)
    client.hear(client.pings.pop())
    assert texts(again) == ["x"]
    rig.hub.detach(rig.hub.cursors[0])
    third, _ = rig.attach("s")
    assert texts(third) == ["x"], "the acknowledgement was for another connection"


async def test_readers_at_one_place_share_the_ping_too(rig) -> None:
    written: list[bytes] = []

    class Watched(Peer):
        def write(self, data: bytes) -> bool:
            written.append(data)
            return super().write(data)

    for _ in range(4):
        rig.hub.attach(Watched(), V1)
    rig.say(rig.stream("x"))
    assert len(written) == 4
    assert len({id(data) for data in written}) == 1
    assert PING in {data & 0x0F for data in written[0]}


async def test_a_large_write_is_not_copied_for_its_ping(rig) -> None:
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("x" * 100_000))
    assert client.writes == 2
    assert client.pings == [b"%d" % number(rig, attachment)]


async def test_what_a_full_websocket_took_is_asked_about_when_it_has_gone_out(rig) -> None:
    client, attachment = rig.attach("s", silent=True)
    client.stalled = True
    rig.say(rig.stream("x" * 100_000))
    assert attachment.pinged is None
    client.resume()
    assert client.pings == [b"%d" % number(rig, attachment)]


async def test_not_to_be_asked_is_a_setting(make_rig) -> None:
    rig = make_rig(acknowledge=False)
    rig.prove()
    client, attachment = rig.attach("s", silent=True)
    rig.say(rig.stream("one"))
    assert client.pings == []
    assert behind(rig, attachment) == 0
    client.stalled = True
    rig.say(rig.stream("two"))
    assert behind(rig, attachment) == 1, "the system has not accepted it yet"
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert texts(again) == ["two"]


async def test_the_journal_is_kept_for_who_has_not_acknowledged(make_rig) -> None:
    rig = make_rig(history_limit=0)
    rig.prove()
    client, _ = rig.attach("s", silent=True)
    for i in range(10):
        rig.say(rig.stream(str(i)))
    assert rig.hub.journal.statistics()["frames"] == 10
    client.silent = False
    client.answer()
    assert rig.hub.journal.statistics()["frames"] == 9, "the first batch is acknowledged"
    rig.say(rig.stream("10"))
    assert rig.hub.journal.nbytes == 0


async def test_a_closed_hub_asks_no_more(make_rig) -> None:
    rig = make_rig(iopub_data_rate_limit=10.0, limit_rate=True)
    rig.prove()
    client, _ = rig.attach("s", silent=True)
    rig.say(rig.stream("x" * 100))
    rig.say(rig.stream("x" * 100))
    rig.say(rig.stream("y"))
    client.hear(client.pings.pop())
    assert rig.paced
    await rig.hub.aclose()
    assert (rig.paced, rig.pings_later) == (False, False)
    client.hear(b"")
    assert not rig.pings_later


async def test_a_marker_alone_is_acknowledged_too(make_rig) -> None:
    rig = make_rig(history_limit=0)
    rig.prove()
    rig.attach("x")
    rig.say(rig.stream("gone"))
    client, attachment = rig.attach("s", since="of-another-life")
    assert len(texts(client)) == 1
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert texts(again) == []


# -- turns ----------------------------------------------------------------------------------------


async def caught_up(rig: Rig, *attachments) -> None:
    seq = rig.hub.journal.next_seq
    await until(lambda: all(a.place.seq == seq for a in attachments), "all is written")


@pytest.mark.parametrize("dialect", [V1, LEGACY], ids=lambda d: d.name)
async def test_a_replay_of_the_whole_journal_leaves_others_their_turn(make_rig, dialect) -> None:
    rig = make_rig(history_limit=64 << 20, limit_rate=False)
    for i in range(8_000):
        rig.say(rig.stream(f"<{i}>" + "x" * 1000))
    turns, most, on = 0, 0, True

    def turn() -> None:
        nonlocal turns, most, last
        turns += 1
        most, last = max(most, len(client.written) - last), len(client.written)
        if on:
            asyncio.get_running_loop().call_soon(turn)

    client, attachment = rig.attach("s", dialect, since="start", silent=True)
    attachment.set_unresponsive()  # no window of unacknowledged bytes
    last = len(client.written)
    asyncio.get_running_loop().call_soon(turn)
    assert attachment.place.seq < rig.hub.journal.next_seq
    await caught_up(rig, attachment)
    on = False
    assert len(client.written) >= 8_000_000
    assert turns > 5
    assert most < 3 << 20, "a turn of a millisecond, on a machine that is slow or quick"


async def test_readers_of_two_hubs_have_turns_in_turn(make_rig) -> None:
    """A hub with many lagging readers takes no more turns than one with a single reader."""
    many, single = (make_rig(history_limit=64 << 20, limit_rate=False) for _ in range(2))
    for rig in (many, single):
        for i in range(1_000):
            rig.say(rig.stream(f"<{i}>" + "x" * 1000))
    crowd = [many.attach(f"s{i}", since="start")[1] for i in range(20)]
    _, alone = single.attach("s", since="start")
    await caught_up(single, alone)
    assert any(a.place.seq < many.hub.journal.next_seq for a in crowd), (
        "the websocket was among the first"
    )
    await caught_up(many, *crowd)


async def test_a_crowd_is_written_to_in_several_turns_in_order(make_rig) -> None:
    rig = make_rig(limit_rate=False)
    readers = [rig.attach(f"s{i}") for i in range(500)]
    rig.say(rig.stream("one"))
    first = sum(bool(client.writes) for client, _ in readers)
    assert 50 <= first < 500
    rig.say(rig.stream("two"))
    await caught_up(rig, *(attachment for _, attachment in readers))
    assert all("".join(texts(client)) == "onetwo" for client, _ in readers)


async def test_a_websocket_that_fails_in_its_turn_leaves_the_others_theirs(make_rig) -> None:
    errors: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    rig = make_rig(limit_rate=False)
    readers = [rig.attach(f"s{i}") for i in range(500)]
    rig.say(rig.stream("one"))
    waiting = [(client, attachment) for client, attachment in readers if not client.writes]

    def fail(data: bytes) -> bool:
        raise RuntimeError(len(data))

    for client, _ in waiting[:2]:
        client.write = fail
    await caught_up(rig, *(attachment for _, attachment in waiting[2:]))
    await until(lambda: len(errors) == 2, "each error is told")
    assert all(texts(client) == ["one"] for client, _ in waiting[2:])


async def test_one_that_goes_while_it_waits_for_its_turn_is_left_alone(make_rig) -> None:
    rig = make_rig(history_limit=64 << 20, limit_rate=False)
    for i in range(2_000):
        rig.say(rig.stream(f"<{i}>" + "x" * 1000))
    gone, leaving = rig.attach("gone", since="start")
    _, staying = rig.attach("staying", since="start")
    written = len(gone.written)
    rig.hub.detach(leaving)
    await caught_up(rig, staying)
    assert len(gone.written) == written


# -- what is shared -------------------------------------------------------------------------------


@pytest.fixture
def renderings(monkeypatch) -> list[int]:
    """Record the frames of each stretch that is joined."""
    sizes: list[int] = []
    usual = rendering.coalesce_counted

    def coalesce(frames):
        sizes.append(len(frames))
        return usual(frames)

    monkeypatch.setattr(rendering, "coalesce_counted", coalesce)
    return sizes


async def test_readers_that_lag_at_different_places_share_what_they_read_next(
    make_rig, renderings
) -> None:
    rig = make_rig(limit_rate=False, history_limit=0)
    readers = [rig.attach(f"s{i}") for i in range(16)]
    for i in range(16 * 40):  # one after the other stalls
        readers[i // 40][0].stalled = True
        rig.say(rig.stream(f"<{i}>" + "x" * 1000))
    assert len({attachment.place.seq for _, attachment in readers}) > 8
    renderings.clear()
    for client, _ in readers:
        client.resume()
    await caught_up(rig, *(attachment for _, attachment in readers))
    expected = "".join(f"<{i}>" + "x" * 1000 for i in range(16 * 40))
    assert all("".join(texts(client)) == expected for client, _ in readers)
    # Each separately to the next boundary, and together from there.
    assert sum(renderings) < 3 * 640, "each has 5,000 frames to join"


async def test_readers_that_take_turns_in_a_flood_share_what_they_read(
    make_rig, renderings, monkeypatch
) -> None:
    monkeypatch.setattr(delivery, "_AT_ONCE", 100_000)  # two readers; the others take turns
    rig = make_rig(limit_rate=True, iopub_msg_rate_limit=100.0, iopub_data_rate_limit=0)
    rig.prove()
    readers = [rig.attach(f"s{i}") for i in range(16)]
    rig.say(*(rig.stream(f"<{i}>" + "x" * 300) for i in range(200)))
    renderings.clear()
    rig.clock.now += 1
    rig.fire_pace_timer()
    await caught_up(rig, *(attachment for _, attachment in readers))
    expected = "".join(f"<{i}>" + "x" * 300 for i in range(200))
    assert all("".join(texts(client)) == expected for client, _ in readers)
    assert sum(renderings) <= 200, "each frame is joined once for all"


async def test_a_private_frame_leaves_the_others_sharing(make_rig, renderings) -> None:
    rig = make_rig(limit_rate=False)
    rig.prove()
    readers = [rig.attach(f"s{i}") for i in range(16)]
    requests = [rig.request() for _ in range(4)]
    for request, (_, attachment) in zip(requests, readers, strict=False):
        rig.hub.submit(attachment, request)
    for client, _ in readers:
        client.stalled = True
    rig.say(rig.stream("start"))
    for i in range(40):
        rig.say(rig.stream(f"<{i}>"))
        if i % 10 == 5:
            rig.say(rig.message(Channel.SHELL, "execute_reply", {}, requests[i // 10].header))
    renderings.clear()
    for client, _ in readers:
        client.resume()
    await caught_up(rig, *(attachment for _, attachment in readers))
    # Once for clients without private frames, once in pieces for those with a reply.
    assert sum(renderings) <= 2 * 44
    for i, (client, _) in enumerate(readers):
        assert "".join(texts(client)) == "start" + "".join(f"<{j}>" for j in range(40))
        replies = [m.parent_id for m in received(client) if m.msg_type == "execute_reply"]
        assert replies == ([requests[i].msg_id] if i < 4 else [])


async def test_what_is_kept_for_those_that_lag_is_let_go(make_rig, monkeypatch) -> None:
    monkeypatch.setattr(delivery, "_FRESH", 0.001)
    rig = make_rig(limit_rate=False)
    client, attachment = rig.attach("s")
    client.stalled = True
    for i in range(500):
        rig.say(rig.stream(f"<{i}>" + "x" * 1000))
    client.resume()
    await caught_up(rig, attachment)
    await until(lambda: not rig.renderer.caches, "chunks are let go")


async def test_sessions_that_are_parked_hold_back_no_more_than_the_journal_may_hold(
    make_rig, monkeypatch
) -> None:
    monkeypatch.setattr(client_sessions, "_REMEMBERED", 20)
    rig = make_rig(journal_limit=50_000, history_limit=1_000)
    reader, _ = rig.attach("reader")
    for i in range(60):
        _, attachment = rig.attach(f"once-{i}")
        rig.hub.detach(attachment)
        rig.say(*(rig.stream(f"<{i}>" + "x" * 1000) for _ in range(3)))
        assert rig.hub.journal.nbytes <= 50_000
        assert rig.hub.statistics()["clients"]["parked"] <= 20
    assert len(texts(reader)) == 180, "a client that reads must not miss anything"
    rig.clock.now += rig.hub.settings.resume_timeout + 1
    rig.say(rig.stream("later"))
    assert rig.hub.journal.nbytes <= 2_500, "it must not last forever"


# -- how much may come twice ----------------------------------------------------------------------


async def windowed(make_rig, monkeypatch, **more) -> tuple[Rig, Peer, object]:
    monkeypatch.setattr(cursor, "_WINDOW", 5000)
    monkeypatch.setattr(rendering, "CHUNK", 2000)
    rig = make_rig(**more)
    rig.prove()
    client, attachment = rig.attach("s", silent=True, verbatim=True)
    return rig, client, attachment


async def test_no_more_than_a_window_is_written_and_not_acknowledged(make_rig, monkeypatch) -> None:
    rig, client, attachment = await windowed(make_rig, monkeypatch)
    other, _ = rig.attach("other")
    for i in range(100):
        rig.say(rig.stream(f"<{i}>" + "x" * 500))
    assert len(texts(other)) == 100, "nobody else waits"
    assert 5 <= len(texts(client)) < 12
    while client.pings:
        client.hear(client.pings.pop(0))
        if not client.pings:
            rig.fire_ping_timer()
        assert attachment.place.nbytes - attachment.delivered.nbytes < 5000 + 2000 + 1000
    assert [text.split(">")[0] for text in texts(client)] == [f"<{i}" for i in range(100)]
    assert attachment.delivered == attachment.place == rig.hub.journal.end()
    assert not rig.awaits_ack(attachment)


async def test_who_answers_no_ping_is_written_to_after_a_while(make_rig, monkeypatch) -> None:
    monkeypatch.setattr(delivery, "ACK_TIMEOUT", 0.001)
    rig, client, attachment = await windowed(make_rig, monkeypatch)
    for i in range(100):
        rig.say(rig.stream(f"<{i}>" + "x" * 500))
    await until(lambda: len(texts(client)) == 100, "the rest")
    rig.say(rig.stream("more"))
    assert texts(client)[-1] == "more", "it waits once"
    client.hear(client.pings.pop(0))
    for i in range(100):
        rig.say(rig.stream(f"<{i}>" + "x" * 500))
    assert len(texts(client)) < 150, "after its answer, the window applies again"
    rig.hub.detach(attachment)
    assert not rig.awaits_ack(attachment)


async def test_turned_off_there_is_no_window(make_rig, monkeypatch) -> None:
    rig, client, _ = await windowed(make_rig, monkeypatch, acknowledge=False)
    for _ in range(100):
        rig.say(rig.stream("x" * 500))
    assert len(texts(client)) == 100


async def test_the_wait_for_a_pong_ends_with_the_hub(make_rig, monkeypatch) -> None:
    rig, _, attachment = await windowed(make_rig, monkeypatch)
    for _ in range(100):
        rig.say(rig.stream("x" * 500))
    assert rig.awaits_ack(attachment)
    await rig.hub.aclose()
    assert not rig.awaits_ack(attachment)


async def test_who_waits_for_a_pong_behind_a_full_socket_goes_on(make_rig, monkeypatch) -> None:
    rig, client, attachment = await windowed(make_rig, monkeypatch)
    client.stalled = True
    for i in range(50):
        rig.say(rig.stream(f"<{i}>" + "x" * 500))
    client.silent = False
    client.resume()
    for _ in range(50):
        rig.fire_ping_timer()
        await asyncio.sleep(0)
    assert [text.split(">")[0] for text in texts(client)] == [f"<{i}" for i in range(50)]
    assert attachment.delivered == rig.hub.journal.end()


# -- where a websocket begins ---------------------------------------------------------------------


async def test_a_new_session_may_take_up_a_running_cells_whole_output(rig) -> None:
    first, attachment = rig.attach("old-page")
    request = rig.request()
    rig.hub.submit(attachment, request)
    for i in range(5):
        rig.say(rig.stream(str(i), request.header))
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, request.header))
    page, _ = rig.attach("new-page", since="start")
    assert "".join(texts(page)) == "01234"
    assert kinds(page) == ["stream"], "joined; replies are for other clients"
    assert len(received(first)) == 6
    rig.say(rig.stream("5", request.header))
    assert "".join(texts(page)) == "012345"


async def test_who_says_what_it_saw_gets_what_came_after(rig) -> None:
    rig.attach("holds", silent=True)
    client, attachment = rig.attach("s", silent=True)
    for i in range(5):
        rig.say(rig.message(Channel.IOPUB, "comm_msg", {"n": i}))
    ids = [m.msg_id for m in received(client)]
    rig.hub.detach(attachment)
    for i, msg_id in enumerate(ids):
        again, attachment = rig.attach("s", since=msg_id)
        assert [m.msg_id for m in received(again)] == ids[i + 1 :]
        rig.hub.detach(attachment)
        by_number = str(rig.ack_origin + i)
        again, attachment = rig.attach("another", since=by_number)
        assert [m.msg_id for m in received(again)] == ids[i + 1 :]
        rig.hub.detach(attachment)


async def test_since_goes_before_what_the_session_is_known_to_have(rig) -> None:
    client, attachment = rig.attach("s")
    for i in range(3):
        rig.say(rig.message(Channel.IOPUB, "comm_msg", {"n": i}))
    rig.hub.detach(attachment)
    again, attachment = rig.attach("s", since=received(client)[0].msg_id)
    assert len(received(again)) == 2
    rig.hub.detach(attachment)
    again, attachment = rig.attach("s", since="start")
    assert len(received(again)) == 3
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert received(again) == []


@pytest.mark.parametrize("since", ["never-was", "-1", "99999999999999999999", "\ud800", " ", "0"])
async def test_what_is_not_known_is_answered_by_a_marker_and_all_that_is_held(rig, since) -> None:
    rig.say(rig.stream("held"))
    client, _ = rig.attach("s", since=since)
    marker, text = texts(client)
    assert MARKER.match(marker)
    assert text == "held"


async def test_what_is_not_known_is_answered_also_where_nothing_is_held(make_rig) -> None:
    rig = make_rig(history_limit=0)
    rig.prove()
    rig.attach("x")
    rig.say(rig.stream("gone"))
    client, _ = rig.attach("s", since="of-another-life")
    (marker,) = texts(client)
    assert MARKER.match(marker)
    rig.say(rig.stream("more"))
    assert texts(client) == [marker, "more"]


async def test_a_marker_that_has_not_arrived_comes_again(rig) -> None:
    rig.say(rig.stream("held"))
    client, attachment = rig.attach("s", since="of-another-life", silent=True)
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert len(texts(client)) == 2
    assert [bool(MARKER.match(text)) for text in texts(again)] == [True, False]


async def test_history_that_moved_on_is_told_and_counted(make_rig) -> None:
    rig = make_rig(history_limit=2000)
    rig.prove()
    _, attachment = rig.attach("s")
    rig.say(rig.stream("0"))
    seen = number(rig, attachment)
    rig.hub.detach(attachment)
    rig.clock.now += 9 * 3600  # no frames are kept for it
    for i in range(1, 50):
        rig.say(rig.stream(str(i)))
    again, _ = rig.attach("s", since=str(seen), verbatim=True)
    marker, *got = texts(again)
    match = MARKER.match(marker)
    assert match is not None
    assert got == [str(i) for i in range(50 - len(got), 50)]
    assert int(match[1]) == 49 - len(got)


@pytest.mark.parametrize("by", ["id", "seq"])
@pytest.mark.parametrize("beside", [False, True])
async def test_who_has_acknowledged_all_that_it_saw_is_told_of_no_gap(make_rig, by, beside) -> None:
    """The output since then exceeds history_limit, and is kept for the client nevertheless."""
    rig = make_rig(history_limit=1000)
    rig.prove()
    _, other = rig.attach("other")
    client, attachment = rig.attach("s")
    rig.say(rig.stream("seen"))
    if beside:
        request = rig.request()
        rig.hub.submit(other, request)
        rig.say(rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, request.header))
    assert attachment.delivered == rig.hub.journal.end()
    since = received(client)[-1].msg_id if by == "id" else str(number(rig, attachment))
    rig.hub.detach(attachment)
    for i in range(50):
        rig.say(rig.stream(str(i)))
    again, _ = rig.attach("s", since=since, verbatim=True)
    assert texts(again) == [str(i) for i in range(50)]


async def test_who_saw_the_marker_goes_on_behind_it(make_rig) -> None:
    rig = make_rig()
    rig.prove()
    rig.say(*(rig.stream(str(i)) for i in range(3)))
    client, _ = rig.attach("s", since="of-another-life")
    marker = received(client)[0]
    again, _ = rig.attach("t", since=marker.msg_id)
    assert "".join(texts(again)) == "012"


async def test_a_marker_stands_where_the_gap_is_and_who_saw_it_goes_on_there(make_rig) -> None:
    rig = make_rig(journal_limit=6000, history_limit=6000)
    rig.prove()
    rig.attach("holds", silent=True)
    for kind in "iiissi":  # retained frames 0, 1, 2, 5
        if kind == "i":
            rig.say(rig.message(Channel.IOPUB, "comm_msg", {}))
        else:
            rig.say(rig.stream("x" * 500))
    rig.say(*(rig.stream("y" * 500) for _ in range(10)))
    kept = [seq for seq, _, _ in rig.hub.journal._retained]
    assert kept == [0, 1, 2, 5], "the test needs these frames"
    client, _ = rig.attach("s", since="of-another-life", verbatim=True)
    seen = received(client)
    assert kinds(client)[:5] == [*["comm_msg"] * 4, "stream"]
    assert MARKER.match(json.loads(seen[4].content)["text"])
    for i, message in enumerate(seen):
        again, attachment = rig.attach("t", since=message.msg_id, verbatim=True)
        assert [m.msg_id for m in received(again)] == [m.msg_id for m in seen[i + 1 :]]
        rig.hub.detach(attachment)


async def test_what_is_private_stays_so_however_far_back_one_asks(rig) -> None:
    _, attachment = rig.attach("owner")
    request = rig.request()
    rig.hub.submit(attachment, request)
    reply = rig.message(Channel.SHELL, "execute_reply", {"status": "ok"}, request.header)
    rig.say(reply)
    rig.say(rig.stream("after"))
    for since in ("start", reply.msg_id, "never-was", str(number(rig, attachment) - 2)):
        stranger, _ = rig.attach(f"a stranger: {since}", since=since)
        assert "execute_reply" not in kinds(stranger)
        assert texts(stranger)[-1] == "after"
    again, _ = rig.attach("owner", since="start")
    assert kinds(again) == ["execute_reply", "stream"]


async def test_too_long_a_since_attaches_nobody(rig) -> None:
    _, first = rig.attach("s", silent=True)
    rig.say(rig.stream("x"))
    rig.hub.detach(first)
    with pytest.raises(InvalidRequest, match="since"):
        rig.attach("s", since="x" * 513)
    assert rig.hub.connections == 0
    again, _ = rig.attach("s")
    assert texts(again) == ["x"], "the session keeps its unread frames"


async def test_two_websockets_of_one_session_begin_and_acknowledge_each_for_itself(rig) -> None:
    one, first = rig.attach("s", silent=True)
    rig.say(rig.stream("0"), rig.stream("1"))
    two, second = rig.attach("s", since=received(one)[0].msg_id)
    assert texts(two) == ["1"]
    assert (behind(rig, first), behind(rig, second)) == (2, 0)
    rig.hub.detach(first)
    rig.hub.detach(second)
    again, _ = rig.attach("s")
    assert texts(again) == [], "the client receives the newest"


async def test_a_second_websocket_of_a_session_begins_where_the_first_is_known_to_be(rig) -> None:
    one, _ = rig.attach("s", silent=True)
    rig.say(rig.stream("0"))
    one.hear(one.pings.pop())
    rig.say(rig.stream("1"))
    two, _ = rig.attach("s")
    assert texts(two) == ["1"]


# -- fewer messages for who lags ------------------------------------------------------------------


async def lagging(rig: Rig, **more) -> Peer:
    parent = rig.request().header
    client, _ = rig.attach("slow", **more)
    client.stalled = True
    for i in range(20):
        rig.say(rig.stream(f"{i};", parent))
    client.resume()
    assert "".join(texts(client)) == "".join(f"{i};" for i in range(20))
    return client


async def test_who_lags_gets_it_joined(rig) -> None:
    client = await lagging(rig)
    assert len(texts(client)) == 2
    rig.say(*(rig.stream(f"{i};", rig.request().header) for i in range(20, 22)))
    assert len(texts(client)) == 4, "the client has caught up"


async def test_who_wants_each_by_itself_gets_that(rig) -> None:
    assert len(texts(await lagging(rig, verbatim=True))) == 20


async def test_by_the_older_policy_nothing_is_joined(make_rig) -> None:
    rig = make_rig(rate_limit_policy="drop")
    rig.prove()
    assert len(texts(await lagging(rig))) == 20


async def test_who_comes_back_gets_it_joined_and_others_do_not_notice(rig) -> None:
    parent = rig.request().header
    other, _ = rig.attach("other")
    _, attachment = rig.attach("s")
    rig.hub.detach(attachment)
    for i in range(5):
        rig.say(rig.stream(str(i), parent))
    again, _ = rig.attach("s")
    assert texts(again) == ["01234"]
    assert texts(other) == list("01234")
    last = received(other)[-1].msg_id
    assert received(again)[-1].msg_id == last
    third, _ = rig.attach("s", since=last)
    assert texts(third) == []


# -- what input is waited for ---------------------------------------------------------------------


def question(rig: Rig, request: Message, prompt: str = "?") -> Message:
    content = {"prompt": prompt, "password": False}
    return rig.message(Channel.STDIN, "input_request", content, request.header)


def answer(rig: Rig, asked: Message | None = None, value: str = "42") -> Message:
    parent = asked.header if asked else b"{}"
    return rig.message(Channel.STDIN, "input_reply", {"value": value}, parent)


def answers(rig: Rig) -> list[str]:
    return [json.loads(m.content)["value"] for m in rig.sent(Channel.STDIN)]


def asking(rig: Rig, session: str = "s") -> tuple[Peer, object, Message]:
    client, attachment = rig.attach(session)
    request = rig.request()
    rig.hub.submit(attachment, request)
    asked = question(rig, request)
    rig.say(asked)
    assert kinds(client) == ["input_request"]
    return client, attachment, asked


async def test_a_pending_question_is_asked_again_of_the_session_that_comes_back(rig) -> None:
    _, attachment, asked = asking(rig)
    rig.hub.detach(attachment)
    for _ in range(2):
        again, attachment = rig.attach("s")
        (got,) = received(again)
        assert got == asked
        rig.hub.detach(attachment)
    last, attachment = rig.attach("s")
    rig.hub.submit(attachment, answer(rig, received(last)[0], "forty-two"))
    assert answers(rig) == ["forty-two"]
    rig.hub.detach(attachment)
    done, _ = rig.attach("s")
    assert received(done) == []


async def test_a_question_that_has_not_arrived_is_delivered_once(rig) -> None:
    _, attachment = rig.attach("s", silent=True)
    request = rig.request()
    rig.hub.submit(attachment, request)
    rig.say(question(rig, request))
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert kinds(again) == ["input_request"]


async def test_a_question_is_nobody_elses(rig) -> None:
    _, attachment, _ = asking(rig)
    stranger, _ = rig.attach("stranger")
    rig.hub.detach(attachment)
    late, _ = rig.attach("late")
    nameless, _ = rig.attach("")
    assert [received(c) for c in (stranger, late, nameless)] == [[], [], []]


@pytest.mark.parametrize("named", [True, False])
async def test_a_second_answer_is_not_passed_on_of_whichever_client(rig, named) -> None:
    _, attachment, asked = asking(rig)
    _, other = rig.attach("other")
    rig.hub.submit(attachment, answer(rig, asked if named else None, "first"))
    for who in (attachment, other, attachment):
        assert rig.hub.submit(who, answer(rig, asked if named else None, "second")) is None
    assert answers(rig) == ["first"]


async def test_each_question_of_a_cell_is_answered_once(rig) -> None:
    _, attachment, first = asking(rig)
    rig.hub.submit(attachment, answer(rig, first, "1"))
    second = rig.message(Channel.STDIN, "input_request", {}, first.parent_header)
    rig.say(second)
    rig.hub.submit(attachment, answer(rig, first, "late"))
    rig.hub.submit(attachment, answer(rig, second, "2"))
    assert answers(rig) == ["1", "2"]


async def test_what_else_comes_on_stdin_is_no_answer(rig) -> None:
    _, attachment, asked = asking(rig)
    for parent in (asked.header, b"{}"):
        rig.hub.submit(attachment, rig.message(Channel.STDIN, "comm_msg", {}, parent))
    rig.hub.submit(attachment, answer(rig, asked))
    assert [m.msg_type for m in rig.sent(Channel.STDIN)].count("input_reply") == 1


async def test_an_answer_that_is_not_allowed_leaves_the_question_open(make_rig) -> None:
    rig = make_rig(allowed_message_types=("execute_request",))
    rig.prove()
    _, attachment, asked = asking(rig)
    rig.hub.submit(attachment, answer(rig, asked))
    assert answers(rig) == []
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert kinds(again) == ["input_request"]


@pytest.mark.parametrize("how", ["idle", "restarting", "dead", "replaced"])
async def test_a_question_that_nobody_waits_for_is_not_asked_again(rig, how) -> None:
    _, attachment, asked = asking(rig)
    if how == "idle":
        state = {"execution_state": "idle"}
        rig.say(rig.message(Channel.IOPUB, "status", state, asked.parent_header))
    elif how == "restarting":
        rig.kernel.disconnect()
        await rig.hub.restarting()
    elif how == "dead":
        rig.hub.dead()
    else:
        rig.kernel.disconnect()
        rig.process = "another"
        rig.prove()
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert "input_request" not in kinds(again)


async def test_the_idle_of_another_request_leaves_a_question_open(rig) -> None:
    _, attachment, _ = asking(rig)
    for parent in (rig.request().header, b"{}"):
        rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, parent))
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    assert "input_request" in kinds(again)


async def test_a_new_page_takes_over_a_question_whose_page_is_gone(rig) -> None:
    _, attachment, asked = asking(rig, "old-page")
    rig.hub.detach(attachment)
    page, attachment = rig.attach("new-page", since="start")
    assert kinds(page) == ["input_request"]
    rig.hub.detach(attachment)
    again, attachment = rig.attach("new-page")
    assert received(again) == [asked], "the request belongs to this session now"
    old, owner = rig.attach("old-page")
    assert received(old) == []
    rig.hub.submit(attachment, answer(rig, asked))
    rig.hub.submit(owner, answer(rig, asked))
    assert answers(rig) == ["42"]


async def test_a_question_whose_page_is_here_is_not_taken_over(rig) -> None:
    asking(rig, "page")
    other, _ = rig.attach("other", since="start")
    assert received(other) == []


@pytest.mark.parametrize("since", ["start", "never-was"])
async def test_a_question_that_history_has_forgotten_is_asked_of_who_begins_anew(
    make_rig, since
) -> None:
    rig = make_rig(history_limit=1000)
    rig.prove()
    _, attachment, _ = asking(rig)
    for _ in range(10):
        rig.say(rig.stream("y" * 300))
    rig.hub.detach(attachment)
    again, _ = rig.attach("s", since=since)
    assert kinds(again).count("input_request") == 1


@pytest.mark.parametrize("session", ["s", "new-page"])
async def test_a_question_that_is_held_comes_once_to_who_begins_anew(rig, session) -> None:
    _, attachment, _ = asking(rig)
    rig.hub.detach(attachment)
    again, _ = rig.attach(session, since="start")
    assert kinds(again).count("input_request") == 1


async def test_a_question_from_before_this_bridge_is_everybodys_and_comes_once(rig) -> None:
    """Only the earlier bridge knew which client made the request."""
    here, _ = rig.attach("here")
    rig.say(question(rig, rig.request()))
    page, attachment = rig.attach("page", since="start")
    assert kinds(here) == kinds(page) == ["input_request"]
    rig.hub.detach(attachment)
    again, _ = rig.attach("page", since=received(page)[0].msg_id)
    assert kinds(again) == [], "the marker names that message"


async def test_a_question_behind_a_flood_is_asked_again_all_the_same(make_rig, monkeypatch) -> None:
    """A kernel that waits for input sends nothing, so the request must not wait for messages."""
    rig = make_rig(limit_rate=True, iopub_msg_rate_limit=10.0, rate_limit_window=1.0)
    rig.prove()
    _, attachment = rig.attach("s")
    request = rig.request()
    rig.hub.submit(attachment, request)
    rig.say(*(rig.stream(str(i), request.header) for i in range(100)))
    rig.say(question(rig, request))
    calm(rig)
    rig.hub.detach(attachment)
    again, _ = rig.attach("s")
    calm(rig)
    assert kinds(again) == ["input_request"]


@pytest.mark.parametrize("since", ["", "seq"])
async def test_a_question_that_is_forgotten_before_it_arrived_is_asked_all_the_same(
    make_rig, since
) -> None:
    rig = make_rig(history_limit=1000, resume_timeout=60.0)
    rig.prove()
    _, attachment = rig.attach("s")
    rig.say(rig.stream("seen"))
    seen = str(number(rig, attachment)) if since else ""
    request = rig.request()
    rig.hub.submit(attachment, request)
    rig.hub.detach(attachment)
    asked = question(rig, request)
    rig.say(asked)
    rig.clock.now += 61
    for _ in range(10):
        rig.say(rig.stream("y" * 300))
    again, _ = rig.attach("s", since=seen)
    assert received(again).count(asked) == 1


async def test_all_questions_are_asked_again_of_a_websocket_that_is_full_at_once(rig) -> None:
    _, attachment = rig.attach("s")
    asked = []
    for i in range(3):
        request = rig.request()
        rig.hub.submit(attachment, request)
        asked.append(question(rig, request, str(i)))
        rig.say(asked[-1])
    rig.hub.detach(attachment)
    client = Peer()
    client.stalled = True
    rig.hub.attach(client, V1, "s")
    client.resume()
    assert received(client) == asked


# -- what comes too fast --------------------------------------------------------------------------


def calm(rig: Rig) -> list[float]:
    """Let time pass until no output is held; return the times of writes."""
    while rig.paced:
        rig.clock.now += 0.05
        rig.fire_pace_timer()
    return []


def stream_text(client: Peer) -> str:
    return "".join(text for text in texts(client) if not MARKER.match(text))


async def test_too_many_messages_arrive_joined_and_whole(make_rig) -> None:
    rig = make_rig(limit_rate=True, iopub_msg_rate_limit=100.0, rate_limit_window=1.0)
    rig.prove()
    client, _ = rig.attach("s")
    exact, _ = rig.attach("t", verbatim=True)
    parent = rig.request().header
    expected = ""
    for i in range(200):
        rig.say(*(rig.stream(f"{i}.{j};", parent) for j in range(10)))
        expected += "".join(f"{i}.{j};" for j in range(10))
        rig.clock.now += 0.01
    assert rig.hub.statistics()["pace"]["flooding"]
    calm(rig)
    assert stream_text(client) == stream_text(exact) == expected
    assert len(texts(client)) < 300
    assert len(texts(exact)) == 2000


async def test_what_is_no_flood_is_not_joined(make_rig) -> None:
    rig = make_rig(limit_rate=True, iopub_msg_rate_limit=1000.0, rate_limit_window=1.0)
    rig.prove()
    client, _ = rig.attach("s")
    parent = rig.request().header
    rig.say(*(rig.stream("x", parent) for _ in range(10)))
    assert len(texts(client)) == 10


@pytest.mark.parametrize("dialect", [V1, LEGACY], ids=["v1", "legacy"])
async def test_too_much_data_arrives_paced_all_of_it_and_in_order(make_rig, dialect) -> None:
    rig = make_rig(limit_rate=True, iopub_data_rate_limit=10_000.0, rate_limit_window=1.0)
    rig.prove()
    wire = Wire(rig, dialect)
    wire.come("s")
    request = wire.submit()
    for i in range(20):
        rig.say(rig.stream(f"<{i}>" + "x" * 2000, request.header))
    rig.say(rig.message(Channel.SHELL, "execute_reply", {"t": 20}, request.header))
    rig.say(question(rig, request))
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, request.header))
    wire.arrive()
    early = len(wire.seen)
    assert 0 < early < 10
    begun = rig.clock.now
    calm(rig)
    wire.arrive()
    assert [m.kind for m in wire.seen[-3:]] == ["execute_reply", "input_request", "status"]
    text = "".join(m.text for m in wire.seen)
    assert re.findall(r"<(\d+)>", text) == [str(i) for i in range(20)]
    assert text.count("x") == 40_000
    assert rig.clock.now - begun > 2.0


@pytest.mark.parametrize("how", ["restarting", "dead"])
async def test_when_the_kernel_ends_nobody_waits_to_hear_of_it(make_rig, how) -> None:
    rig = make_rig(
        limit_rate=True,
        iopub_data_rate_limit=1000.0,
        iopub_msg_rate_limit=10.0,
        rate_limit_window=1.0,
    )
    rig.prove()
    client, _ = rig.attach("s")
    parent = rig.request().header
    for i in range(50):
        rig.say(rig.stream(f"<{i}>" + "x" * 100, parent))
    assert len(re.findall(r"<\d+>", stream_text(client))) < 30
    rig.kernel.disconnect()
    if how == "dead":
        rig.hub.dead()
    else:
        await rig.hub.restarting()
    assert re.findall(r"<(\d+)>", stream_text(client)) == [str(i) for i in range(50)]
    assert json.loads(received(client)[-1].content) == {"execution_state": how}


async def test_state_behind_one_large_text_does_not_wait_for_what_has_gone(make_rig) -> None:
    rig = make_rig(limit_rate=True, iopub_data_rate_limit=1000.0)
    rig.prove()
    client, _ = rig.attach("s")
    rig.say(rig.stream("x" * 100_000))
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}))
    assert kinds(client) == ["stream", "status"]


async def test_who_is_not_paced_gets_all_at_once_and_each_message_by_itself(make_rig) -> None:
    rig = make_rig(limit_rate=True, iopub_data_rate_limit=1000.0, iopub_msg_rate_limit=10.0)
    rig.prove()
    page, _ = rig.attach()
    program, _ = rig.attach(paced=False)
    said = [f"{n:0100}" for n in range(200)]
    for text in said:
        rig.say(rig.stream(text))
    assert texts(program) == said
    assert len("".join(texts(page))) < 5000


async def test_a_paced_flood_past_the_journals_limit_is_one_marker_a_window_and_exact(
    make_rig,
) -> None:
    rig = make_rig(
        limit_rate=True,
        iopub_data_rate_limit=10_000.0,
        rate_limit_window=3.0,
        journal_limit=50_000,
        history_limit=0,
        rate_limit_policy="coalesce",
    )
    rig.prove()
    client, _ = rig.attach("s", verbatim=True)
    parent = rig.request().header
    begun, said = rig.clock.now, 0
    sizes: list[int] = []
    for _ in range(400):  # 20 seconds at five times the limit
        before = rig.hub.journal.appended
        rig.say(rig.stream(f"<{said}>" + "x" * 2000, parent))
        sizes.append(rig.hub.journal.appended - before)
        said += 1
        rig.clock.now += 0.05
        rig.kernel.drain()
    rig.say(rig.message(Channel.IOPUB, "status", {"execution_state": "idle"}, parent))
    calm(rig)
    took = rig.clock.now - begun
    seqs, at, told, nbytes = [], -1, 0, 0
    markers = 0
    for message in received(client):
        if message.msg_type != "stream":
            continue
        text = json.loads(message.content)["text"]
        match = MARKER.match(text)
        if match:
            markers += 1
            told += int(match[1].replace(",", ""))
            nbytes += int(match[2].replace(",", ""))
            assert message.parent_header == parent
        else:
            seqs.append(int(text[1 : text.index(">")]))
            at = seqs[-1]
            missing = set(range(at + 1)) - set(seqs)
            assert len(missing) == told, "a marker comes before the frames behind its gap"
    assert seqs == sorted(seqs)
    assert seqs[-1] == said - 1
    assert told == said - len(seqs)
    assert nbytes == sum(sizes) - sum(sizes[i] for i in seqs)
    assert 1 <= markers <= took / 3.0 + 1
    assert kinds(client)[-1] == "status"


async def test_who_comes_while_output_is_held_gets_it_at_the_same_pace(make_rig) -> None:
    rig = make_rig(limit_rate=True, iopub_data_rate_limit=1000.0, rate_limit_window=1.0)
    rig.prove()
    first, _ = rig.attach("s")
    for i in range(10):
        rig.say(rig.stream(f"<{i}>" + "x" * 500, rig.request().header))
    second, _ = rig.attach("t", since="start")
    assert stream_text(second) == stream_text(first)
    calm(rig)
    assert stream_text(second) == stream_text(first)
    assert re.findall(r"<(\d+)>", stream_text(second)) == [str(i) for i in range(10)]


# -- whatever happens to the connection -----------------------------------------------------------


class Seen:
    """A message that a client received."""

    def __init__(self, msg: Message) -> None:
        content = json.loads(msg.content)
        self.kind = msg.msg_type
        self.msg_id = msg.msg_id
        self.text = content.get("text", "")
        self.marker = MARKER.match(self.text)
        # Numbers are in the text of streams, joined or not, and in a field of other messages.
        if self.kind == "stream":
            self.tokens = [] if self.marker else [int(t) for t in re.findall(r"<(\d+)>", self.text)]
        else:
            self.tokens = [content["t"]] if "t" in content else []


class Wire:
    """A client behind a network that may break at any point."""

    def __init__(self, rig: Rig, dialect: Dialect) -> None:
        self.rig = rig
        self.dialect = dialect
        self.seen: list[Seen] = []
        self.pinged: tuple[str, int] | None = None  # the last number, and the messages seen by then
        self.peer: Peer | None = None
        self.attachment = None
        self.pongs: list[bytes] = []
        self.at = 0

    def come(self, session: str, since: str = "") -> None:
        self.peer, self.attachment = self.rig.attach(
            session, self.dialect, silent=True, since=since
        )
        self.pongs, self.at = [], 0

    def submit(self) -> Message:
        request = self.rig.request()
        self.rig.hub.submit(self.attachment, request)
        return request

    def arrive(self, nbytes: int | None = None) -> None:
        """Let some of the written bytes arrive."""
        assert self.peer is not None
        stop = len(self.peer.written) if nbytes is None else self.at + nbytes
        for size, opcode, payload in whole_frames(self.peer.written, self.at, stop):
            self.at += size
            if opcode == PING:
                self.pongs.append(payload)
                self.pinged = (payload.decode(), len(self.seen))
            else:
                decode = v1.decode if self.dialect is V1 else legacy.decode
                data = payload if opcode == 2 else payload.decode()
                self.seen.append(Seen(decode(data)))

    def pong(self) -> None:
        while self.pongs:
            self.peer.hear(self.pongs.pop(0))

    def resume(self) -> None:
        if self.attachment.blocked:
            self.peer.resume()
        self.peer.stalled = False

    def cut(self):
        """Break the connection and drop data in transit; the server has not noticed it yet."""
        self.peer.closed = True
        return self.attachment

    @property
    def tokens(self) -> list[int]:
        return [token for one in self.seen for token in one.tokens]


def whole_frames(data: bytearray, at: int, stop: int) -> Iterator[tuple[int, int, bytes]]:
    while at + 2 <= min(stop, len(data)):
        length, start = data[at + 1], at + 2
        if length == 126:
            length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif length == 127:
            length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        if start + length > min(stop, len(data)):
            return
        yield start + length - at, data[at] & 0x0F, bytes(data[start : start + length])
        at = start + length


class Story:
    """A kernel that counts, and a client whose connection breaks repeatedly."""

    def __init__(self, dialect: Dialect, session: str, how: str, **more) -> None:
        self.rig = Rig(HubSettings(**{"limit_rate": False, **more}))
        self.rig.prove()
        self.wire = Wire(self.rig, dialect)
        self.session, self.how = session, how
        self.count = 0
        self.owed: list[int] = []
        self.wire.come(session, "start" if how else "")
        self.other = self.rig.attach("another")[1]
        self.cell = self.rig.request().header
        self.expected_from = 0

    def token(self, *, owed: bool = True) -> int:
        self.count += 1
        if owed:
            self.owed.append(self.count - 1)
        return self.count - 1

    def say(self, kinds: list[str]) -> None:
        for kind in kinds:
            rig = self.rig
            if kind == "stream":
                text = f"<{self.token()}>" + "." * (self.count % 7)
                rig.say(rig.stream(text, self.cell))
            elif kind == "burst":
                rig.say(*(rig.stream(f"<{self.token()}>", self.cell) for _ in range(5)))
            elif kind == "comm":
                rig.say(rig.message(Channel.IOPUB, "comm_msg", {"t": self.token()}, self.cell))
            elif kind == "mine":
                request = self.wire.submit() if not self.wire.peer.closed else None
                if request is not None:
                    owed = bool(self.session)
                    # Without a session, a client cannot resume.
                    content = {"t": self.token(owed=owed)}
                    rig.say(rig.message(Channel.SHELL, "execute_reply", content, request.header))
            else:
                request = rig.request()
                rig.hub.submit(self.other, request)
                content = {"t": self.token(owed=False)}
                rig.say(rig.message(Channel.SHELL, "execute_reply", content, request.header))

    def reconnect(self, late: bool, missed: list[str]) -> None:
        wire, since = self.wire, ""
        gone = wire.cut()
        if not late:
            self.rig.hub.detach(gone)
        self.say(missed)
        if self.how == "id":
            since = wire.seen[-1].msg_id if wire.seen else "start"
        elif self.how == "seq":
            since, seen = wire.pinged or ("start", 0)
            del wire.seen[seen:]  # it knows no later number, so these count as unread
        wire.come(self.session, since)
        if late:
            self.rig.hub.detach(gone)

    def play(self, steps) -> None:
        wire, rig = self.wire, self.rig
        for what, how in steps:
            if what == "say":
                self.say(how)
            elif what == "arrive":
                wire.arrive(how)
            elif what == "pong":
                wire.pong()
            elif what == "keepalive":
                wire.peer.hear(b"")
            elif what == "stall":
                wire.peer.stalled = True
            elif what == "resume":
                wire.resume()
            elif what == "tick":
                rig.clock.now += how
                rig.fire_pace_timer()
            elif what == "ask":
                rig.fire_ping_timer()
            else:
                self.reconnect(*how)

    def finish(self) -> None:
        """Deliver all outstanding frames."""
        wire = self.wire
        for _ in range(10_000):
            wire.resume()
            wire.arrive()
            wire.pong()
            self.rig.clock.now += 0.05
            self.rig.fire_pace_timer()
            attachment = wire.attachment
            if (
                wire.at == len(wire.peer.written)
                and attachment.place == attachment.delivered == self.rig.hub.journal.end()
            ):
                return
            self.rig.fire_ping_timer()
        raise AssertionError("the client never receives everything")


SAYS = st.lists(
    st.sampled_from(["stream", "stream", "burst", "comm", "mine", "theirs"]), max_size=6
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), SAYS),
        st.tuples(st.just("arrive"), st.one_of(st.none(), st.integers(0, 1500))),
        st.tuples(st.just("arrive"), st.none()),
        st.tuples(st.just("pong"), st.none()),
        st.tuples(st.just("keepalive"), st.none()),
        st.tuples(st.just("stall"), st.none()),
        st.tuples(st.just("resume"), st.none()),
        st.tuples(st.just("ask"), st.none()),
        st.tuples(st.just("tick"), st.sampled_from([0.01, 0.06, 1.0])),
        st.tuples(st.just("cut"), st.tuples(st.booleans(), SAYS)),
    ),
    max_size=40,
)
LIMITS = st.sampled_from(
    [
        {},
        {"acknowledge": True, "rate_limit_policy": "drop"},
        {"limit_rate": True, "iopub_msg_rate_limit": 10.0, "rate_limit_window": 1.0},
        {"limit_rate": True, "iopub_data_rate_limit": 5000.0, "rate_limit_window": 1.0},
    ]
)
SMALL = (
    (rendering, "CHUNK", 900),
    (delivery, "_JOINED", 700),
    (delivery, "_TURN", 1 << 40),  # a story runs in one turn of the loop
    (delivery, "_AT_ONCE", 1 << 40),
)


def told(steps, *args, check, **more) -> None:
    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            for module, name, value in SMALL:
                patch.setattr(module, name, value)
            patch.setattr(cursor, "_WINDOW", 4000)
            story = Story(*args, **more)
            try:
                story.play(steps)
                story.finish()
                check(story)
            finally:
                await story.rig.hub.aclose()

    asyncio.run(run())


@settings(max_examples=200, deadline=None)
@given(
    STEPS,
    st.sampled_from([V1, LEGACY]),
    st.sampled_from([("s", "id"), ("s", "seq"), ("", "id"), ("", "seq")]),
    LIMITS,
)
def test_who_says_what_it_saw_gets_all_and_nothing_twice_wherever_it_is_cut(
    steps, dialect, who, limits
) -> None:
    def check(story: Story) -> None:
        mine = set(story.owed)
        got = [t for t in story.wire.tokens if t in mine]
        assert got == story.owed
        assert len(story.wire.tokens) == len(set(story.wire.tokens))
        assert not [one.text for one in story.wire.seen if one.marker]

    told(steps, dialect, *who, check=check, **limits)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from([V1, LEGACY]), LIMITS)
def test_who_comes_back_as_the_same_session_misses_nothing_wherever_it_is_cut(
    steps, dialect, limits
) -> None:
    def check(story: Story) -> None:
        first: list[int] = []
        seen: set[int] = set()
        for token in story.wire.tokens:
            if token not in seen:
                first.append(token)
                seen.add(token)
        assert first == story.owed, "all messages in order, apart from repeated ones"

    told(steps, dialect, "s", "", check=check, **limits)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from([V1, LEGACY]), st.sampled_from(["", "seq"]))
def test_what_a_small_journal_has_forgotten_is_told_and_state_is_not_forgotten(
    steps, dialect, how
) -> None:
    def check(story: Story) -> None:
        seen, tokens = story.wire.seen, story.wire.tokens
        missing = set(story.owed) - set(tokens)
        if missing:
            assert any(one.marker for one in seen), "the gap is not reported"
        if how:
            assert len(tokens) == len(set(tokens)), "twice"
        for before, after in itertools.pairwise(seen):
            if before.kind == after.kind == "stream" and before.tokens and after.tokens:
                lost = set(range(before.tokens[-1] + 1, after.tokens[0])) & missing
                assert not lost, "an unreported gap between two texts"

    told(steps, dialect, "s", how, check=check, journal_limit=6000, history_limit=1000)


# -- a journal that is younger than its kernel ------------------------------------------------


@pytest.mark.parametrize("adopted", [True, False])
async def test_who_comes_back_to_another_bridge_gets_what_was_said_since(
    adopted,
) -> None:
    rig = Rig(HubSettings(limit_rate=False), adopted=adopted)
    rig.prove()
    mine, other = (
        build(Channel.SHELL, "execute_request", {}, session=s, date="now").header
        for s in ("mine", "another's")
    )
    rig.say(rig.stream("not mine", other))
    rig.say(rig.stream("1", mine), rig.stream("2", mine))
    client, _ = rig.attach("mine", verbatim=True)
    rig.say(rig.stream("3", mine))
    assert texts(client)[-1] == "3"
    assert texts(client)[:-1] == (["1", "2"] if adopted else [])
    new, _ = rig.attach("nobody's")
    assert texts(new) == [], "a session without requests starts at the end"
    await rig.hub.aclose()


async def test_who_comes_back_to_another_bridge_sees_the_marker_in_its_cell() -> None:
    rig = Rig(HubSettings(limit_rate=False), adopted=True)
    rig.prove()
    mine = build(Channel.SHELL, "execute_request", {}, session="mine", date="now").header
    rig.say(rig.stream("late", mine))
    client, _ = rig.attach("mine", verbatim=True)
    marker, late = texts(client)
    assert "restarted" in marker
    assert late == "late"
    await rig.hub.aclose()


async def test_the_first_notice_of_another_bridge_says_that_the_server_was_restarted() -> None:
    rig = Rig(HubSettings(limit_rate=False, history_limit=1000), adopted=True)
    rig.prove()
    quiet, _ = rig.attach(since="an-id-of-before")
    rig.say(rig.stream("1"))
    (notice, said) = texts(quiet)
    assert "the server was restarted" in notice
    assert "fell behind" not in notice
    assert "_limit" not in notice
    assert said == "1"
    for n in range(100):
        rig.say(rig.stream(f"{n:0100}"))
    late, _ = rig.attach(since="an-id-of-before")
    assert "the server was restarted, or" in texts(late)[0], (
        "the id must not be from an earlier bridge"
    )
    assert "history_limit" in texts(late)[0]
    await rig.hub.aclose()


# -- messages of one wake-up ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_rate": True, "iopub_data_rate_limit": 200.0},
        {"limit_rate": True, "rate_limit_policy": "drop", "iopub_msg_rate_limit": 3.0},
        {"allow_tracebacks": False},
    ],
    ids=["no limit", "paced", "dropping", "hiding tracebacks"],
)
async def test_messages_that_come_together_are_delivered_as_if_they_came_alone(
    make_rig, options
) -> None:
    parents = [json.dumps({"msg_id": name, "session": name}).encode() for name in "ab"]

    def said(rig: Rig) -> list[Message]:
        streams = [rig.stream(f"{i} {'x' * i}\n", parents[i // 8]) for i in range(16)]
        error = rig.message(Channel.IOPUB, "error", {"traceback": ["secret"]}, parents[0])
        display = rig.message(Channel.IOPUB, "display_data", {"data": {}}, parents[1])
        return [*streams[:3], error, *streams[3:9], display, *streams[9:]]

    results = []
    for together in (True, False):
        rig = make_rig(**options)
        rig.prove()
        client, _ = rig.attach("s", verbatim=True)
        messages = said(rig)
        if together:
            rig.say(*messages)
        else:
            for msg in messages:
                rig.say(msg)
        while rig.paced:
            rig.clock.now += 1
            rig.fire_pace_timer()
        results.append([(m.msg_type, m.parent_header, m.content) for m in received(client)])
    assert results[0] == results[1]
    assert sum(kind == "error" for kind, _, _ in results[0]) == 1


async def test_the_cut_of_a_running_request_is_shown_before_its_first_texts(make_rig) -> None:
    rig = Rig(HubSettings(limit_rate=False), adopted=True)
    try:
        rig.prove()
        client, _ = rig.attach("s", since="start")
        parent = json.dumps({"msg_id": "before", "session": "s"}).encode()
        rig.say(*(rig.stream(text, parent) for text in ("a", "b", "c")))
        shown = texts(client)
        assert shown[-3:] == ["a", "b", "c"]
        assert len(shown) == 4, "the notice comes once, before them"
    finally:
        await rig.hub.aclose()
