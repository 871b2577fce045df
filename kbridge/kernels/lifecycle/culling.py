"""Kernels that nobody uses are shut down.

`to_cull` decides and knows no clock; `IdleTimes` sees to it that a wall clock which is set does not
end kernels in use, or keep all others; `Culler` asks it every now and then. A kernelspec opts its
kernels out with ``"metadata": {"kbridge": {"cull": false}}`` in kernel.json, and sets its own
timeout with ``"metadata": {"cull_idle_timeout": seconds}``, as in Jupyter Server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kbridge.kernels.tasks import spawn, stop

__all__ = ["CullSettings", "Culler", "IdleTimes", "KernelUse", "to_cull", "to_verify"]


@dataclass(frozen=True, slots=True)
class CullSettings:
    """What counts as unused; the names are Jupyter Server's.

    Attributes
    ----------
    idle_timeout : float
        Seconds without activity after which a kernel goes; 0 or less: never.
    connected : bool
        Also kernels with websockets attached.
    busy : bool
        Also kernels that are busy.
    dead_timeout : float
        Seconds after which a kernel that died goes, when nobody is connected to it any more:
        whatever the others say, since its hub and journal still take room.
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
    """How long kernels have been idle, whoever sets the wall clock.

    `last_activity` is of the wall clock, because people read it. That it has changed since the
    last look is believed; when, only as far as time has passed since. So after a jump a kernel
    counts as idle for at most one interval too little or too long, and never since before it was
    last looked at. Time in which the machine slept does not count.

    Parameters
    ----------
    now : float
        Monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._looked = now
        self._since: dict[str, tuple[float, float]] = {}  # last_activity, and when that was

    def look(self, kernels: Iterable[KernelUse], wall: float, now: float) -> list[KernelUse]:
        """Return the kernels with their `last_activity` as it would be had nobody set the clock.

        Parameters
        ----------
        kernels : iterable of KernelUse
            All that there are.
        wall, now : float
            Unix seconds, monotonic seconds.
        """
        passed, self._looked = now - self._looked, now
        known, self._since = self._since, {}
        found = []
        for kernel in kernels:
            activity, since = known.get(kernel.kernel_id, (None, now))
            if activity != kernel.last_activity:
                since = now - min(max(wall - kernel.last_activity, 0.0), passed)
            self._since[kernel.kernel_id] = (kernel.last_activity, since)
            found.append(replace(kernel, last_activity=wall - (now - since)))
        return found


class Culler:
    """Ask `cull` every `interval` seconds until closed.

    A round that fails is logged, and does not end the rounds.
    """

    def __init__(
        self, cull: Callable[[], Awaitable[None]], interval: float, log: logging.Logger
    ) -> None:
        self._cull = cull
        self._interval = interval
        self._log = log
        self._task = spawn(self._run(), log)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._cull()
            except Exception:  # noqa: BLE001 - one provisioner must not keep the others alive
                self._log.exception("A round of culling failed")

    async def aclose(self) -> None:
        """Stop asking. May be called twice."""
        await stop(self._task)
