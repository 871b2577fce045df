"""Polling for tests, for conditions without an event (files, processes)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["TIMEOUT", "eventually", "until"]

T = TypeVar("T")

# Seconds after which a condition counts as failed. Long, because CI is slow; a passing test does
# not wait that long.
TIMEOUT = 180.0


def eventually(probe: Callable[[], T], what: str, timeout: float = TIMEOUT) -> T:
    """Call `probe` until it returns a true value; return that value.

    Raises
    ------
    AssertionError
        After `timeout` seconds; it says `what` did not happen, and what `probe` gave last.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout:.0f} s still not: {what} (last: {found!r})")
        time.sleep(0.02)


async def until(probe: Callable[[], T], what: str) -> T:
    """Call `probe` until it is true while the event loop runs; as `eventually`."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {TIMEOUT:.0f} s still not: {what} (last: {found!r})")
        await asyncio.sleep(0.002)
