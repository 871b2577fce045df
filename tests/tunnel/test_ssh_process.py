"""One run of ssh: its output, its end and its timeout, with shell scripts in place of ssh."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from kbridge.errors import TunnelError
from kbridge.tunnel.ssh_process import SshProcess
from tests.support.server import gone
from tests.support.waiting import TIMEOUT, eventually

# Sets $ready to the LocalCommand, which ssh runs when all ports are forwarded.
FAKE = """#!/bin/sh
for arg; do case $arg in LocalCommand=*) ready=${arg#LocalCommand=};; esac; done
"""
STAY = "exec sleep 1000"

Fake = Callable[..., SshProcess]


@pytest.fixture(params=["pidfd", "polling"])
def fake(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fake]:
    """Start an `ssh` that runs shell code; also on systems without pidfds."""
    if request.param == "polling":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    started: list[SshProcess] = []

    def start(code: str, timeout: float = TIMEOUT) -> SshProcess:
        program = tmp_path / "ssh"
        program.write_text(FAKE + code)
        program.chmod(0o755)
        started.append(SshProcess(str(program), [], timeout))
        return started[-1]

    yield start
    for process in started:
        process.stop(kill=True)
        assert process.returncode is not None


def test_output_before_and_after_the_ports_are_forwarded(fake: Fake) -> None:
    process = fake("echo banner; $ready; echo one; echo; echo two >&2; printf end; exit 3")
    assert list(process.output()) == ["", "one", "two", "end"]
    assert process.ready
    assert not process.timed_out
    assert process.returncode == 3
    assert process.stderr_tail == "one; two; end"


def test_a_process_that_is_never_ready(fake: Fake) -> None:
    process = fake("echo 'no such host' >&2; exit 255")
    assert list(process.output()) == []
    assert not process.ready
    assert process.stderr_tail == "no such host"
    assert process.returncode == 255


def test_a_banner_without_a_newline_may_precede_the_marker(fake: Fake) -> None:
    process = fake("printf 'welcome '; $ready; $ready; exit 0")
    output = list(process.output())
    assert output[0] == ""
    assert "" not in output[1:]


def test_the_timeout_kills_a_process_that_is_not_ready(fake: Fake) -> None:
    process = fake(f"trap '' TERM; {STAY}", timeout=0.2)
    assert list(process.output()) == []
    assert process.timed_out
    assert not process.ready


def test_a_long_line_is_cut(fake: Fake) -> None:
    process = fake("head -c 100000 /dev/zero | tr '\\0' x; echo; exit 1")
    assert list(process.output()) == []
    assert 0 < len(process.stderr_tail) <= 1000


def test_stop_from_another_thread(fake: Fake) -> None:
    process = fake(f"$ready; {STAY}")
    with closing(process.output()) as output:
        assert next(output) == ""
        stopper = threading.Thread(target=process.stop)
        stopper.start()
        assert list(output) == []
        stopper.join()
    assert process.returncode is not None


def test_a_process_ends_although_another_one_keeps_its_output_open(fake: Fake) -> None:
    """ssh_config's ControlPersist leaves such a process, in its own session."""
    process = fake("setsid sleep 1000 & $ready; echo $!; exit 0")
    output = list(process.output())
    other = psutil.Process(int(output[1]))
    assert other.is_running()
    other.kill()


def test_child_processes_end_with_the_process(fake: Fake) -> None:
    process = fake(f"sleep 1000 & $ready; echo $!; {STAY}")
    with closing(process.output()) as output:
        assert next(output) == ""
        child = int(next(output))
    assert process.returncode is not None
    eventually(lambda: gone(child), "the child has ended")


def test_a_process_that_closes_its_output_is_still_waited_for(fake: Fake) -> None:
    process = fake(f"$ready; exec >&- 2>&-; {STAY}")
    with closing(process.output()) as output:
        assert next(output) == ""
        process.stop()
        assert list(output) == []
    assert process.returncode is not None


def test_no_thread_is_started(fake: Fake) -> None:
    before = threading.active_count()
    process = fake(f"$ready; {STAY}")
    with closing(process.output()) as output:
        next(output)
        assert threading.active_count() == before


def test_a_program_that_does_not_exist() -> None:
    with pytest.raises(TunnelError, match="no program 'no-ssh' here"):
        SshProcess("no-ssh", [], 1.0)
