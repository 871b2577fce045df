"""The position where a client resumes after naming its last received message."""

import json

import pytest

from kbridge.errors import InvalidRequest
from kbridge.flow.executions import Execution, Executions
from kbridge.flow.journal import EVERYONE, Gap, Journal, Place
from kbridge.hub.broadcast.resume import START, ResumePoint, before_requests, resolve_since
from kbridge.hub.notices import Notices
from kbridge.hub.recovered import Life, Lives
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message, message_key
from kbridge.wire.v1 import encode_frame
from tests.hub.rig import StoppedClock

ORIGIN = 5_000_000


def stream(msg_id: str, text: str = "x", **more) -> Message:
    return build(
        Channel.IOPUB,
        "stream",
        {"name": "stdout", "text": text},
        session="k",
        date="now",
        msg_id=msg_id,
        **more,
    )


class Desk:
    def __init__(self, limit: int = 1 << 20, history: int = 1 << 20) -> None:
        self.notices = Notices(StoppedClock())
        self.journal = Journal(limit, history)

    def say(self, *msg_ids: str, state: bool = False, audience: int = EVERYONE) -> None:
        for msg_id in msg_ids:
            self.append(stream(msg_id), audience, state=state)

    def append(self, msg: Message, audience: int = EVERYONE, *, state: bool = False) -> None:
        key = message_key(msg.header)
        self.journal.append(encode_frame(msg), audience, state=state, key=key)

    def locate(self, since: str):
        lives = Lives([], Life(ORIGIN, 0, self.notices.markers), 0)
        return resolve_since(self.journal, since, lives)

    def seen(self, seq: int) -> ResumePoint:
        """Check that all frames before a sequence number count as received."""
        found = self.journal.after_seq(seq - 1)
        assert found is not None
        return ResumePoint(found, exact=True)

    def gap(self, since: str) -> Gap | None:
        """Return the gap that is reported to a client at that position."""
        found, gaps = self.locate(since).place, []
        while (stretch := self.journal.read(found, 1 << 30)) is not None:
            gaps += [stretch.gap] if stretch.gap else []
            found = stretch.end
        assert len(gaps) <= 1
        return gaps[0] if gaps else None


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    made.say(*(f"id-{i}" for i in range(10)))
    return made


def test_start_is_all_that_is_held(desk) -> None:
    assert desk.locate(START) == ResumePoint(Place(0, 0, 0), exact=False)
    assert desk.gap(START) is None


def test_start_says_what_is_not_held_any_more(desk) -> None:
    size = desk.journal.nbytes // 10
    desk.journal.history_limit = 4 * size
    desk.journal.trim(10)
    assert desk.locate(START).place.seq == 6
    gap = desk.gap(START)
    assert (gap.messages, gap.nbytes) == (6, 6 * size)


@pytest.mark.parametrize("i", range(10))
def test_an_id_and_a_number_say_the_same(desk, i) -> None:
    assert desk.locate(f"id-{i}") == desk.seen(i + 1)
    assert desk.locate(str(ORIGIN + i)) == desk.seen(i + 1)
    assert desk.gap(f"id-{i}") is None


@pytest.mark.parametrize(
    ("requests", "seq"),
    [
        (["first"], 2),
        (["second"], 5),
        (["second", "first"], 2),
        (["waiting", "second"], 5),
        (["waiting"], 10),
        (["first", "no such id"], 0),
        ([], 10),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_before_requests_is_before_the_first_message_of_the_earliest(desk, requests, seq) -> None:
    executions = Executions(
        [Execution("first", 1, first=2), Execution("second", 1, first=5), Execution("waiting", 1)]
    )
    assert before_requests(desk.journal, executions, requests) == desk.journal.after_seq(seq - 1)


def test_before_a_request_that_is_not_held_any_more_is_a_gap(desk) -> None:
    desk.journal.history_limit = 0
    desk.journal.trim(6)
    place = before_requests(desk.journal, Executions([Execution("a", 1, first=2)]), ["a"])
    assert (place.seq, place.frames) == (6, 2)
    assert desk.journal.read(place, 1 << 20).gap.messages == 4


def test_an_id_is_not_found_in_anothers(desk) -> None:
    desk.say("id-1-and-more", "more-and-id-1")
    desk.append(stream("late", parent_header=stream("id-3").header))
    desk.append(stream("last", text="id-4"))
    desk.append(stream("id-5-b", parent_header=stream("id-5").header))
    desk.append(stream("a-id-6", parent_header=stream("id-6").header))
    for i in (1, 3, 4, 5, 6):
        assert desk.locate(f"id-{i}") == desk.seen(i + 1)


@pytest.mark.parametrize("msg_id", ["é-ü", 'a"quote', "back\\slash", "\U0001f600", "a/b c"])
def test_an_id_may_be_any_text_however_it_is_written(desk, msg_id) -> None:
    desk.say(msg_id)
    header = json.dumps({"msg_id": msg_id + "2"}, ensure_ascii=False).encode()
    desk.append(stream("")._replace(header=header))
    desk.say("after")
    assert desk.locate(msg_id) == desk.seen(11)
    assert desk.locate(msg_id + "2") == desk.seen(12)


@pytest.mark.parametrize(
    "since",
    [
        "never-was",
        str(ORIGIN + 10),
        str(ORIGIN + 1_000_000),
        str(ORIGIN - 2),
        "0",
        "9" * 500,
        "-1",
        "1.5",
        "²",
        "٣",
        "\x00",
        "\ud800",
        "é",
        '"',
        "{}",
        "id",
    ],
    ids=ascii,
)
def test_what_is_not_known_is_a_gap_of_nobody_knows_how_much(desk, since) -> None:
    place, exact = desk.locate(since)
    assert (place.seq, exact) == (0, False)
    gap = desk.gap(since)
    assert gap is not None
    assert (gap.messages, gap.nbytes) == (0, 0)


def test_a_number_before_what_is_held_says_how_many_are_missing(desk) -> None:
    desk.journal.history_limit = 0
    desk.journal.trim(6)
    assert desk.locate(str(ORIGIN + 2)).exact
    gap = desk.gap(str(ORIGIN + 2))
    assert (gap.messages, gap.nbytes) == (3, 0)


def test_the_last_that_was_forgotten_leaves_no_gap(desk) -> None:
    desk.journal.history_limit = 0
    desk.journal.trim(6)
    assert desk.locate(str(ORIGIN + 5)) == desk.seen(6)
    assert desk.gap(str(ORIGIN + 5)) is None


def test_an_id_that_was_forgotten_is_a_gap(desk) -> None:
    desk.journal.history_limit = 0
    desk.journal.trim(6)
    assert not desk.locate("id-2").exact
    assert desk.locate("id-2").place.seq == 6
    assert desk.gap("id-2") is not None


def test_who_names_a_number_is_given_nothing_from_before_it() -> None:
    """Retained frames before the number were received; some later output was dropped."""
    desk = Desk(limit=2000)
    desk.say("seen-0", state=True)
    desk.say("seen-1")
    desk.say("new-2", state=True)
    desk.say(*(f"id-{i}" for i in range(3, 30)))
    kept = [seq for seq, _, _ in desk.journal._retained]
    assert kept == [0, 2], "the test needs these frames"
    place, exact = desk.locate(str(ORIGIN + 1))
    assert exact
    stretch = desk.journal.read(place, 1 << 30)
    assert stretch is not None
    assert stretch.end.seq == 3
    gap = desk.gap(str(ORIGIN + 1))
    assert gap is not None
    assert gap.messages == desk.journal.first_seq - 3


def test_too_long_to_be_an_id_is_refused(desk) -> None:
    assert not desk.locate("x" * 512).exact
    with pytest.raises(InvalidRequest, match="512") as caught:
        desk.locate("x" * 513)
    assert caught.value.close_code == 1008


@pytest.mark.parametrize("behind", [-1, 0, 4, 9])
def test_a_markers_id_says_where_it_stands(desk, behind) -> None:
    marker = desk.notices.lost(Gap(0, 0, b""), b"{}", behind)
    assert desk.locate(marker.msg_id) == desk.seen(behind + 1)


def test_another_bridges_marker_is_not_known(desk) -> None:
    marker = Notices(StoppedClock()).lost(Gap(0, 0, b""), b"{}", 4)
    assert not desk.locate(marker.msg_id).exact
    assert desk.gap(marker.msg_id) is not None


def test_ids_of_digits_are_ids_where_they_are_no_numbers_of_this_life(desk) -> None:
    desk.say("7", "8")
    assert desk.locate("7") == desk.seen(11)


def test_an_empty_journal_has_a_place_for_everybody() -> None:
    desk = Desk()
    assert desk.gap(START) is None
    assert desk.locate("of-another-life").place.seq == 0
    assert desk.gap("of-another-life") is not None
