"""What this floor needs of a kernel's hub, and of the table that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kbridge.wire.message import Channel, Message

__all__ = ["Hub", "Hubs", "KernelActivity"]


class KernelActivity(Protocol):
    """What a kernel does, as seen from its messages."""

    @property
    def execution_state(self) -> str:
        """One of starting, idle, busy, restarting, dead."""

    @property
    def last_activity(self) -> float:
        """When it last did something for somebody: unix seconds."""

    @property
    def at_work(self) -> str:
        """The msg_id of the request that has been busy longest; empty if there is none."""

    def touch(self, now: float) -> None:
        """Note that somebody used the kernel at `now`, in unix seconds."""


class Hub(Protocol):
    """The connection to one kernel, and its websockets."""

    @property
    def identities(self) -> list[bytes]:
        """Identities that the kernel may owe replies to, oldest first; the present one is last."""

    @property
    def activity(self) -> KernelActivity:
        """The activity of the kernel."""

    @property
    def connections(self) -> int:
        """The number of attached websockets."""

    @property
    def ready(self) -> bool:
        """True if requests are sent to the kernel."""

    @property
    def timed_out(self) -> bool:
        """Whether they do for want of a proof that the kernel is there."""

    async def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the kernel answers; False when `timeout` seconds have passed first."""

    async def restarting(self, *, asked: bool = False) -> None:
        """Hand on what the process that has ended said last, then tell clients of the restart."""

    def reconnect(self, connection_info: Mapping[str, Any]) -> None:
        """Connect to the process that replaced the old one."""

    def verify_busy(self) -> None:
        """Probe a kernel that is shown as busy; its answer ends a busy state that is stale."""

    def announce(self, status: str) -> None:
        """Tell clients a status of the kernel's, after all that it has said."""

    def dead(self) -> None:
        """Tell clients that the kernel has gone and will not be restarted."""

    async def request(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        channel: Channel = Channel.SHELL,
        timeout: float = 10.0,
    ) -> Message:
        """Send a request of our own; return its reply, or raise TimeoutError."""


class Hubs(Protocol):
    """The table of hubs."""

    def open(
        self,
        kernel_id: str,
        connection_info: Mapping[str, Any],
        *,
        former: Sequence[bytes] = (),
        adopted: bool = False,
    ) -> Hub:
        """Make the hub of a kernel.

        It has just been started; or it was `adopted` from a bridge that it has outlived, and may
        owe replies to the identities in `former`.
        """

    def get(self, kernel_id: str) -> Hub | None:
        """Return the hub of a kernel, or None."""

    async def close(self, kernel_id: str) -> None:
        """Close the hub of a kernel, and the websockets on it; no error when there is none."""

    def connections(self, kernel_id: str) -> int:
        """How many websockets are attached to a kernel."""
