"""A journal in memory that keeps everything, and readers of its history on disk."""

from __future__ import annotations

import asyncio
import logging
import threading
from array import array
from collections.abc import Callable, Collection
from pathlib import Path

from kbridge.flow.batch import Batch
from kbridge.flow.places import Gap, Place
from kbridge.storage.disk import Disk
from kbridge.storage.history import History
from kbridge.storage.state_log import parse
from kbridge.storage.store import JournalStore, StoreSettings
from tests.support.waiting import TIMEOUT

MiB = 1024 * 1024
START = Place(0, 0, 0)
FOREVER = 2**62
log = logging.getLogger("kbridge.tests.storage")


class Source:
    """The frames of a kernel; keeps all, so that tests can compare.

    `first` and `offset` are the sequence number and the bytes at which it begins.
    """

    def __init__(self, first: int = 0, offset: int = 0) -> None:
        self.first = first
        self.end = offset
        self.frames: list[bytes] = []
        self.offsets = array("Q")
        self.keys = array("q")
        self.state: set[int] = set()
        self.private: dict[int, int] = {}
        self.written = first
        self.durable: bool | None = None
        self.dropped: set[int] = set()

    @property
    def next_seq(self) -> int:
        return self.first + len(self.frames)

    def append(self, frame: bytes, *, state: bool = False, client: int = 0, key: int = 0) -> int:
        seq = self.next_seq
        self.frames.append(frame)
        self.offsets.append(self.end)
        self.keys.append(key)
        self.end += len(frame)
        if state:
            self.state.add(seq)
        if client:
            self.private[seq] = client
        return seq

    def drop(self, until: int) -> None:
        """Drop the output before a number that is not written yet, as a full memory does."""
        self.dropped |= {seq for seq in range(self.written, until) if seq not in self.state}

    def frame(self, seq: int) -> bytes:
        return self.frames[seq - self.first]

    @property
    def unwritten_bytes(self) -> int:
        return sum(
            len(self.frame(seq))
            for seq in range(self.written, self.next_seq)
            if seq not in self.dropped
        )

    def unwritten(self, max_bytes: int) -> Batch | None:
        waiting = [s for s in range(self.written, self.next_seq) if s not in self.dropped]
        if not waiting:
            return None
        hole = max((s for s in self.dropped if s >= waiting[0]), default=-1)
        sparse = hole >= 0
        seqs: list[int] = []
        nbytes = 0
        for seq in waiting:
            if nbytes >= max_bytes or (sparse and seq > hole):
                break
            seqs.append(seq)
            nbytes += len(self.frame(seq))
        at = [seq - self.first for seq in seqs]
        return Batch(
            [self.frames[i] for i in at],
            seqs[0],
            array("Q", seqs) if sparse else None,
            array("Q", [self.offsets[i] for i in at]),
            array("q", [self.keys[i] for i in at]),
            {i: self.private[seq] for i, seq in enumerate(seqs) if seq in self.private},
            [i for i, seq in enumerate(seqs) if seq in self.state],
        )

    def on_written(self, end: int) -> None:
        assert self.written < end <= self.next_seq
        self.written = end

    def on_durable(self, durable: bool) -> None:
        assert durable != self.durable
        self.durable = durable

    def offset(self, seq: int) -> int:
        return self.end if seq == self.next_seq else self.offsets[seq - self.first]


class KeptMemory:
    """Memory that outlives the process: it records the calls and has the lines that are there."""

    def __init__(self) -> None:
        self.stays = True
        self.lines: list[bytes] = []
        self.being_written: list[bytes] = []
        self.reached_at: list[int] = []

    def note(self) -> None:
        """Do nothing: the source has no input."""

    def reached(self, end: int) -> None:
        self.reached_at.append(end)

    def remember(self, line: bytes) -> bool:
        self.lines.append(line)
        return True

    def begin_write(self) -> None:
        self.being_written += self.lines
        self.lines = []

    def forget_written(self) -> None:
        self.being_written = []

    @property
    def left(self) -> dict[str, object]:
        """The values that the next process finds."""
        return parse(b"".join(self.being_written + self.lines))


async def open_store(
    directory: Path,
    *,
    limit: int = 64 * MiB,
    total: int = 1024 * MiB,
    reserve: float = 0.0,
    keep: Collection[str] = (),
    owner: str = "test",
    disk: Disk | None = None,
) -> JournalStore:
    settings = StoreSettings(directory / "journals", limit, total, reserve)
    return await JournalStore.open(settings, owner=owner, keep=keep, log=log, disk=disk)


class Reading:
    """The frames that a reader got, by sequence number, and the gaps before them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.frames: dict[int, bytes] = {}
        self.private: dict[int, int] = {}
        self.gaps: dict[int, Gap] = {}

    async def go_on(
        self,
        history: History,
        max_bytes: int = 512 * 1024,
        horizon: int = FOREVER,
        most: int = 10**9,
    ) -> Reading:
        """Read until there is no more, or `most` stretches."""
        while most and (stretch := await history.read(self.place, max_bytes, horizon)) is not None:
            most -= 1
            count = len(stretch.frames)
            seqs = stretch.seqs or range(stretch.end.seq - count, stretch.end.seq)
            assert stretch.nbytes == sum(map(len, stretch.frames))
            assert count or stretch.gap
            assert len(seqs) == count
            assert stretch.end.seq <= horizon
            if count:
                assert stretch.nbytes - len(stretch.frames[-1]) < max_bytes
                assert seqs[0] >= self.place.seq
                assert stretch.end.seq == seqs[-1] + 1
            if stretch.gap is not None:
                self.gaps[stretch.end.seq - count] = stretch.gap
            for index, seq in enumerate(seqs):
                assert seq not in self.frames
                self.frames[seq] = stretch.frames[index]
                if index in stretch.private:
                    self.private[seq] = stretch.private[index]
            self._check(stretch.end, seqs, stretch.gap, sparse=stretch.seqs is not None)
            self.place = stretch.end
        return self

    def _check(self, end: Place, seqs: Collection[int], gap: Gap | None, *, sparse: bool) -> None:
        """The counts of a place and of the gap before it add up."""
        if sparse:
            assert gap is None
            assert end.frames == (-1 if self.place.frames < 0 else self.place.frames + len(seqs))
        else:
            assert end.frames == end.seq
            missed = end.seq - len(seqs) - self.place.frames
            if gap is None:
                assert missed == 0
            else:
                assert gap.messages == (0 if self.place.frames < 0 else missed)

    def check(self, source: Source) -> None:
        """All frames are those of the source, with their clients."""
        assert self.frames == {seq: source.frame(seq) for seq in self.frames}
        assert self.private == {s: source.private[s] for s in self.frames if s in source.private}


async def read(history: History, place: Place = START, max_bytes: int = 512 * 1024) -> Reading:
    return await Reading(place).go_on(history, max_bytes)


class SlowDisk(Disk):
    """A disk whose threads wait until `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.waiting = threading.Event()

    def write(self, descriptor, buffers):
        self.waiting.set()
        assert self.go.wait(TIMEOUT)
        return super().write(descriptor, buffers)


class FailingDisk(Disk):
    """A disk whose calls raise `error`, if their name is in `calls`."""

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.calls: set[str] = set()
        self.partial = False

    def fail(self, error: int, *calls: str, partial: bool = False) -> None:
        self.error = OSError(error, "injected")
        self.calls = {*calls}
        self.partial = partial

    def heal(self) -> None:
        self.error = None

    def _check(self, call: str) -> None:
        if self.error is not None and call in self.calls:
            raise self.error

    def create(self, path):
        self._check("create")
        return super().create(path)

    def append(self, path):
        self._check("append")
        return super().append(path)

    def open(self, path):
        self._check("open")
        return super().open(path)

    def write(self, descriptor, buffers):
        if self.error is not None and "write" in self.calls and self.partial:
            self.partial = False
            return super().write(descriptor, [buffers[0][: len(buffers[0]) // 2 + 1]])
        self._check("write")
        return super().write(descriptor, buffers)

    def read(self, descriptor, size, position):
        self._check("read")
        return super().read(descriptor, size, position)

    def truncate(self, descriptor, size):
        self._check("truncate")
        super().truncate(descriptor, size)

    def make_directory(self, path):
        self._check("make_directory")
        super().make_directory(path)


class LoopWatchingDisk(Disk):
    """A disk that refuses to be used by the thread of the event loop."""

    def __init__(self) -> None:
        self.loop_thread = threading.get_ident()
        self.calls = 0

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if callable(value) and not name.startswith("_"):
            assert threading.get_ident() != super().__getattribute__("loop_thread"), name
            self.calls += 1
        return value


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until a condition is true."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - threads set it
            await asyncio.sleep(0)
