"""CPU and memory of process trees, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

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


@pytest.mark.parametrize("direct", [None, False], ids=["as on this machine", "listed by psutil"])
def test_a_tree_has_all_descendants_until_it_ends(direct: bool | None) -> None:
    clock = Clock()
    meter = ProcessMeter(clock, direct)
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


def test_all_trees_share_one_list_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = 0
    process_iter = psutil.process_iter

    def counted(*args: Any) -> Any:
        nonlocal lists
        lists += 1
        return process_iter(*args)

    monkeypatch.setattr(psutil, "process_iter", counted)
    monkeypatch.setattr(psutil.Process, "children", None)  # lists all processes each time
    clock = Clock()
    meter = ProcessMeter(clock, direct=False)
    pids = {str(number): os.getpid() for number in range(20)}
    assert meter.measure(pids).keys() == pids.keys()
    assert lists == 1
    meter.measure(pids)
    assert lists == 1, "trees are read every few seconds"
    clock.now += 10.0
    meter.measure(pids)
    assert lists == 2


def test_a_thread_that_ends_meanwhile_hides_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux only: the children of each thread are in a file of the thread."""
    iterdir, read_text = Path.iterdir, Path.read_text

    def with_ended(path: Path) -> Any:
        return iter([path / "ended", *iterdir(path)])

    def read(path: Path, *args: Any) -> str:
        if path.parts[-2] == "ended":
            raise ProcessLookupError(path)
        return read_text(path, *args)

    if not Path("/proc/thread-self/children").exists():
        pytest.skip("this system does not list the children of processes")
    monkeypatch.setattr(Path, "iterdir", with_ended)
    monkeypatch.setattr(Path, "read_text", read)
    for listing in ((psutil, "process_iter"), (psutil.Process, "children")):
        monkeypatch.setattr(*listing, None)  # not needed
    command = [sys.executable, "-c", TREE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tree:
        assert tree.stdin is not None
        assert tree.stdout is not None
        assert tree.stdout.readline() == b"ready\n"
        assert ProcessMeter().measure({"a": tree.pid})["a"].processes == 2
        tree.stdin.close()
        tree.wait()
