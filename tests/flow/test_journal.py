"""The journal: its limit, the positions of readers, and the order in which frames are dropped."""

import pickle
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kbridge.flow.journal import EVERYONE, Journal, Place

ALL = 1 << 30


def read_all(journal: Journal, place: Place, client: int = 1, chunk: int = ALL):
    """Return the frames, the gaps, and the position at the end."""
    frames: list[bytes] = []
    gaps = []
    while (stretch := journal.read(place, chunk)) is not None:
        if stretch.gap:
            gaps.append(stretch.gap)
        frames += stretch.frames_for(client)
        assert stretch.end != place, "a read must advance"
        place = stretch.end
    return frames, gaps, place


def memory(journal: Journal) -> int:
    """Return the memory of a journal in bytes, with all its containers."""
    return len(pickle.dumps(journal))


def test_a_reader_receives_the_frames_after_its_start() -> None:
    journal = Journal(1000, 100)
    journal.append(b"early")
    place = journal.end()
    assert journal.read(place, ALL) is None
    journal.append(b"one")
    journal.append(b"two")
    assert read_all(journal, place)[0] == [b"one", b"two"]


def test_frames_added_together_are_those_added_one_by_one() -> None:
    one, other = Journal(100, 40), Journal(100, 40)
    frames, keys = [b"%04d" % i for i in range(60)], list(range(60))
    for frame, key in zip(frames, keys, strict=True):
        one.append(frame, key=key)
    assert other.append(frames[0], key=keys[0]) == 0
    assert other.extend(frames[1:9], keys[1:9]) == 1
    assert other.extend(frames[9:], keys[9:]) == 9
    assert one.statistics() == other.statistics()
    assert other.nbytes <= other.limit
    assert one.read(one.oldest(), 1000) == other.read(other.oldest(), 1000)
    place = other.after(50, lambda frame: frame == b"0050")
    assert place is not None
    assert place == one.after(50, lambda frame: frame == b"0050")


def test_private_frames_are_read_by_their_client_only() -> None:
    journal = Journal(1000, 100)
    place = journal.end()
    journal.append(b"all")
    journal.append(b"yours", audience=1)
    journal.append(b"theirs", audience=2)
    assert read_all(journal, place, client=1)[0] == [b"all", b"yours"]
    assert read_all(journal, place, client=2)[0] == [b"all", b"theirs"]


def test_a_read_ends_with_the_frame_that_reaches_its_limit() -> None:
    journal = Journal(1000, 100)
    place = journal.end()
    for _ in range(5):
        journal.append(b"x" * 10)
    stretch = journal.read(place, 25)
    assert stretch is not None
    assert len(stretch.frames) == 3
    assert stretch.end == Place(3, 3, 30)


def test_spare_memory_extends_the_limit_until_it_is_withdrawn() -> None:
    journal = Journal(100, 100)
    journal.spare = 50
    for i in range(15):
        journal.append(b"%010d" % i)
    assert (journal.nbytes, journal.spare, journal.forgotten) == (150, 50, 0)
    journal.append(b"%010d" % 15)
    assert (journal.nbytes, journal.forgotten) == (150, 1)
    journal.spare = 0
    assert (journal.nbytes, journal.forgotten) == (100, 6)


def test_a_read_of_retained_frames_ends_before_the_horizon() -> None:
    journal = Journal(100, 0)
    for i in range(3):
        journal.append(b"state-%04d" % i, state=True)
    for i in range(10):
        journal.append(b"%010d" % i)
    assert journal.first_seq > 3
    stretch = journal.read(Place(0, 0, 0), ALL, horizon=1)
    assert stretch is not None
    assert (stretch.frames, stretch.end) == ([b"state-0000"], Place(1, 1, 10))
    assert journal.read(stretch.end, ALL, horizon=1) is None


def test_trim_keeps_the_history_limit() -> None:
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


def test_trim_keeps_unread_frames() -> None:
    journal = Journal(1000, 0)
    for i in range(30):
        journal.append(b"%010d" % i)
    journal.trim(10)
    frames, gaps, _ = read_all(journal, Place(10, 10, 100))
    assert len(frames) == 20
    assert not gaps


def test_a_reader_that_fell_behind_gets_a_gap_and_the_frames_with_state() -> None:
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


def test_frames_with_state_alone_stay_below_the_limit() -> None:
    journal = Journal(1000, 0)
    for i in range(500):
        journal.append(b"%010d" % i, state=True)
    assert journal.nbytes <= 1000
    frames, gaps, _ = read_all(journal, Place(0, 0, 0))
    assert frames == sorted(frames)
    assert sum(g.messages for g in gaps) + len(frames) == 500


def test_a_frame_larger_than_the_limit_is_kept_until_the_next() -> None:
    journal = Journal(10, 0)
    place = journal.end()
    journal.append(b"x" * 100)
    assert read_all(journal, place)[0] == [b"x" * 100]
    journal.append(b"y")
    assert journal.nbytes == 1


@pytest.mark.parametrize(("limit", "history"), [(0, 0), (-1, 0), (1, -1)])
def test_impossible_limits_are_refused(limit: int, history: int) -> None:
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
def test_gaps_count_all_missing_frames_as_a_model_does(
    frames, limit, history, pauses, chunk
) -> None:
    """A reader that pauses sees all frames in order, or gaps that count the missing ones."""
    journal = Journal(limit, history)
    place = journal.end()
    sent: list[bytes] = []
    seen: list[bytes] = []
    told = 0
    for i, (size, audience, state) in enumerate(frames):
        frame = b"%04d" % i + b"." * size
        sent.append(frame)
        # Other readers skip a private frame, so the reader is its client.
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


def test_memory_stays_bounded_in_a_long_run() -> None:
    journal = Journal(10_000, 100)
    place = journal.end()
    for i in range(20_000):
        journal.append(b"%010d" % i, state=i % 7 == 0)
        if i % 50 == 0:
            _, gaps, place = read_all(journal, place)
            assert not gaps
            journal.trim(place.seq)
    assert journal.nbytes <= 10_000
    assert memory(journal) < 200_000, "the journal stores more than the frames"


def test_a_cleared_journal_is_empty_and_accepts_frames() -> None:
    journal = Journal(100, 100)
    start = journal.end()
    for i in range(30):
        journal.append(b"%010d" % i, audience=i % 3, state=i % 2 == 0)
    journal.clear()
    assert (journal.nbytes, journal.first_seq, journal.next_seq) == (0, 30, 30)
    assert memory(journal) < memory(Journal(100, 100)) + 50
    place = journal.end()
    journal.append(b"next", state=True)
    got, gaps, _ = read_all(journal, place)
    assert (got, gaps) == ([b"next"], [])
    got, (gap,), _ = read_all(journal, start)
    assert (got, gap.messages, gap.last_lost) == ([b"next"], 30, b"")


def test_the_gap_after_a_retained_frame_has_the_exact_size() -> None:
    """The position includes the size of the frame that was read; the gap must not count it."""
    journal = Journal(100, 0)
    journal.append(b"first-busy", state=True, key=1)
    for i in range(30):
        journal.append(b"%010d" % i)
    for place in (journal.after(1, lambda frame: True), journal.after_seq(0)):
        assert place == Place(1, 1, 10)
        _, (gap,), _ = read_all(journal, place)
        assert gap.messages == journal.first_seq - 1
        assert gap.nbytes == 10 * gap.messages


# -- places that are looked for -------------------------------------------------------------------


def filled(count: int = 10, *, limit: int = 1000, history: int = 1000) -> Journal:
    journal = Journal(limit, history)
    for i in range(count):
        journal.append(b"%010d" % i)
    return journal


def test_a_read_from_the_oldest_place_begins_with_a_gap() -> None:
    assert Journal(100, 100).oldest() == Journal(100, 100).end() == Place(0, 0, 0)
    journal = filled(30, history=50)
    journal.trim(journal.next_seq)
    frames, (gap,), end = read_all(journal, journal.oldest())
    assert frames == [b"%010d" % i for i in range(25, 30)]
    assert (gap.messages, gap.nbytes) == (25, 250)
    assert end == journal.end()


def test_the_oldest_place_is_before_the_retained_frames() -> None:
    journal = Journal(100, 0)
    journal.append(b"lost-first")
    journal.append(b"busy", state=True)
    for i in range(50):
        journal.append(b"%010d" % i)
    frames, (gap,), _ = read_all(journal, journal.oldest())
    assert frames[0] == b"busy"
    assert gap.messages == 52 - len(frames)
    assert gap.nbytes == 10 * gap.messages


def test_a_read_from_an_unknown_place_begins_with_a_gap_without_numbers() -> None:
    journal = filled(3)
    frames, (gap,), end = read_all(journal, journal.unknown())
    assert len(frames) == 3
    assert (gap.messages, gap.nbytes) == (0, 0)
    assert end == journal.end()


@pytest.mark.parametrize("count", [0, 3])
def test_a_gap_is_read_from_an_empty_journal(count) -> None:
    journal = filled(count, history=0)
    journal.trim(count)
    stretch = journal.read(journal.unknown(), ALL)
    assert stretch is not None
    assert (stretch.frames, stretch.end) == ([], journal.end())
    assert stretch.gap is not None
    assert journal.read(stretch.end, ALL) is None, "once"
    known = journal.read(journal.oldest(), ALL)
    assert (known and known.gap and known.gap[:2]) == ((3, 30) if count else None)


@pytest.mark.parametrize("seq", range(10))
def test_after_seq_is_the_place_before_all_later_frames(seq) -> None:
    journal = filled()
    place = journal.after_seq(seq)
    assert place == Place(seq + 1, seq + 1, 10 * (seq + 1))
    assert read_all(journal, place)[0] == [b"%010d" % i for i in range(seq + 1, 10)]


def test_after_seq_of_a_dropped_frame_is_a_place_with_a_gap() -> None:
    journal = filled(30, history=50)
    journal.trim(journal.next_seq)
    place = journal.after_seq(9)
    assert place is not None
    frames, (gap,), _ = read_all(journal, place)
    assert frames == [b"%010d" % i for i in range(25, 30)]
    assert (gap.messages, gap.nbytes) == (15, 0), "their size is unknown"


@pytest.mark.parametrize("seq", [-1_000_000, -2, 10, 11, 1 << 80])
def test_after_seq_of_an_unknown_frame_is_none(seq) -> None:
    assert filled().after_seq(seq) is None


def test_after_seq_of_minus_one_is_the_start_of_an_empty_journal() -> None:
    assert Journal(10, 10).after_seq(-1) == Place(0, 0, 0)


def test_after_seq_of_the_last_dropped_frame_has_no_gap() -> None:
    journal = filled(30, history=50)
    journal.trim(journal.next_seq)
    assert journal.after_seq(24) == Place(25, 25, 250)


def test_after_is_the_place_after_the_newest_match() -> None:
    journal = filled()
    assert journal.after(0, lambda frame: frame == b"0000000004") == Place(5, 5, 50)
    assert journal.after(0, lambda frame: frame.startswith(b"0")) == journal.end()
    assert journal.after(0, lambda frame: frame == b"") is None


def test_after_does_not_find_dropped_frames() -> None:
    journal = filled(30, history=50)
    journal.trim(journal.next_seq)
    seen: list[bytes] = []
    assert journal.after(0, lambda frame: bool(seen.append(frame))) is None
    assert seen == [b"%010d" % i for i in range(29, 24, -1)]


def test_a_read_ends_at_the_horizon() -> None:
    journal = filled()
    start = Place(0, 0, 0)
    stretch = journal.read(start, ALL, 4)
    assert stretch is not None
    assert stretch.frames == [b"%010d" % i for i in range(4)]
    assert stretch.nbytes == 40
    assert stretch.end == Place(4, 4, 40)
    assert journal.read(stretch.end, ALL, 4) is None
    assert journal.read(stretch.end, ALL, 3) is None, "a horizon before the reader"
    later = journal.read(stretch.end, ALL, 1000)
    assert later is not None
    assert later.end == journal.end()


def test_a_gap_before_the_horizon_is_returned_with_the_next_frames() -> None:
    journal = Journal(100, 0)
    place = journal.end()
    for i in range(30):
        journal.append(b"%010d" % i)
    assert journal.first_seq == 20
    assert journal.read(place, ALL, 15) is None
    assert journal.read(place, ALL, 20) is None
    stretch = journal.read(place, ALL, 21)
    assert stretch is not None
    assert stretch.gap is not None
    assert (stretch.gap.messages, stretch.gap.nbytes) == (20, 200)
    assert stretch.frames == [b"0000000020"]


def test_a_horizon_among_the_retained_frames_ends_the_read() -> None:
    journal = Journal(100, 0)
    place = journal.end()
    for i in range(3):
        journal.append(b"state-%d" % i, state=True)
        journal.append(b"lost")
    for i in range(20):
        journal.append(b"%010d" % i)
    stretch = journal.read(place, ALL, 3)
    assert stretch is not None
    assert stretch.frames == [b"state-0", b"state-1"]
    assert journal.read(stretch.end, ALL, 3) is None
    assert journal.read(stretch.end, ALL, 4) is None
    frames, gaps, _ = read_all(journal, stretch.end)
    assert frames[0] == b"state-2"
    assert len(gaps) == 1
    assert len(frames) + gaps[0].messages == 26 - 2


class Naive:
    """A model: all appended frames, and those that the real journal still has."""

    def __init__(self, limit: int, history: int) -> None:
        self.real = Journal(limit, history)
        self.all: list[bytes] = []

    def append(self, size: int, audience: int, state: bool) -> None:
        frame = b"%05d" % len(self.all) + b"." * size
        seq = len(self.all)  # several frames share a key
        assert self.real.append(frame, audience, state=state, key=seq % 3) == seq
        self.all.append(frame)

    def held(self) -> list[int]:
        """Return the sequence numbers in the real journal."""
        return [seq for seq in range(len(self.all)) if self.real.holds(seq)]

    def check(self, place: Place, chunk: int, horizon: int | None) -> None:
        """A read returns the frames from its position on, and gaps count the missing ones."""
        begin, got, gaps = place, [], []
        while (stretch := self.real.read(place, chunk, horizon)) is not None:
            assert stretch.frames or stretch.gap
            assert stretch.nbytes == sum(map(len, stretch.frames))
            assert sum(map(len, stretch.frames[:-1])) < chunk
            got += stretch.frames
            gaps += [stretch.gap] if stretch.gap else []
            place = stretch.end
        end = len(self.all) if horizon is None else min(horizon, len(self.all))
        assert got == [self.all[s] for s in self.held() if begin.seq <= s < end]
        if place.frames < place.seq or place.seq < self.real.first_seq:
            # Not in the ring yet: the gap is reported with the next frame.
            assert end <= self.real.first_seq
            assert gaps == []
            return
        assert place.seq == max(begin.seq, end)
        assert place == self.real.after_seq(place.seq - 1)
        passed = self.all[max(begin.frames, 0) : place.seq]
        lost = (len(passed) - len(got), sum(map(len, passed)) - sum(map(len, got)))
        if begin.frames < 0:
            assert [gap[:2] for gap in gaps] == [(0, 0)]
        elif begin.nbytes < 0:
            assert [gap[:2] for gap in gaps] == ([(lost[0], 0)] if lost[0] else [])
        else:
            assert [gap[:2] for gap in gaps] == ([lost] if lost[0] else [])


@given(
    FRAMES,
    st.integers(50, 400),
    st.integers(0, 100),
    st.integers(0, 80),
    st.integers(0, 80),
    st.integers(1, 300),
    st.one_of(st.none(), st.integers(0, 90)),
)
@example(  # retained frames that reach up to the ring without a hole
    frames=[(1, EVERYONE, True), (1, EVERYONE, True), (34, EVERYONE, False)],
    limit=50,
    history=0,
    pivot=3,
    trimmed=0,
    chunk=52,
    horizon=None,
)
def test_a_read_from_any_place_agrees_with_a_model(
    frames, limit, history, pivot, trimmed, chunk, horizon
) -> None:
    model = Naive(limit, history)
    for frame in frames[:pivot]:
        model.append(*frame)
    model.real.trim(min(trimmed, len(model.all)))
    found = [model.real.oldest(), model.real.end(), model.real.unknown()]
    for seq in range(-2, len(model.all) + 2):
        place = model.real.after_seq(seq)
        assert (place is not None) == (-1 <= seq < len(model.all))
        if place is not None:
            assert place.seq == place.frames == seq + 1
            exact = seq in model.held() or seq >= model.real.first_seq - 1
            assert place.nbytes == (sum(map(len, model.all[: seq + 1])) if exact else -1)
            found.append(place)
    for seq, frame in enumerate(model.all):
        place = model.real.after(seq % 3, lambda f, frame=frame: f == frame)
        assert (place is not None) == (seq in model.held())
        if place is not None:
            assert place.seq == seq + 1
            found.append(place)
    for place in found:
        model.check(place, chunk, horizon)
    for frame in frames[pivot:]:  # also after the journal has dropped more frames
        model.append(*frame)
    for place in found:
        model.check(place, chunk, horizon)


def test_a_stored_frame_can_be_readdressed_to_another_client() -> None:
    journal = Journal(100, 0)
    journal.append(b"yours", audience=1, state=True)
    journal.append(b"all")
    journal.append(b"later", audience=1)
    journal.readdress(0, 2)
    journal.readdress(1, 2)
    start = Place(0, 0, 0)
    assert read_all(journal, start, client=1)[0] == [b"all", b"later"]
    assert read_all(journal, start, client=2)[0] == [b"yours", b"all"]
    for i in range(20):
        journal.append(b"%010d" % i)
    journal.readdress(0, 3)
    assert read_all(journal, start, client=3)[0][0] == b"yours", "among the retained frames"
    journal.trim(journal.next_seq)
    journal.readdress(0, 4)
    everyones = Journal(100, 0)
    for frame in (b"yours", b"all", b"later", *(b"%010d" % i for i in range(20))):
        everyones.append(frame)
    everyones.trim(everyones.next_seq)
    assert memory(journal) < memory(everyones) + 20, "data of dropped frames remains"


# -- what it costs --------------------------------------------------------------------------------


def test_after_looks_only_at_frames_with_the_key() -> None:
    journal = Journal(1 << 30, 1 << 30)
    for i in range(5_000):
        journal.append(b"%010d" % i, key=hash(str(i)))
    seen: list[bytes] = []
    place = journal.after(hash("17"), lambda frame: not seen.append(frame))
    assert place == Place(18, 18, 180)
    assert seen == [b"0000000017"]
    seen.clear()
    assert journal.after(hash("never"), lambda frame: not seen.append(frame)) is None
    assert seen == []


def test_after_finds_a_key_among_the_retained_frames() -> None:
    journal = Journal(2000, 0)
    for i in range(300):
        journal.append(b"%010d" % i, key=i % 100, state=i < 60)
    assert journal.first_seq > 60
    seen: list[bytes] = []
    assert journal.after(41, lambda frame: not seen.append(frame)) is not None
    assert seen == [b"0000000241"], "the newest"
    assert journal.after(41, lambda frame: frame == b"0000000041") == Place(42, 42, 420)
    journal.trim(300)
    assert journal.after(41, lambda frame: frame == b"0000000041") is None


def best(measure: Callable[[], object]) -> float:
    """Return the process time of the fastest of several calls."""
    times = []
    for _ in range(7):
        begin = time.process_time()
        measure()
        times.append(time.process_time() - begin)
    return min(times)


@pytest.mark.timing
@pytest.mark.parametrize("kind", ["ring", "retained"])
def test_costs_of_a_reader_grow_with_the_number_of_frames(kind) -> None:
    """Read in chunks from the start: a read does not iterate over earlier frames."""

    def cost(count: int) -> float:
        limit = (1 << 30) if kind == "ring" else count * 20
        journal = Journal(limit, 0)
        for i in range(count):
            journal.append(b"%010d" % i, state=kind == "retained")
        if kind == "retained":
            journal.append(b"x" * (11 * count))
            assert journal.first_seq >= count, "the ring holds only the last frame"
        return best(lambda: [read_all(journal, journal.oldest(), chunk=1000)])

    assert cost(40_000) < 24 * cost(5_000), "a quadratic cost would be 64 times as much"


@pytest.mark.timing
def test_costs_of_finding_a_place_do_not_grow_with_the_journal() -> None:
    def cost(count: int) -> float:
        journal = Journal(1 << 30, 1 << 30)
        for i in range(count):
            journal.append(b"%010d" % i)
        return best(lambda: [journal.after_seq(0) for _ in range(2000)])

    assert cost(200_000) < 20 * cost(200), "a sum over the frames would cost 1,000 times as much"


@pytest.mark.parametrize("size", [101, 5000])
def test_a_frame_larger_than_the_limit_of_a_read_is_read_alone(size) -> None:
    journal = Journal(1 << 20, 0)
    place = journal.end()
    frames = [b"a", b"b", b"x" * size, b"c", b"d" * 100, b"y" * size, b"z" * size]
    for frame in frames:
        journal.append(frame)
    read = []
    while (stretch := journal.read(place, 100)) is not None:
        read.append([len(frame) for frame in stretch.frames])
        place = stretch.end
    assert read == [[1, 1], [size], [1, 100], [size], [size]]
