"""Journals on disk with damaged files, failing disks and too little space."""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
import struct
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from kbridge.flow.batch import Batch
from kbridge.flow.places import Place
from kbridge.storage.blocks import Header
from kbridge.storage.disk import Disk, Space
from kbridge.storage.history import History
from kbridge.storage.reserve import SETTLE_S
from kbridge.storage.state_log import parse
from kbridge.storage.store import JournalStore
from tests.storage.harness import (
    START,
    FailingDisk,
    MiB,
    Reading,
    SlowDisk,
    Source,
    open_store,
    read,
    until,
)
from tests.storage.test_store import say, warnings, write
from tests.support.waiting import TIMEOUT

_FIRST_SEQ = 20  # position in the header of a block


def full_file(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "k" / "00000000.full"


def change_first_seq(path: Path, seq: int, to: int) -> None:
    """Write another first number into the header of the block that begins with frame `seq`."""
    data = bytearray(path.read_bytes())
    at = 0
    while (header := Header.parse(bytes(data), at)) and header.first_seq != seq:
        at += header.size
    struct.pack_into("<Q", data, at + _FIRST_SEQ, to)
    path.write_bytes(data)


# -- the state log and the frames -----------------------------------------------------------


@pytest.mark.parametrize("lost", [0, 3])
async def test_a_request_is_forgotten_when_its_reply_is_on_disk(tmp_path: Path, lost: int) -> None:
    """At every moment, the log has the request or the files have the reply."""
    log = tmp_path / "journals" / "k" / "state.log"
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    history.attach(source)
    history.record("request/1", [1])
    await history.flush()
    for _ in range(10):
        source.append(b"i" * MiB)
    reply = source.append(b"reply", state=True)
    history.record("request/1", None)
    say(source, 5)
    source.drop(lost)
    history.changed()
    seen = []
    on_written = source.on_written

    def look(end: int) -> None:
        on_written(end)
        seen.append((end > reply, parse(log.read_bytes())))

    source.on_written = look  # type: ignore[method-assign]
    await history.flush()
    assert [known for known, _ in seen] == sorted(known for known, _ in seen)
    assert len(seen) >= 2
    assert seen == [(known, {} if known else {"request/1": [1]}) for known, _ in seen]
    await store.aclose(keep=False)


async def test_a_failed_write_keeps_the_request_until_the_reply_is_on_disk(tmp_path: Path) -> None:
    disk = FailingDisk()
    log = tmp_path / "journals" / "k" / "state.log"
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    history.attach(source)
    history.record("request/1", [1])
    await history.flush()
    for _ in range(6):
        source.append(b"i" * MiB)
    source.append(b"reply", state=True)
    history.record("request/1", None)
    disk.fail(errno.ENOSPC, "write")
    history.changed()
    await history.flush()
    assert not history.active
    assert parse(log.read_bytes()) == {"request/1": [1]}
    disk.heal()
    store.retry()
    await until(lambda: source.written)
    assert source.written < 7
    assert parse(log.read_bytes()) == {"request/1": [1]}
    await history.flush()
    assert parse(log.read_bytes()) == {}
    await store.aclose(keep=False)


# -- positions and numbers ------------------------------------------------------------------


@pytest.mark.parametrize("to", [50 | 1 << 40, 1, 49, 51])
@pytest.mark.parametrize("start", [0, 30, 50, 52])
async def test_a_wrong_number_in_a_header_is_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, to: int, start: int
) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    for _ in range(20):
        await write(history, source, 5)
    change_first_seq(full_file(tmp_path), 50, to)
    reading = await read(history, Place(start, start, source.offset(start)))
    reading.check(source)
    assert sorted(reading.frames) == [*range(start, 50)]
    assert reading.place.seq == 100
    assert [gap.messages for gap in reading.gaps.values()] == [100 - max(start, 50)]
    [line] = warnings(caplog)
    assert "wrong checksum" in line
    before = await read(history, Place(45, 45, source.offset(45)))
    assert sorted(before.frames) == [*range(45, 50)]
    await store.aclose(keep=False)


@pytest.mark.parametrize("kind", [0, 1])
async def test_a_wrong_number_in_a_sparse_segment_is_damage(tmp_path: Path, kind: int) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    say(source, 40)
    source.drop(40)
    await write(history, source, 20)
    path = tmp_path / "journals" / "k" / "00000000.sparse"
    change_first_seq(path, 0, 1 << 40)
    reading = Reading(START)
    if kind:  # the segment may end after the horizon: verified, too
        await reading.go_on(history, horizon=30)
        assert reading.frames == {}
    await reading.go_on(history)
    assert sorted(reading.frames) == [*range(40, 60)]
    assert [gap.messages for gap in reading.gaps.values()] == [40]
    await store.aclose(keep=False)


async def use_other_files(store: JournalStore, count: int = 70) -> None:
    """Write to so many files that those of the other kernels are closed."""
    for i in range(count):
        await write(store.history(f"other-{i}"), Source(), 1)


@pytest.mark.parametrize("change", ["removed", "longer", "shorter"])
async def test_a_file_that_changed_is_not_continued(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    await write(history, source, 100)
    await use_other_files(store)
    path = full_file(tmp_path)
    if change == "removed":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data + b"?" if change == "longer" else data[:-1])
    await write(history, source, 100)
    assert not history.active
    assert source.written == 100
    assert "is not written" in warnings(caplog)[0]
    store.retry()
    await store.flush()
    assert source.written == 200
    reading = await read(history)
    reading.check(source)
    lost = [] if change == "longer" else [*range(100)]
    assert sorted(reading.frames) == sorted({*range(200)} - {*lost})
    await store.aclose(keep=True)
    store = await open_store(tmp_path, keep=["k"])
    again = await read(store.history("k"))
    again.check(source)
    assert again.frames == reading.frames
    await store.aclose(keep=False)


async def test_a_state_log_that_vanished_is_written_whole(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    history = store.history("k")
    history.record("a", 1)
    await history.flush()
    await use_other_files(store)
    log = tmp_path / "journals" / "k" / "state.log"
    log.unlink()
    history.record("b", 2)
    await history.flush()
    assert not history.active
    store.retry()
    await store.flush()
    assert parse(log.read_bytes()) == {"a": 1, "b": 2}
    await store.aclose(keep=False)


# -- compaction -----------------------------------------------------------------------------


class SparseFails(FailingDisk):
    """A disk on which no sparse file can be written."""

    def create(self, path: Path) -> int:
        if ".sparse" in path.name:
            self._check("create sparse")
        return super().create(path)

    def append(self, path: Path) -> int:
        if ".sparse" in path.name:
            self._check("append sparse")
        return super().append(path)


async def write_all(history: History, source: Source, batches: int) -> None:
    for _ in range(batches):
        await write(history, source, 10)


@pytest.mark.parametrize("call", ["create sparse", "append sparse"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EIO])
async def test_state_is_not_given_up_because_it_cannot_be_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, call: str, code: int
) -> None:
    disk = SparseFails()
    store = await open_store(tmp_path, limit=400_000, disk=disk)
    history, source = store.history("k"), Source()
    await write_all(history, source, 37 if call.startswith("create") else 60)
    before = await read(history)
    disk.fail(code, call)
    await write_all(history, source, 20)
    assert not history.active
    [line] = warnings(caplog)
    assert "is not written" in line
    assert (await read(history)).frames.items() >= before.frames.items()
    disk.heal()
    store.retry()
    await store.flush()
    assert history.active
    assert source.written == source.next_seq
    assert history.nbytes <= 400_000
    reading = await read(history)
    reading.check(source)
    assert reading.frames.keys() >= source.state
    await store.aclose(keep=False)


async def test_an_output_file_that_never_can_be_read_is_given_up_at_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FailingDisk()
    store = await open_store(tmp_path, limit=400_000, disk=disk)
    history, source = store.history("k"), Source()
    await write_all(history, source, 37)
    oldest = full_file(tmp_path)
    healthy = disk.open

    def broken(path: Path) -> int:
        if path == oldest:
            raise OSError(errno.EIO, "injected")
        return healthy(path)

    disk.open = broken  # type: ignore[method-assign]
    await write_all(history, source, 10)
    for _ in range(2):
        assert not history.active
        assert oldest.exists()
        store.retry()
        await store.flush()
    await write_all(history, source, 1)
    store.retry()
    await store.flush()
    assert history.active
    assert source.written == source.next_seq
    assert not oldest.exists()
    assert "cannot be read and is skipped" in warnings(caplog)[-1]
    assert history.nbytes <= 400_000
    await store.aclose(keep=False)


async def test_a_sparse_file_that_changed_is_not_continued(tmp_path: Path) -> None:
    store = await open_store(tmp_path, limit=400_000)
    history, source = store.history("k"), Source()
    await write_all(history, source, 60)
    [sparse] = (tmp_path / "journals" / "k").glob("*.sparse")
    kept = await read(history)
    sparse.write_bytes(sparse.read_bytes() + b"?")
    await write_all(history, source, 40)
    assert history.active
    assert source.written == source.next_seq
    reading = await read(history)
    reading.check(source)
    assert reading.frames.keys() >= source.state
    assert kept.frames.keys() - reading.frames.keys()
    await store.aclose(keep=True)
    store = await open_store(tmp_path, limit=400_000, keep=["k"])
    assert (await read(store.history("k"))).frames == reading.frames
    await store.aclose(keep=False)


async def test_damage_that_a_compaction_finds_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(tmp_path, limit=400_000)
    history, source = store.history("k"), Source()
    await write_all(history, source, 37)
    change_first_seq(full_file(tmp_path), 50, 51)
    await write_all(history, source, 40)
    assert history.active
    [line] = warnings(caplog)
    assert "wrong checksum" in line
    reading = await read(history)
    reading.check(source)
    assert reading.frames.keys() >= {seq for seq in source.state if seq < 50 or seq >= 370}
    assert store.statistics()["damages"] == 1
    await store.aclose(keep=False)


# -- free space -----------------------------------------------------------------------------


class Measured(Disk):
    """A disk whose free space, of 1000 bytes, is what a test says."""

    def __init__(self) -> None:
        self.free: int | None = 500
        self.looks = 0

    def space(self, path: Path) -> Space:
        self.looks += 1
        if self.free is None:
            raise FileNotFoundError(errno.ENOENT, "injected")
        return Space(self.free, 1000)


async def measure(store: JournalStore, times: int = 1) -> None:
    for _ in range(times):
        store.measure()
        await store.flush()


async def three_journals(tmp_path: Path, disk: Disk) -> tuple[JournalStore, list[History]]:
    store = await open_store(tmp_path, limit=64 * MiB, reserve=0.05, disk=disk)
    histories = [store.history(f"k{i}") for i in range(3)]
    for history in histories:
        source = Source()
        for _ in range(6):
            await write(history, source, 1500)
    return store, histories


async def test_space_that_is_freed_late_costs_one_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Measured()
    store, histories = await three_journals(tmp_path, disk)
    before = store.statistics()["bytes"]
    disk.free = 49
    await measure(store, 5)
    after = store.statistics()["bytes"]
    assert before - 4 * MiB * 1.1 <= after < before
    assert all(history.active for history in histories)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + SETTLE_S)
    await measure(store, 5)
    assert before - 8 * MiB * 1.1 <= store.statistics()["bytes"] < after
    await store.aclose(keep=False)


async def test_no_job_runs_when_the_space_cannot_be_measured(tmp_path: Path) -> None:
    disk = Measured()
    store, _ = await three_journals(tmp_path, disk)
    disk.free = 49
    take = store.measured
    looks = []

    def measured(space: Space | None) -> None:
        looks.append(space)
        take(space)
        disk.free = None

    store.measured = measured  # type: ignore[method-assign]
    store.measure()
    async with asyncio.timeout(TIMEOUT):
        await store.flush()  # it ends when there is no work
    assert looks == [Space(49, 1000), None]
    await store.aclose(keep=False)


async def test_writing_does_not_flap_at_the_reserve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk = Measured()
    store = await open_store(tmp_path, reserve=0.05, disk=disk)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    changes = []
    source.on_durable = changes.append  # type: ignore[method-assign]
    for free in [49, 51] * 5:
        disk.free = free
        await measure(store)
    assert changes == [False]
    assert len(caplog.messages) == 1
    disk.free = 60
    await measure(store)
    assert changes == [False, True]
    await store.aclose(keep=False)


# -- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
async def test_an_error_of_a_moment_costs_no_history(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr("kbridge.storage.reading._PAUSE_S", 0)
    disk = FailingDisk()
    store = await open_store(tmp_path, limit=16 * MiB, disk=disk)
    history, source = store.history("k"), Source()
    for _ in range(4):
        await write(history, source, 1300)
    before = history.nbytes
    disk.fail(code, "open")
    reading = await read(history)
    assert reading.frames == {}
    assert (await read(history)).frames == {}
    disk.heal()
    [line] = warnings(caplog)
    assert "cannot be read now: injected in" in line
    assert history.nbytes == before
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 10)
    await reading.go_on(history)
    reading.check(source)
    assert sorted(reading.frames) == [*range(source.next_seq)]
    assert not reading.gaps
    await store.aclose(keep=False)


async def test_readers_skip_a_file_that_cannot_be_read_now(tmp_path: Path) -> None:
    disk = FailingDisk()
    store = await open_store(tmp_path, limit=16 * MiB, disk=disk)
    history, source = store.history("k"), Source()
    for _ in range(4):
        await write(history, source, 1300)
    healthy = disk.open

    def broken(path: Path) -> int:
        if path == full_file(tmp_path):
            raise OSError(errno.EIO, "injected")
        return healthy(path)

    disk.open = broken  # type: ignore[method-assign]
    reading = await read(history)
    reading.check(source)
    first = min(reading.frames)
    assert sorted(reading.frames) == [*range(first, source.next_seq)]
    assert {seq: gap.messages for seq, gap in reading.gaps.items()} == {first: first}
    assert history.holds(0)
    await store.aclose(keep=False)


async def test_damage_in_the_file_being_written_to_costs_no_new_frame(tmp_path: Path) -> None:
    """It is found while a job writes to the file."""
    errors: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    disk = SlowDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    history.attach(source)
    history.record("request/1", 1)
    await write(history, source, 100)
    change_first_seq(full_file(tmp_path), 0, 7)
    disk.go.clear()
    disk.waiting.clear()
    say(source, 10)
    history.record("request/1", None)
    history.changed()
    await asyncio.to_thread(disk.waiting.wait, 60)
    assert (await read(history)).frames == {}
    disk.go.set()
    await history.flush()
    assert errors == []
    assert source.written == 110
    reading = await read(history)
    reading.check(source)
    assert sorted(reading.frames) == [*range(100, 110)]
    await store.aclose(keep=True)
    store = await open_store(tmp_path, keep=["k"])
    recovered = store.history("k").recovered
    assert recovered is not None
    assert (recovered.next_seq, recovered.records) == (110, {})
    assert (await read(store.history("k"))).frames == reading.frames
    await store.aclose(keep=False)


async def test_damaged_files_are_removed_and_counted_until_then(tmp_path: Path) -> None:
    store = await open_store(tmp_path, limit=16 * MiB)
    history, source = store.history("k"), Source()
    for _ in range(4):
        await write(history, source, 1300)
    files = sorted((tmp_path / "journals" / "k").glob("*.full"))
    change_first_seq(files[0], 0, 1)  # nothing of it can be read
    before = history.nbytes
    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1
    files[1].write_bytes(data)
    size = files[0].stat().st_size
    await read(history)
    assert before - size * 1.1 < history.nbytes < before - size
    await history.flush()
    assert not files[0].exists()
    assert files[1].exists()
    on_disk = sum(path.stat().st_size for path in files[1:])
    assert on_disk <= history.nbytes <= on_disk * 1.1
    await store.aclose(keep=False)


async def test_a_directory_that_vanished_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(tmp_path)
    histories = [store.history(f"k{i}") for i in range(3)]
    for history in histories:
        await write(history, Source(), 10)
    shutil.rmtree(tmp_path / "journals")
    for history in histories:
        assert (await read(history)).frames == {}
        assert history.nbytes == 0
    assert len([line for line in warnings(caplog) if "cannot be read" in line]) == 1
    assert store.statistics()["damages"] == 3
    await store.aclose(keep=False)


# -- jobs -----------------------------------------------------------------------------------


async def test_a_source_that_raises_when_asked_harms_no_other_kernel(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Source):
        error: Exception | None = ValueError("a bug")

        def unwritten(self, max_bytes: int) -> Batch | None:
            if self.error is not None:
                raise self.error
            return super().unwritten(max_bytes)

    store = await open_store(tmp_path)
    broken, source = Broken(), Source()
    for _ in range(2):
        for name, each in ("a", broken), ("b", source):
            if each.durable is None:
                store.history(name).attach(each)
            say(each, 3)
            store.history(name).changed()
        await store.flush()
        store.retry()
    await store.flush()
    assert source.written == 6
    assert broken.durable is False
    [line] = warnings(caplog)
    assert line.startswith("The journal of kernel a is not written")
    broken.error = None
    store.retry()
    await store.flush()
    assert broken.written == 6
    assert broken.durable is True
    await store.aclose(keep=False)


class WatchedDisk(SlowDisk):
    """Calls `look` before each write."""

    def look(self) -> None:
        pass

    def write(self, descriptor: int, buffers: Sequence[bytes]) -> int:
        self.look()
        return super().write(descriptor, buffers)


async def test_a_large_job_leaves_the_other_kernels_to_the_next_one(tmp_path: Path) -> None:
    disk = WatchedDisk()
    store = await open_store(tmp_path, disk=disk)
    sources = [Source() for _ in range(20)]
    done: list[list[int]] = []
    for at, source in enumerate(sources):
        history = store.history(f"k{at}")
        history.attach(source)
        for _ in range(3):
            source.append(b"x" * MiB)
        history.changed()
        source.on_written = partial(note, source, done, at)  # type: ignore[method-assign]
    done.append([])
    wait_for_job = store.flush()
    original = JournalStore.on_job_done

    def on_job_done(self: JournalStore) -> None:
        original(self)
        done.append([])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JournalStore, "on_job_done", on_job_done)
        await wait_for_job
    jobs = [job for job in done if job]
    assert [len(job) for job in jobs] == [11, 9]
    assert sorted(at for job in jobs for at in job) == [*range(20)]
    await store.aclose(keep=False)


def note(source: Source, done: list[list[int]], at: int, end: int) -> None:
    """Note in which job the frames of a source were written."""
    Source.on_written(source, end)
    done[-1].append(at)


async def test_a_disk_that_is_slow_does_not_count_as_hanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kernel takes 9 s, all of one job together 27 s."""
    disk = WatchedDisk()
    store = await open_store(tmp_path, disk=disk)
    loop = asyncio.get_running_loop()
    now, late = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: now() + late)
    reached, go = threading.Semaphore(0), threading.Semaphore(0)

    def look() -> None:
        reached.release()
        assert go.acquire(timeout=60)

    disk.look = look  # type: ignore[method-assign]
    histories = []
    for at in range(3):
        history, source = store.history(f"k{at}"), Source()
        history.attach(source)
        say(source, 1)
        history.changed()
        histories.append((history, source))
    for writes in range(6):  # the file with the owner of a directory, and the frames
        await asyncio.to_thread(reached.acquire, timeout=60)
        if writes % 2:
            late += 9
            store.retry()
            assert all(history.active for history, _ in histories)
        go.release()
    await store.flush()
    assert [source.written for _, source in histories] == [1, 1, 1]
    await store.aclose(keep=False)


async def test_a_directory_that_becomes_usable_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    journals = tmp_path / "journals"
    journals.write_text("not a directory")
    store = await open_store(tmp_path)
    [line] = caplog.messages
    assert f"not written to {journals} (journal_dir)" in line
    assert store.statistics()["failing_kernels"] == 0
    journals.unlink()
    history, source = store.history("k"), Source()
    await write(history, source, 1)
    assert caplog.messages[1:] == [f"All journals are written to {journals} again"]
    caplog.clear()
    shutil.rmtree(journals)
    journals.write_text("not a directory")
    for _ in range(3):
        await write(history, source, 1)
        store.retry()
        await store.flush()
    assert not history.active
    assert len(warnings(caplog)) <= 2  # one per cause
    assert warnings(caplog)
    await store.aclose(keep=False)


async def test_reading_many_small_blocks_lets_the_event_loop_run(tmp_path: Path) -> None:
    class Rested(Disk):
        rests = 0

        def rest(self) -> None:
            self.rests += 1

    disk = Rested()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    for _ in range(300):
        await write(history, source, 1)
    await store.aclose(keep=True)
    full_file(tmp_path).with_name("00000000.full.idx").unlink()
    assert disk.rests == 0
    store = await open_store(tmp_path, disk=disk, keep=["k"])
    assert store.history("k").end == 300
    assert disk.rests == 300 // 64
    await store.aclose(keep=False)
