"""The objects that hubs share, and those that the parts of one hub share."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from kbridge.hub.broadcast.burst import Allowance
from kbridge.hub.clock import Clock
from kbridge.hub.events import ExecutionObserver, ExecutionTracing, SessionListener
from kbridge.hub.notices import Notices
from kbridge.hub.rejected import DroppedMessages
from kbridge.hub.settings import HubSettings
from kbridge.link.holder.keeper import Keeper, KeptKernel
from kbridge.link.interfaces import LinkFactory
from kbridge.storage.history import History
from kbridge.storage.store import JournalStore

__all__ = ["HubContext", "HubEnvironment", "Log", "kernel_log"]

Log: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]


def kernel_log(log: Log, kernel_id: str) -> Log:
    """Return a logger whose records have the attribute `kernel_id`."""
    return cast("Log", logging.LoggerAdapter(cast("logging.Logger", log), {"kernel_id": kernel_id}))


@dataclass(frozen=True, slots=True)
class HubEnvironment:
    """The objects that all hubs of a `HubTable` share.

    Attributes
    ----------
    link : callable or None
        Makes the sockets of a kernel; a test passes `kbridge.link.memory.MemoryKernel`. None for
        the choice of the setting `link`.
    clock : Clock
        The source of the time.
    log : logging.Logger or adapter
        The logger.
    allowance : Allowance or None
        The bytes beyond `journal_limit` that several hubs share; None for a single hub.
    store : JournalStore or None
        The journals on disk; None to keep them in memory only.
    keeper : Keeper or None
        Keeps the connections of kernels while no bridge runs; None if they end with this process.
    unkept : str
        The reason why `keeper` is None, as a clause; empty if the reason is not known.
    tracing : ExecutionTracing or None
        Observes executions.
    replicated : bool
        True if another replica may take over the kernels, with what `Hub.take_changes` returns.
    on_session : SessionListener or None
        Receives new sessions while `replicated`.
    """

    link: LinkFactory | None = None
    clock: Clock = field(default_factory=Clock)
    log: Log = field(default_factory=lambda: logging.getLogger("kbridge.hub"))
    allowance: Allowance | None = None
    store: JournalStore | None = None
    keeper: Keeper | None = None
    unkept: str = ""
    tracing: ExecutionTracing | None = None
    replicated: bool = False
    on_session: SessionListener | None = None


@dataclass(frozen=True, slots=True)
class HubContext:
    """The objects that all parts of one hub share.

    Attributes
    ----------
    kernel_id : str
        The id of the kernel, for log messages.
    settings : HubSettings
        The settings of the hub.
    clock : Clock
        The source of the time.
    log : logging.Logger or adapter
        The logger.
    notices : Notices
        Makes the messages that the bridge itself sends.
    rejected : DroppedMessages
        Counts kernel messages that cannot be passed on.
    history : History or None
        The journal on disk; None if it is in memory only.
    kept : KeptKernel or None
        The connections that go on while no bridge runs.
    trace : ExecutionObserver or None
        Observes executions.
    following : bool
        True if another replica serves the kernel, at the beginning.
    """

    kernel_id: str
    settings: HubSettings
    clock: Clock
    log: Log
    notices: Notices
    rejected: DroppedMessages
    history: History | None = None
    kept: KeptKernel | None = None
    trace: ExecutionObserver | None = None
    following: bool = False

    @property
    def adopted(self) -> bool:
        """True if the kernel ran before this bridge did, with clients of an earlier bridge."""
        return self.notices.adopted

    def give_up_connections(self, because: str) -> None:
        """Let the connections end with this process, and tell the next bridge why."""
        if self.kept is not None and not self.kept.given_up:
            self.kept.give_up(because)
            self.tell_given_up()

    def tell_given_up(self) -> None:
        """Tell the next bridge why the connections end with this process, if they do."""
        cause = "" if self.kept is None else self.kept.take_cause()
        if cause and self.history is not None:
            self.history.record("cut", cause)
