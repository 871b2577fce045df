"""The store of journals: its files, limits, failures, many kernels, and its end."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kbridge.flow.places import Place
from kbridge.storage.context import segment_size
from kbridge.storage.disk import Disk, Space
from kbridge.storage.flush import FLUSH_DELAY, LATE_DELAY, Client, FlushQueue
from kbridge.storage.history import History
from tests.storage.harness import (
    START,
    FailingDisk,
    KeptMemory,
    MiB,
    Reading,
    SlowDisk,
    Source,
    open_store,
    read,
    until,
)
from tests.support.waiting import TIMEOUT


def say(source: Source, count: int, size: int = 1000) -> None:
    for _ in range(count):
        seq = source.next_seq
        source.append(
            b"%8d" % seq * (size // 8), state=seq % 5 == 0, client=seq % 7 == 0 and 9, key=seq + 1
        )


async def write(history: History, source: Source, count: int, size: int = 1000) -> None:
    if source.durable is None:
        history.attach(source)
    say(source, count, size)
    history.changed()
    await history.flush()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_journal_is_read_from_disk_and_after_a_restart(tmp_path: Path) -> None:
    store = await open_store(tmp_path, limit=16 * MiB)  # segments of 1 MiB
    history = store.history("k")
    assert history.recovered is None
    assert history.oldest is None
    assert history.next_full(0) is None
    source = Source()
    for _ in range(50):
        await write(history, source, 50)
    history.record("session/1", {"number": 3})
    history.record("request/1", [1])
    history.record("request/1", None)
    await history.flush()
    for _ in range(2):
        assert (history.end, history.offset) == (2500, source.end)
        assert history.oldest == START
        assert history.holds(5)
        assert not history.holds(2500)
        assert history.next_full(7) == 7
        for max_bytes in (700, 512 * 1024):
            reading = await read(history, max_bytes=max_bytes)
            reading.check(source)
            assert sorted(reading.frames) == [*range(2500)]
            assert reading.place == (2500, 2500, source.end)
        for key in (1, 1249, 2500):
            found = await history.find(key, lambda frame: True)
            assert found == (key, key, source.offset(key))
        assert await history.find(9999, lambda frame: True) is None
        assert await history.find(0, lambda frame: True) is None
        assert await history.find(7, lambda frame: False) is None
        await store.aclose(keep=True)
        store = await open_store(tmp_path, limit=16 * MiB, keep=["k"])
        history = store.history("k")
        assert history.recovered == (2500, source.end, {"session/1": {"number": 3}})
    await store.aclose(keep=False)
    assert names(tmp_path / "journals") == []


async def test_frames_are_written_soon_after_they_changed(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    history.attach(source)
    say(source, 3)
    history.changed()
    history.changed()
    assert source.written == 0
    await until(lambda: source.written == 3)
    say(source, 1, size=MiB)
    history.changed()
    await until(lambda: source.written == 4)
    await store.aclose(keep=False)


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays with which histories have asked for a job."""
    found: list[float] = []
    add = FlushQueue.add

    def note(queue: FlushQueue, client: Client, delay: float = FLUSH_DELAY) -> None:
        found.append(delay)
        add(queue, client, delay)

    monkeypatch.setattr(FlushQueue, "add", note)
    return found


async def test_what_comes_again_is_written_later(tmp_path: Path, delays: list[float]) -> None:
    store = await open_store(tmp_path)
    history, source, memory = store.history("k"), Source(), KeptMemory()
    history.attach(source)
    history.follow(memory)
    say(source, 1)
    history.changed()
    await until(lambda: source.written == 1)
    delays.clear()
    say(source, 1)
    history.changed()
    history.record("place/1", 1, late=True)
    assert delays == [LATE_DELAY]
    history.record("session/1", 1)
    history.record("session/2", 2)
    assert delays == [LATE_DELAY, FLUSH_DELAY], "it does not come again"
    await until(lambda: source.written == 2)
    assert memory.reached_at == [1, 2]
    delays.clear()
    say(source, 1)
    history.changed()
    assert delays == [LATE_DELAY], "the next time, there is time again"
    await until(lambda: source.written == 3)
    memory.stays = False
    delays.clear()
    say(source, 1)
    history.changed()
    assert delays == [FLUSH_DELAY]
    await store.aclose(keep=False)


async def test_lines_of_values_that_stay_are_made_when_frames_have_changed(
    tmp_path: Path,
) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    history.attach(source)
    await history.flush()
    made: list[int] = []

    def value(number: int) -> str:
        made.append(number)
        return str(number)

    for number in range(60):
        history.record(f"request/{number}", partial(value, number))
        history.finish(f"request/{number}")
    assert not made
    say(source, 1)
    history.changed()
    assert 0 < len(made) <= 30, "a part, so that the loop is free soon"
    known = len(made)
    history.changed()
    assert known < len(made) < 60
    await history.flush()
    assert made == [*range(60)]
    await store.aclose(keep=True)


async def test_a_value_is_remembered_until_it_is_written(tmp_path: Path) -> None:
    disk = FailingDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source, memory = store.history("k"), Source(), KeptMemory()
    history.attach(source)
    assert not history.remember("request/1", [1]), "there is no memory that outlives the process"
    history.follow(memory)
    await history.flush()
    disk.fail(errno.ENOSPC, "write")
    assert history.remember("request/1", lambda: "[1]")
    history.record("request/1", [1], late=True)
    await history.flush()
    assert not history.active
    assert memory.left == {"request/1": [1]}
    disk.heal()
    store.retry()
    await until(lambda: history.active)
    await history.flush()
    assert memory.left == {}
    await store.aclose(keep=True)


async def test_the_next_process_has_what_was_remembered(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    history = store.history("k")
    history.attach(Source())
    history.record("request/1", ["ended"])
    await history.flush()
    await store.aclose(keep=True)
    for life in range(2):
        store = await open_store(tmp_path, keep=["k"])
        history = store.history("k")
        if life == 0:
            history.recall({"request/2": ["sent"]})
        assert history.recovered is not None
        assert history.recovered.records == {"request/1": ["ended"], "request/2": ["sent"]}
        history.attach(Source())
        await history.flush()
        await store.aclose(keep=True)


async def test_a_history_that_comes_again_goes_on(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    await write(history, source, 3)
    history.record("a", 1)
    again = store.history("k")
    assert again is history
    assert again.recovered == (3, source.end, {"a": 1})
    await store.aclose(keep=False)


@pytest.mark.parametrize("how", ["close", "discard"])
async def test_a_kernel_that_comes_again_under_the_same_id_is_new(tmp_path: Path, how: str) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    await write(history, source, 3)
    if how == "discard":
        store.discard("k")
        store.discard("unknown")
    else:
        removal = history.close(keep=False)
    assert history.closed
    assert source.durable is False
    new, other = store.history("k"), Source()
    assert new is not history
    assert new.recovered is None
    await write(new, other, 1)
    if how == "close":
        await removal
    assert [*(await read(new)).frames] == [0]
    assert store.statistics()["bytes"] == new.nbytes > 0
    await store.aclose(keep=False)
    assert names(tmp_path / "journals") == []


async def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = await open_store(tmp_path, limit=400_000)
        history, source = store.history("k"), Source()
        for _ in range(60):
            await write(history, source, 10)
        history.record("a", 1)
        await history.flush()
        modes = {
            path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "journals").rglob("*")
        }
    finally:
        os.umask(before)
    assert {path.suffix for path in modes} >= {".full", ".sparse", ".idx", ".log"}
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "journals").stat().st_mode) == 0o700
    await store.aclose(keep=True)


@pytest.mark.parametrize("kernel_id", ["..", ".", "", "a/b", "a\0b", "x" * 300, "é", "\udc80"])
async def test_any_kernel_id_has_a_directory_inside(tmp_path: Path, kernel_id: str) -> None:
    for keep in ([], [kernel_id]):
        store = await open_store(tmp_path, keep=keep)
        history = store.history(kernel_id)
        if keep:
            assert history.recovered is not None
        else:
            await write(history, Source(), 1)
        [path] = (tmp_path / "journals").iterdir()
        assert path.name.endswith(".id")
        await store.aclose(keep=True)
    assert names(tmp_path) == ["journals"]


# -- reading --------------------------------------------------------------------------------


class CountingDisk(Disk):
    """Counts the bytes that are read from segment files."""

    def __init__(self) -> None:
        self.nbytes = 0

    def read(self, descriptor: int, size: int, position: int) -> bytes:
        data = super().read(descriptor, size, position)
        self.nbytes += len(data)
        return data


@pytest.mark.parametrize("size", [96, 1000, 50_000, MiB])
async def test_reading_all_costs_at_most_what_there_is_and_a_share_per_chunk(
    tmp_path: Path, size: int
) -> None:
    disk = CountingDisk()
    store = await open_store(tmp_path, disk=disk, limit=64 * MiB)
    history, source = store.history("k"), Source()
    for _ in range(16):
        await write(history, source, max(512 * 1024 // size, 1), size)
    for max_bytes in (64 * 1024, 512 * 1024):
        disk.nbytes = 0
        stretches = 0
        place = START
        while (stretch := await history.read(place, max_bytes, 10**9)) is not None:
            place = stretch.end
            stretches += 1
        assert place.seq == history.end
        # A stretch reads its own bytes, at most 64 KiB before them, and as many bytes of the block
        # that follows as one block has.
        assert disk.nbytes <= 1.2 * history.nbytes + stretches * (64 + 256 + 64) * 1024
    assert stretches <= 1.5 * source.end / (512 * 1024) * (2 if size == MiB else 1) + 4
    disk.nbytes = 0
    at = history.end // 2
    await history.read(Place(at, at, source.offset(at)), 1, 10**9)
    assert disk.nbytes <= 64 * 1024 + max(size, 256 * 1024) + 128 * 1024
    await store.aclose(keep=False)


async def test_a_reader_goes_on_while_old_output_is_given_up(tmp_path: Path) -> None:
    store = await open_store(tmp_path, limit=400_000)
    history, source = store.history("k"), Source()
    await write(history, source, 100)
    reading = await Reading(START).go_on(history, 10_000, most=3)
    assert not reading.gaps
    for _ in range(20):
        await write(history, source, 50)
        await reading.go_on(history, 10_000, most=1)
    await reading.go_on(history)
    reading.check(source)
    assert reading.place == (history.end, history.end, history.offset)
    missing = {*range(history.end)} - reading.frames.keys()
    assert missing
    assert not missing & source.state
    assert sum(gap.messages for gap in reading.gaps.values()) == len(missing)
    lost = sum(len(source.frame(seq)) for seq in missing)
    assert sum(gap.nbytes for gap in reading.gaps.values()) == lost
    [*_, (last, gap)] = sorted(reading.gaps.items())
    assert gap.last_lost == source.frame(max(seq for seq in missing if seq < last))
    await store.aclose(keep=False)


async def test_the_last_lost_frame_is_known_if_only_statuses_are_behind_it(tmp_path: Path) -> None:
    """A segment ends with statuses only if the process ends after them."""
    source = Source()
    store = await open_store(tmp_path, limit=4 * MiB)
    history = store.history("k")
    history.attach(source)
    for state in (False, True):  # two blocks
        for n in range(100):
            source.append(b"%8d" % n * 250, state=state)
        history.changed()
        await history.flush()
    await store.aclose(keep=True)
    store = await open_store(tmp_path, limit=4 * MiB, keep=["k"])
    history = store.history("k")
    source.durable = None
    reading = await read(history)
    for _ in range(100):
        await write(history, source, 50)
        reading = await read(history)
        if reading.gaps:
            break
    [(seq, gap)] = reading.gaps.items()
    missing = {*range(seq)} - reading.frames.keys()
    assert gap.last_lost == source.frame(max(missing))
    await store.aclose(keep=False)


async def test_all_output_is_gone_but_the_numbers_go_on(tmp_path: Path) -> None:
    store = await open_store(tmp_path, limit=100_000)
    history, source = store.history("k"), Source()
    history.attach(source)
    source.append(b"x" * 200_000)  # larger than the limit
    history.changed()
    await history.flush()
    assert (history.end, history.offset, history.nbytes) == (1, 200_000, 0)
    reading = await read(history)
    assert reading.frames == {}
    assert reading.place == (1, 1, 200_000)
    assert [gap[:2] for gap in reading.gaps.values()] == [(1, 200_000)]
    assert await history.read(START, 1000, 0) is None
    await store.aclose(keep=False)


# -- limits of all kernels ------------------------------------------------------------------


async def test_the_largest_journals_give_up_output_for_the_total(tmp_path: Path) -> None:
    store = await open_store(tmp_path, limit=4 * MiB, total=6 * MiB)
    small, large = store.history("small"), store.history("large")
    sources = Source(), Source()
    await write(small, sources[0], 1000)
    for _ in range(4):
        await write(large, sources[1], 900)
    for i in range(2):
        await write(store.history(str(i)), Source(), 1200)
    await store.flush()
    assert store.statistics()["bytes"] <= 6 * MiB
    assert sorted((await read(small)).frames) == [*range(1000)]
    assert len((await read(large)).frames) < 3600
    assert (await read(large)).frames.keys() >= sources[1].state
    await store.aclose(keep=False)


class FullDisk(Disk):
    """A file system with `capacity` bytes, of which other programs and the journals use some."""

    def __init__(self, journals: Path, capacity: int) -> None:
        self.journals = journals
        self.capacity = capacity
        self.others = 0

    def space(self, path: Path) -> Space:
        used = sum(each.stat().st_size for each in self.journals.rglob("*") if each.is_file())
        return Space(self.capacity - used - self.others, self.capacity)


async def test_a_share_of_the_disk_stays_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk = FullDisk(tmp_path, 20 * MiB)
    store = await open_store(tmp_path, limit=64 * MiB, reserve=0.25, disk=disk)
    history, source = store.history("k"), Source()
    for _ in range(12):
        await write(history, source, 2000)
        store.measure()
        await store.flush()
        assert disk.space(tmp_path).free >= 5 * MiB
    assert history.active
    assert [*(await read(history)).frames][-1] == history.end - 1
    disk.others = 19 * MiB
    store.measure()
    await store.flush()
    assert not history.active
    assert source.durable is False
    [line] = warnings(caplog)
    assert f"not written to {tmp_path / 'journals'} (journal_dir): less than 25 %" in line
    assert "is free (journal_disk_reserve). They continue in memory" in line
    written = source.written
    await write(history, source, 10)
    store.retry()
    await store.flush()
    assert source.written == written
    disk.others = 0
    store.retry()
    await store.flush()
    assert history.active
    assert source.written == source.next_seq
    assert caplog.messages[-1].endswith("are written to " + f"{tmp_path / 'journals'} again")
    assert len(warnings(caplog)) == 1
    assert store.history("new").active
    await store.aclose(keep=False)


async def test_nothing_is_given_up_for_a_lack_of_space_that_is_over(tmp_path: Path) -> None:
    store = await open_store(tmp_path, limit=16 * MiB)
    history, source = store.history("k"), Source()
    for _ in range(4):
        await write(history, source, 1200)
    history.give_up()
    history.stop(True)
    history.stop(False)
    await write(history, source, 1200)
    assert sorted((await read(history)).frames) == [*range(source.next_seq)]
    assert source.next_seq == 6000
    history.give_up()
    await history.flush()
    assert len((await read(history)).frames) < 6000
    await store.aclose(keep=False)


# -- failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("partial", [False, True])
async def test_a_disk_that_fails_is_logged_once_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, partial: bool
) -> None:
    caplog.set_level(logging.INFO)
    disk = FailingDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    other = store.history("other")
    await write(history, source, 10)
    history.record("a", 1)
    await history.flush()
    disk.fail(code, "write", "create", partial=partial)
    for _ in range(3):
        await write(history, source, 10)
        history.record("a", 2)
        history.record("b", 2)
        await write(other, Source(), 1)
        store.retry()
        await store.flush()
    assert not history.active
    assert source.durable is False
    assert source.written == 10
    assert store.statistics()["failing_kernels"] == 2
    [line] = warnings(caplog)
    assert "journal_dir" in line
    assert "It continues in memory" in line
    assert str(tmp_path) in line
    source.drop(25)  # the memory is full
    disk.heal()
    caplog.clear()
    store.retry()
    await store.flush()
    assert history.active
    assert source.durable is True
    assert store.statistics()["failing_kernels"] == 0
    assert caplog.messages == [f"All journals are written to {tmp_path / 'journals'} again"]
    reading = await read(history)
    reading.check(source)
    assert sorted(reading.frames) == [*range(10), 10, 15, 20, *range(25, 40)]
    assert [gap[0] for gap in reading.gaps.values()] == [12]
    await store.aclose(keep=True)
    store = await open_store(tmp_path, keep=["k"])
    assert store.history("k").recovered == (40, source.end, {"a": 2, "b": 2})
    assert (await read(store.history("k"))).frames == reading.frames
    await store.aclose(keep=False)


async def test_a_directory_that_is_removed_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    history.record("a", 1)
    await history.flush()
    shutil.rmtree(tmp_path / "journals")
    await write(history, source, 10)
    assert not history.active
    [line] = warnings(caplog)
    assert "removed while in use" in line
    store.retry()
    await store.flush()
    assert history.active
    reading = await read(history)
    assert sorted(reading.frames) == [*range(10, 20)]
    assert [gap[0] for gap in reading.gaps.values()] == [10]
    await store.aclose(keep=True)
    store = await open_store(tmp_path, keep=["k"])
    assert store.history("k").recovered == (20, source.end, {"a": 1})
    await store.aclose(keep=False)


async def test_a_slow_disk_delays_nothing(tmp_path: Path) -> None:
    disk = SlowDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    disk.go.clear()
    disk.waiting.clear()
    say(source, 10)
    history.changed()
    await asyncio.to_thread(disk.waiting.wait, 60)
    say(source, 10)
    history.changed()
    assert sorted((await read(history)).frames) == [*range(10)]  # readers have their own threads
    assert history.active
    assert source.written == 10
    disk.go.set()
    await history.flush()
    assert sorted((await read(history)).frames) == [*range(30)]
    await store.aclose(keep=False)


async def test_a_disk_that_does_not_answer_is_given_up_until_it_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    disk.go.clear()
    disk.waiting.clear()
    say(source, 10)
    history.changed()
    await asyncio.to_thread(disk.waiting.wait, 60)
    store.retry()
    assert history.active
    waits = asyncio.ensure_future(history.flush())
    await asyncio.sleep(0)
    assert not waits.done()
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 11)
    store.retry()
    assert not history.active
    assert source.durable is False
    assert not store.history("new").active
    monkeypatch.setattr(loop, "time", now)
    await waits  # the disk still does not answer
    [line] = warnings(caplog)
    assert "did not answer for 10 s" in line
    disk.go.set()
    await until(lambda: source.written == 20)
    assert history.active
    await write(history, source, 1)
    assert sorted((await read(history)).frames) == [*range(21)]
    await store.aclose(keep=False)


async def test_the_end_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kbridge.storage.store._CLOSE_TIMEOUT", 0.01)
    disk = SlowDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    history.attach(source)
    disk.go.clear()
    say(source, 10)
    history.changed()
    await store.aclose(keep=True)
    await store.aclose(keep=True)
    [line] = warnings(caplog)
    assert "not complete" in line
    assert history.closed
    assert source.durable is False
    late = store.history("late")
    say(source, 10)
    history.changed()
    late.record("a", 1)
    await history.flush()
    await late.close(keep=False)
    disk.go.set()
    again = await open_store(tmp_path, keep=["k"])  # which waits for the lock of the closed one
    recovered = again.history("k").recovered
    assert recovered is not None
    assert recovered.next_seq == 10
    await again.aclose(keep=False)
    assert names(tmp_path / "journals") == []


async def test_a_cancelled_end_releases_the_files_later(tmp_path: Path) -> None:
    disk = SlowDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    history.attach(source)
    disk.go.clear()
    say(source, 10)
    history.changed()
    ending = asyncio.create_task(store.aclose(keep=True))
    assert await asyncio.to_thread(disk.waiting.wait, TIMEOUT)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert history.closed
    disk.go.set()
    again = await open_store(tmp_path, keep=["k"])  # which waits for the lock of the closed one
    recovered = again.history("k").recovered
    assert recovered is not None
    assert recovered.next_seq == 10
    await again.aclose(keep=False)


async def test_the_end_of_a_kernel_does_not_wait_for_a_disk_that_hangs(tmp_path: Path) -> None:
    disk = SlowDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    disk.go.clear()
    disk.waiting.clear()
    say(source, 1)
    history.changed()
    await asyncio.to_thread(disk.waiting.wait, 60)
    store.discard("k")
    assert history.closed
    assert names(tmp_path / "journals") == ["k"]
    disk.go.set()
    await store.aclose(keep=True)  # which waits for the removal
    assert names(tmp_path / "journals") == []


class StuckDisk(Disk):
    """A disk whose files cannot be opened until `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.waiting = threading.Event()

    def open(self, path: Path) -> int:
        if path.parent.name == "k":
            self.waiting.set()
            assert self.go.wait(TIMEOUT)
        return super().open(path)


async def test_a_start_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tmp_path)
    source = Source()
    await write(store.history("k"), source, 10)
    await store.aclose(keep=True)
    monkeypatch.setattr("kbridge.storage.opening._LOOK", 0.001)
    disk = StuckDisk()
    store = await open_store(tmp_path, keep=["k"], disk=disk)
    [line] = warnings(caplog)
    assert "did not answer for 10 s" in line
    history, new = store.history("k"), Source()
    assert history.recovered is None
    assert await asyncio.to_thread(disk.waiting.wait, 60)
    await write(history, new, 3)
    assert not history.active  # the thread that reads the files has their lock
    disk.go.set()
    async with asyncio.timeout(TIMEOUT):
        while not history.active:
            store.retry()
            await store.flush()
    assert new.written == 3
    await store.aclose(keep=False)
    assert names(tmp_path / "journals") == ["k.lost-1"]
    (tmp_path / "journals" / "k.lost-1").rename(tmp_path / "journals" / "k")
    monkeypatch.undo()
    store = await open_store(tmp_path, keep=["k"])
    assert (await read(store.history("k"))).frames.keys() == {*range(10)}
    await store.aclose(keep=False)


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_start_has_the_journals_that_were_read_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    store = await open_store(tmp_path)
    for kernel_id in ("j", "k", "l"):
        await write(store.history(kernel_id), Source(), 10)
    await store.aclose(keep=True)
    if not hangs:
        monkeypatch.setattr("kbridge.storage.opening._SILENCE", 1000)
        monkeypatch.setattr("kbridge.storage.opening._TIMEOUT", 12)
    disk = StuckDisk()
    opening = asyncio.ensure_future(open_store(tmp_path, keep=["j", "k", "l"], disk=disk))
    assert await asyncio.to_thread(disk.waiting.wait, 60)
    monkeypatch.setattr("kbridge.storage.opening._LOOK", 0.001)
    store = await opening
    [line] = warnings(caplog)
    assert ("did not answer for 10 s" if hangs else "takes more than 12 s") in line
    recovered = [store.history(kernel_id).recovered for kernel_id in ("j", "k", "l")]
    assert [each and each.next_seq for each in recovered] == [10, None, None]
    disk.go.set()
    await store.aclose(keep=True)
    monkeypatch.undo()
    store = await open_store(tmp_path, keep=["j", "k", "l"])
    for kernel_id in ("j", "k", "l"):
        assert (await read(store.history(kernel_id))).frames.keys() == {*range(10)}
    await store.aclose(keep=False)


async def test_a_reader_waits_while_too_many_files_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kbridge.storage.reading._PAUSE_S", 0)
    disk = FailingDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    attempts = 0

    def open_file(path: Path) -> int:
        nonlocal attempts
        attempts += 1
        if attempts <= 3:
            raise OSError(errno.EMFILE, "injected")
        return Disk.open(disk, path)

    disk.open = open_file  # type: ignore[method-assign]
    assert sorted((await read(history)).frames) == [*range(10)]
    await store.aclose(keep=False)


@pytest.fixture
def full_tmpfs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "tmpfs"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(path)]
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root on Linux may mount a file system")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"cannot mount a tmpfs: {done.stderr}")
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_file_system_and_space_again(
    full_tmpfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(full_tmpfs)
    history, source = store.history("k"), Source()
    await write(history, source, 500)
    ballast = full_tmpfs / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(4 * MiB))
    await write(history, source, 500)
    assert not history.active
    assert source.written == 500
    assert "No space left on device" in warnings(caplog)[0]
    assert sorted((await read(history)).frames) == [*range(500)]
    ballast.unlink()
    store.retry()
    await store.flush()
    assert history.active
    reading = await read(history)
    reading.check(source)
    assert sorted(reading.frames) == [*range(1000)]
    await store.aclose(keep=True)
    store = await open_store(full_tmpfs, keep=["k"])
    assert (await read(store.history("k"))).frames == reading.frames
    await store.aclose(keep=False)


# -- threads and kernels --------------------------------------------------------------------


async def test_the_event_loop_never_touches_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop_thread = threading.get_ident()
    callers: dict[str, set[int]] = {}

    def record(name: str) -> None:
        original = getattr(os, name)

        def recorded(*args: object, **kwargs: object) -> object:
            callers.setdefault(name, set()).add(threading.get_ident())
            return original(*args, **kwargs)

        patch.setattr(os, name, recorded)

    with monkeypatch.context() as patch:
        for name in ("close", "fstat", "ftruncate", "mkdir", "open", "pread", "replace"):
            record(name)
        for name in ("rmdir", "scandir", "stat", "statvfs", "unlink", "write", "writev"):
            record(name)
        for keep in ([], ["k"]):
            store = await open_store(tmp_path, limit=400_000, keep=keep)
            history = store.history("k")
            recovered = history.recovered
            source = Source(recovered.next_seq, recovered.appended) if recovered else Source()
            for _ in range(20):
                await write(history, source, 50)
            history.record("a", 1)
            await read(history)
            await history.find(5, lambda frame: True)
            gone = store.history("gone")
            await write(gone, Source(), 1)
            await gone.close(keep=False)
            await store.aclose(keep=not keep)
    assert callers.keys() >= {"close", "fstat", "open", "pread", "unlink", "writev"}
    assert [name for name, threads in callers.items() if loop_thread in threads] == []


async def test_200_kernels_share_one_job(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    sources = {f"kernel-{i}": Source() for i in range(200)}
    for name, source in sources.items():
        store.history(name).attach(source)
    for _ in range(3):
        for name, source in sources.items():
            say(source, 5)
            store.history(name).changed()
        await store.flush()
    await store.aclose(keep=True)
    began = time.monotonic()
    store = await open_store(tmp_path, keep=sources.keys())
    assert time.monotonic() - began < 60
    for name, source in sources.items():
        history = store.history(name)
        assert history.recovered == (15, source.end, {})
        assert (await read(history)).frames.keys() == {*range(15)}
        await write(history, Source(15, source.end), 1)
    assert store.statistics()["kernels"] == 200
    await store.aclose(keep=False)
    assert names(tmp_path / "journals") == []


@pytest.mark.parametrize(
    ("limit", "size"),
    [(1 << 30, 16 * MiB), (64 * MiB, 4 * MiB), (8 * MiB, MiB), (400, 100), (1, 1)],
)
def test_a_segment_is_a_sixteenth_of_the_limit_within_bounds(limit: int, size: int) -> None:
    assert segment_size(limit) == size


async def test_a_source_that_raises_harms_no_other_kernel(tmp_path: Path) -> None:
    class Broken(Source):
        def on_written(self, end: int) -> None:
            raise ValueError("a bug")

    errors: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    store = await open_store(tmp_path)
    broken, source = Broken(), Source()
    for name, each in ("a", broken), ("b", source):
        store.history(name).attach(each)
        say(each, 3)
        store.history(name).changed()
    await store.history("b").flush()
    assert source.written == 3
    [error] = errors
    assert isinstance(error, ValueError)
    await store.aclose(keep=False)


async def test_a_closed_store_writes_nothing(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.aclose(keep=True)
    history, source = store.history("k"), Source()
    await write(history, source, 3)
    assert not history.active
    assert source.durable is False
    assert names(tmp_path / "journals") == []


async def test_an_empty_directory_is_removed_at_the_end(tmp_path: Path) -> None:
    journals = tmp_path / "journals"
    store = await open_store(tmp_path)
    await write(store.history("a"), Source(), 3)
    await write(store.history("b"), Source(), 3)
    store.discard("a")
    await store.aclose(keep=True)
    assert names(journals) == ["b"], "a journal that is kept stays"
    store = await open_store(tmp_path, keep=["b"])
    (journals / "notes.txt").touch()
    await store.aclose(keep=False)
    assert names(journals) == ["notes.txt"], "a file of the user stays"
    (journals / "notes.txt").unlink()
    store = await open_store(tmp_path)
    await store.aclose(keep=True)
    assert not journals.exists()


async def test_nothing_of_a_kernel_that_ended_stays_in_memory(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    assert store.statistics()["kernels"] == 1
    store.discard("k")
    left = [weakref.ref(history), weakref.ref(source)]
    del history, source
    other = store.history("other")
    await write(other, Source(), 1)  # the removal has ended, and the thread has other work
    await until(lambda: names(tmp_path / "journals") == ["other"])
    gc.collect()
    assert [ref() for ref in left] == [None, None]
    assert store.statistics()["kernels"] == 1
    await store.aclose(keep=False)


class TrackingDisk(Disk):
    """A disk that knows which files are open for writing."""

    def __init__(self) -> None:
        self.open_files: dict[int, str] = {}

    def append_at(self, path: Path, size: int) -> int:
        descriptor = super().append_at(path, size)
        self.open_files[descriptor] = path.name
        return descriptor

    def close(self, descriptor: int) -> None:
        self.open_files.pop(descriptor, None)
        super().close(descriptor)


async def test_the_files_of_a_quiet_kernel_are_closed_and_opened_again(tmp_path):
    disk = TrackingDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("a"), Source()
    for _ in range(3):
        history.record("key", source.next_seq)
        await write(history, source, 10)
        await until(lambda: not disk.open_files)
    found = await read(history)
    found.check(source)
    assert len(found.frames) == 30
    await store.aclose(keep=True)
