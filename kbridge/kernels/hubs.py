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
    """One kernel's sockets, and everything that hangs on them."""

    @property
    def identities(self) -> list[bytes]:
        """What the kernel knows it by now, after those that it may still owe replies to."""

    @property
    def activity(self) -> KernelActivity:
        """What the kernel does."""

    @property
    def connections(self) -> int:
        """How many websockets are attached."""

    @property
    def ready(self) -> bool:
        """Whether requests go through."""

    @property
    def timed_out(self) -> bool:
        """Whether they do for want of a proof that the kernel is there."""

    async def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the kernel answers; False when `timeout` seconds have passed first."""

    async def restarting(self, *, asked: bool = False) -> None:
        """Hand on what the process that has ended said last, then tell clients of the restart."""

    def reconnect(self, connection_info: Mapping[str, Any]) -> None:
        """Connect to the process that took the place of the old one."""

    def verify_busy(self) -> None:
        """Ask a kernel that is shown as busy whether it is; if not, it is idle when it answers."""

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
