"""Keeps a hub in step with a kernel that Jupyter Server manages.

Invariants:

- Events that Jupyter Server's manager reports (restart callbacks, changed ports) are taken from
  there. The kernel's sockets show the events that it does not report: manual restarts and the end
  of a kernel.
- Jupyter Server's restarter decides what follows the death of a process. It is only made to poll
  earlier (`kbridge.jupyter.process_watch`).
- `execution_state` and `last_activity` have one writer (`kbridge.jupyter.activity_reporter`).
- A kernel that has left the manager has no hub.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from kbridge.hub.hub import Hub
from kbridge.jupyter.activity_reporter import ActivityReporter
from kbridge.jupyter.process_watch import ProcessWatch

__all__ = ["KernelWatch"]

_PORTS: Final = ["shell_port", "iopub_port", "stdin_port", "control_port"]
_CHECK_SECONDS: Final = 0.5


class KernelWatch:
    """Keeps one hub in step with its kernel.

    Parameters
    ----------
    hub : Hub
        The hub.
    kernel : jupyter_client.KernelManager
        The manager of the kernel.
    kernels : MappingKernelManager
        The manager of all kernels.
    on_gone : callable
        Called with the watch when the kernel has left the manager.

    Attributes
    ----------
    process : ProcessWatch
        Watches the process of the kernel.
    """

    def __init__(
        self, hub: Hub, kernel: Any, kernels: Any, on_gone: Callable[[KernelWatch], None]
    ) -> None:
        self.hub = hub
        self.kernel = kernel
        self.process = ProcessWatch(kernel, hub.log)
        self._activity = ActivityReporter(hub, kernel, kernels)
        self._kernels = kernels
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._checking = False
        self._restarting: asyncio.Task[None] | None = None
        self._linked_ports: tuple[int, ...] = self._ports()
        hub.observe(self)
        kernel.add_restart_callback(self._on_restart, "restart")
        kernel.add_restart_callback(self._on_dead, "dead")
        kernel.observe(self._on_port, names=_PORTS)
        self.process.update()
        self._check_presence()  # the kernel may have ended while its websocket was opening

    @property
    def gone(self) -> bool:
        """True if the kernel has left the manager for good."""
        if self.hub.kernel_id not in self._kernels:
            # A restart removes a kernel for a moment. The hub may still be connected to it.
            return self.hub.timed_out or not self.hub.ready
        return self.missing

    @property
    def missing(self) -> bool:
        """True if the manager does not have the kernel; also for a moment during a restart."""
        kernel_id = self.hub.kernel_id
        return (
            kernel_id not in self._kernels or self._kernels.get_kernel(kernel_id) is not self.kernel
        )

    def close(self) -> set[asyncio.Task[None]]:
        """Stop watching; may be called twice.

        Returns
        -------
        set of Task
            The cancelled tasks, which need a turn of the loop to end.
        """
        if self._closed:
            return set()
        self._closed = True
        self.hub.unobserve(self)
        self.kernel.remove_restart_callback(self._on_restart, "restart")
        self.kernel.remove_restart_callback(self._on_dead, "dead")
        self.kernel.unobserve(self._on_port, names=_PORTS)
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        return tasks | self.process.close()

    # -- events of the manager --------------------------------------------------------------

    def _on_restart(self) -> None:
        """Begin an automatic restart: the process has died, the manager will start another."""
        self._begin_restart(asked=False)

    def _on_dead(self) -> None:
        """Announce the death: the process has died too often to be restarted."""
        if self._restarting is not None:
            self._restarting.cancel()
            self._restarting = None
        self.hub.dead()
        self._check_presence()

    def _on_port(self, _change: Any) -> None:
        """Follow the ports in the loop's next turn: they change one after the other."""
        self._loop.call_soon(self._follow_ports)

    def _follow_ports(self) -> None:
        ports = self._ports()
        if self._closed or not all(ports) or ports == self._linked_ports:
            return
        if self._restarting is not None:
            return  # `_restart` reads the ports at its end
        if self.hub.activity.execution_state == "restarting":  # announced already
            self._link()
        else:
            self._begin_restart(asked=True)

    def _ports(self) -> tuple[int, ...]:
        return tuple(getattr(self.kernel, name) for name in _PORTS)

    def _begin_restart(self, *, asked: bool) -> None:
        if self._restarting is None:
            self._linked_ports = ()
            self._restarting = self._spawn(self._restart(asked=asked))

    async def _restart(self, *, asked: bool) -> None:
        """Disconnect from the old process and connect to the new one, if its ports are known."""
        try:
            # After a manual restart, waiting requests were sent for the new process: keep them.
            await self.hub.restarting(asked=asked, keep=asked)
        finally:
            self._restarting = None
        self._activity.kernel_restarted()
        if all(self._ports()):  # otherwise `_on_port` will be called
            self._link()
        self._check_presence()

    def _link(self) -> None:
        self._linked_ports = self._ports()
        self.hub.reconnect(self.kernel.get_connection_info())
        if self.hub.kernel_id in self._kernels:
            # The manager compares ports at each restart; tell it that the hub knows these.
            self._kernels.ports_changed(self.hub.kernel_id)

    # -- events of the hub (`kbridge.hub.events.HubObserver`) -------------------------------

    def on_kernel_disconnected(self) -> None:
        """Check whether the manager still has the kernel."""
        self._check_presence()

    def on_kernel_activity(self) -> None:
        """Report state and activity to the manager."""
        if not self._closed:
            self.process.update()
        activity = self._activity
        if activity.is_writer or (not self._closed and not self.missing and activity.take_over()):
            activity.report()

    # -- whether the kernel is still there --------------------------------------------------

    def _check_presence(self) -> None:
        if not self._checking:
            self._checking = True
            self._spawn(self._check_until_known())

    async def _check_until_known(self) -> None:
        """Look up the kernel in the manager until it answers, or is missing twice in a row."""
        missing = 0
        try:
            while missing < 2 and not self.hub.closed:
                missing = missing + 1 if self.gone else 0
                if self.hub.timed_out:  # `wait_ready` would return at once
                    await asyncio.sleep(_CHECK_SECONDS)
                elif await self.hub.wait_ready(_CHECK_SECONDS):
                    return
        finally:
            self._checking = False
        if not self.hub.closed:
            self._loop.call_soon(self._on_gone, self)  # which cancels the tasks of this watch

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.hub.log.error(
                "Kernel %s: its hub is out of step with Jupyter Server",
                self.hub.kernel_id,
                exc_info=task.exception(),
            )
