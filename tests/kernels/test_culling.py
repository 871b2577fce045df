import asyncio
import logging
from dataclasses import replace

import pytest

from kbridge.kernels.culling import Culler, CullSettings, KernelUse, to_cull

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
def test_to_cull(case):
    kernel, settings, expected = CASES[case]
    assert to_cull([kernel], NOW, settings) == (["k"] if expected else [])


async def test_a_round_that_fails_does_not_end_the_rounds(caplog):
    rounds = asyncio.Queue()

    async def cull():
        rounds.put_nowait(None)
        raise RuntimeError("a provisioner")

    culler = Culler(cull, 0.001, logging.getLogger())
    async with asyncio.timeout(20):
        for _ in range(3):
            await rounds.get()
    await culler.aclose()
    await culler.aclose()
    assert "a provisioner" in caplog.text
