"""The rate limits of Jupyter Server: a sliding window of iopub messages and stream bytes.

As in Jupyter Server, a notice tells the user when a rate exceeds its limit. Messages are then
dropped until the rate is below 80 % of the limit, or the kernel becomes idle. Dropped messages do
not count. Only `stream` messages count for the data rate.

Unlike in Jupyter Server, messages with state are neither counted nor dropped (`EXEMPT`, and replies
that a kernel publishes). The remaining types are `stream`, `display_data`, `update_display_data`,
`clear_output` and unknown types: output, which a user can produce again. Jupyter Server also drops
`comm_msg`, `comm_close`, `error` and `execute_result`, and with them the state of widgets and the
results of cells.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable

from kbridge.flow.activity import state_of
from kbridge.flow.policy import DROP, PASS, Verdict
from kbridge.wire.message import Channel, Message

__all__ = ["EXEMPT", "RateLimit"]

EXEMPT = frozenset(
    {
        "comm_close",
        "comm_msg",
        "comm_open",
        "debug_event",
        "error",
        "execute_input",
        "execute_result",
        "input_request",
        "iopub_welcome",
        "status",
    }
)
"""iopub message types that always pass, because they carry state."""

# A power of two keeps the borders of the grains exact for windows of whole seconds.
GRAINS = 1024
RESUME = 0.8
_IOPUB = Channel.IOPUB


class RateLimit:
    """Drop output that arrives faster than the settings allow (a `Policy`).

    The window moves in steps of 1/1024 of its width, so that its memory is bounded. A message may
    leave the window earlier by that time.

    Parameters
    ----------
    limit_rate : bool
        True to enforce the limits.
    iopub_msg_rate_limit : float
        Messages per second; zero or less: no limit.
    iopub_data_rate_limit : float
        Bytes of stream messages per second; zero or less: no limit.
    rate_limit_window : float
        Seconds over which the rates are measured.
    notice : callable
        Builds the message that informs the user. Takes the text, and the parent header (raw JSON)
        of the dropped message.
    on_event : callable, optional
        Called with a line for the log when a limit takes effect and when it ends.

    Attributes
    ----------
    dropped, dropped_bytes : int
        The messages that were dropped, and their bytes.

    Raises
    ------
    ValueError
        If the window is not above zero.
    """

    __slots__ = (
        "_base",
        "_bucket_end",
        "_bucket_until",
        "_buckets",
        "_bytes",
        "_count",
        "_data",
        "_high_bytes",
        "_high_count",
        "_limited",
        "_msgs",
        "_notice",
        "_on",
        "_on_event",
        "_window",
        "dropped",
        "dropped_bytes",
    )

    def __init__(
        self,
        limit_rate: bool = True,
        iopub_msg_rate_limit: float = 1000,
        iopub_data_rate_limit: float = 1_000_000,
        rate_limit_window: float = 3,
        *,
        notice: Callable[[str, bytes], Message],
        on_event: Callable[[str], None] | None = None,
    ) -> None:
        if not rate_limit_window > 0:
            raise ValueError(f"rate_limit_window must be above 0 seconds, not {rate_limit_window}")
        window = self._window = float(rate_limit_window)
        self._msgs = _Gauge(
            "message", "iopub_msg_rate_limit", "msgs/sec", iopub_msg_rate_limit, window
        )
        self._data = _Gauge(
            "data", "iopub_data_rate_limit", "bytes/sec", iopub_data_rate_limit, window
        )
        self._on = limit_rate and (iopub_msg_rate_limit > 0 or iopub_data_rate_limit > 0)
        self._notice = notice
        self._on_event = on_event
        self.dropped = 0
        self.dropped_bytes = 0
        self._reset()

    def _reset(self) -> None:
        # Messages and bytes in the window, and those of them in earlier buckets than the current
        # one.
        self._count = 0
        self._bytes = 0
        self._base = (0, 0)
        # Full buckets, oldest first: the time at which it leaves the window, messages, bytes.
        self._buckets: deque[tuple[float, int, int]] = deque()
        self._bucket_end = self._bucket_until = -math.inf
        self._msgs.set(exceeded=False)
        self._data.set(exceeded=False)
        self._read_gauges()

    def _read_gauges(self) -> None:
        self._high_count = self._msgs.high
        self._high_bytes = self._data.high
        self._limited = self._msgs.exceeded or self._data.exceeded

    def __call__(self, msg: Message, msg_type: str, now: float) -> Verdict:
        """Count one message, and return whether it passes."""
        channel, header, parent_header, metadata, content, buffers = msg
        if not self._on or channel is not _IOPUB:
            return PASS
        nbytes = 0
        if msg_type == "stream":
            nbytes = len(header) + len(parent_header) + len(metadata) + len(content)
            if buffers:
                nbytes = msg.nbytes
        elif msg_type in EXEMPT or msg_type.endswith("_reply"):
            if msg_type == "status" and state_of(content) == "idle":
                self._reset()
            return PASS
        if now >= self._bucket_end:
            self._advance(now)
        count = self._count + 1
        size = self._bytes + nbytes
        if self._limited or count > self._high_count or size > self._high_bytes:
            notices = self._tip(count, size, parent_header)
            if self._limited:
                self.dropped += 1
                self.dropped_bytes += nbytes or msg.nbytes
                return notices
        self._count = count
        self._bytes = size
        return PASS

    def _advance(self, now: float) -> None:
        """Close the current bucket, remove those outside the window, and open the next one."""
        buckets = self._buckets
        count, size = self._base
        if self._count > count:
            buckets.append((self._bucket_until, self._count - count, self._bytes - size))
        while buckets and now >= buckets[0][0]:
            _, count, size = buckets.popleft()
            self._count -= count
            self._bytes -= size
        self._base = (self._count, self._bytes)
        self._bucket_end = now + self._window / GRAINS
        self._bucket_until = now + self._window

    def _tip(self, count: int, size: int, parent_header: bytes) -> tuple[Message, ...]:
        """Update the gauges with this message, and return the notices about changes."""
        msgs, data = self._msgs, self._data
        if msgs.low <= count <= msgs.high and data.low <= size <= data.high:
            return DROP
        notices: list[Message] = []
        for gauge, value, other in (
            (msgs, count, data),
            (data, size, msgs),
        ):
            if gauge.low <= value <= gauge.high:
                continue
            gauge.set(exceeded=not gauge.exceeded)
            if gauge.exceeded:
                self._tell(f"IOPub {gauge.what} rate exceeded")
                notices.append(self._notice(self._text(gauge), parent_header))
            elif not other.exceeded:
                self._tell("iopub messages resumed")
        self._read_gauges()
        return tuple(notices)

    def _text(self, gauge: _Gauge) -> str:
        owner = "ZMQChannelsWebsocketConnection"
        return (
            f"IOPub {gauge.what} rate exceeded.\n"
            "Output is dropped until the kernel slows down or the cell ends; the kernel continues "
            "to run.\n"
            f"The limit is the setting `{owner}.{gauge.setting}`.\n"
            "\n"
            "Current values:\n"
            f"{owner}.{gauge.setting}={gauge.limit:.12g} ({gauge.unit})\n"
            f"{owner}.rate_limit_window={self._window:.12g} (secs)\n"
        )

    def _tell(self, event: str) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def statistics(self) -> dict[str, int | bool]:
        """Return the dropped messages and bytes, and the current content of the window."""
        return {
            "limited": self._limited,
            "dropped_messages": self.dropped,
            "dropped_bytes": self.dropped_bytes,
            "window_messages": self._count,
            "window_bytes": self._bytes,
            "window_buckets": len(self._buckets),
        }


class _Gauge:
    """One rate against its limit, with hysteresis.

    Attributes
    ----------
    low, high : int
        The gauge changes its state when the window has less than `low` or more than `high`. They
        are integers, because they are compared with integers for every message.
    """

    __slots__ = ("_maximum", "exceeded", "high", "limit", "low", "setting", "unit", "what")

    def __init__(self, what: str, setting: str, unit: str, limit: float, window: float) -> None:
        self.what = what
        self.setting = setting
        self.unit = unit
        self.limit = limit
        self._maximum = min(limit * window, sys.maxsize) if limit > 0 else sys.maxsize
        self.set(exceeded=False)

    def set(self, *, exceeded: bool) -> None:
        """Start or stop limiting."""
        self.exceeded = exceeded
        self.low = math.ceil(RESUME * self._maximum) if exceeded else 0
        self.high = sys.maxsize if exceeded else math.floor(self._maximum)
