"""The events that a hub reports to those who use it.

All methods are called on the event loop.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["HubObserver", "StatusListener"]


class HubObserver(Protocol):
    """Receives the activity and the disconnects of a kernel; see `Hub.observe`."""

    def on_kernel_activity(self) -> None:
        """The kernel sent something or became ready; called once per wake-up."""

    def on_kernel_disconnected(self) -> None:
        """The iopub connection to the kernel was lost."""


class StatusListener(Protocol):
    """Receives, for one websocket, the kernel statuses that the bridge announces."""

    def on_status(self, status: str) -> None:
        """Take a status: `starting`, `restarting` or `dead`."""
