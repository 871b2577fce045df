"""The events that a hub reports to those who use it.

All methods are called on the event loop.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["HubObserver", "StatusListener"]


class HubObserver(Protocol):
    """Receives the activity and the disconnects of a kernel; see `Hub.observe`."""

    def on_kernel_activity(self) -> None:
        """The kernel became ready, or messages were added to its output.

        The messages may be the kernel's or the bridge's. Called once for each batch, and once more
        when the kernel becomes ready: an observer must not count calls.
        """

    def on_kernel_disconnected(self) -> None:
        """The iopub connection to the kernel was lost."""


class StatusListener(Protocol):
    """Receives, for one websocket, the kernel statuses that the bridge announces."""

    def on_status(self, status: str) -> None:
        """Take a status: `starting`, `restarting` or `dead`."""
