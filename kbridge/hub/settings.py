"""What can be set about a hub."""

from __future__ import annotations

from dataclasses import dataclass

from kbridge.link.endpoints import MESSAGE_LIMIT

__all__ = ["HubSettings"]


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Settings of every hub of a table; the traits of the connection class have the same names.

    Attributes
    ----------
    journal_limit : int
        Bytes that a kernel's journal may hold while somebody has yet to read them.
    burst_limit : int
        Bytes that the journals of all kernels together may hold beyond that, while the fastest
        live reader of a kernel is more than half of `journal_limit` behind.
    history_limit : int
        Bytes it keeps once everybody has.
    resume_timeout : float
        Seconds for which a client that went away holds the journal. Later it still resumes where
        it was, as far as the journal reaches. 0: a client that comes back starts afresh.
    request_limit : int
        Bytes of requests held for a kernel that is not ready or does not read. A websocket that
        goes beyond is not read from until there is room.
    kernel_message_limit : int
        Bytes that one part of a message of a kernel may have on iopub; a 16th of it on shell
        and on control, a 1,024th on stdin. A larger one ends the connection, which is made anew.
    kernel_info_timeout : float
        Seconds to wait for a kernel to prove that it is ready, before its requests are sent all
        the same.
    acknowledge : bool
        Whether clients are asked, by pings, what has arrived. If not, what the operating system
        took counts as arrived, and may be lost with a connection.
    rate_limit_policy : str
        "coalesce": output beyond the limits is joined and paced; also a client that lags gets it
        joined. "drop": it is dropped, with a notice, as in Jupyter Server.
    limit_rate, iopub_msg_rate_limit, iopub_data_rate_limit, rate_limit_window
        As in Jupyter Server: messages/s, bytes/s, seconds.
    allowed_message_types : tuple of str
        What clients may send; empty for all.
    untracked_message_types : tuple of str
        Requests that say nothing about whether somebody uses the kernel, beside those that are
        known for it.
    allow_tracebacks : bool
        Whether tracebacks reach clients.
    traceback_replacement_message : str
        What stands in their place.
    """

    journal_limit: int = 64 << 20
    burst_limit: int = 1 << 30
    history_limit: int = 4 << 20
    resume_timeout: float = 8 * 3600.0
    request_limit: int = 1 << 20
    kernel_message_limit: int = MESSAGE_LIMIT
    kernel_info_timeout: float = 60.0
    acknowledge: bool = True
    rate_limit_policy: str = "coalesce"
    limit_rate: bool = True
    iopub_msg_rate_limit: float = 1000.0
    iopub_data_rate_limit: float = 1_000_000.0
    rate_limit_window: float = 3.0
    allowed_message_types: tuple[str, ...] = ()
    untracked_message_types: tuple[str, ...] = ()
    allow_tracebacks: bool = True
    traceback_replacement_message: str = (
        "An exception occurred at runtime, which is not shown due to security reasons."
    )
