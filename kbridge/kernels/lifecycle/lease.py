"""The lease of a replica: the time during which it alone acts for its kernels.

A server without a cluster holds its lease forever. A replica must not restart, cull, signal or end
a kernel without it: another replica may have taken the kernel over. The lease is compared with the
clock whenever the server is about to act. So it is over, too, after the process was stopped and
continued.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from kbridge.errors import Busy

__all__ = ["Lease", "elapsed"]

# The replica stops earlier than the database lets others begin: clocks differ, and a signal that
# was decided on takes a moment.
_SHARE: Final = 0.9
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed() -> float:
    """Return monotonic seconds that, on Linux, go on while the machine is suspended."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class Lease:
    """Answers whether this server may act for its kernels.

    Parameters
    ----------
    seconds : float, optional
        The duration of a lease in the database; without it, the lease is held forever.
    clock : callable
        Returns monotonic seconds.

    Attributes
    ----------
    seconds : float or None
    """

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = elapsed) -> None:
        self.seconds = seconds
        self._clock = clock
        self._until = float("inf") if seconds is None else float("-inf")
        self._renewed = asyncio.Event()

    @property
    def held(self) -> bool:
        """True while this server may act."""
        return self._clock() < self._until

    @property
    def interval(self) -> float:
        """Seconds between two renewals."""
        return (self.seconds or 0.0) / 3

    def now(self) -> float:
        """Return the time on the clock of the lease; note it before a renewal is sent."""
        return self._clock()

    def renewed(self, sent: float) -> None:
        """Note that the database has renewed the lease; the request was sent at `sent`."""
        assert self.seconds is not None, "a lease without an end is not renewed"
        self._until = max(self._until, sent + self.seconds * _SHARE)
        self._renewed.set()
        self._renewed = asyncio.Event()

    def end(self) -> None:
        """Give the lease up; it is not held again before the next renewal."""
        self._until = float("-inf")

    def check(self) -> None:
        """Check that the lease is held.

        Raises
        ------
        Busy
            If it is not.
        """
        if not self.held:
            raise Busy(
                "This replica has lost its lease, because it could not renew it in the database of"
                " the cluster (KbridgeApp.registry_url) for KbridgeApp.lease_seconds; try again"
                " in a few seconds"
            )

    async def ensure(self) -> None:
        """Wait for the next renewals if the lease is not held, as after a stop of the process.

        Raises
        ------
        Busy
            If it is not held after that.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * self.interval):
                await self.wait()
        self.check()

    async def wait(self) -> None:
        """Return once the lease is held."""
        while not self.held:
            await self._renewed.wait()
