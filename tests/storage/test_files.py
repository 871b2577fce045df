"""Directories of kernels: which files are removed and which stay, and locks of other servers."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from kbridge.storage.disk import Disk
from kbridge.storage.files import is_journal_name
from kbridge.storage.history import History
from tests.storage.harness import FailingDisk, Source, open_store, read

DAY = 25 * 3600


@pytest.fixture(autouse=True)
def no_waiting_for_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kbridge.storage.opening._HANDOVER", 0)


async def write(history: History, source: Source, count: int = 1) -> None:
    if source.durable is None:
        history.attach(source)
    for _ in range(count):
        source.append(b"%8d" % source.next_seq * 100)
    history.changed()
    await history.flush()


async def leave(directory: Path, kernel_id: str, owner: str = "test") -> Source:
    """Leave the files of a kernel with ten frames."""
    store = await open_store(directory, owner=owner)
    source = Source()
    await write(store.history(kernel_id), source, 10)
    await store.aclose(keep=True)
    return source


def tree(directory: Path) -> dict[str, bytes | None]:
    """The files of a directory and their contents."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def make_old(directory: Path) -> None:
    then = time.time() - DAY
    for path in [*directory.rglob("*"), directory]:
        os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("lock", "owner", "state.log", "00000000.full", "owner.tmp")),
        *((name, True) for name in ("123456789.sparse", "00000001.full.idx", "state.log.tmp")),
        *((name, True) for name in ("00000001.full.tmp", "00000001.sparse.idx.tmp")),
        *((name, False) for name in ("", "thesis.tex", "lock.txt", "1.full", "0000000a.full")),
        *((name, False) for name in ("00000000", ".full", "00000000.fully", "x00000000.full")),
        *((name, False) for name in ("\u0660" * 8 + ".full", "²²²²²²²².full", "00000000.full.bak")),
        *((name, False) for name in (".tmp", ".idx", "state.log.idx.bak", ".nfs0001")),
    ],
)
def test_names_of_files(name: str, expected: bool) -> None:
    assert is_journal_name(name) is expected


async def test_a_start_touches_no_directory_of_the_user(tmp_path: Path) -> None:
    for name in ("with-a-file-of-the-user", "with-a-directory-of-the-user"):
        await leave(tmp_path, name, owner=name)
    for name in ("without-owner", "another-format", "of-a-kernel-that-ended"):
        await leave(tmp_path, name, owner=name)
    await leave(tmp_path / "elsewhere", "k")
    journals = tmp_path / "journals"
    (journals / "with-a-file-of-the-user" / "notes.txt").write_text("notes")
    (journals / "with-a-directory-of-the-user" / "00000009.full").mkdir()
    (journals / "without-owner" / "owner").unlink()
    (journals / "another-format" / "owner").write_text("test")
    (journals / "Documents").mkdir()
    (journals / "Documents" / "thesis.tex").write_text("thesis")
    (journals / "empty").mkdir()
    (journals / "link").symlink_to(tmp_path / "elsewhere" / "journals" / "k")
    make_old(tmp_path)
    before = tree(tmp_path)
    store = await open_store(tmp_path)
    await store.aclose(keep=True)
    after = tree(tmp_path)
    removed = before.keys() - after.keys()
    assert after == {name: content for name, content in before.items() if name not in removed}
    assert {name.split("/")[1] for name in removed} == {"of-a-kernel-that-ended"}


async def test_a_kernel_that_ends_leaves_files_of_the_user(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    directory = tmp_path / "journals" / "k"
    (directory / "notes.txt").write_text("notes")
    (directory / "00000009.full").mkdir()
    await history.close(keep=False)
    await store.aclose(keep=False)
    assert {path.name for path in directory.iterdir()} == {"notes.txt", "00000009.full", "owner"}


async def test_a_link_in_the_place_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    await leave(tmp_path / "home", "k")
    home = tmp_path / "home" / "journals" / "k"
    (home / "notes.txt").write_text("notes")
    before = tree(home)
    (tmp_path / "journals").mkdir()
    link = tmp_path / "journals" / "k"
    link.symlink_to(home)
    for keep in ([], ["k"]):
        store = await open_store(tmp_path, keep=keep)
        history, source = store.history("k"), Source()
        assert history.recovered is None
        await write(history, source)
        assert not history.active
        await store.aclose(keep=False)
    assert tree(home) == before
    assert link.is_symlink()


@pytest.mark.parametrize("remove", [True, False])
async def test_a_directory_of_the_user_with_the_name_of_a_kernel_stays(
    tmp_path: Path, remove: bool
) -> None:
    directory = tmp_path / "journals" / "k"
    directory.mkdir(parents=True)
    (directory / "notes.txt").write_text("notes")
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    if not remove:
        await write(history, source)
        assert not history.active
        assert source.durable is False
    await store.aclose(keep=False)
    assert tree(directory) == {"notes.txt": b"notes"} | ({} if remove else {"lock": b""})


# -- two servers ----------------------------------------------------------------------------


async def test_a_second_server_does_not_remove_the_files_of_the_first(tmp_path: Path) -> None:
    first = await open_store(tmp_path, owner="first")
    history, source = first.history("k"), Source()
    await write(history, source, 10)
    before = tree(tmp_path)
    second = await open_store(tmp_path, owner="second", keep=["k"])
    other = second.history("k")
    await write(other, Source())
    assert not other.active
    await second.aclose(keep=False)
    assert tree(tmp_path) == before
    await write(history, source, 10)
    assert sorted((await read(history)).frames) == [*range(20)]
    await first.aclose(keep=False)
    assert not (tmp_path / "journals").exists()


async def test_files_that_were_not_recovered_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journals = tmp_path / "journals"
    source = await leave(tmp_path, "k", owner="first")
    for number in (1, 2):
        before = tree(journals / "k")
        store = await open_store(tmp_path)  # the kernel is not in `keep`
        history = store.history("k")
        assert history.recovered is None
        await write(history, Source(), 3)
        assert sorted((await read(history)).frames) == [0, 1, 2]
        aside = journals / f"k.lost-{number}"
        assert tree(aside) == before
        assert f"was not recovered: it is in {aside} now" in caplog.text
        if number == 1:
            shutil.copytree(journals, tmp_path / "copy" / "journals")
        await store.aclose(keep=False)
        assert not (journals / "k").exists()
        await leave(tmp_path, "k", owner="second")
    copy = tmp_path / "copy" / "journals"
    shutil.rmtree(copy / "k")
    (copy / "k.lost-1").rename(copy / "k")
    store = await open_store(tmp_path / "copy", keep=["k"])
    reading = await read(store.history("k"))
    reading.check(source)
    assert len(reading.frames) == 10
    await store.aclose(keep=False)


@pytest.mark.parametrize("owned", [True, False])
async def test_files_that_were_set_aside_are_removed_after_a_day(
    tmp_path: Path, owned: bool
) -> None:
    journals = tmp_path / "journals"
    await leave(tmp_path, "k", owner="other")
    if not owned:
        (journals / "k" / "owner").unlink()
    make_old(journals / "k")
    os.utime(journals / "k")
    store = await open_store(tmp_path)
    await write(store.history("k"), Source())
    await store.aclose(keep=False)
    for old in (False, True):
        if old:
            make_old(journals)
        await (await open_store(tmp_path, owner="other")).aclose(keep=True)
        assert (journals / "k.lost-1").exists() is not old


@pytest.mark.parametrize("lost", [["lock"], ["owner"], ["lock", "owner"]])
async def test_files_of_a_server_whose_lock_was_cleaned_up_stay(
    tmp_path: Path, lost: list[str]
) -> None:
    disk = FailingDisk()
    store = await open_store(tmp_path, disk=disk)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    for name in lost:
        (tmp_path / "journals" / "k" / name).unlink()
    disk.fail(errno.ENOSPC, "write")
    await write(history, source, 10)
    assert not history.active
    disk.heal()
    store.retry()
    await store.flush()
    reading = await read(history)
    reading.check(source)
    assert sorted(reading.frames) == [*range(20)]
    assert {path.name for path in (tmp_path / "journals").iterdir()} == {"k"}
    assert {path.name for path in (tmp_path / "journals" / "k").iterdir()} >= {"lock", "owner"}
    await store.aclose(keep=False)
    assert not (tmp_path / "journals").exists()


@pytest.mark.parametrize("lost", ["lock", "owner", None])
async def test_a_lock_in_use_does_not_look_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str | None
) -> None:
    """Programs that clean up temporary directories go by age."""
    monkeypatch.setattr("kbridge.storage.files._TOUCH_INTERVAL", -1)
    store = await open_store(tmp_path)
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    directory = tmp_path / "journals" / "k"
    make_old(directory)
    if lost:
        (directory / lost).unlink()
    await write(history, source, 10)
    day_ago = time.time() - DAY / 2
    assert (directory / "lock").stat().st_mtime > day_ago
    assert (directory / "owner").stat().st_mtime > day_ago
    second = await open_store(tmp_path, owner="second", keep=["k"])
    assert second.history("k").recovered is None
    await second.aclose(keep=False)
    assert sorted((await read(history)).frames) == [*range(20)]
    await store.aclose(keep=False)


async def test_without_locks_no_files_are_removed_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kbridge.storage.files.fcntl", None)
    monkeypatch.setattr("kbridge.storage.recovery.LOCKS", False)
    await leave(tmp_path, "k")
    make_old(tmp_path / "journals")
    before = tree(tmp_path)
    await (await open_store(tmp_path)).aclose(keep=True)
    assert tree(tmp_path) == before


class NfsDisk(Disk):
    """Keeps a removed segment file in its directory, as NFS does while a process has it open."""

    def remove(self, path: Path) -> None:
        if path.suffix == ".full" and path.exists():
            path.rename(path.with_name(".nfs0001"))
        else:
            super().remove(path)


async def test_files_that_nfs_keeps_are_removed_by_a_later_start(tmp_path: Path) -> None:
    store = await open_store(tmp_path, disk=NfsDisk())
    history, source = store.history("k"), Source()
    await write(history, source, 10)
    await store.aclose(keep=False)
    directory = tmp_path / "journals" / "k"
    await (await open_store(tmp_path)).aclose(keep=True)
    assert {path.name for path in directory.iterdir()} == {".nfs0001", "owner"}
    (directory / ".nfs0001").unlink()
    await (await open_store(tmp_path)).aclose(keep=True)
    assert not directory.exists()


async def test_directories_are_closed_to_other_users(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = await open_store(tmp_path / "deep")
        (tmp_path / "deep" / "journals" / "k").mkdir(mode=0o777)
        await write(store.history("k"), Source())
        shutil.rmtree(tmp_path / "deep" / "journals")  # it is made again by the next write
        other = store.history("other")
        await write(other, Source())
        await store.flush()
        assert other.active
        modes = [
            stat.S_IMODE(path.stat().st_mode)
            for path in (tmp_path / "deep" / "journals", tmp_path / "deep" / "journals" / "other")
        ]
        (tmp_path / "deep" / "journals" / "open").mkdir(mode=0o777)
        await write(store.history("open"), Source())
        modes.append(stat.S_IMODE((tmp_path / "deep" / "journals" / "open").stat().st_mode))
    finally:
        os.umask(before)
    assert modes == [0o700] * 3
    await store.aclose(keep=False)
