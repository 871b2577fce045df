"""The settings of a hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kbridge.errors import SetupError
from kbridge.link.choice import DEFAULT, LinkKind
from kbridge.link.endpoints import MESSAGE_LIMIT

__all__ = ["HubSettings"]


@dataclass(frozen=True, slots=True)
class HubSettings:
    """The settings of all hubs of a table; traits of the connection class have the same names.

    Attributes
    ----------
    journal_limit : int
        Bytes of output per kernel that the journal holds for clients that have not read them.
    burst_limit : int
        Bytes that the journals of all kernels together may hold beyond that, while the fastest
        live reader of a kernel is more than half of `journal_limit` behind.
    history_limit : int
        Bytes of output per kernel that are kept after all clients have read them.
    journal_dir : str
        The directory for output that does not fit into memory, see `HubTable.open_journal`; empty:
        output is in memory only.
    journal_disk_limit, journal_disk_total : int
        Bytes that the files of one kernel may have there, and those of all kernels together.
    journal_disk_reserve : float
        The share of the file system that the files leave free, from 0 to 1.
    resume_timeout : float
        Seconds for which output is kept for a client that has disconnected. After that it still
        resumes, as far as the journal reaches. With 0, a client that reconnects receives only new
        output.
    request_limit : int
        Bytes of requests that may wait for a kernel that is not ready or does not read. Above it,
        no more messages are read from the websockets that sent them.
    kernel_message_limit : int
        Bytes that one part of a message of a kernel may have on iopub; a 16th of it on shell
        and on control, a 1,024th on stdin. A larger part closes the connection, which is then
        opened again.
    link : str
        The link to kernels: "zmtp" (plain sockets), "pyzmq" (libzmq), or "auto", which chooses
        plain sockets if they can reach the kernel; see `kbridge.link.choice`.
    kernel_info_timeout : float
        Seconds to wait until a kernel is proven to be ready. After that its requests are sent
        anyway.
    acknowledge : bool
        True to ask clients, by pings, which messages have arrived. If False, data that the
        operating system has accepted counts as delivered, and may be lost with a connection.
    rate_limit_policy : str
        "coalesce": output above the limits is joined and delayed; a client that is behind gets
        joined output, too. "drop": output above the limits is dropped, with a notice, as in
        Jupyter Server.
    limit_rate, iopub_msg_rate_limit, iopub_data_rate_limit, rate_limit_window
        As in Jupyter Server: messages/s, bytes/s, seconds.
    allowed_message_types : tuple of str
        The message types that clients may send; empty for all.
    untracked_message_types : tuple of str
        More request types that do not count as activity of a user.
    allow_tracebacks : bool
        True if clients receive tracebacks.
    traceback_replacement_message : str
        The text that replaces a traceback.

    Raises
    ------
    SetupError
        If no hub could work with these settings.
    """

    journal_limit: int = 64 << 20
    burst_limit: int = 1 << 30
    history_limit: int = 4 << 20
    journal_dir: str = ""
    journal_disk_limit: int = 1 << 30
    journal_disk_total: int = 8 << 30
    journal_disk_reserve: float = 0.05
    resume_timeout: float = 8 * 3600.0
    request_limit: int = 1 << 20
    kernel_message_limit: int = MESSAGE_LIMIT
    link: str = DEFAULT.value
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

    def __post_init__(self) -> None:
        # The parts of a hub raise ValueError for these, but only when a websocket opens the hub.
        if self.journal_limit <= 0:
            raise SetupError(f"journal_limit must be above 0 bytes, not {self.journal_limit}")
        if self.history_limit < 0:
            raise SetupError(f"history_limit must not be negative, as {self.history_limit} is")
        try:
            Path(self.journal_dir).expanduser()
        except RuntimeError:
            raise SetupError(
                f"journal_dir must not be in the home of an unknown user, as {self.journal_dir} is"
            ) from None
        for name in ("journal_disk_limit", "journal_disk_total"):
            if getattr(self, name) <= 0:
                raise SetupError(
                    f"{name} must be above 0 bytes, not {getattr(self, name)}; an empty journal_dir"
                    " keeps output in memory only"
                )
        if self.link not in set(LinkKind):
            raise SetupError(f"link must be one of {', '.join(LinkKind)}, not {self.link!r}")
        if not 0 <= self.journal_disk_reserve < 1:
            raise SetupError(
                "journal_disk_reserve must be a share of the file system, from 0 to less than 1,"
                f" not {self.journal_disk_reserve}"
            )
        if not self.rate_limit_window > 0:  # NaN fails, too
            raise SetupError(
                f"rate_limit_window must be above 0 seconds, not {self.rate_limit_window}"
            )
