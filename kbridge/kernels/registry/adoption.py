"""Kernels that outlived the bridge which started them, found again.

What becomes of a kernel that was written down:

====================================  ===========================================================
it runs, and somebody used it         served again, under its id
it runs, and waited in a pool         waits in the pool again, or is ended if that has no room
it runs, but was only being started   ended: nobody has been told its id
it has gone                           told once, with its log's path, and forgotten
its provisioner cannot be asked       told; not served, but kept in the registry: the next start
                                      asks again
====================================  ===========================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Final

from kbridge.errors import KernelError
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.processes import commands
from kbridge.kernels.lifecycle.started import Lifecycle
from kbridge.kernels.registry.models import KernelRecord, Standing
from kbridge.kernels.registry.writer import Ledger

__all__ = ["adopt"]

_PATIENCE: Final = 3.0  # seconds for a provisioner's answer; all are asked at once


async def adopt(
    records: Iterable[KernelRecord],
    *,
    make: Callable[[KernelRecord], BridgeKernel],
    env: Mapping[str, str],
    life: Lifecycle,
    ledger: Ledger,
    log: logging.Logger,
) -> list[BridgeKernel]:
    """Find kernels again.

    Parameters
    ----------
    records : iterable of KernelRecord
        What was written down of them.
    make : callable
        Makes the manager of one, without a process.
    env : mapping
        What a kernel inherits of this server's environment.
    life : Lifecycle
        Where they live from now on.
    ledger : Ledger
        Where those that have gone are forgotten.
    log : logging.Logger
        Where it is told what became of them.

    Returns
    -------
    list of BridgeKernel
        Those that run, used or waiting (`standing`), each with its hub.
    """
    seen = cache(commands)  # one look is enough, and is taken only if need be

    async def one(record: KernelRecord) -> BridgeKernel | None:
        kernel = make(record)
        try:
            async with asyncio.timeout(_PATIENCE):
                if not await kernel.take_up(record, env, seen):
                    _bury(kernel, record, life, ledger, log)
                    return None
            life.take_up(kernel)
        except (KernelError, TimeoutError) as error:
            log.warning(
                "Kernel %s (%s) is not served: %s. It is left in the registry, and looked for"
                " again at the next start",
                record.kernel_id,
                record.kernel_name,
                error if isinstance(error, KernelError) else "its provisioner does not answer",
            )
            kernel.release()
            return None
        return kernel

    found = [kernel for kernel in await asyncio.gather(*map(one, records)) if kernel is not None]
    unknown = [kernel for kernel in found if kernel.standing is Standing.STARTING]
    await _end(unknown, life, log)
    return [kernel for kernel in found if kernel not in unknown]


async def _end(unknown: list[BridgeKernel], life: Lifecycle, log: logging.Logger) -> None:
    """End kernels whose ids nobody was ever told."""
    for kernel in unknown:
        log.info("Kernel %s was being started when its server died; ended", kernel.kernel_id)
    ends = [life.discard(kernel, badly=False) for kernel in unknown]
    for error in await asyncio.gather(*ends, return_exceptions=True):
        if error is not None:
            log.error("%s", error)


def _bury(
    kernel: BridgeKernel,
    record: KernelRecord,
    life: Lifecycle,
    ledger: Ledger,
    log: logging.Logger,
) -> None:
    """Tell of a kernel that has gone, and clear away what it left, but for its log."""
    kernel.cleanup_connection_file()
    kernel.cleanup_ipc_files()
    ledger.drop_kernel(record.kernel_id)
    if kernel.standing is not Standing.USED:
        kernel.output.remove()
        return
    life.kept_logs.keep(kernel.output)
    log.warning(
        "Kernel %s (%s) died while no bridge was there; what it wrote is in %s",
        record.kernel_id,
        record.kernel_name,
        record.log_path,
    )
