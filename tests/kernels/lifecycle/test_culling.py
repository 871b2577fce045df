import asyncio
from dataclasses import replace

import pytest

from kbridge.kernels.lifecycle.culling import (
    Culler,
    CullSettings,
    IdleTimes,
    KernelUse,
    to_cull,
    to_verify,
)
from kbridge.kernels.settings import KernelSettings
from tests.support.waiting import TIMEOUT

NOW = 10_000.0
IDLE = KernelUse("k", "idle", NOW - 100, 0, {})
ON = CullSettings(idle_timeout=60)

CASES = {
    "idle for longer than the timeout": (IDLE, ON, True),
    "not yet": (replace(IDLE, last_activity=NOW - 60), ON, False),
    "off": (IDLE, CullSettings(), False),
    "negative is off": (IDLE, CullSettings(idle_timeout=-1), False),
    "busy": (replace(IDLE, execution_state="busy"), ON, False),
    "busy, but asked for": (
        replace(IDLE, execution_state="busy"),
        replace(ON, busy=True),
        True,
    ),
    "connected": (replace(IDLE, connections=1), ON, False),
    "connected, but asked for": (replace(IDLE, connections=1), replace(ON, connected=True), True),
    "never came up": (replace(IDLE, execution_state="starting"), ON, True),
    "opted out": (replace(IDLE, metadata={"kbridge": {"cull": False}}), ON, False),
    "opted in": (replace(IDLE, metadata={"kbridge": {"cull": True}}), ON, True),
    "odd metadata": (replace(IDLE, metadata={"kbridge": 5}), ON, True),
    "own timeout": (replace(IDLE, metadata={"cull_idle_timeout": 200}), ON, False),
    "own timeout, no number": (replace(IDLE, metadata={"cull_idle_timeout": "x"}), ON, False),
    "dead": (
        replace(IDLE, execution_state="dead", last_activity=NOW - 301),
        CullSettings(),
        True,
    ),
    "dead a moment": (replace(IDLE, execution_state="dead"), CullSettings(), False),
    "dead, but somebody looks at it": (
        replace(IDLE, execution_state="dead", last_activity=NOW - 301, connections=1),
        CullSettings(),
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_which_kernels_are_culled(case):
    kernel, settings, expected = CASES[case]
    assert to_cull([kernel], NOW, settings) == (["k"] if expected else [])


def test_a_kernel_that_is_kept_because_it_is_busy_is_verified():
    busy = replace(IDLE, execution_state="busy")
    assert to_verify([busy], NOW, ON) == ["k"]
    for other, settings in (
        (IDLE, ON),
        (replace(busy, last_activity=NOW), ON),
        (replace(busy, connections=1), ON),
        (replace(busy, metadata={"kbridge": {"cull": False}}), ON),
        (busy, replace(ON, busy=True)),
        (busy, CullSettings()),
    ):
        assert to_verify([other], NOW, settings) == []


class Clocks:
    """Check one kernel while time passes and the wall clock is changed."""

    def __init__(self) -> None:
        self.now, self.wall = 50.0, NOW
        self.times = IdleTimes(self.now)
        self.used()

    def used(self) -> None:
        self.activity = self.wall

    def idle(self, *, passes: float, jump: float = 0.0) -> float:
        self.now += passes
        self.wall += passes + jump
        (seen,) = self.times.look([replace(IDLE, last_activity=self.activity)], self.wall, self.now)
        return self.wall - seen.last_activity


def test_idle_times_equal_the_wall_clock_if_it_is_not_changed():
    clocks = Clocks()
    assert [clocks.idle(passes=30) for _ in range(3)] == [30, 60, 90]
    clocks.now, clocks.wall = clocks.now + 20, clocks.wall + 20
    clocks.used()
    assert [clocks.idle(passes=30) for _ in range(2)] == [30, 60]


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 1e9])
def test_a_jump_of_the_wall_clock_does_not_change_idle_times(jump):
    clocks = Clocks()
    clocks.idle(passes=30)
    assert clocks.idle(passes=30, jump=jump) == 60
    assert clocks.idle(passes=30) == 90
    clocks.used()
    assert clocks.idle(passes=30) == 30


@pytest.mark.parametrize(("jump", "idle"), [(3600.0, 30), (-3600.0, 0)])
def test_a_jump_during_use_changes_idle_times_by_at_most_one_interval(jump, idle):
    clocks = Clocks()
    clocks.idle(passes=30)
    clocks.used()
    assert clocks.idle(passes=30, jump=jump) == idle
    assert clocks.idle(passes=30) == idle + 30


def test_idle_times_of_kernels_that_have_gone_are_forgotten():
    times = IdleTimes(0.0)
    times.look([IDLE, replace(IDLE, kernel_id="other")], NOW, 1.0)
    times.look([IDLE], NOW, 2.0)
    assert list(times._since) == ["k"]


async def test_an_error_does_not_end_the_culling(make_manager, caplog, monkeypatch):
    rounds = asyncio.Queue()

    async def cull(self):
        rounds.put_nowait(None)
        raise RuntimeError("a provisioner")

    monkeypatch.setattr(Culler, "cull", cull)
    monkeypatch.setattr(KernelSettings.cull_interval, "min", 0)
    manager = make_manager(cull_interval=0)
    await manager.open()
    async with asyncio.timeout(TIMEOUT):
        for _ in range(3):
            await rounds.get()
    await manager.shutdown_all()
    assert "a provisioner" in caplog.text
