"""Journals after a crash: incomplete blocks, damaged files, frames in two files, orphans."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kbridge.storage.blocks import Header
from kbridge.storage.disk import Disk
from kbridge.storage.files import KernelFiles
from kbridge.storage.recovery import Survey, recover, survey
from kbridge.storage.store import JournalStore
from tests.storage.harness import START, FailingDisk, MiB, Source, open_store, read, until


async def write(
    directory: Path, sizes: list[int], *, limit: int = 64 * MiB, flush_each: bool = False
) -> Source:
    """Leave the files of a kernel as a killed process does: with its lock free."""
    store = await open_store(directory / "live", limit=limit)
    history = store.history("k")
    source = Source()
    history.attach(source)
    for i, size in enumerate(sizes):
        source.append(bytes([i % 251]) * size, state=i % 3 == 0, client=i % 2, key=i + 1)
        if flush_each:
            history.changed()
            await history.flush()
    history.changed()
    await history.flush()
    shutil.copytree(directory / "live", directory, dirs_exist_ok=True)
    await store.aclose(keep=False)
    return source


def kernel(directory: Path) -> Path:
    return directory / "journals" / "k"


async def test_a_file_cut_at_any_byte_has_all_complete_blocks(tmp_path: Path) -> None:
    source = await write(tmp_path, [10, 0x51, 30, 1], flush_each=True)
    [path] = kernel(tmp_path).glob("*.full")
    content = path.read_bytes()
    ends = [at for at in range(len(content) + 1) if content[at : at + 4] == b"KBJ1"][1:]
    ends.append(len(content))
    assert len(ends) == 4
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        files = KernelFiles(kernel(tmp_path), "test")
        files.lock()
        found = recover(Disk(), files)
        files.unlock()
        blocks = sum(end <= size for end in ends)
        if blocks:
            [segment] = found.segments
            assert (segment.end_seq, segment.end_offset) == (blocks, source.offset(blocks))
            assert path.stat().st_size == ends[blocks - 1]
            path.with_name(path.name + ".idx").unlink()
        else:
            assert found.segments == []
            assert not path.exists()
        assert found.next_number == 1


async def test_a_new_process_goes_on_after_a_cut(tmp_path: Path) -> None:
    source = await write(tmp_path, [100] * 20, flush_each=True)
    [path] = kernel(tmp_path).glob("*.full")
    os.truncate(path, path.stat().st_size - 1)
    store = await open_store(tmp_path, keep=["k"])
    history = store.history("k")
    assert history.recovered is not None
    assert history.recovered[:2] == (19, source.offset(19)) == (history.end, history.offset)
    goes_on = Source(19, source.offset(19))
    history.attach(goes_on)
    goes_on.append(b"new")
    history.changed()
    await history.flush()
    reading = await read(history)
    assert [*reading.frames] == [*range(20)]
    assert reading.gaps == {}
    assert reading.frames[19] == b"new"
    assert reading.place == (20, 20, source.offset(19) + 3)
    await store.aclose(keep=False)


@pytest.mark.parametrize("restart", [True, False])
async def test_damage_costs_the_rest_of_its_segment_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, restart: bool
) -> None:
    limit = 16 * MiB  # segments of 1 MiB
    if restart:
        source = await write(tmp_path, [100_000] * 50, limit=limit, flush_each=True)
        store = await open_store(tmp_path, limit=limit, keep=["k"])
        history = store.history("k")
    else:
        store = await open_store(tmp_path, limit=limit)
        history, source = store.history("k"), Source()
        history.attach(source)
        for i in range(50):
            source.append(bytes([i]) * 100_000)
            history.changed()
            await history.flush()
    other, others = store.history("other"), Source()
    other.attach(others)
    others.append(b"unharmed")
    other.changed()
    await other.flush()
    files = sorted(kernel(tmp_path).glob("*.full"))
    assert len(files) == 5
    with files[1].open("r+b") as file:
        file.seek(400_000)  # in its fourth frame; each file has eleven
        file.write(b"?")
    reading = await read(history)
    reading.check(source)
    assert sorted({*range(50)} - reading.frames.keys()) == [*range(14, 22)]
    assert reading.gaps.keys() == {22}
    assert reading.gaps[22][:2] == (8, 800_000)
    again = await read(history)
    reason = f"wrong checksum in {files[1]}"
    assert again.frames == reading.frames
    assert [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()] == [
        f"A part of the journal of kernel k cannot be read and is skipped: {reason}"
    ]
    assert store.statistics()["damages"] == 1
    assert (await read(other)).frames == {0: b"unharmed"}
    await store.aclose(keep=False)


async def test_damage_in_the_file_being_written_costs_no_later_frames(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    history.attach(source)

    async def say(count: int) -> None:
        for _ in range(count):
            source.append(b"x" * 1000)
            history.changed()
            await history.flush()

    await say(10)
    [path] = kernel(tmp_path).glob("*.full")
    with path.open("r+b") as file:
        file.seek(5400)  # in the sixth block
        file.write(b"?")
    assert [*(await read(history)).frames] == [0, 1, 2, 3, 4]
    await say(5)
    reading = await read(history)
    assert [*reading.frames] == [0, 1, 2, 3, 4, *range(10, 15)]
    assert reading.gaps[10][:2] == (5, 5000)
    await store.aclose(keep=True)


@pytest.mark.parametrize("damage", ["removed", "emptied", "changed", "of another size"])
async def test_an_index_that_is_lost_is_made_again(tmp_path: Path, damage: str) -> None:
    limit = 16 * MiB
    source = await write(tmp_path, [50_000] * 60, limit=limit, flush_each=True)
    indexes = sorted(kernel(tmp_path).glob("*.idx"))
    assert len(indexes) >= 2
    good = indexes[0].read_bytes()
    if damage == "removed":
        indexes[0].unlink()
    elif damage == "emptied":
        indexes[0].write_bytes(b"")
    elif damage == "changed":
        indexes[0].write_bytes(good[:200] + b"?" + good[201:])
    else:
        indexes[0].write_bytes(indexes[1].read_bytes())
    store = await open_store(tmp_path, limit=limit, keep=["k"])
    history = store.history("k")
    assert indexes[0].read_bytes() == good
    (await read(history)).check(source)
    assert await history.find(2, lambda frame: True) == (2, 2, 100_000)
    await store.aclose(keep=False)


class SnapshotDisk(Disk):
    """Copies the files before the first one is removed, as a crash at that moment leaves them."""

    def __init__(self, source: Path, copy: Path) -> None:
        self.source = source
        self.copy = copy
        self.armed = False

    def remove(self, path: Path) -> None:
        if self.armed and path.suffix == ".full" and path.exists() and not self.copy.exists():
            shutil.copytree(self.source, self.copy)
        super().remove(path)


@pytest.mark.parametrize("torn", [0, 1, 1000])
@pytest.mark.parametrize("later", [False, True])
async def test_a_crash_during_a_compaction_duplicates_no_frame(
    tmp_path: Path, torn: int, later: bool
) -> None:
    disk = SnapshotDisk(tmp_path / "live", tmp_path / "crashed")
    store = await open_store(tmp_path / "live", limit=400_000, disk=disk)
    history, source = store.history("k"), Source()
    history.attach(source)
    while not disk.copy.exists():
        source.append(b"%d" % source.next_seq * 1000, state=source.next_seq % 3 == 0)
        disk.armed = not later or history.next_full(0) != 0
        history.changed()
        await history.flush()
    await store.aclose(keep=False)
    files = sorted(kernel(tmp_path / "crashed").iterdir())
    sparse = [path for path in files if path.suffix == ".sparse"]
    full = [path for path in files if path.suffix == ".full"]
    first = Header.parse(full[0].read_bytes(), 0)
    assert first is not None
    if torn:
        os.truncate(sparse[-1], sparse[-1].stat().st_size - torn)
    store = await open_store(tmp_path / "crashed", limit=400_000, keep=["k"])
    history = store.history("k")
    assert history.recovered is not None
    reading = await read(history)  # which checks that no number comes twice
    reading.check(source)
    missing = {*range(history.end)} - reading.frames.keys()
    assert not missing & source.state
    assert all(seq < first.first_seq for seq in missing)
    assert history.end > first.first_seq
    assert bool(missing) == later
    await store.aclose(keep=False)


# -- disks that fail at the start -----------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["create", "write", "append", "truncate"])
async def test_a_disk_that_cannot_be_written_is_recovered(
    tmp_path: Path, code: int, call: str
) -> None:
    source = await write(tmp_path, [50_000] * 60, limit=16 * MiB, flush_each=True)
    last = max(kernel(tmp_path).glob("*.full"))
    os.truncate(last, last.stat().st_size - 1)
    disk = FailingDisk()
    disk.fail(code, call)
    store = await open_store(tmp_path, limit=16 * MiB, keep=["k"], disk=disk)
    history = store.history("k")
    assert history.recovered == (59, source.offset(59), {})
    assert sorted((await read(history)).frames) == [*range(59)]
    assert await history.find(58, lambda frame: True) == (58, 58, source.offset(58))
    goes_on = Source(59, source.offset(59))
    history.attach(goes_on)
    goes_on.append(b"new")
    history.changed()
    await history.flush()
    disk.heal()
    store.retry()
    await store.flush()
    assert goes_on.written == 60
    for _ in range(2):
        reading = await read(history)
        assert sorted(reading.frames) == [*range(60)]
        assert reading.frames[59] == b"new"
        assert reading.gaps == {}
        await store.aclose(keep=True)
        store = await open_store(tmp_path, limit=16 * MiB, keep=["k"])
        history = store.history("k")
        assert history.end == 60
    await store.aclose(keep=False)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    path = tmp_path / "journals"
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root on Linux may mount a file system")
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")

    def switch(on: bool) -> None:
        mode = "ro" if on else "rw"
        subprocess.run(["mount", "-o", f"remount,{mode}", str(path)], check=True)

    yield switch
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_read_only_file_system_is_recovered(
    tmp_path: Path, read_only: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    source = await write(tmp_path, [1000] * 20, flush_each=True)
    read_only(True)
    store = await open_store(tmp_path, keep=["k"])
    history = store.history("k")
    assert history.recovered == (20, source.end, {})
    assert sorted((await read(history)).frames) == [*range(20)]
    assert "cannot be written" in caplog.text
    goes_on = Source(20, source.end)
    history.attach(goes_on)
    goes_on.append(b"new")
    history.changed()
    await history.flush()
    assert not history.active
    read_only(False)
    store.retry()
    await store.flush()
    assert sorted((await read(history)).frames) == [*range(21)]
    await store.aclose(keep=False)
    assert [*(tmp_path / "journals").iterdir()] == []


@pytest.mark.parametrize("how", ["EIO", "directory", "link"])
async def test_a_segment_that_cannot_be_read_costs_its_frames_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    source = await write(tmp_path, [100_000] * 50, limit=16 * MiB, flush_each=True)
    before = sorted(kernel(tmp_path).glob("*.full"))
    path = before[2]
    if how == "directory":
        path = kernel(tmp_path) / "00000077.full"
        path.mkdir()
    elif how == "link":
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")

    class Unreadable(Disk):
        def open(self, opened: Path) -> int:
            if how == "EIO" and opened.name in {path.name, f"{path.name}.idx"}:
                raise OSError(errno.EIO, "injected")
            return super().open(opened)

    store = await open_store(tmp_path, limit=16 * MiB, keep=["k"], disk=Unreadable())
    history = store.history("k")
    missing = [] if how == "directory" else [*range(22, 33)]
    assert history.recovered == (50, source.end, {})
    reading = await read(history)
    reading.check(source)
    assert sorted({*range(50)} - reading.frames.keys()) == missing
    assert f"in {path}" in caplog.text
    goes_on = Source(50, source.end)
    history.attach(goes_on)
    goes_on.append(b"new")
    history.changed()
    await history.flush()
    assert history.active
    await store.aclose(keep=True)
    if how == "EIO":  # the file can be read again
        store = await open_store(tmp_path, limit=16 * MiB, keep=["k"])
        assert sorted((await read(store.history("k"))).frames) == [*range(51)]
        await store.aclose(keep=False)


async def test_a_state_log_that_cannot_be_read_costs_no_frames(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await write(tmp_path, [1000] * 10, flush_each=True)
    (kernel(tmp_path) / "state.log").mkdir()
    store = await open_store(tmp_path, keep=["k"])
    history = store.history("k")
    assert history.recovered == (10, 10_000, {})
    assert sorted((await read(history)).frames) == [*range(10)]
    assert f"in {kernel(tmp_path) / 'state.log'}" in caplog.text
    await store.aclose(keep=True)


async def test_a_kernel_that_cannot_be_recovered_harms_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await leave(tmp_path, "test", "a", "b")

    class Broken(Disk):
        def read_file(self, path: Path) -> bytes:
            if path.parent.name == "a":
                raise ValueError("a bug")
            return super().read_file(path)

    store = await open_store(tmp_path, keep=["a", "b"], disk=Broken())
    assert store.history("a").recovered is None
    assert store.history("b").recovered is not None
    assert "The journal of kernel a cannot be read: ValueError('a bug')" in caplog.text
    history, source = store.history("a"), Source()
    history.attach(source)
    source.append(b"new")
    history.changed()
    await history.flush()
    assert history.active
    await store.aclose(keep=True)
    aside = tmp_path / "journals" / "a.lost-1"
    shutil.rmtree(tmp_path / "journals" / "a")
    aside.rename(tmp_path / "journals" / "a")
    store = await open_store(tmp_path, keep=["a", "b"])
    assert (await read(store.history("a"))).frames == {0: b"frame of a"}
    await store.aclose(keep=False)


class FaultyDisk(Disk):
    """Writes everything, says that this failed, and cannot take it back."""

    failing = False

    def write(self, descriptor: int, buffers: Sequence[bytes]) -> int:
        written = super().write(descriptor, buffers)
        if self.failing:
            raise OSError(errno.EIO, "injected")
        return written

    def truncate(self, descriptor: int, size: int) -> None:
        if self.failing:
            raise OSError(errno.EIO, "injected")
        super().truncate(descriptor, size)


async def test_a_sparse_segment_that_begins_in_a_full_one_keeps_its_later_frames(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    store = await open_store(tmp_path / "live", disk=disk)
    history, source = store.history("k"), Source()
    history.attach(source)

    async def say(count: int) -> None:
        for _ in range(count):
            seq = source.next_seq
            source.append(b"%8d" % seq * 10, state=seq % 5 == 0)
        history.changed()
        await history.flush()

    await say(5)
    disk.failing = True
    await say(5)
    assert source.written == 5
    await say(8)
    source.drop(13)
    disk.failing = False
    store.retry()
    await store.flush()
    assert sorted((await read(history)).frames) == [*range(6), 10, *range(13, 18)]
    shutil.copytree(tmp_path / "live", tmp_path, dirs_exist_ok=True)
    await store.aclose(keep=False)
    for _ in range(2):
        store = await open_store(tmp_path, keep=["k"])
        reading = await read(store.history("k"))
        reading.check(source)
        assert sorted(reading.frames) == [*range(11), *range(13, 18)]
        await store.aclose(keep=True)


# -- orphans and locks ----------------------------------------------------------------------


async def leave(directory: Path, owner: str, *kernel_ids: str) -> None:
    store = await open_store(directory, owner=owner)
    for kernel_id in kernel_ids:
        history, source = store.history(kernel_id), Source()
        history.attach(source)
        source.append(b"frame of " + kernel_id.encode())
        history.changed()
        await history.flush()
    await store.aclose(keep=True)


async def test_kernels_that_have_ended_are_removed_at_the_start(tmp_path: Path) -> None:
    await leave(tmp_path, "me", "mine", "kept")
    await leave(tmp_path, "you", "young", "old")
    journals = tmp_path / "journals"
    (journals / "a file").write_text("of the user")
    day_ago = time.time() - 25 * 3600
    for path in [*(journals / "old").iterdir(), journals / "old"]:
        os.utime(path, (day_ago, day_ago))
    store = await open_store(tmp_path, owner="me", keep=["kept", "never had files"])
    assert sorted(path.name for path in journals.iterdir()) == ["a file", "kept", "young"]
    assert store.history("kept").recovered is not None
    assert store.history("never had files").recovered is None
    await store.aclose(keep=True)


def hold(directory: str, pipe: Connection) -> None:
    """Hold the lock of a kernel in another process until the pipe is closed."""
    files = KernelFiles(Path(directory), "another process")
    files.lock()
    pipe.send("locked")
    pipe.poll(60)


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[multiprocessing.Process]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    directory = kernel(tmp_path)
    directory.mkdir(parents=True, mode=0o700)
    process = context.Process(target=hold, args=(str(directory), theirs))
    process.start()
    assert ours.poll(60)
    yield process
    ours.close()
    process.kill()
    process.join()


async def test_a_journal_is_written_by_one_process_only(
    tmp_path: Path,
    other_process: multiprocessing.Process,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kbridge.storage.opening._HANDOVER", 0)
    store = await open_store(tmp_path, keep=["k"])
    assert "another process writes the journal" in caplog.text
    history, source = store.history("k"), Source()
    assert history.recovered is None
    history.attach(source)
    source.append(b"first")
    history.changed()
    await history.flush()
    assert not history.active
    assert source.durable is False
    assert history.oldest is None
    other_process.kill()  # which releases its lock
    other_process.join()
    store.retry()
    await store.flush()
    assert history.active
    assert source.durable is True
    assert (await read(history)).frames == {0: b"first"}
    await store.aclose(keep=False)


async def test_a_server_waits_for_the_end_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[Collection[str]] = []

    def counting(disk: Disk, directory: Path, owner: str, keep: Collection[str]) -> Survey:
        attempts.append([*keep])
        return survey(disk, directory, owner, keep)

    monkeypatch.setattr("kbridge.storage.opening.survey", counting)
    monkeypatch.setattr("kbridge.storage.opening._HANDOVER", 60)
    await leave(tmp_path, "test", "other")
    old = await open_store(tmp_path, owner="test", keep=["other"])
    await old.history("other").close(keep=True)
    history, source = old.history("k"), Source()
    history.attach(source)
    source.append(b"frame")
    history.changed()
    await history.flush()
    attempts.clear()
    opening = asyncio.ensure_future(open_store(tmp_path, keep=["other", "k"]))
    await until(lambda: len(attempts) >= 3)
    assert not opening.done()
    await old.aclose(keep=True)
    new = await opening
    assert attempts[:3] == [["other"], ["k"], ["k"]]
    assert new.history("k").recovered == (1, 5, {})
    assert new.history("other").recovered == (1, len("frame of other"), {})
    assert caplog.messages == []
    await new.aclose(keep=False)


async def test_the_files_of_another_process_are_no_orphans(
    tmp_path: Path, other_process: multiprocessing.Process
) -> None:
    await leave(tmp_path / "another", "test", "k")
    shutil.copy(kernel(tmp_path / "another") / "owner", kernel(tmp_path) / "owner")
    store = await open_store(tmp_path, owner="test")
    assert kernel(tmp_path).exists()
    await store.aclose(keep=True)
    other_process.kill()
    other_process.join()
    store = await open_store(tmp_path, owner="test")
    assert not kernel(tmp_path).exists()
    await store.aclose(keep=True)


async def test_old_files_of_a_kernel_are_not_read_when_it_is_not_recovered(tmp_path: Path) -> None:
    await leave(tmp_path, "you", "k")
    store = await open_store(tmp_path, owner="me")
    history, source = store.history("k"), Source()
    history.attach(source)
    source.append(b"new")
    history.changed()
    await history.flush()
    assert (await read(history, START)).frames == {0: b"new"}
    await store.aclose(keep=True)
    store = await open_store(tmp_path, owner="me", keep=["k"])
    assert store.history("k").recovered == (1, 3, {})
    await store.aclose(keep=False)


async def test_a_store_that_cannot_recover_goes_on_in_memory(tmp_path: Path) -> None:
    (tmp_path / "journals").write_text("not a directory")
    store = await open_store(tmp_path, keep=["k"])
    assert isinstance(store, JournalStore)
    history, source = store.history("k"), Source()
    history.attach(source)
    source.append(b"frame")
    history.changed()
    await history.flush()
    assert not history.active
    (tmp_path / "journals").unlink()
    store.retry()
    await store.flush()
    assert history.active
    assert source.written == 1
    await store.aclose(keep=False)
