"""Shuts down unused kernels.

`to_cull` decides and reads no clock. `IdleTimes` measures idle time so that a change of the wall
clock neither culls kernels in use nor keeps others. `Culler` acts at regular intervals.

A kernelspec opts its kernels out with ``"metadata": {"kbridge": {"cull": false}}`` in kernel.json,
and sets its own timeout with ``"metadata": {"cull_idle_timeout": seconds}``, as in Jupyter Server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kbridge.errors import KbridgeError
from kbridge.kernels.index import KernelIndex
from kbridge.kernels.interface import Kernel
from kbridge.kernels.services import KernelServices
from kbridge.kernels.tasks import spawn, stop

__all__ = ["CullSettings", "Culler", "IdleTimes", "KernelUse", "to_cull", "to_verify"]


@dataclass(frozen=True, slots=True)
class CullSettings:
    """The kernels that count as unused; the names are Jupyter Server's.

    Attributes
    ----------
    idle_timeout : float
        Seconds without activity after which a kernel is shut down; 0 or less: never.
    connected : bool
        Also shut down kernels with open websockets.
    busy : bool
        Also shut down busy kernels.
    dead_timeout : float
        Seconds after which a dead kernel without websockets is removed, whatever the other
        settings: its hub and its journal still use memory.
    """

    idle_timeout: float = 0.0
    connected: bool = False
    busy: bool = False
    dead_timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class KernelUse:
    """The state of a kernel that culling depends on; `last_activity` is in unix seconds."""

    kernel_id: str
    execution_state: str
    last_activity: float
    connections: int
    metadata: Mapping[str, Any]


def to_cull(kernels: Iterable[KernelUse], now: float, settings: CullSettings) -> list[str]:
    """Return the ids of the kernels to shut down; `now` is in unix seconds."""
    return [kernel.kernel_id for kernel in kernels if _unused(kernel, now, settings)]


def to_verify(kernels: Iterable[KernelUse], now: float, settings: CullSettings) -> list[str]:
    """Return the ids of the kernels that are kept only because they are shown as busy.

    The caller should probe each of them: the message that ended the busy state may have been lost.
    """
    if settings.busy:
        return []
    busy = [kernel for kernel in kernels if kernel.execution_state == "busy"]
    return to_cull(busy, now, replace(settings, busy=True))


def _unused(kernel: KernelUse, now: float, settings: CullSettings) -> bool:
    idle = now - kernel.last_activity
    if kernel.execution_state == "dead" and not kernel.connections:
        return idle > settings.dead_timeout
    if settings.idle_timeout <= 0:
        return False
    own = kernel.metadata.get("kbridge")
    if isinstance(own, Mapping) and own.get("cull") is False:
        return False
    timeout = kernel.metadata.get("cull_idle_timeout", settings.idle_timeout)
    if not isinstance(timeout, int | float) or timeout <= 0:
        return False
    return (
        idle > timeout
        and (settings.connected or not kernel.connections)
        and (settings.busy or kernel.execution_state != "busy")
    )


class IdleTimes:
    """Measures how long kernels have been idle, independent of changes of the wall clock.

    `last_activity` follows the wall clock, because people read it. A change of its value since the
    last check counts as activity that happened after that check. So after a change of the clock,
    the idle time of a kernel is wrong by at most one interval. Time during which the machine slept
    does not count.

    Parameters
    ----------
    now : float
        Monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._looked = now
        # last_activity, and the time of its last change.
        self._since: dict[str, tuple[float, float]] = {}

    def look(self, kernels: Iterable[KernelUse], wall: float, now: float) -> list[KernelUse]:
        """Return the kernels with a `last_activity` that is corrected for changes of the clock.

        Parameters
        ----------
        kernels : iterable of KernelUse
            All kernels; those that are missing are forgotten.
        wall, now : float
            Unix seconds, monotonic seconds.
        """
        passed, self._looked = now - self._looked, now
        known, self._since = self._since, {}
        corrected = []
        for kernel in kernels:
            activity, since = known.get(kernel.kernel_id, (None, now))
            if activity != kernel.last_activity:
                since = now - min(max(wall - kernel.last_activity, 0.0), passed)
            self._since[kernel.kernel_id] = (kernel.last_activity, since)
            corrected.append(replace(kernel, last_activity=wall - (now - since)))
        return corrected


class Culler:
    """Shuts down unused kernels.

    Parameters
    ----------
    services : KernelServices
        The settings.
    index : KernelIndex
        The kernels in use.
    """

    def __init__(self, services: KernelServices, index: KernelIndex) -> None:
        options = services.options
        self._settings = CullSettings(
            idle_timeout=options.cull_idle_timeout,
            connected=options.cull_connected,
            busy=options.cull_busy,
        )
        self._interval = options.cull_interval
        self._index = index
        self._lease = services.lease
        self._log = services.log
        self._idle_times = IdleTimes(time.monotonic())
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start to cull every `cull_interval` seconds. An error is logged and ends one round."""
        self._task = spawn(self._run(), self._log)

    async def aclose(self) -> None:
        """Stop. May be called twice."""
        await stop(self._task)

    async def cull(self) -> None:
        """Shut down the kernels that count as unused now, if the lease is held."""
        if not self._lease.held:
            return
        now = time.time()
        uses = self._idle_times.look(self._uses(), now, time.monotonic())
        for kernel_id in to_verify(uses, now, self._settings):
            hub = self._index.find(kernel_id).hub
            if hub is not None:
                hub.verify_busy()
        unused = [self._index.find(kernel_id) for kernel_id in to_cull(uses, now, self._settings)]
        await asyncio.gather(*(self._cull_one(kernel) for kernel in unused))

    async def _cull_one(self, kernel: Kernel) -> None:
        if not self._lease.held:
            return
        self._log.warning("Culling kernel %s", kernel.kernel_id)
        try:
            await self._index.shutdown(kernel)
        except KbridgeError as error:
            self._log.error("%s", error)

    def _uses(self) -> Iterator[KernelUse]:
        for kernel in self._index:
            if kernel.cull_metadata is not None and not kernel.waiting:
                hub = kernel.hub
                yield KernelUse(
                    kernel_id=kernel.kernel_id,
                    # Not `kernel.execution_state()`: a kernel that its heartbeats do not reach is
                    # shown as dead if `heartbeat_status` says so, but may come back.
                    execution_state=hub.activity.execution_state if hub else "dead",
                    last_activity=self._index.last_activity_of(kernel),
                    connections=hub.connections if hub else 0,
                    metadata=kernel.cull_metadata,
                )

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.cull()
            except Exception:  # noqa: BLE001 - one provisioner must not keep other kernels alive
                self._log.exception("A round of culling failed")
