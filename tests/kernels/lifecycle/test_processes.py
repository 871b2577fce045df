"""Real processes that are not children of the tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kbridge.kernels.lifecycle import processes
from kbridge.kernels.lifecycle.processes import (
    EXIT_UNKNOWN,
    AdoptedProcess,
    ProcessState,
    find_command,
    same_boot,
    start_id,
    state_of,
)
from tests.support.require import lack, require
from tests.support.waiting import TIMEOUT, eventually

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
FAMILY = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)"
)
FOUNDLING = (
    "import subprocess, sys\n"
    "made = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.DEVNULL,"
    " stderr=subprocess.DEVNULL, start_new_session=True)\n"
    "print(made.pid)"
)


@pytest.fixture
def start():
    """Start processes: start(code, **how); the first line that they print is `.first`."""
    made = []

    def begin(code=SLEEP, **how):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **how
        )
        made.append(process)
        process.first = process.stdout.readline().strip()
        return process

    yield begin
    for process in made:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(params=["pidfd", "psutil", "elsewhere"])
def way(request, monkeypatch):
    """Each way to inspect a process: on Linux, on an old Linux, and on other systems."""
    if request.param != "pidfd":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd here")
    if request.param == "elsewhere":
        monkeypatch.setattr(processes, "_LINUX", False)
    return request.param


def test_the_start_id_of_a_process_does_not_change(way, start):
    process = start()
    assert start_id(process.pid) == start_id(process.pid) != ""
    assert start_id(process.pid) != start_id(os.getpid())
    assert same_boot(start_id(process.pid))


def test_who_has_gone_was_never_born(way, start):
    process = start()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_id(process.pid) == "", "a zombie has ended"
    process.wait()
    assert start_id(process.pid) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells one boot from another")
def test_a_start_id_from_an_earlier_boot_is_gone():
    assert not same_boot("another-boot/123")
    assert same_boot("")


def test_states(way, start):
    process = start()
    born = start_id(process.pid)
    assert state_of(process.pid, born) is ProcessState.RUNNING
    assert state_of(process.pid, start_id(os.getpid())) is ProcessState.GONE
    assert state_of(0, born) is ProcessState.GONE
    assert state_of(process.pid, "") is ProcessState.HIDDEN
    process.kill()
    process.wait()
    assert state_of(process.pid, born) is ProcessState.GONE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has pid namespaces")
@pytest.mark.parametrize("first", [True, False], ids=["on the machine", "in a container"])
def test_what_cannot_be_seen_may_run(monkeypatch, first):
    boot, here, start = start_id(os.getpid()).split("/")
    there = str(int(here) + 1)
    monkeypatch.setattr(processes, "_FIRST_NAMESPACE", here if first else there)

    def state(born):
        return state_of(os.getpid(), born).value

    assert state(f"{boot}/{here}/1") == "gone"
    assert state(f"{boot}/{there}/{start}") == "hidden"
    assert state(f"another-boot/{there}/{start}") == "hidden"
    assert state(f"another-boot/{here}/{start}") == ("gone" if first else "hidden")
    # The format of earlier versions.
    assert state(f"{boot}/{start}") == "running"
    assert state(f"{boot}/1") == ("gone" if first else "hidden")
    assert state(f"another-boot/{start}") == ("gone" if first else "hidden")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has pid namespaces")
def test_a_real_pid_namespace(start):
    require("unshare")
    process = start()
    tell = (
        "import os, sys\n"
        "from kbridge.kernels.lifecycle.processes import AdoptedProcess, start_id, state_of\n"
        "pid, born = int(sys.argv[1]), sys.argv[2]\n"
        "print(state_of(pid, born).value, start_id(os.getpid()) == '', os.getpid())\n"
    )
    command = [sys.executable, "-c", tell, str(process.pid), start_id(process.pid)]
    for options, blind in ((["--mount-proc"], False), ([], True)):
        done = subprocess.run(
            ["unshare", "--pid", "--fork", *options, *command], capture_output=True, text=True
        )
        if "Operation not permitted" in done.stderr:
            lack("only root may make a pid namespace here")
        assert done.stdout.split() == ["hidden", str(blind), "1"], done.stderr


def test_it_ends_like_a_child(way, start):
    real = start()
    process = AdoptedProcess(real.pid, start_id(real.pid))
    assert process.poll() is None
    with pytest.raises(TimeoutError):
        process.wait(0.01)
    process.terminate()
    assert process.wait(TIMEOUT) == EXIT_UNKNOWN
    assert process.poll() == process.returncode == EXIT_UNKNOWN
    assert real.wait() == -signal.SIGTERM, "only its parent can read the exit code"


def test_one_that_our_child_left_behind(way):
    done = subprocess.run(
        [sys.executable, "-c", FOUNDLING, SLEEP], capture_output=True, text=True, check=True
    )
    pid = int(done.stdout)
    process = AdoptedProcess(pid, start_id(pid))
    assert process.poll() is None
    process.kill()
    assert process.wait(TIMEOUT) == EXIT_UNKNOWN
    assert start_id(pid) == ""


def test_a_signal_reaches_what_the_leader_of_a_group_has_started(way, start):
    real = start(FAMILY, start_new_session=True)
    child = psutil.Process(int(real.first))
    process = AdoptedProcess(real.pid, start_id(real.pid))
    process.kill()
    assert process.wait(TIMEOUT) == EXIT_UNKNOWN
    eventually(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
        "what it started has ended",
    )


def test_a_signal_reaches_nobody_else_of_a_group_that_it_does_not_lead(way, start):
    real = start()  # in the process group of the tests
    process = AdoptedProcess(real.pid, start_id(real.pid))
    process.send_signal(signal.SIGKILL)
    assert process.wait(TIMEOUT) == EXIT_UNKNOWN


def test_an_id_that_somebody_else_has_now(way, start):
    real = start()
    with pytest.raises(ProcessLookupError):
        AdoptedProcess(real.pid, start_id(os.getpid()))
    with pytest.raises(ProcessLookupError):
        AdoptedProcess(real.pid, "")
    assert real.poll() is None


def test_who_has_ended_is_not_signalled(way, start, monkeypatch):
    real = start(start_new_session=True)
    process = AdoptedProcess(real.pid, start_id(real.pid))
    real.kill()
    real.wait()

    def fail(*_):
        raise AssertionError("a signal went out")

    for sender in ("killpg", "kill"):
        monkeypatch.setattr(os, sender, fail)
    process.kill()
    assert process.poll() == EXIT_UNKNOWN


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no descriptors are held")
def test_no_descriptor_is_left(start):
    def held():
        return len(list(Path("/proc/self/fd").iterdir()))

    real = start()
    before = held()
    process = AdoptedProcess(real.pid, start_id(real.pid))
    assert held() == before + 1
    process.kill()
    process.wait(TIMEOUT)
    assert held() == before
    with pytest.raises(ProcessLookupError):
        AdoptedProcess(real.pid, "no birth of this one's")
    process.close()
    assert held() == before


def test_a_command_is_found_by_its_arguments():
    among = {
        1: ["/usr/bin/python3.11", "-m", "kernel", "-f", "/run/kernel-1.json"],
        2: ["/bin/sh", "/opt/kernel", "-f", "/run/kernel-2.json"],
        3: ["vim", "/run/kernel-1.json"],
        4: [],
    }
    assert find_command(["python", "-m", "kernel", "-f", "/run/kernel-1.json"], among) == 1
    assert find_command(["/opt/kernel", "-f", "/run/kernel-2.json"], among) == 2
    assert find_command(["python", "-m", "kernel", "-f", "/run/kernel-3.json"], among) == 0
    assert find_command(["kernel"], among) == 0, "the pid could be of any process"
    among[5] = among[1]
    assert find_command(["python", "-m", "kernel", "-f", "/run/kernel-1.json"], among) == 0


def test_processes_are_seen_with_their_commands(start):
    real = start(start_new_session=True)
    assert processes.commands()[real.pid][-1] == SLEEP


def test_what_a_kernel_has_forked_is_not_taken_for_it(start):
    worker = start(
        "import os, time\nif os.fork():\n  print(1, flush=True)\ntime.sleep(600)",
        start_new_session=True,
    )
    children = psutil.Process(worker.pid).children()
    try:
        seen = processes.commands()
        assert worker.pid in seen
        assert [child.cmdline() for child in children] == [seen[worker.pid]]
        assert not {child.pid for child in children} & seen.keys()
    finally:
        for child in children:
            child.kill()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root may be others")
def test_who_goes_by_a_kernels_command_line_under_another_account_is_not_seen(start):
    stranger = start(f"import os; os.setuid(65534); {SLEEP}", start_new_session=True)
    assert stranger.pid not in processes.commands()
