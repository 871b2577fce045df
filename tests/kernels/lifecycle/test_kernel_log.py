import resource
import stat
import subprocess
import sys

from kbridge.kernels.lifecycle.kernel_log import KeptLogs, KernelLog
from tests.support.waiting import TIMEOUT


def test_the_file_is_its_owners_alone(tmp_path):
    path = tmp_path / "kernel.log"
    path.touch(0o644)
    with KernelLog(path).open():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_tail_shows_the_last_lines_without_colours(tmp_path):
    log = KernelLog(tmp_path / "kernel.log")
    with log.open() as file:
        for i in range(50):
            file.write(f"\x1b[31mline {i}\x1b[0m\n".encode())
        file.write(b"\xff\n")
    assert log.tail(3) == "line 48\nline 49\n\ufffd"
    assert len(log.tail().splitlines()) == 20


def test_tail_shows_nothing_of_the_process_before(tmp_path):
    log = KernelLog(tmp_path / "kernel.log")
    with log.open() as file:
        file.write(b"old\n")
    with log.open() as file:
        assert log.tail() == ""
        file.write(b"new\n")
    assert log.tail() == "new"
    assert log.path.read_text() == "old\nnew\n"


def test_tail_is_bounded_in_bytes(tmp_path):
    log = KernelLog(tmp_path / "kernel.log")
    with log.open() as file:
        file.write(b"x" * 10**6)
    assert len(log.tail()) == 16 * 1024


def test_no_file_no_tail(tmp_path):
    log = KernelLog(tmp_path / "none.log")
    assert log.tail() == ""
    assert not log.trim()
    log.remove()


def test_trim_keeps_the_end_while_a_process_goes_on_writing(tmp_path):
    log = KernelLog(tmp_path / "kernel.log", limit=100_000)
    code = "import os, sys; os.write(1, b'a' * 200_000); sys.stdin.read(1); os.write(1, b'END')"
    with log.open() as file:
        writer = subprocess.Popen(
            [sys.executable, "-c", code], stdout=file, stdin=subprocess.PIPE, bufsize=0
        )
    with writer:
        assert writer.stdin is not None
        while log.path.stat().st_size < 200_000:
            assert writer.poll() is None
        assert log.trim()
        assert not log.trim()
        writer.stdin.write(b"x")
        writer.wait(TIMEOUT)
    assert log.path.stat().st_size == 16 * 1024 + 3
    assert log.tail().endswith("aEND")


def test_a_full_disk_trims_what_it_can_and_fails_nobody(tmp_path):
    """The file can still be truncated, but not written to."""
    log = KernelLog(tmp_path / "kernel.log", limit=10)
    with log.open() as file:
        file.write(b"a" * 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        assert not log.trim()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.path.stat().st_size == 0
    assert log.tail() == ""
    with log.open() as file:
        file.write(b"the first line after it")
    assert log.tail() == "the first line after it"


def test_a_log_that_cannot_be_read_fails_nobody(tmp_path):
    log = KernelLog(tmp_path / "kernel.log", limit=10)
    log.path.mkdir()
    assert not log.trim()


def test_kept_logs_are_bounded(tmp_path):
    kept = KeptLogs(limit=2)
    logs = [KernelLog(tmp_path / f"{i}.log") for i in range(3)]
    for log in logs:
        log.open().close()
        kept.keep(log)
    assert len(kept) == 2
    assert [log.path.exists() for log in logs] == [False, True, True]


def test_what_nobody_was_told_of_goes_at_the_end(tmp_path):
    kept = KeptLogs()
    told, untold = KernelLog(tmp_path / "told.log"), KernelLog(tmp_path / "untold.log")
    for log in (told, untold):
        log.open().close()
    kept.keep(told)
    kept.keep(untold, lasting=False)
    kept.end()
    assert (told.path.exists(), untold.path.exists(), len(kept)) == (True, False, 1)
