"""Noticing the end of a process."""

import asyncio
import os
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from kbridge.kernels.lifecycle.process_exit import exit_checks
from tests.support.waiting import TIMEOUT

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


async def wait_exit(is_alive, interval, pid=None):
    """Check until the process has ended, as its owner does."""
    async with aclosing(exit_checks(interval, pid)) as checks:
        async for _ in checks:
            if not is_alive():
                return


async def test_a_process_is_checked_until_it_has_ended():
    answers = iter([True, True, False])
    async with asyncio.timeout(TIMEOUT):
        await wait_exit(lambda: next(answers), 0.001)
    assert not list(answers)


@on_linux
async def test_the_end_of_a_process_is_noticed_without_waiting_for_the_interval(process):
    before = descriptors()
    dead = asyncio.ensure_future(wait_exit(lambda: process.poll() is None, NEVER, process.pid))
    await asyncio.sleep(0)
    process.kill()
    async with asyncio.timeout(TIMEOUT):
        await dead
    assert descriptors() == before


@on_linux
async def test_a_cancelled_wait_closes_its_descriptor(process):
    before = descriptors()
    dead = asyncio.ensure_future(wait_exit(lambda: True, NEVER, process.pid))
    await asyncio.sleep(0)
    assert descriptors() != before
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)
    assert descriptors() == before


async def test_a_provisioner_that_notices_the_end_late_is_asked_again(process):
    process.kill()  # and not waited for: a zombie has ended for the operating system
    answers = iter([True, True, False])
    async with asyncio.timeout(TIMEOUT):
        await wait_exit(lambda: next(answers), 0.001, process.pid)
    assert not list(answers)
