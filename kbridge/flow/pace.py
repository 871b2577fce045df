"""Decide when output may be written: immediately, or later.

Invariants:

- nothing is dropped or reordered: held output holds back everything after it;
- while messages arrive faster than a tenth of their limit, they are released in ticks, so that the
  messages of a tick can be joined. A message with state ends the tick immediately;
- while stream output arrives faster than its limit, it is released at the rate of the limit;
- if held output was dropped from the journal, the next output is released one window later.
  Otherwise a flood would show a gap after every few lines.

Both limits are leaky buckets. A burst of `rate_limit_window` seconds of bytes, or of a tenth of a
second of messages, passes without delay. JupyterLab needs 10 to 50 ms for each message of a long
output, and freezes for minutes above about a hundred messages per second, which is a tenth of the
usual limit. Joining messages only costs a delay of one tick. When a kernel becomes idle, the
buckets are emptied, unless output is held.
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
"""Fraction of the message limit above which messages are released in ticks."""

_OPEN = sys.maxsize
_OVERFULL = 1.25  # maximum level of the message bucket, as a multiple of its size
_CALM = 0.8  # level of the message bucket at which a flood ends
_GRAIN = 16 << 10  # bytes that are released together, to bound the number of held entries


class Pace:
    """Decides up to which frame a journal may be read (and counts messages as a `Policy`).

    Parameters
    ----------
    limit_rate : bool
        True to delay output at all.
    iopub_msg_rate_limit : float
        Messages without state per second; zero or less: no limit.
    iopub_data_rate_limit : float
        Bytes of stream content per second (the size of the messages after joining); zero or less:
        no limit.
    rate_limit_window : float
        Seconds of bytes that may be sent in one burst.
    burst : float
        Seconds of messages that may be sent in one burst; short, because joining loses nothing.

    Attributes
    ----------
    limits : bool
        True if any limit is set.
    horizon : int
        The sequence number before which all frames may be read.
    flooding : bool
        True while messages arrive so fast that they are released in ticks.
    late : bool
        True if the released frames have waited, so that they should be joined.
    released : int
        The sequence number up to which the limit of bytes has released output.
    waits : int
        The number of times that output began to wait for the limit of bytes.
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
        self.limits = self._msg_bucket is not None or self._data_bucket is not None
        self.horizon = _OPEN
        self.flooding = False
        self.late = False
        # The messages of this wake-up.
        self._messages = 0
        self._bytes = 0
        self._urgent = False
        self._idle = False
        self._counted = False  # True if output was counted since the buckets were emptied
        # The time of the last tick of a flood, and the end of the frames that it released.
        self._ticked_at = -math.inf
        self._ticked_to = 0
        # Held output: the end and the size of each entry.
        self._held: deque[tuple[int, int]] = deque()
        self._held_bytes = 0
        self.released = 0  # end of the released output
        self.waits = 0
        self._resume_at: float | None = None

    def __call__(self, msg: Message, msg_type: str, now: float) -> Verdict:  # noqa: ARG002
        """Count one message; all pass."""
        if msg_type == "stream":
            self._messages += 1
            self._bytes += len(msg.content)
            self._counted = True
        elif msg_type in LOSABLE:
            self._messages += 1
            self._counted = True
        else:
            self._urgent = True
            if self._counted and msg_type == "status" and state_of(msg.content) == "idle":
                self._idle = True
        return PASS

    def count_texts(self, messages: int, nbytes: int) -> None:
        """Count stream messages, and the bytes of their contents; as if each was passed."""
        self._messages += messages
        self._bytes += nbytes
        self._counted = True

    def settle(self, first: int, end: int, now: float) -> float | None:
        """Update the horizon; call it after each wake-up and after the returned time.

        Parameters
        ----------
        first, end : int
            The first sequence number from which on no frame is missing, and the next one.
        now : float
            Monotonic seconds.

        Returns
        -------
        float or None
            Seconds after which to call again; None if nothing is held back.
        """
        if not self.limits:
            return None
        idle, self._idle = self._idle, False
        self._count(now, idle)
        waited = self.horizon != _OPEN
        target = self._hold(first, end, now)
        self.late = self.flooding or waited
        if idle and not self._held:
            self._counted = False
            if self._data_bucket is not None:
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
        """Release everything, because the kernel has ended and its last output should not wait."""
        self._held.clear()
        self._held_bytes = 0
        for bucket in (self._data_bucket, self._msg_bucket):
            if bucket is not None:
                bucket.reset()
        self._resume_at = None
        self.late = self.horizon != _OPEN
        self.flooding = False
        self.horizon = _OPEN

    def statistics(self, *, applies: bool = True) -> dict[str, int | bool]:
        """Return whether messages are released in ticks, and the number of held bytes.

        The number is 0 unless the limits apply to some reader.
        """
        return {"flooding": self.flooding, "held_bytes": self._held_bytes if applies else 0}

    def _count(self, now: float, idle: bool) -> None:
        """Add the messages of this wake-up to their bucket."""
        messages, self._messages = self._messages, 0
        bucket = self._msg_bucket
        if bucket is None:
            return
        if idle:
            bucket.reset()
            self.flooding = False
        elif messages or self.flooding:  # otherwise the level only falls
            high = bucket.burst * (_CALM if self.flooding else 1.0)
            self.flooding = bucket.overdraw(now, messages) > high

    def _hold(self, first: int, end: int, now: float) -> int:
        """Add the bytes of this wake-up to their bucket or hold them; return the new horizon."""
        nbytes, self._bytes = self._bytes, 0
        held = self._held
        bucket = self._data_bucket
        if bucket is None or (not held and (not nbytes or bucket.try_spend(now, nbytes))):
            self.released = end
            return end
        if not held:
            self.waits += 1
        if held and held[-1][1] + nbytes <= min(_GRAIN, bucket.burst / 16):
            held[-1] = (end, held[-1][1] + nbytes)
        elif not held or end > held[-1][0]:
            held.append((end, nbytes))
        self._held_bytes += nbytes
        if first > self.released and not self._skip(first, now):
            return self.released
        while held and bucket.try_spend(now, held[0][1]):
            self.released, size = held.popleft()
            self._held_bytes -= size
        return self.released if held else end

    def _skip(self, first: int, now: float) -> bool:
        """Skip the output that the journal has dropped, at most once per window."""
        if self._resume_at is None:
            self._resume_at = now + self._window
        if now < self._resume_at:
            return False
        self._resume_at = None
        while self._held and self._held[0][0] <= first:
            self._held_bytes -= self._held.popleft()[1]
        self.released = first
        return True
