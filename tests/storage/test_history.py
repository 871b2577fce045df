"""The journal of one kernel on disk, against a model that keeps all frames."""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kbridge.flow.places import Place
from kbridge.storage.blocks import Header
from tests.storage.harness import (
    START,
    FailingDisk,
    MiB,
    Reading,
    Source,
    open_store,
    read,
)


class Journals(RuleBasedStateMachine):
    """Appends, readers anywhere, lost output, failures, restarts and crashes."""

    limit = 256 * MiB
    sizes = st.sampled_from([1, 50, 50, 300, 300, 3000, 70_000, 300_000])

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.root = Path(tempfile.mkdtemp())
        self.life = 0
        self.readings: list[Reading] = []
        self.failed = False
        self.source = Source()
        self.disk = FailingDisk()
        self._open(self.root / "0", keep=[])

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.store.aclose(keep=False))
            self.runner.close()
            shutil.rmtree(self.root)

    def _open(self, directory: Path, keep: list[str]) -> None:
        async def work() -> None:
            self.directory = directory
            self.store = await open_store(directory, keep=keep, limit=self.limit, disk=self.disk)
            self.history = self.store.history("k")

        self.runner.run(work())

    # -- the kernel -------------------------------------------------------------------------

    @rule(data=st.data(), count=st.integers(1, 30))
    def append(self, data: st.DataObject, count: int) -> None:
        frame = st.tuples(
            self.sizes, st.booleans(), st.sampled_from([0, 0, 0, 1, 2]), st.integers(0, 5)
        )
        frames = data.draw(st.lists(frame, min_size=count, max_size=count))

        async def work() -> None:
            if self.source.durable is None:
                self.history.attach(self.source)
            for size, state, client, key in frames:
                text = b"%d/%d " % (self.life, self.source.next_seq)
                frame = text * (size // len(text)) + text[: size % len(text)]
                self.source.append(frame, state=state, client=client, key=key)
            self.history.changed()
            await self.history.flush()  # otherwise a timer would, sooner or later

        self.runner.run(work())

    @precondition(lambda self: self.source.written < self.source.next_seq)
    @rule(share=st.floats(0, 1))
    def lose_unwritten_output(self, share: float) -> None:
        first, end = self.source.written, self.source.next_seq
        self.source.drop(first + int((end - first) * share))

    # -- readers ----------------------------------------------------------------------------

    @rule(share=st.floats(0, 1), known=st.booleans())
    def new_reader(self, share: float, known: bool) -> None:
        seq = int(self.history.end * share)
        place = Place(seq, seq, self.source.offset(seq)) if known else Place(seq, -1, -1)
        self.readings.append(Reading(place))

    @precondition(lambda self: self.readings)
    @rule(
        which=st.integers(0, 99),
        most=st.integers(1, 5),
        max_bytes=st.sampled_from([1, 999, 10**5, 10**6]),
    )
    def read_on(self, which: int, most: int, max_bytes: int) -> None:
        reading = self.readings[which % len(self.readings)]
        self.runner.run(reading.go_on(self.history, max_bytes, most=most))
        reading.check(self.source)

    @rule(share=st.floats(0, 1))
    def read_to_a_horizon(self, share: float) -> None:
        horizon = int(self.history.end * share)
        reading = Reading(START)
        self.runner.run(reading.go_on(self.history, horizon=horizon))
        reading.check(self.source)
        assert all(seq < horizon for seq in reading.frames)

    @rule(key=st.integers(0, 6), odd=st.booleans())
    def find(self, key: int, odd: bool) -> None:
        def matches(frame: bytes) -> bool:
            return not odd or len(frame) % 2 == 1

        place = self.runner.run(self.history.find(key, matches))
        on_disk = self._on_disk()
        found = [
            seq
            for seq in on_disk
            if self.source.keys[seq] == key and matches(self.source.frame(seq))
        ]
        if not found or not key:
            assert place is None
        else:
            seq = found[-1] + 1
            end = self.source.offsets[seq - 1] + len(self.source.frame(seq - 1))
            assert place == (seq, seq, end)

    def _on_disk(self) -> list[int]:
        reading = self.runner.run(read(self.history))
        reading.check(self.source)
        return sorted(reading.frames)

    @invariant()
    def all_is_on_disk(self) -> None:
        if hasattr(self, "history"):
            self.on_disk_is_right(self._on_disk())

    def on_disk_is_right(self, on_disk: list[int]) -> None:
        expected = range(self.history.end)
        assert on_disk == [seq for seq in expected if seq not in self.source.dropped]

    # -- failures ---------------------------------------------------------------------------

    @rule(
        code=st.sampled_from([errno.ENOSPC, errno.EIO, errno.EROFS]),
        call=st.sampled_from(["write", "write", "create", "append", "truncate", "make_directory"]),
        partial=st.booleans(),
    )
    def fail(self, code: int, call: str, partial: bool) -> None:
        self.disk.fail(code, call, *(["write"] if call == "truncate" else []), partial=partial)

    @rule()
    def heal(self) -> None:
        self.disk.heal()
        self.runner.run(self._settle())
        assert self.history.active

    @rule(how=st.sampled_from(["restart", "kill", "cut", "flip"]), where=st.floats(0, 1))
    def end(self, how: str, where: float) -> None:
        """Start a new process, after a clean end, or from a copy of the files at this moment."""
        self.life += 1
        old = self.directory
        new = self.root / str(self.life)
        end = self.history.end
        on_disk = self._on_disk()
        if how == "restart":
            self.disk.heal()
            self.runner.run(self._settle())
            end = self.history.end
            self.runner.run(self.store.aclose(keep=True))
            new = old
        else:
            shutil.copytree(old, new)
            self.disk.heal()
            self.runner.run(self.store.aclose(keep=False))
            if how != "kill":
                self.failed = True
                first = self._damage(new, how, where)
                end = max((seq + 1 for seq in on_disk if seq < first), default=0)
        self.disk = FailingDisk()
        self._open(new, keep=["k"])
        recovered = self.history.recovered
        now = recovered.next_seq if recovered else 0
        assert end <= now <= self.source.next_seq
        source = Source()
        for seq in range(now):
            source.append(
                self.source.frame(seq),
                state=seq in self.source.state,
                client=self.source.private.get(seq, 0),
                key=self.source.keys[seq],
            )
        source.dropped = {seq for seq in self.source.dropped if seq < now}
        source.written = now
        assert recovered is None or recovered.appended == source.end
        self.source = source
        self.readings = [each for each in self.readings if each.place.seq <= now]

    async def _settle(self) -> None:
        self.store.retry()
        await self.store.flush()

    def _damage(self, directory: Path, how: str, where: float) -> int:
        """Cut the newest file, or change a byte in it; return its first number."""
        files = [*directory.glob("journals/k/*.full"), *directory.glob("journals/k/*.sparse")]
        if not files:
            return 0
        newest = max(files)
        header = Header.parse(newest.read_bytes(), 0)
        newest.with_name(newest.name + ".idx").unlink(missing_ok=True)
        content = bytearray(newest.read_bytes())
        at = int(where * len(content))
        if how == "cut" or at == len(content):
            del content[at:]
        else:
            content[at] ^= 0x55
        newest.write_bytes(content)
        assert header is not None
        return header.first_seq


class LimitedJournals(Journals):
    """The same with a limit that is reached, so that old output is given up."""

    limit = 400_000
    sizes = st.sampled_from([10, 50, 300, 3000, 20_000])

    def on_disk_is_right(self, on_disk: list[int]) -> None:
        source, end = self.source, self.history.end
        lasting = sorted((source.state & {*range(end)}) - source.dropped)
        missing = [seq for seq in lasting if seq not in on_disk]
        assert self.history.nbytes <= self.limit or not self.history.active
        if end and end - 1 not in source.dropped:
            assert on_disk[-1] == end - 1
        if missing and not self.failed:
            assert max(missing) < min(seq for seq in on_disk if seq in source.state)
            assert sum(len(source.frame(seq)) + 40 for seq in lasting) > self.limit // 8


STATEFUL = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestJournals = Journals.TestCase
TestJournals.settings = STATEFUL
TestLimitedJournals = LimitedJournals.TestCase
TestLimitedJournals.settings = STATEFUL
