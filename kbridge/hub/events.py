"""The events that a hub reports to those who use it.

All methods are called on the event loop.
"""

from __future__ import annotations

from typing import Protocol

from kbridge.flow.execution import Execution
from kbridge.wire.message import Message

__all__ = [
    "ExecutionObserver",
    "ExecutionTracing",
    "HubObserver",
    "SessionListener",
    "StatusListener",
]


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


class SessionListener(Protocol):
    """Receives the new sessions of all kernels."""

    def on_session(self, kernel_id: str) -> None:
        """A kernel has a new session that can resume; see `Hub.take_new_places`."""


class ExecutionObserver(HubObserver, Protocol):
    """Receives the steps of each request to execute code on one kernel."""

    def on_request(self, msg: Message) -> Message:
        """Take a request; return the message for the kernel, with the same id."""

    def on_sent(self, msg_id: str) -> None:
        """A request was sent to the kernel."""

    def on_not_noted(self, msg_id: str) -> None:
        """A request is not among the executions: its further steps are not reported."""

    def on_execution(self, execution: Execution) -> None:
        """The state of an execution has changed."""

    def close(self) -> None:
        """The kernel is gone."""


class ExecutionTracing(Protocol):
    """Observes the executions of all kernels."""

    def kernel(self, kernel_id: str) -> ExecutionObserver:
        """Return the observer for one kernel."""
