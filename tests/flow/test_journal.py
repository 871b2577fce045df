"""The ring: its bound, its readers' places, what is forgotten and in which order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.journal import EVERYONE, Journal, Place

ALL = 1 << 30


def read_all(journal: Journal, place: Place, client: int = 1, chunk: int = ALL):
    """Frames, gaps, and the place where it ends."""
    frames: list[bytes] = []
    gaps = []
    while (stretch := journal.read(place, chunk)) is not None:
        if stretch.gap:
            gaps.append(stretch.gap)
        frames += stretch.frames_for(client)
        assert stretch.end != place, "a read that does not move on never ends"
        place = stretch.end
    return frames, gaps, place


def test_a_reader_gets_what_comes_after_it_came() -> None:
    journal = Journal(1000, 100)
    journal.append(b"early")
    place = journal.end()
    assert journal.read(place, ALL) is None
    journal.append(b"one")
    journal.append(b"two")
    assert read_all(journal, place)[0] == [b"one", b"two"]


def test_private_frames_are_for_their_client_only() -> None:
    journal = Journal(1000, 100)
    place = journal.end()
    journal.append(b"all")
    journal.append(b"yours", audience=1)
    journal.append(b"theirs", audience=2)
    assert read_all(journal, place, client=1)[0] == [b"all", b"yours"]
    assert read_all(journal, place, client=2)[0] == [b"all", b"theirs"]


def test_a_stretch_ends_with_the_frame_that_reaches_the_bound() -> None:
    journal = Journal(1000, 100)
    place = journal.end()
    for _ in range(5):
        journal.append(b"x" * 10)
    stretch = journal.read(place, 25)
    assert stretch is not None
    assert len(stretch.frames) == 3
    assert stretch.end == Place(3, 3, 30)


def test_history_is_kept_once_everybody_has_passed() -> None:
    journal = Journal(1000, 50)
    for i in range(30):
        journal.append(b"%010d" % i)
    journal.trim(journal.next_seq)
    assert journal.nbytes == 50
    assert journal.forgotten == 0
    late = Place(0, 0, 0)
    frames, gaps, _ = read_all(journal, late)
    assert frames == [b"%010d" % i for i in range(25, 30)]
    assert [(g.messages, g.nbytes) for g in gaps] == [(25, 250)]


def test_nothing_that_somebody_has_yet_to_read_is_trimmed() -> None:
    journal = Journal(1000, 0)
    for i in range(30):
        journal.append(b"%010d" % i)
    journal.trim(10)
    frames, gaps, _ = read_all(journal, Place(10, 10, 100))
    assert len(frames) == 20
    assert not gaps


def test_who_falls_off_is_told_how_much_and_keeps_what_carries_state() -> None:
    journal = Journal(100, 0)
    place = journal.end()
    journal.append(b"busy", state=True)
    for i in range(50):
        journal.append(b"out-%06d" % i)
    journal.append(b"reply", audience=1, state=True)
    journal.append(b"idle", state=True)
    assert journal.nbytes <= 100
    frames, gaps, end = read_all(journal, place)
    assert frames[0] == b"busy"
    assert frames[-2:] == [b"reply", b"idle"]
    assert len(gaps) == 1
    assert gaps[0].messages == 53 - len(frames)
    assert gaps[0].nbytes == gaps[0].messages * 10
    assert gaps[0].last_lost == b"out-%06d" % (gaps[0].messages - 1)
    assert end == journal.end()


def test_keepsakes_alone_stay_below_half_the_limit() -> None:
    journal = Journal(1000, 0)
    for i in range(500):
        journal.append(b"%010d" % i, state=True)
    assert journal.nbytes <= 1000
    frames, gaps, _ = read_all(journal, Place(0, 0, 0))
    assert frames == sorted(frames)
    assert sum(g.messages for g in gaps) + len(frames) == 500


def test_one_frame_larger_than_the_limit_stays_until_the_next() -> None:
    journal = Journal(10, 0)
    place = journal.end()
    journal.append(b"x" * 100)
    assert read_all(journal, place)[0] == [b"x" * 100]
    journal.append(b"y")
    assert journal.nbytes == 1


@pytest.mark.parametrize(("limit", "history"), [(0, 0), (-1, 0), (1, -1)])
def test_bounds_must_make_sense(limit: int, history: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        Journal(limit, history)


FRAMES = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([EVERYONE, 1, 2]), st.booleans()), max_size=80
)


@given(
    frames=FRAMES,
    limit=st.integers(50, 400),
    history=st.integers(0, 100),
    pauses=st.sets(st.integers(0, 79)),
    chunk=st.integers(1, 200),
)
def test_against_a_model_nothing_is_lost_unseen(frames, limit, history, pauses, chunk) -> None:
    """A reader that pauses at will sees every frame in order, or is told how many it did not."""
    journal = Journal(limit, history)
    place = journal.end()
    sent: list[bytes] = []
    seen: list[bytes] = []
    told = 0
    for i, (size, audience, state) in enumerate(frames):
        frame = b"%04d" % i + b"." * size
        sent.append(frame)
        # A private frame is read past by others, so the reader here is whoever it is for.
        journal.append(frame, audience and 1, state=state)
        assert journal.nbytes <= max(limit, len(frame))
        if i not in pauses:
            got, gaps, place = read_all(journal, place, chunk=chunk)
            seen += got
            told += sum(g.messages for g in gaps)
            journal.trim(place.seq)
    got, gaps, place = read_all(journal, place, chunk=chunk)
    seen += got
    told += sum(g.messages for g in gaps)
    assert seen == sorted(set(seen)), "twice, or out of order"
    assert set(seen) <= set(sent)
    assert len(seen) + told == len(sent)
    assert place == journal.end()


def test_long_runs_keep_the_ring_small() -> None:
    journal = Journal(10_000, 100)
    place = journal.end()
    for i in range(20_000):
        journal.append(b"%010d" % i, state=i % 7 == 0)
        if i % 50 == 0:
            _, gaps, place = read_all(journal, place)
            assert not gaps
            journal.trim(place.seq)
    assert len(journal._frames) < 5_000
    assert not [seq for seq in journal._state if seq < journal.first_seq]


def test_a_cleared_journal_holds_nothing_and_goes_on() -> None:
    journal = Journal(100, 100)
    start = journal.end()
    for i in range(30):
        journal.append(b"%010d" % i, audience=i % 3, state=i % 2 == 0)
    journal.clear()
    assert journal.nbytes == 0
    assert not any((journal._frames, journal._audience, journal._state, journal._keepsakes))
    place = journal.end()
    journal.append(b"next", state=True)
    got, gaps, _ = read_all(journal, place)
    assert (got, gaps) == ([b"next"], [])
    got, (gap,), _ = read_all(journal, start)
    assert (got, gap.messages) == ([b"next"], 30)
