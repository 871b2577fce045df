"""When what a kernel said may be written: at once, or a little later.

Laws of this module:

- nothing is dropped and nothing changes places: what is held back holds back all behind it;
- while messages come faster than a tenth of their limit, they are let go in ticks, so that what is
  written together can be joined; a message that carries state ends the tick at once;
- while stream output comes faster than its limit, it is let go at the pace of the limit;
- once held output has fallen out of the journal, the next is let go only a window later, or a
  flood would be shown as a gap after every few lines.

Both limits are leaky buckets. A burst passes freely: `rate_limit_window` seconds' worth of bytes, a
tenth of a second's worth of messages. JupyterLab needs 10 to 50 ms for each message of a long
output, and freezes for minutes over some hundred a second, a tenth of the usual limit; what is
joined costs nobody anything but a tick. A kernel that goes idle starts afresh, once nothing is
held.
"""

from __future__ import annotations

import math
import sys
from collections import deque

from kbridge.flow.activity import state_of
from kbridge.flow.journal import LOSABLE
from kbridge.flow.policy import PASS, Verdict
from kbridge.flow.token_bucket import TokenBucket
from kbridge.wire.message import Message

__all__ = ["JOINED", "TICK", "Pace"]

TICK = 0.05
"""Seconds between two writes of a flood."""

JOINED = 0.1
"""Of the limit of messages: above this share of it they go in ticks."""

_OPEN = sys.maxsize
_OVERFULL = 1.25  # of the bucket of messages: how much a flood may put in that was
_CALM = 0.8  # of it: what a flood must fall to, to be none any more
_GRAIN = 16 << 10  # bytes let go together, so that what is remembered stays small


class Pace:
    """Says how far a journal may be read now (and, as a `Policy`, counts what comes).

    Parameters
    ----------
    limit_rate : bool
        Whether to hold anything back.
    iopub_msg_rate_limit : float
        Messages a second, of those that carry no state; zero or less: no limit.
    iopub_data_rate_limit : float
        Bytes of stream content a second (what is left of messages once they are joined); zero or
        less: no limit.
    rate_limit_window : float
        Seconds' worth of bytes that may come at once.
    burst : float
        The same of messages; short, because to join them loses nothing.

    Attributes
    ----------
    horizon : int
        Sequence number before which all may be read.
    flooding : bool
        Whether messages come so fast that they go in ticks.
    late : bool
        Whether what may be read now has waited, so that it is to be joined.
    """

    def __init__(
        self,
        limit_rate: bool = True,
        iopub_msg_rate_limit: float = 1000.0,
        iopub_data_rate_limit: float = 1_000_000.0,
        rate_limit_window: float = 3.0,
        burst: float = 2 * TICK,
    ) -> None:
        if not rate_limit_window > 0:
            raise ValueError(f"rate_limit_window must be above 0 seconds, not {rate_limit_window}")
        self._window = rate_limit_window
        msg_rate = iopub_msg_rate_limit * JOINED if limit_rate else 0.0
        data_rate = iopub_data_rate_limit if limit_rate else 0.0
        # None: no limit.
        self._msg_bucket = (
            TokenBucket(1 / msg_rate, msg_rate * burst, msg_rate * burst * _OVERFULL)
            if 0 < msg_rate < math.inf
            else None
        )
        self._data_bucket = (
            TokenBucket(1 / data_rate, data_rate * rate_limit_window)
            if 0 < data_rate < math.inf
            else None
        )
        self.horizon = _OPEN
        self.flooding = False
        self.late = False
        # Of this wake-up.
        self._messages = 0
        self._bytes = 0
        self._urgent = False
        self._idle = False
        # The last tick of a flood: when, and up to where all was let go.
        self._ticked_at = -math.inf
        self._ticked_to = 0
        # What waits for room in the bucket of data: where it ends, and its bytes.
        self._held: deque[tuple[int, int]] = deque()
        self._held_bytes = 0
        self._released = 0  # up to where that has been let go
        self._resume_at: float | None = None

    def horizon_of(self, paced: bool) -> int:
        """The sequence number before which a reader may read all that it has not yet."""
        return self.horizon if paced else _OPEN

    @property
    def limits(self) -> bool:
        """Whether anything can ever be held back."""
        return self._msg_bucket is not None or self._data_bucket is not None

    def __call__(self, msg: Message, msg_type: str, now: float) -> Verdict:  # noqa: ARG002
        """Count one message; all pass."""
        if msg_type == "stream":
            self._messages += 1
            self._bytes += len(msg.content)
        elif msg_type in LOSABLE:
            self._messages += 1
        else:
            self._urgent = True
            if msg_type == "status" and state_of(msg.content) == "idle":
                self._idle = True
        return PASS

    def settle(self, first: int, end: int, now: float) -> float | None:
        """Move the horizon; call after each wake-up, and when told to.

        Parameters
        ----------
        first, end : int
            The sequence numbers between which the journal holds everything.
        now : float
            Monotonic seconds.

        Returns
        -------
        float or None
            Seconds after which to call again, where something is held back.
        """
        if not self.limits:
            return None
        idle, self._idle = self._idle, False
        self._count(now, idle)
        waited = self.horizon != _OPEN
        target = self._hold(first, end, now)
        self.late = self.flooding or waited
        if idle and not self._held and self._data_bucket is not None:
            self._data_bucket.reset()
        urgent, self._urgent = self._urgent, False
        wait = self._ticked_at + TICK - now
        if self.flooding and not urgent and wait > 0:
            self.horizon = min(target, self._ticked_to)
            return TICK if self._held else wait
        self._ticked_at, self._ticked_to = now, target
        self.horizon = target if self._held or self.flooding else _OPEN
        return TICK if self._held else None

    def release(self) -> None:
        """Let all go: the kernel has ended, and nobody shall wait to hear of it."""
        self._held.clear()
        self._held_bytes = 0
        for bucket in (self._data_bucket, self._msg_bucket):
            if bucket is not None:
                bucket.reset()
        self._resume_at = None
        self.late = self.horizon != _OPEN
        self.flooding = False
        self.horizon = _OPEN

    def statistics(self) -> dict[str, int | bool]:
        """Whether messages flood, and what waits for its turn."""
        return {"flooding": self.flooding, "held_bytes": self._held_bytes}

    def _count(self, now: float, idle: bool) -> None:
        """Take the messages of this wake-up into their bucket."""
        messages, self._messages = self._messages, 0
        bucket = self._msg_bucket
        if bucket is None:
            return
        bucket.used(now)
        if idle:
            bucket.reset()
        else:
            bucket.spend(messages)
        self.flooding = bucket.used(now) > bucket.burst * (_CALM if self.flooding else 1.0)

    def _hold(self, first: int, end: int, now: float) -> int:
        """Take the bytes of this wake-up into their bucket, or hold them; return how far to go."""
        nbytes, self._bytes = self._bytes, 0
        held = self._held
        bucket = self._data_bucket
        if bucket is None:
            self._released = end
            return end
        room = bucket.ready(now)
        if not held and (room or not nbytes):
            bucket.spend(nbytes)
            self._released = end
            return end
        if held and held[-1][1] + nbytes <= min(_GRAIN, bucket.burst / 16):
            held[-1] = (end, held[-1][1] + nbytes)
        elif not held or end > held[-1][0]:
            held.append((end, nbytes))
        self._held_bytes += nbytes
        if first > self._released and not self._skip(first, now):
            return self._released
        while held and bucket.ready(now):
            self._released, size = held.popleft()
            bucket.spend(size)
            self._held_bytes -= size
        return self._released if held else end

    def _skip(self, first: int, now: float) -> bool:
        """Go past what the journal has forgotten, but only once a window."""
        if self._resume_at is None:
            self._resume_at = now + self._window
        if now < self._resume_at:
            return False
        self._resume_at = None
        while self._held and self._held[0][0] <= first:
            self._held_bytes -= self._held.popleft()[1]
        self._released = first
        return True
