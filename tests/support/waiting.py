"""The one place where tests poll: for what announces itself by no event (files, processes)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["TIMEOUT", "eventually", "until"]

T = TypeVar("T")

# Seconds until something that should happen at once counts as never. Generous, because CI is slow;
# a passing test never waits for it.
TIMEOUT = 60.0


def eventually(probe: Callable[[], T], what: str, timeout: float = TIMEOUT) -> T:
    """Call `probe` until it is true, and return what it gave.

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
    """Call `probe` until it is true, and let the event loop run meanwhile; as `eventually`."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {TIMEOUT:.0f} s still not: {what} (last: {found!r})")
        await asyncio.sleep(0.002)
