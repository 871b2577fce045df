"""Detects the end of a kernel's process before its restarter polls for it."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
from typing import Any

from kbridge.kernels.lifecycle.process_exit import exit_event
from kbridge.kernels.tasks import spawn

__all__ = ["ProcessWatch"]


class ProcessWatch:
    """Makes the restarter of a kernel poll as soon as the kernel's process has ended.

    The restarter decides what to do; by itself it polls every 3 s. Only local processes are
    watched, because the pid of another provisioner's process may belong to another machine.

    Parameters
    ----------
    kernel : jupyter_client.KernelManager
        The manager of the kernel.
    log : logging.Logger or adapter
        The logger for errors of the restarter.

    Attributes
    ----------
    waiting : asyncio.Task or None
        The task that waits for the end of the current process; None if it is not watched.
    """

    def __init__(self, kernel: Any, log: Any) -> None:
        self.waiting: asyncio.Task[None] | None = None
        self._kernel = kernel
        self._log = log
        self._process: Any = None
        self._polls: set[asyncio.Task[None]] = set()

    def update(self) -> None:
        """Watch the current process of the kernel, if it is not watched already."""
        process = getattr(getattr(self._kernel, "provisioner", None), "process", None)
        if process is self._process:
            return
        self.close()
        self._process = process
        if isinstance(process, subprocess.Popen):
            self.waiting = spawn(self._wait_and_poll(process.pid), self._log)

    def close(self) -> set[asyncio.Task[None]]:
        """Stop watching; return the cancelled task, which needs a turn of the loop to end."""
        waiting, self.waiting = self.waiting, None
        if waiting is None or waiting.done():
            return set()
        waiting.cancel()
        return {waiting}

    async def _wait_and_poll(self, pid: int) -> None:
        with exit_event(pid) as ended:
            await ended.wait()
        # A separate task, which `close` does not cancel: a restart that has begun must complete.
        poll = spawn(self._poll(), self._log)
        self._polls.add(poll)
        poll.add_done_callback(self._polls.discard)

    async def _poll(self) -> None:
        """Make the restarter poll, unless the kernel is being started or shut down."""
        kernel = self._kernel
        restarter = getattr(kernel, "_restarter", None)
        if kernel.shutting_down or not kernel.ready.done():
            return
        if restarter is None or getattr(restarter, "_pcallback", self) is None:  # stopped
            return
        polled = restarter.poll()
        if inspect.isawaitable(polled):
            await polled
