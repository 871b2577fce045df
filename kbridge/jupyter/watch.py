"""Keeps a hub in step with a kernel whose life somebody else leads.

Laws of this module:

- what Jupyter Server's manager tells (restart callbacks, ports) is believed, and what it does not
  tell (manual restarts, the end of a kernel) is seen from the kernel's sockets;
- what follows from the death of a process is its restarter's to decide: it is only asked to look
  at once, and not when its next look is due (3 s);
- `execution_state` and `last_activity`, which its REST API and its culler read, have one writer:
  its own watcher on a socket of its own until our hub has the kernel in view, then the hub; both
  show what the last status said;
- a kernel that has left the manager has no hub.
"""

from __future__ import annotations

import asyncio
import inspect
import subprocess
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

from kbridge.hub.hub import Hub
from kbridge.kernels.lifecycle.process_exit import exit_event

__all__ = ["KernelWatch"]

_PORTS: Final = ["shell_port", "iopub_port", "stdin_port", "control_port"]
_LOOK_SECONDS: Final = 0.5
_ACTIVITY_SECONDS: Final = 0.1  # how far what the manager shows may lie behind


class KernelWatch:
    """One kernel of Jupyter Server's, and its hub.

    Parameters
    ----------
    hub : Hub
        The hub.
    kernel : jupyter_client.KernelManager
        The kernel's manager.
    kernels : MappingKernelManager
        The manager of all kernels.
    on_gone : callable
        Is told, with the watch, when the kernel has left it.
    """

    def __init__(
        self, hub: Hub, kernel: Any, kernels: Any, on_gone: Callable[[KernelWatch], None]
    ) -> None:
        self.hub = hub
        self.kernel = kernel
        self._kernels = kernels
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looks: set[asyncio.Task[None]] = set()
        self._process: Any = None
        self._ended: asyncio.Task[None] | None = None
        self._closed = False
        self._looking = False
        self._relinking: asyncio.Task[None] | None = None
        self._restarted = False
        self._linked: tuple[int, ...] = self._ports()
        self._state = ""
        self._activity = 0.0
        hub.observe(self)
        kernel.add_restart_callback(self._on_restart, "restart")
        kernel.add_restart_callback(self._on_dead, "dead")
        kernel.observe(self._on_port, names=_PORTS)
        self._watch_process()
        self._look()  # it may have left while its websocket was on the way

    @property
    def gone(self) -> bool:
        """Whether the kernel is not the manager's any more."""
        if self.hub.kernel_id not in self._kernels:
            # It may be back in a moment, under a restart.
            return self.hub.timed_out or not self.hub.ready
        return self.missing

    @property
    def missing(self) -> bool:
        """Whether the manager does not have the kernel now; under a restart, for a moment."""
        kernel_id = self.hub.kernel_id
        return (
            kernel_id not in self._kernels or self._kernels.get_kernel(kernel_id) is not self.kernel
        )

    def close(self) -> set[asyncio.Task[None]]:
        """Watch no more; may be called twice.

        Returns
        -------
        set of Task
            What has been cancelled and takes a turn of the loop to end.
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
        return tasks

    # -- what the manager tells -------------------------------------------------------------

    def _on_restart(self) -> None:
        """The process has died, and the manager is about to start another one."""
        self._relink(asked=False)

    def _on_dead(self) -> None:
        """The process has died too often."""
        if self._relinking is not None:
            self._relinking.cancel()
            self._relinking = None
        self.hub.dead()
        self._look()

    def _on_port(self, _change: Any) -> None:
        """Ports change one by one; when all have, the hub follows."""
        self._loop.call_soon(self._follow)

    def _follow(self) -> None:
        ports = self._ports()
        if self._closed or not all(ports) or ports == self._linked:
            return
        if self._relinking is not None:
            return  # reads them when it is done
        if self.hub.activity.execution_state == "restarting":  # which was said already
            self._link()
        else:
            self._relink(asked=True)

    def _ports(self) -> tuple[int, ...]:
        return tuple(getattr(self.kernel, name) for name in _PORTS)

    def _relink(self, *, asked: bool) -> None:
        if self._relinking is None:
            self._linked = ()
            self._relinking = self._spawn(self._restart(asked=asked))

    async def _restart(self, *, asked: bool) -> None:
        try:
            # What waits when somebody has asked for it was sent after the old one had hung up.
            await self.hub.restarting(asked=asked, keep=asked)
        finally:
            self._relinking = None
        self._restarted = True
        if all(self._ports()):  # else they are being chosen, and _on_port will tell
            self._link()
        self._look()

    def _link(self) -> None:
        self._linked = self._ports()
        self.hub.reconnect(self.kernel.get_connection_info())
        if self.hub.kernel_id in self._kernels:
            # Or it would take them for changed at every restart, and look after them anew.
            self._kernels.ports_changed(self.hub.kernel_id)

    # -- what the operating system tells ----------------------------------------------------

    def _watch_process(self) -> None:
        """Watch the process that there is now, where it is one of this machine's."""
        process = getattr(getattr(self.kernel, "provisioner", None), "process", None)
        if process is self._process or self._closed:
            return
        self._process = process
        if self._ended is not None:
            self._ended.cancel()
            self._ended = None
        # Of other provisioners nobody knows whose pid theirs is.
        if isinstance(process, subprocess.Popen):
            self._ended = self._spawn(self._until_ended(process.pid))

    async def _until_ended(self, pid: int) -> None:
        with exit_event(pid) as ended:
            await ended.wait()
        # Not one of the tasks that `close` cancels: a restart is to be gone through with.
        look = self._loop.create_task(self._look_at_process())
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)
        look.add_done_callback(self._done)

    async def _look_at_process(self) -> None:
        """Let the kernel's restarter look now, unless somebody is starting or ending the kernel."""
        kernel = self.kernel
        restarter = getattr(kernel, "_restarter", None)
        if kernel.shutting_down or not kernel.ready.done():
            return
        if restarter is None or getattr(restarter, "_pcallback", self) is None:  # it was stopped
            return
        looked = restarter.poll()
        if inspect.isawaitable(looked):
            await looked

    # -- what the sockets tell --------------------------------------------------------------

    def _look(self) -> None:
        """Look whether the kernel is still there, until it answers."""
        if not self._looking:
            self._looking = True
            self._spawn(self._look_until_known())

    async def _look_until_known(self) -> None:
        missing = 0
        try:
            while missing < 2 and not self.hub.closed:
                missing = missing + 1 if self.gone else 0
                if self.hub.timed_out:  # ready for want of a proof: nothing to wait for
                    await asyncio.sleep(_LOOK_SECONDS)
                elif await self.hub.wait_ready(_LOOK_SECONDS):
                    return
        finally:
            self._looking = False
        if not self.hub.closed:
            self._loop.call_soon(self._on_gone, self)  # which cancels the tasks of this watch

    def on_kernel_disconnected(self) -> None:
        """Look whether the kernel is still there (`kbridge.hub.events.HubObserver`)."""
        self._look()

    def on_kernel_activity(self) -> None:
        """Tell the manager what the kernel does, once a wake-up."""
        self._watch_process()
        kernel, activity = self.kernel, self.hub.activity
        if getattr(kernel, "_activity_stream", None) is not None and not self._take_over():
            return
        state = activity.latest_state
        changed = state != self._state
        if changed:
            self._state = kernel.execution_state = state
        if changed or activity.last_activity - self._activity >= _ACTIVITY_SECONDS:
            self._activity = activity.last_activity
            when = datetime.fromtimestamp(self._activity, UTC)
            kernel.last_activity = when
            self._kernels.last_kernel_activity = max(when, self._kernels.last_kernel_activity)

    def _take_over(self) -> bool:
        """End the manager's own watch over the kernel, which reads every message once more.

        Not while the kernel is not proven, or busy with what the hub has not seen begin, or a
        restart waits for an answer that ending the watch would throw away.
        """
        kernel = self.kernel
        if self._closed or self.missing:
            return False
        if not self.hub.ready or (kernel.execution_state == "busy" and not self._restarted):
            return False
        if getattr(kernel, "_pending_restart_cleanup", None) is not None:
            return False
        self._kernels.stop_watching_activity(self.hub.kernel_id)
        self._state, self._activity = kernel.execution_state, self.hub.activity.last_activity
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.hub.log.error(
                "kernel %s is out of step with its hub",
                self.hub.kernel_id,
                exc_info=task.exception(),
            )
