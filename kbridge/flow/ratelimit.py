"""The sliding window over iopub messages and stream bytes a second.

It means what it means in Jupyter Server: once a rate is above its limit the user is told so once,
messages are dropped until the rate is below 80 % of the limit, and a kernel that goes idle starts
afresh. A dropped message weighs nothing. Only `stream` messages weigh on the data rate.

What differs, on purpose: nothing that carries state is counted or dropped (`EXEMPT`, and replies
that a kernel publishes). That leaves `stream`, `display_data`, `update_display_data`,
`clear_output` and types that this module does not know: output, which a user can ask for again.
Jupyter Server also drops `comm_msg`, `comm_close`, `error` and `execute_result`, and with them
widgets' state and cells' results.
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
"""iopub types that pass whatever the rates, because they carry state."""

# A power of two keeps the borders of the grains exact for every window that is a whole number.
GRAINS = 1024
RESUME = 0.8
_IOPUB = Channel.IOPUB


class RateLimit:
    """Drop output that comes faster than the settings allow (a `Policy`).

    The window moves in steps of 1/1024 of its width, so what it remembers is bounded whatever the
    kernel sends; a message may be forgotten by that much too early.

    Parameters
    ----------
    limit_rate : bool
        Whether to limit at all.
    iopub_msg_rate_limit : float
        Messages a second; zero or less: no limit.
    iopub_data_rate_limit : float
        Bytes of stream messages a second; zero or less: no limit.
    rate_limit_window : float
        Seconds over which the rates are taken.
    notice : callable
        Makes the message that tells the user: takes the text and the parent header (raw JSON) of
        the message in whose place it is sent.
    on_event : callable, optional
        Is told, in a line for the log, when a limit begins or ceases to act.

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
        "_dropped",
        "_dropped_bytes",
        "_high_bytes",
        "_high_count",
        "_limited",
        "_msgs",
        "_notice",
        "_on",
        "_on_event",
        "_window",
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
        self._dropped = 0
        self._dropped_bytes = 0
        self._reset()

    def _reset(self) -> None:
        # What the window holds, and of that what came before the bucket that is being filled.
        self._count = 0
        self._bytes = 0
        self._base = (0, 0)
        # Full buckets, oldest first: when it leaves the window, messages, bytes.
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
        """Count one message, and say whether it may go."""
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
                self._dropped += 1
                self._dropped_bytes += nbytes or msg.nbytes
                return notices
        self._count = count
        self._bytes = size
        return PASS

    def _advance(self, now: float) -> None:
        """Close the bucket that was filled, forget what left the window, open the next one."""
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
        """Move the gauges to what they are with this message; make the notices that this needs."""
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
            "Output is left out until the kernel slows down or the cell ends; the kernel itself "
            "runs on.\n"
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
        """What was dropped since the start, and what the window holds now."""
        return {
            "limited": self._limited,
            "dropped_messages": self._dropped,
            "dropped_bytes": self._dropped_bytes,
            "window_messages": self._count,
            "window_bytes": self._bytes,
            "window_buckets": len(self._buckets),
        }


class _Gauge:
    """One rate against its limit, with hysteresis.

    Attributes
    ----------
    low, high : int
        The gauge tips over as soon as the window holds less than `low` or more than `high`. Whole
        numbers, because they are compared with whole numbers for every message.
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
        """Begin or cease to limit."""
        self.exceeded = exceeded
        self.low = math.ceil(RESUME * self._maximum) if exceeded else 0
        self.high = sys.maxsize if exceeded else math.floor(self._maximum)
