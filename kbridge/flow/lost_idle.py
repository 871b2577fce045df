"""Find out which requests will never be told that they ended.

A frontend shows a cell as running until it has the reply and the `idle` status. A kernel whose PUB
queue is full may drop the status (see `kbridge.flow.unsent`); some kernels omit it after an error.

A request is certain to have no `idle` if the kernel has answered a later probe on iopub: a kernel
sends its messages there in order. No time proves it, because much output may still be on its way
when the reply is there.
"""

from __future__ import annotations

from typing import Final

__all__ = ["GRACE", "LostIdle"]

GRACE: Final = 5.0
"""Seconds from a reply to the first probe. The time doubles from one probe to the next, because a
probe waits behind the requests that a kernel still has to run."""
_LONGEST: Final = 300.0
"""Seconds until the last probe; its answer may come any time later."""

_LIMIT: Final = 1000
_HEADER_BYTES: Final = 4096  # unusually long headers are not stored


class LostIdle:
    """The execute requests that have a reply and no idle status.

    Attributes
    ----------
    next_at : float or None
        The time of the next call of `due`, in seconds of the monotonic clock; None if nothing
        waits.
    """

    __slots__ = ("_asked", "_delay", "_ended", "_probe", "_waiting", "next_at")

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}  # msg_id -> header of the request
        self._ended: dict[str, None] = {}  # requests whose idle came before the reply
        self._asked: dict[str, bytes] = {}  # those that waited when the probe was sent
        self._probe = ""
        self._delay = GRACE
        self.next_at: float | None = None

    def replied(self, msg_id: str, header: bytes, now: float) -> None:
        """Note the reply to the request with this header."""
        if msg_id in self._ended:
            del self._ended[msg_id]
        elif len(header) <= _HEADER_BYTES:
            self._waiting[msg_id] = header
            _bound(self._waiting)
            if self.next_at is None:
                self._delay = GRACE
                self.next_at = now + GRACE

    def ended(self, msg_id: str) -> None:
        """Note the idle status of a request."""
        if self._waiting.pop(msg_id, None) is None:
            self._ended[msg_id] = None
            _bound(self._ended)
        elif self._asked:
            self._asked.pop(msg_id, None)

    def due(self, now: float) -> bool:
        """Return True if the caller must probe the kernel now, and call `ask`."""
        if self.next_at is None or now < self.next_at:
            return False
        if not self._waiting:
            self.next_at = None
            return False
        self._delay *= 2
        self.next_at = now + self._delay if self._delay <= _LONGEST else None
        return True

    def ask(self, probe: str) -> None:
        """Note that a probe with this id was sent."""
        self._probe, self._asked = probe, dict(self._waiting)

    def answered(self, probe: str) -> list[bytes]:
        """Note the idle status of a probe, and return the headers of requests that have none."""
        if probe != self._probe:
            return []
        headers = [*self._asked.values()]
        for msg_id in self._asked:
            self._waiting.pop(msg_id, None)
        self._probe, self._asked, self._delay = "", {}, GRACE
        return headers

    def clear(self) -> None:
        """Forget all requests, because the process of the kernel has ended."""
        for known in (self._waiting, self._ended, self._asked):
            known.clear()
        self._probe, self._delay, self.next_at = "", GRACE, None


def _bound(known: dict[str, bytes] | dict[str, None]) -> None:
    while len(known) > _LIMIT:
        del known[next(iter(known))]
