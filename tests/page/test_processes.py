"""CPU and memory of process trees, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from kbridge.page import processes
from kbridge.page.processes import ProcessMeter

# A process with one child. Both end when stdin is closed.
TREE = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=0)
print("ready", flush=True)
child.wait()
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["listed by the kernel", "listed by psutil"])
def lists(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the children of a process be found in both ways."""
    if request.param == "listed by psutil":
        monkeypatch.setattr(processes, "_children", processes.listed_children)


@pytest.mark.usefixtures("lists")
def test_a_tree_has_all_descendants_until_it_ends() -> None:
    clock = Clock()
    meter = ProcessMeter(clock)
    command = [sys.executable, "-c", TREE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tree:
        assert tree.stdin is not None
        assert tree.stdout is not None
        assert tree.stdout.readline() == b"ready\n"
        usage = meter.measure({"a": tree.pid, "alone": tree.pid}, {"alone"})
        assert (usage["a"].processes, usage["alone"].processes) == (2, 1)
        assert usage["a"].memory > usage["alone"].memory > 0
        assert usage["a"].cpu is None, "nothing to compare with"
        clock.now += 10.0
        again = meter.measure({"a": tree.pid})["a"]
        assert again.cpu is not None
        assert again.processes == 2
        tree.stdin.close()
        tree.wait()
    assert meter.measure({"a": tree.pid}) == {}


def test_cpu_is_time_per_time() -> None:
    clock = Clock()
    meter = ProcessMeter(clock)
    meter.measure({"me": os.getpid()}, {"me"})
    begin = time.process_time()
    while time.process_time() - begin < 0.2:
        pass
    clock.now += 1.0
    cpu = meter.measure({"me": os.getpid()}, {"me"})["me"].cpu
    assert cpu is not None
    assert cpu > 0.1, "ticks of 10 ms"
    assert meter.measure({"me": os.getpid()}, {"me"})["me"].cpu is None, "no time has passed"


def test_a_process_that_is_not_there_has_no_usage() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert ProcessMeter().measure({"gone": ended.pid}) == {}


def test_a_number_that_no_process_can_have_hides_no_other() -> None:
    usages = ProcessMeter().measure({"odd": -5, "me": os.getpid()}, {"me"})
    assert list(usages) == ["me"]
