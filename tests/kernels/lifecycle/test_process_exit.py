"""Noticing the end of a process."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kbridge.kernels.lifecycle.process_exit import wait_exit

LOUD = 20
NEVER = 3600.0


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


on_linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells at once")


@pytest.fixture
def process():
    made = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield made
    made.kill()
    made.wait()


async def test_wait_exit_looks_until_it_is():
    looks = iter([True, True, False])

    async def is_alive():
        return next(looks)

    async with asyncio.timeout(20):
        await wait_exit(is_alive, 0.001)
    assert not list(looks)


@on_linux
async def test_the_end_of_a_process_is_told_at_once(process):
    async def is_alive():
        return process.poll() is None

    before = descriptors()
    dead = asyncio.ensure_future(wait_exit(is_alive, NEVER, process.pid))
    await asyncio.sleep(0)
    process.kill()
    async with asyncio.timeout(LOUD):
        await dead
    assert descriptors() == before


@on_linux
async def test_who_stops_waiting_leaves_nothing_behind(process):
    async def is_alive():
        return True

    before = descriptors()
    dead = asyncio.ensure_future(wait_exit(is_alive, NEVER, process.pid))
    await asyncio.sleep(0)
    assert descriptors() != before
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)
    assert descriptors() == before


async def test_who_believes_it_late_is_asked_again(process):
    process.kill()  # and not waited for: it is a zombie, whose end is told
    answers = iter([True, True, False])

    async def is_alive():
        return next(answers)

    async with asyncio.timeout(LOUD):
        await wait_exit(is_alive, 0.001, process.pid)
    assert not list(answers)
