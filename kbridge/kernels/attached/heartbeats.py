"""The heartbeats of kernels whose process nobody here can watch, and what clients are told of them.

Such are kernels that somebody else started, and those of provisioners that run them elsewhere. A
process of this machine's needs none: its end is told at once (`lifecycle.process_exit`).

Law of this module: nothing in it ends or restarts a kernel, or gives up a request. One that is
lost may be behind a network that is gone for a while, and then goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kbridge.kernels.attached.attached import AttachedKernel
from kbridge.kernels.hubs import Hubs
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.settings import KernelSettings
from kbridge.link.endpoints import Endpoints
from kbridge.link.heartbeat import Heartbeat

__all__ = ["Heartbeats"]

# What a process is in that does not answer yet, or no more.
_NO_ANSWER = frozenset({"starting", "restarting", "dead"})


class Heartbeats:
    """The heartbeats of one table of kernels.

    Parameters
    ----------
    hubs : Hubs
        Where clients are told.
    settings : KernelSettings
        Read when a kernel is taken up.
    log : logging.Logger
        Where it is told that a kernel is lost or found.
    """

    def __init__(self, hubs: Hubs, settings: KernelSettings, log: logging.Logger) -> None:
        self._hubs = hubs
        self._settings = settings
        self._log = log
        self._watches: dict[str, _Watch] = {}

    def watch(self, kernel: AttachedKernel | BridgeKernel) -> None:
        """Ask a kernel from now on whether it is there, if there is no other way to know."""
        if self._settings.heartbeat_interval <= 0 or not _is_elsewhere(kernel):
            return
        self.forget(str(kernel.kernel_id))
        watch = _Watch(kernel, self._hubs, self._settings, self._log, on_gone=self.forget)
        self._watches[watch.kernel_id] = watch

    def forget(self, kernel_id: str) -> None:
        """Ask it no more; no error where it was not asked."""
        watch = self._watches.pop(kernel_id, None)
        if watch is not None:
            watch.heartbeat.close()

    def close(self) -> None:
        """Ask nobody any more; may be called twice."""
        for kernel_id in list(self._watches):
            self.forget(kernel_id)

    def state(self, kernel_id: str) -> str:
        """What to show a kernel as that was lost; empty for any other."""
        watch = self._watches.get(kernel_id)
        return watch.shown if watch is not None and watch.heartbeat.lost else ""

    def statistics(self) -> dict[str, Any]:
        """How many are asked, and how many of them are lost."""
        watches = self._watches.values()
        return {"asked": len(watches), "lost": sum(watch.heartbeat.lost for watch in watches)}


class _Watch:
    """One kernel's heartbeat."""

    def __init__(
        self,
        kernel: AttachedKernel | BridgeKernel,
        hubs: Hubs,
        settings: KernelSettings,
        log: logging.Logger,
        on_gone: Callable[[str], None],
    ) -> None:
        self.kernel_id = str(kernel.kernel_id)
        self._kernel = kernel
        self._on_gone = on_gone
        self._hubs = hubs
        self._log = log
        self._silence = settings.heartbeat_interval * settings.heartbeat_misses
        self.shown = settings.heartbeat_status
        self._returned = False  # and clients do not know yet
        self.heartbeat = Heartbeat(
            self._where,
            interval=settings.heartbeat_interval,
            misses=settings.heartbeat_misses,
            on_lost=self._on_lost,
            on_found=self._on_found,
            at_work=self._at_work,
        )

    def _where(self) -> Endpoints | None:
        """Where it listens; None while there is no process that should answer."""
        hub = self._hubs.get(self.kernel_id)
        if hub is None:
            self._on_gone(self.kernel_id)
            return None
        if hub.activity.execution_state in _NO_ANSWER:
            self._returned = False  # what it is in now was told
            return None
        self._tell_return()
        endpoints = Endpoints.from_connection_info(self._kernel.get_connection_info())
        return endpoints if endpoints.heartbeat is not None else None

    def _at_work(self) -> str:
        hub = self._hubs.get(self.kernel_id)
        return hub.activity.at_work if hub is not None else ""

    def _on_lost(self) -> None:
        self._returned = False
        self._log.warning(
            "Kernel %s has left its heartbeats unanswered for %g s: it hangs, or cannot be"
            " reached. It is shown as %s until it answers",
            self.kernel_id,
            self._silence,
            self.shown,
        )
        hub = self._hubs.get(self.kernel_id)
        if hub is not None:
            hub.announce(self.shown)

    def _on_found(self) -> None:
        self._log.warning("Kernel %s answers its heartbeats again", self.kernel_id)
        self._returned = True
        self._tell_return()

    def _tell_return(self) -> None:
        """Tell clients what state the kernel is in, once requests reach it again."""
        hub = self._hubs.get(self.kernel_id)
        if self._returned and hub is not None and hub.ready:
            self._returned = False
            hub.announce(hub.activity.execution_state)


def _is_elsewhere(kernel: AttachedKernel | BridgeKernel) -> bool:
    return isinstance(kernel, AttachedKernel) or kernel.process is None
