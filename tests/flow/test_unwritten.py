"""The journal with a disk: the frames in memory, the frames to write, readers on both sides."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.batch import Batch
from kbridge.flow.journal import EVERYONE, ON_DISK, Journal
from kbridge.flow.places import Gap, Place, Stretch

ALL = 1 << 30


@dataclass
class Shelf:
    """A disk that keeps the batches of a journal, and reads as the laws of `places` say."""

    journal: Journal
    batches: list[Batch] = field(default_factory=list)

    @property
    def oldest(self) -> Place | None:
        return Place(self.batches[0].first_seq, 0, 0) if self.batches else None

    @property
    def end(self) -> int:
        return self.batches[-1].end_seq if self.batches else 0

    def numbers(self, batch: Batch) -> list[int]:
        return list(batch.seqs or range(batch.first_seq, batch.end_seq))

    def holds(self, seq: int) -> bool:
        return any(seq in self.numbers(batch) for batch in self.batches)

    def next_full(self, seq: int) -> int | None:
        full = [s for b in self.batches if b.seqs is None for s in self.numbers(b) if s >= seq]
        return min(full, default=None)

    def write(self, max_bytes: int = ALL) -> bool:
        batch = self.journal.unwritten(max_bytes)
        if batch is None:
            return False
        again = self.journal.unwritten(max_bytes)
        assert batch == again, "the same until it is written"
        assert batch.first_seq >= self.end
        assert list(batch.state) == sorted(batch.state)
        self.batches.append(batch)
        self.journal.on_written(batch.end_seq)
        return True

    def read(self, place: Place, max_bytes: int) -> Stretch | None:
        """Read from one batch."""
        for batch in self.batches:
            if batch.end_seq <= place.seq:
                continue
            numbers = self.numbers(batch)
            start = next(i for i, seq in enumerate(numbers) if seq >= place.seq)
            frames: list[bytes] = []
            nbytes = 0
            for frame in batch.frames[start:]:
                frames.append(frame)
                nbytes += len(frame)
                if nbytes >= max_bytes:
                    break
            stop = start + len(frames)
            private = {i - start: who for i, who in batch.private.items() if start <= i < stop}
            end_seq = numbers[stop - 1] + 1
            if batch.seqs is not None:
                end = Place(
                    end_seq,
                    -1 if place.frames < 0 else place.frames + len(frames),
                    -1 if place.nbytes < 0 else place.nbytes + nbytes,
                )
                return Stretch(frames, private, nbytes, end, None, numbers[start:stop])
            gap = None
            first, offset = numbers[start], batch.offsets[start]
            if place.frames < first:
                gap = Gap(
                    0 if place.frames < 0 else first - place.frames,
                    0 if place.nbytes < 0 else offset - place.nbytes,
                    b"",
                )
            end = Place(end_seq, end_seq, offset + nbytes)
            return Stretch(frames, private, nbytes, end, gap)
        return None


def stored(limit: int = 1000, history: int = 0, room: int = 0) -> tuple[Journal, Shelf]:
    journal = Journal(limit, history)
    shelf = Shelf(journal)
    journal.attach_disk(shelf, room=room)
    journal.on_durable(True)
    return journal, shelf


def read_next(journal: Journal, shelf: Shelf, place: Place, chunk: int) -> Stretch | None:
    stretch = journal.read(place, chunk)
    if stretch is not ON_DISK:
        return stretch
    found = shelf.read(place, chunk)
    if found is not None and found.seqs is not None:
        found = found.before(journal.first_seq)
    if found is None or found.first_seq >= journal.first_seq:
        return journal.read(place, chunk, on_disk=False)
    return journal.loaded(found)


def read_all(journal: Journal, shelf: Shelf, place: Place, client: int = 1, chunk: int = ALL):
    frames: list[bytes] = []
    gaps = []
    while (stretch := read_next(journal, shelf, place, chunk)) is not None:
        if stretch.gap:
            gaps.append(stretch.gap)
        frames += stretch.frames_for(client)
        assert stretch.end != place, "a read must advance"
        assert stretch.nbytes == sum(map(len, stretch.frames))
        place = stretch.end
    return frames, gaps, place


def fill(journal: Journal, *numbers: int, **more) -> None:
    for i in numbers:
        journal.append(b"%010d" % i, **more)


def test_frames_on_disk_leave_memory_when_all_have_read_them() -> None:
    journal, shelf = stored()
    fill(journal, *range(10))
    journal.trim(10)
    assert journal.nbytes == 100, "not written yet"
    shelf.write(40)
    assert journal.nbytes == 60
    shelf.write()
    assert (journal.nbytes, journal.forgotten) == (0, 0)
    frames, gaps, end = read_all(journal, shelf, journal.oldest())
    assert (frames, gaps, end) == ([b"%010d" % i for i in range(10)], [], journal.end())


def test_the_history_in_memory_counts_back_from_the_slowest_reader() -> None:
    journal, shelf = stored(history=30)
    fill(journal, *range(10))
    shelf.write()
    journal.trim(8)
    assert journal.first_seq == 5
    journal.trim(10)
    assert journal.first_seq == 7


def test_a_full_memory_drops_what_is_on_disk_and_counts_nothing() -> None:
    journal, shelf = stored(limit=100)
    for i in range(30):
        fill(journal, i, state=i % 2 == 0)
        shelf.write()
        assert journal.nbytes <= 100
    assert journal.forgotten == 0
    frames, gaps, _ = read_all(journal, shelf, Place(0, 0, 0))
    assert (frames, gaps) == ([b"%010d" % i for i in range(30)], [])


def test_extra_memory_is_for_frames_on_disk_too_until_it_is_taken_back() -> None:
    journal, shelf = stored(limit=100)
    journal.spare = 200
    fill(journal, *range(25))
    shelf.write()
    assert journal.nbytes == 250
    journal.spare = 0
    assert journal.nbytes <= 100
    assert journal.forgotten == 0


def test_frames_of_one_wake_up_have_room_until_they_are_written() -> None:
    journal, shelf = stored(limit=100, room=200)
    fill(journal, *range(25))
    assert (journal.nbytes, journal.forgotten) == (250, 0)
    shelf.write()
    assert journal.nbytes <= 100
    fill(journal, *range(25, 50))
    journal.on_durable(False)
    assert journal.nbytes <= 100, "a disk that fails has no room"


def test_a_disk_that_is_too_slow_loses_output_and_keeps_state() -> None:
    journal, shelf = stored(limit=100)
    fill(journal, 0, 1)
    shelf.write()
    fill(journal, 2, state=True, audience=7, key=5)
    fill(journal, *range(3, 30))
    assert journal.nbytes <= 100
    batch = journal.unwritten(ALL)
    assert batch is not None
    assert batch.seqs is not None
    assert list(batch.seqs) == [2]
    assert (list(batch.offsets), list(batch.keys), batch.private, batch.state) == (
        [20],
        [5],
        {0: 7},
        [0],
    )
    while shelf.write():
        pass
    frames, (gap,), _ = read_all(journal, shelf, Place(0, 0, 0), client=7)
    assert frames[:3] == [b"%010d" % i for i in range(3)]
    assert gap.messages == 30 - len(frames)
    assert gap.nbytes == 10 * gap.messages


def test_a_batch_has_everything_that_the_disk_needs() -> None:
    journal, _ = stored()
    journal.append(b"all", key=3)
    journal.append(b"yours", audience=4, state=True, key=-1)
    journal.append(b"later")
    batch = journal.unwritten(5)
    assert batch is not None
    assert batch.frames == [b"all", b"yours"]
    assert (batch.first_seq, batch.end_seq, batch.end_offset, batch.seqs) == (0, 2, 8, None)
    assert (list(batch.offsets), list(batch.keys)) == ([0, 3], [3, -1])
    assert (batch.private, batch.state) == ({1: 4}, [1])
    assert journal.unwritten_bytes == 13
    journal.on_written(2)
    assert journal.unwritten_bytes == 5
    journal.on_written(3)
    assert (journal.unwritten_bytes, journal.unwritten(5)) == (0, None)


def test_while_the_disk_fails_memory_is_as_without_one() -> None:
    journal, shelf = stored(limit=100)
    plain = Journal(100, 0)
    journal.on_durable(False)
    for i in range(40):
        for each in (journal, plain):
            fill(each, i, state=i % 3 == 0)
        if i == 20:
            journal.trim(15)
            plain.trim(15)
    assert (journal.nbytes, journal.forgotten) == (plain.nbytes, plain.forgotten)
    assert read_all(journal, shelf, Place(0, 0, 0)) == read_all(plain, shelf, Place(0, 0, 0))
    journal.on_durable(True)
    while shelf.write():
        pass
    assert read_all(journal, shelf, Place(0, 0, 0))[0] == read_all(plain, shelf, Place(0, 0, 0))[0]


def test_a_place_that_the_disk_lost_is_read_on_in_memory() -> None:
    journal, shelf = stored(limit=100)
    for i in range(30):
        fill(journal, i)
        shelf.write()
    first = journal.first_seq
    assert journal.read(Place(0, 0, 0), ALL) is ON_DISK
    stretch = journal.read(Place(0, 0, 0), ALL, on_disk=False)
    assert stretch is not None
    assert stretch.gap == Gap(first, 10 * first, b"")
    shelf.batches.clear()
    assert journal.read(Place(0, 0, 0), ALL) == stretch


def test_frames_may_have_another_audience_than_on_disk() -> None:
    journal, shelf = stored(limit=100)
    fill(journal, 0, 1, audience=5, state=True)
    shelf.write()
    for i in range(2, 30):
        fill(journal, i)
        shelf.write()
    journal.readdress(1, 6)
    assert journal.first_seq > 1
    for client, mine in ((5, 0), (6, 1)):
        frames = read_all(journal, shelf, Place(0, 0, 0), client=client)[0]
        assert frames[:2] == [b"%010d" % i for i in (mine, 2)]


def test_a_frame_is_held_also_if_only_the_disk_has_it() -> None:
    journal, shelf = stored()
    fill(journal, 0, 1)
    shelf.write()
    journal.trim(2)
    assert journal.nbytes == 0
    assert [journal.holds(seq) for seq in range(-1, 3)] == [False, True, True, False]
    assert journal.after_seq(0) == Place(1, 1, -1)
    assert read_all(journal, shelf, Place(1, 1, -1)) == ([b"%010d" % 1], [], journal.end())


@pytest.mark.parametrize("durable", [True, False])
def test_a_released_journal_keeps_nothing_but_the_unwritten(durable) -> None:
    journal, shelf = stored(history=1000)
    fill(journal, *range(10))
    shelf.write(50)
    journal.on_durable(durable)
    journal.release()
    assert journal.nbytes == (50 if durable else 0)
    if durable:
        assert shelf.write()
        assert journal.nbytes == 0
        assert len(read_all(journal, shelf, Place(0, 0, 0))[0]) == 10


def test_a_released_journal_drops_everything_when_the_disk_fails() -> None:
    journal, _ = stored()
    fill(journal, *range(10))
    journal.release()
    journal.on_durable(False)
    assert journal.nbytes == 0


def test_an_earlier_journal_is_continued() -> None:
    earlier, shelf = stored()
    fill(earlier, *range(5))
    shelf.write()
    journal = Journal(1000, 0)
    shelf.journal = journal
    journal.attach_disk(shelf, 5, 50)
    journal.on_durable(True)
    assert journal.end() == Place(5, 5, 50)
    fill(journal, 5)
    assert read_all(journal, shelf, journal.oldest()) == (
        [b"%010d" % i for i in range(6)],
        [],
        Place(6, 6, 60),
    )
    shelf.write()
    journal.trim(6)
    assert journal.nbytes == 0
    assert len(read_all(journal, shelf, journal.unknown())[0]) == 6


def test_output_is_there_from_the_next_full_run_on() -> None:
    journal, shelf = stored(limit=100)
    for i in range(30):
        fill(journal, i)
        shelf.write()
    assert journal.first_seq > 10
    assert journal.held_from(3) == 3
    del shelf.batches[2:6]
    assert journal.held_from(3) == 6
    assert journal.held_from(1) == 1
    shelf.batches.clear()
    assert journal.held_from(3) == journal.first_seq
    assert journal.held_from(29) == journal.first_seq


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"), st.integers(1, 60), st.sampled_from([EVERYONE, 1, 2]), st.booleans()
        ),
        st.tuples(st.just("write"), st.integers(1, 300)),
        st.tuples(st.just("read"), st.integers(1, 300)),
        st.tuples(st.just("durable"), st.booleans()),
        st.tuples(st.just("spare"), st.integers(0, 200)),
        st.tuples(st.just("drop"), st.integers(1, 3)),
    ),
    max_size=120,
)


@given(
    steps=STEPS,
    limit=st.integers(50, 400),
    history=st.integers(0, 100),
    room_left=st.integers(0, 100),
)
def test_against_a_model_nothing_is_lost_unseen(steps, limit, history, room_left) -> None:
    """A reader sees all frames in order, or gaps that count the missing ones."""
    journal, shelf = stored(limit, history, room_left)
    place = journal.end()
    sent: list[bytes] = []
    seen: list[bytes] = []
    told = 0
    perfect = True  # nothing may be missing
    for what, *how in steps:
        if what == "append":
            size, audience, state = how
            frame = b"%04d" % len(sent) + b"." * size
            perfect = perfect and journal.unwritten_bytes + len(frame) <= limit
            journal.append(frame, audience and 1, state=state)
            sent.append(frame)
            room = room_left if journal.durable else 0
            assert journal.nbytes <= max(limit + journal.spare + room, len(frame))
        elif what == "write":
            if journal.durable:
                shelf.write(how[0])
        elif what == "durable":
            perfect = perfect and how[0]
            journal.on_durable(how[0])
        elif what == "spare":
            journal.spare = how[0]
        elif what == "drop":
            perfect = perfect and not shelf.batches[: how[0]]
            del shelf.batches[: how[0]]
        elif (stretch := read_next(journal, shelf, place, how[0])) is not None:
            place = stretch.end
            seen += stretch.frames
            told += stretch.gap.messages if stretch.gap else 0
            journal.trim(place.seq)
    frames, gaps, place = read_all(journal, shelf, place)
    seen += frames
    told += sum(gap.messages for gap in gaps)
    assert seen == sorted(set(seen)), "twice, or out of order"
    assert set(seen) <= set(sent)
    assert len(seen) + told == len(sent)
    assert place == journal.end()
    if perfect:
        assert seen == sent
