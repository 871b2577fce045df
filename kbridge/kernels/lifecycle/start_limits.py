"""Limits on the kernels that start: their number, how many at a time, and file descriptors."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    nullcontext,
)
from contextvars import ContextVar
from typing import Any, Final

from kbridge.errors import Busy, KernelLimitReached
from kbridge.kernels.lifecycle.descriptors import KernelBudget
from kbridge.kernels.lifecycle.start_counts import StartCounts

__all__ = ["StartLimits", "check_user"]

_REMOTE_ENDS: Final = 8
_RESTARTING: Final = "The server is about to be restarted; try again in a few seconds"

# True within a request that is counted, also in the tasks that it makes: it may start a kernel
# although a later call of `hold` refuses new requests.
_counted: ContextVar[bool] = ContextVar("kbridge_start_request_counted", default=False)


def check_user(user: str, has: int, limit: int | None) -> None:
    """Check that a user may have one more kernel.

    Parameters
    ----------
    user : str
        The name of the user.
    has : int
        The number of kernels that the user has.
    limit : int or None
        The value of `max_kernels_per_user`.

    Raises
    ------
    KernelLimitReached
        If the user has as many kernels as are allowed.
    """
    if limit is not None and has >= limit:
        raise KernelLimitReached(
            f"{user} has {has} kernel(s), and max_kernels_per_user allows no more: shut one down"
        )


class StartLimits:
    """Decides whether and when a kernel may start.

    Parameters
    ----------
    max_kernels : int or None
        Maximum number of kernels in use and of starts that clients wait for, together.
    concurrent : int
        Maximum number of kernels on this machine that start or restart at the same time.
    per_user : int or None
        Maximum number of kernels in use and of starts of one user, together.

    Attributes
    ----------
    counts : StartCounts
        Durations and failures of starts.
    """

    def __init__(
        self, max_kernels: int | None, concurrent: int, per_user: int | None = None
    ) -> None:
        self.counts = StartCounts()
        self._max_kernels = max_kernels
        self._per_user = per_user
        self._admitted_of: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(concurrent)
        self._remote_ends = asyncio.Semaphore(_REMOTE_ENDS)
        self._budget = KernelBudget()
        self._admitted = 0
        self._none_admitted = asyncio.Event()
        self._none_admitted.set()
        self._closed = False
        self._pending = 0
        self._none_pending = asyncio.Event()
        self._none_pending.set()
        self._holds = 0

    @property
    def closed(self) -> bool:
        """True if the server is shutting down, so that no kernel may start or be attached."""
        return self._closed

    @property
    def admitted(self) -> int:
        """The number of starts that clients wait for."""
        return self._admitted

    def close(self) -> None:
        """Admit no more starts."""
        self._closed = True

    @property
    def pending(self) -> int:
        """The number of requests to start a kernel that have no answer yet."""
        return self._pending

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request that may start a kernel until its answer is known; may be nested.

        A request that comes within `hold` is not counted; it is refused once it starts a kernel.
        """
        if self._holds and not _counted.get():
            yield
            return
        self._pending += 1
        self._none_pending.clear()
        token = _counted.set(True)
        try:
            yield
        finally:
            self._pending -= 1
            if not self._pending:
                self._none_pending.set()
            _counted.reset(token)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Refuse the starts of new requests, so that `wait_for_requests` has an end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def check_held(self) -> None:
        """Raise Busy within `hold`, unless a request is being answered that came before."""
        if self._holds and not _counted.get():
            raise Busy(_RESTARTING)

    async def wait_for_requests(self) -> None:
        """Wait until no request to start a kernel is pending."""
        await self._none_pending.wait()

    @contextmanager
    def admit(self, in_use: int, user: str = "", of_user: int = 0) -> Iterator[None]:
        """Hold one of the `max_kernels` places, and one of the user, until the kernel is in use.

        Parameters
        ----------
        in_use : int
            The number of kernels in use that count toward `max_kernels`.
        user : str
            The name of the user of the kernel; empty for the operator, who is not limited.
        of_user : int
            The number of these kernels that the user has.

        Raises
        ------
        Busy
            If the server is shutting down, or about to be restarted.
        KernelLimitReached
            If all places are taken.
        """
        if self._closed:
            raise Busy("The server is shutting down")
        self.check_held()
        used = in_use + self._admitted
        if self._max_kernels is not None and used >= self._max_kernels:
            raise KernelLimitReached(f"{used} kernels run, and max_kernels allows no more")
        if user:
            check_user(user, of_user + self._admitted_of[user], self._per_user)
        self._admitted += 1
        self._admitted_of[user] += 1
        self._none_admitted.clear()
        try:
            yield
        finally:
            self._admitted -= 1
            self._admitted_of -= Counter((user,))
            if not self._admitted:
                self._none_admitted.set()

    async def wait_for_admitted(self) -> None:
        """Wait until no client waits for a start."""
        await self._none_admitted.wait()

    def slot(self, *, local: bool) -> AbstractAsyncContextManager[Any]:
        """Return one of the `concurrent` slots, to be held during a start or restart.

        Kernels on other machines (`local` is False) need no slot: a cluster may take minutes for
        a kernel, and other starts must not wait for that.
        """
        return self._slots if local else nullcontext()

    @property
    def remote_ends(self) -> asyncio.Semaphore:
        """Held while the job of a kernel is ended: a scheduler is asked for a few at a time."""
        return self._remote_ends

    def descriptors(self) -> AbstractContextManager[None]:
        """Reserve the file descriptors of one kernel; see `KernelBudget.start`."""
        return self._budget.start()
