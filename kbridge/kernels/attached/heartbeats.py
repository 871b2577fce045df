"""Heartbeats of kernels whose process cannot be watched; clients are notified if they stop.

Such are kernels that another program started, and those that a provisioner runs on another machine.
The end of a process on this machine needs no heartbeat: the operating system reports it
(`lifecycle.process_exit`).

Nothing in this module ends or restarts a kernel, or gives up a request: a lost kernel may be behind
a network that fails for a while, and continue afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from kbridge.kernels.settings import KernelOptions
from kbridge.link.endpoints import Endpoints
from kbridge.link.heartbeat import Heartbeat

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["HeartbeatWatch"]

# The states of a process that does not answer yet, or has ended.
_NO_ANSWER = frozenset({"starting", "restarting", "dead"})


class _Manager(Protocol):
    """The manager of one kernel: ours, jupyter_client's, or that of an attached kernel."""

    @property
    def kernel_id(self) -> str | None: ...

    def get_connection_info(self) -> Mapping[str, Any]: ...


class HeartbeatWatch:
    """Pings one kernel.

    Parameters
    ----------
    manager
        The manager of the kernel, asked for its connection info before each connection.
    hub : Hub
        The hub of the kernel, which announces the lost status to clients. When it is closed, the
        kernel is no longer pinged.
    options : KernelOptions
        Interval and number of the pings, and the status of a lost kernel.
    log : logging.Logger
        The logger for kernels that are lost or answer again.
    """

    @classmethod
    def start(
        cls, manager: _Manager, hub: Hub, options: KernelOptions, log: logging.Logger
    ) -> HeartbeatWatch | None:
        """Start to ping a kernel; None if heartbeats are off."""
        if options.heartbeat_interval <= 0:
            return None
        return cls(manager, hub, options, log)

    def __init__(
        self, manager: _Manager, hub: Hub, options: KernelOptions, log: logging.Logger
    ) -> None:
        self._kernel_id = str(manager.kernel_id)
        self._manager = manager
        self._hub = hub
        self._log = log
        self._silence = options.heartbeat_interval * options.heartbeat_misses
        self._status = options.heartbeat_status
        self._unannounced = False  # the kernel answers again, and clients do not know yet
        self._closed = False
        self.heartbeat = Heartbeat(
            self._endpoints,
            interval=options.heartbeat_interval,
            misses=options.heartbeat_misses,
            on_lost=self._on_lost,
            on_found=self._on_found,
            at_work=self._busy_with,
        )

    @property
    def lost_status(self) -> str:
        """The status to show while the kernel is lost; empty while it is not."""
        return self._status if self.heartbeat.lost else ""

    @property
    def closed(self) -> bool:
        """True if the kernel is no longer pinged."""
        return self._closed

    def close(self) -> None:
        """Stop. May be called twice."""
        self._closed = True
        self.heartbeat.close()

    def _endpoints(self) -> Endpoints | None:
        """Return where the kernel listens; None while no process should answer."""
        if self._hub.closed:
            self.close()
            return None
        if self._hub.activity.execution_state in _NO_ANSWER:
            self._unannounced = False  # clients have received the current state of the kernel
            return None
        self._announce_return()
        endpoints = Endpoints.from_connection_info(self._manager.get_connection_info())
        return endpoints if endpoints.heartbeat is not None else None

    def _busy_with(self) -> str:
        return self._hub.activity.at_work

    def _on_lost(self) -> None:
        self._unannounced = False
        self._log.warning(
            "Kernel %s has not answered its heartbeats for %g s: it hangs, or cannot be reached."
            " It is shown as %s until it answers",
            self._kernel_id,
            self._silence,
            self._status,
        )
        self._hub.announce(self._status)

    def _on_found(self) -> None:
        self._log.warning("Kernel %s answers its heartbeats again", self._kernel_id)
        self._unannounced = True
        self._announce_return()

    def _announce_return(self) -> None:
        """Tell clients the kernel's state, once requests reach the kernel again."""
        hub = self._hub
        if self._unannounced and hub.ready:
            self._unannounced = False
            hub.announce(hub.activity.execution_state)
