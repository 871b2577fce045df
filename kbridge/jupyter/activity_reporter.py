"""Writes `execution_state` and `last_activity` of a kernel for Jupyter Server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from kbridge.hub.hub import Hub

__all__ = ["ActivityReporter"]

_MAX_DELAY: Final = 0.1  # seconds by which the reported last_activity may be late


class ActivityReporter:
    """Writes the state of a hub to the kernel's manager, which the REST API and the culler read.

    The two attributes have one writer at a time: at first Jupyter Server's own watcher, which reads
    all messages on a separate socket; after `take_over`, this object.

    Parameters
    ----------
    hub : Hub
        The hub of the kernel.
    kernel : jupyter_client.KernelManager
        The manager of the kernel.
    kernels : MappingKernelManager
        The manager of all kernels.
    """

    def __init__(self, hub: Hub, kernel: Any, kernels: Any) -> None:
        self._hub = hub
        self._kernel = kernel
        self._kernels = kernels
        self._state = ""
        self._activity = 0.0
        self._restarted = False

    @property
    def is_writer(self) -> bool:
        """True if Jupyter Server's own watcher does not run."""
        return getattr(self._kernel, "_activity_stream", None) is None

    def kernel_restarted(self) -> None:
        """Note a restart: a `busy` state from before it does not delay `take_over`."""
        self._restarted = True

    def take_over(self) -> bool:
        """Stop Jupyter Server's own watcher, if the hub can replace it now; return True if so.

        Refuses while the kernel is not ready, is running a request that started before the hub
        attached, or has a restart pending (stopping the watcher would drop its reply).
        """
        kernel = self._kernel
        if not self._hub.ready or (kernel.execution_state == "busy" and not self._restarted):
            return False
        if getattr(kernel, "_pending_restart_cleanup", None) is not None:
            return False
        self._kernels.stop_watching_activity(self._hub.kernel_id)
        self._state, self._activity = kernel.execution_state, self._hub.activity.last_activity
        return True

    def report(self) -> None:
        """Write the state if it has changed, and the last activity if it is late enough."""
        activity = self._hub.activity
        state = activity.latest_state
        changed = state != self._state
        if changed:
            self._state = self._kernel.execution_state = state
        if changed or activity.last_activity - self._activity >= _MAX_DELAY:
            self._activity = activity.last_activity
            when = datetime.fromtimestamp(self._activity, UTC)
            self._kernel.last_activity = when
            self._kernels.last_kernel_activity = max(when, self._kernels.last_kernel_activity)
