"""The hubs of all kernels of a process."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from kbridge.errors import HubClosed, KernelNotFound
from kbridge.flow.handover import Handover
from kbridge.flow.seam import Seam
from kbridge.hub.broadcast.burst import Allowance
from kbridge.hub.clock import Clock
from kbridge.hub.context import HubEnvironment, Log
from kbridge.hub.counts import Totals
from kbridge.hub.events import ExecutionTracing, SessionListener
from kbridge.hub.recovered import is_of_another_kernel
from kbridge.hub.settings import HubSettings
from kbridge.link.holder.keeper import Keeper
from kbridge.link.interfaces import LinkFactory
from kbridge.storage.store import JournalStore, StoreSettings
from kbridge.wire.closing import GOING_AWAY, KERNEL_SHUT_DOWN

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["HubTable"]

_RESUME_TIMEOUT: Final = 10.0
# Headers of OpenTelemetry's exporters: collectors take keys in them.
_TRACING_SECRETS: Final = frozenset(
    {"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"}
)


class HubTable:
    """Opens, finds and closes hubs.

    Parameters
    ----------
    settings : HubSettings, optional
        The settings of all hubs.
    link : callable, optional
        Makes the sockets of a kernel; a test passes `kbridge.link.memory.MemoryKernel`. By
        default the setting `link` decides.
    clock : Clock, optional
        The source of the time.
    log : logging.Logger or adapter, optional
        The logger of all hubs.
    """

    def __init__(
        self,
        settings: HubSettings | None = None,
        *,
        link: LinkFactory | None = None,
        clock: Clock | None = None,
        log: Log | None = None,
    ) -> None:
        self._environment = HubEnvironment(link)
        if clock is not None:
            self._environment = replace(self._environment, clock=clock)
        if log is not None:
            self._environment = replace(self._environment, log=log)
        self._hubs: dict[str, Hub] = {}
        self._followed: dict[str, Hub] = {}
        self._ended = Totals()
        self._ending: set[Hub] = set()
        # By cause: the kernels whose output is missing; None after `accept_no_more`.
        self._missing: dict[str, list[str]] | None = {}
        self._store: JournalStore | None = None
        self.configure(settings or HubSettings())

    @property
    def settings(self) -> HubSettings:
        """The settings of all hubs."""
        return self._settings

    def configure(self, settings: HubSettings) -> None:
        """Set the settings of the hubs that are opened from now on.

        Raises
        ------
        RuntimeError
            If a hub is open: all hubs of a table share one set of limits.
        """
        if self._hubs:
            raise RuntimeError("the settings of a HubTable must be set before a hub is opened")
        self._settings = settings
        allowance = Allowance(settings.burst_limit)
        self._environment = replace(self._environment, allowance=allowance)

    async def open_journal(self, owner: str = "", keep: Collection[str] = ()) -> None:
        """Continue the output of kernels on disk, in the directory `journal_dir` of the settings.

        Call it before a hub is opened. Without it, or with an empty `journal_dir`, output is in
        memory only. The files of a kernel are removed when its hub is closed with `close`, and all
        files are removed by `aclose`. A directory that cannot be used is logged, and tried again
        later.

        Parameters
        ----------
        owner : str
            Names this program, the same after a restart; several programs may use one directory. By
            default the name of the machine. Files that an earlier process with the same name left
            behind are removed.
        keep : collection of str
            Ids of kernels whose files are not removed, because the kernels still run. Their hubs
            continue with the output, the numbers and the sessions of the earlier process.

        Raises
        ------
        RuntimeError
            If a hub is open, or the journal.
        """
        settings = self._settings
        if not settings.journal_dir:
            return
        if self._hubs or self._store is not None:
            raise RuntimeError("the journal of a HubTable must be opened once, before a hub is")
        self._store = await JournalStore.open(
            _store_settings(settings),
            owner=owner or platform.node(),
            keep=keep,
            log=self._environment.log,
        )
        self._environment = replace(self._environment, store=self._store)
        if self._environment.keeper is not None:
            await self._take_over(self._environment.keeper, self._store)

    def keep_connections(self, keeper: Keeper | None, unkept: str = "") -> None:
        """Keep the connections of kernels while no bridge runs; call it before `open_journal`.

        Parameters
        ----------
        keeper : Keeper or None
            None if connections end with this process.
        unkept : str
            Why they do, as a clause.
        """
        self._environment = replace(self._environment, keeper=keeper, unkept=unkept)

    def trace_executions(self, tracing: ExecutionTracing) -> None:
        """Report the executions of the hubs that are opened from now on."""
        self._environment = replace(self._environment, tracing=tracing)

    @property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables that may have keys for the traces of executions."""
        return frozenset() if self._environment.tracing is None else _TRACING_SECRETS

    async def _take_over(self, keeper: Keeper, store: JournalStore) -> None:
        """Go on with the connections of an earlier bridge."""
        await keeper.take()
        for kernel_id in keeper.left:
            kept = keeper.kernel(kernel_id)
            frames = None if kept.seq is None else await store.history(kernel_id).frames(kept.seq)
            if frames is None:
                keeper.drop(kept, kept.unusable or "the journal could not be read")
            else:
                kept.seam = Seam(frames)

    async def wait_resumed(self) -> None:
        """Wait until the journals have what kernels said before this bridge, at most 10 s."""
        if self._environment.keeper is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_RESUME_TIMEOUT):
                    await self._environment.keeper.wait_resumed()

    def accept_no_more(self) -> None:
        """End the connections of an earlier bridge that no hub has gone on with.

        Until then, kernels whose output is missing are collected, to be logged together.
        """
        missing, self._missing = self._missing, None
        for because, kernels in (missing or {}).items():
            self._log_missing(because, kernels)
        if self._environment.keeper is not None:
            self._environment.keeper.drop_left()

    def open(
        self,
        kernel_id: str,
        connection_info: Mapping[str, Any] | None,
        *,
        former: Sequence[bytes] = (),
        adopted: bool = False,
    ) -> Hub:
        """Return the hub of a kernel; make one if there is none.

        Parameters
        ----------
        kernel_id, connection_info
            As for `Hub`.
        former : sequence of bytes
            Identities of earlier bridges, to which an adopted kernel may owe replies.
        adopted : bool
            True if an earlier bridge served the kernel. A kernel that waits in a queue has no
            connection info by which its files could be known; only with `adopted` it goes on with
            those of its id.
        """
        hub = self._hubs.get(kernel_id)
        if hub is None:
            store = self._store
            known = False  # files that an earlier bridge left
            if store is not None and (found := store.history(kernel_id).recovered) is not None:
                if connection_info is None:
                    known = adopted
                else:
                    known = not is_of_another_kernel(found.records, connection_info)
                if not known:
                    store.discard(kernel_id)
            from kbridge.hub.hub import Hub  # not needed until a kernel runs

            try:
                hub = Hub(
                    kernel_id,
                    connection_info,
                    self._settings,
                    environment=self._environment,
                    former=former if adopted else None,
                )
            except BaseException:
                # The next attempt must not take the files for those of an earlier bridge.
                if store is not None and not known:
                    store.discard(kernel_id)
                raise
            self._hubs[kernel_id] = hub
            self._note_missing(hub)
        return hub

    # -- kernels of other replicas --------------------------------------------------------------

    def replicate(self, listener: SessionListener | None = None) -> None:
        """Collect the changes of the hubs that are opened from now on; see `Hub.take_changes`.

        Parameters
        ----------
        listener : SessionListener, optional
            Receives the new sessions of these hubs.
        """
        self._environment = replace(self._environment, replicated=True, on_session=listener)

    @property
    def followed(self) -> Mapping[str, Hub]:
        """The hubs that follow kernels of other replicas, by kernel id.

        No other method or property of the table includes them.
        """
        return MappingProxyType(self._followed)

    def follow(self, kernel_id: str, connection_info: Mapping[str, Any]) -> Hub:
        """Return the hub that follows a kernel of another replica; make one if there is none.

        Raises
        ------
        KernelError, ValueError
            As for `Hub`.
        RuntimeError
            If the table has a hub that serves the kernel.
        """
        if kernel_id in self._hubs:
            raise RuntimeError("a kernel is served or followed, not both")
        hub = self._followed.get(kernel_id)
        if hub is None:
            store = self._store
            if store is not None and store.history(kernel_id).recovered is not None:
                store.discard(kernel_id)
            from kbridge.hub.hub import Hub  # not needed until a kernel runs

            try:
                hub = Hub(
                    kernel_id,
                    connection_info,
                    self._settings,
                    environment=replace(self._environment, tracing=None),
                    following=True,
                )
            except BaseException:
                if store is not None:
                    store.discard(kernel_id)
                raise
            self._followed[kernel_id] = hub
        return hub

    def unfollow(self, kernel_id: str) -> Coroutine[Any, Any, None]:
        """Close the hub that follows a kernel, if there is one, and remove its files.

        The hub leaves the table at once; await the result to wait for the rest.
        """
        hub = self._followed.pop(kernel_id, None)
        if hub is not None and self._store is not None:
            self._store.discard(kernel_id)
        return self._end_followed(hub)

    async def _end_followed(self, hub: Hub | None) -> None:
        if hub is not None:
            await hub.aclose(drain=False)

    async def take_over(
        self,
        kernel_id: str,
        connection_info: Mapping[str, Any] | None,
        handover: Handover,
        joined: str | None = None,
    ) -> Hub:
        """Serve a kernel from now on in the place of another replica; see `Hub.take_over`.

        Parameters
        ----------
        kernel_id, connection_info
            As for `Hub`; for a kernel that was not followed.
        handover, joined
            As for `Hub.take_over`.
        """
        hub = self._followed.pop(kernel_id, None)
        if hub is None:
            hub = self.open(kernel_id, connection_info, adopted=True)
        self._hubs[kernel_id] = hub
        await hub.take_over(handover, joined)
        return hub

    def _note_missing(self, hub: Hub) -> None:
        if hub.cut_because is None:
            return
        if self._missing is None:
            self._log_missing(hub.cut_because, [hub.kernel_id])
        else:
            self._missing.setdefault(hub.cut_because, []).append(hub.kernel_id)

    def _log_missing(self, because: str, kernels: list[str]) -> None:
        self._environment.log.warning(
            "Output that kernels sent while no server was running is missing: %s. Kernels: %s",
            because or "the reason is not known",
            ", ".join(kernels),
        )

    def get(self, kernel_id: str) -> Hub | None:
        """Return the hub of a kernel, or None."""
        return self._hubs.get(kernel_id)

    def __getitem__(self, kernel_id: str) -> Hub:
        hub = self._hubs.get(kernel_id)
        if hub is None:
            raise KernelNotFound(f"no kernel has the id {kernel_id!r}")
        return hub

    def connections(self, kernel_id: str) -> int:
        """Return the number of websockets attached to a kernel."""
        hub = self._hubs.get(kernel_id)
        return hub.connections if hub else 0

    def close(
        self,
        kernel_id: str,
        code: int = HubClosed.close_code,
        reason: str = KERNEL_SHUT_DOWN,
    ) -> Coroutine[Any, Any, None]:
        """Close the hub of a kernel, if there is one, because the kernel has ended.

        The kernel's websockets are closed with `code`, and its files are removed in the background:
        nothing waits for the disk, except `aclose`. The hub and the journal leave the table at
        once, so that another kernel may get the same id; await the result to wait for the rest.
        """
        if self._store is not None:
            self._store.discard(kernel_id)
        hub = self.take(kernel_id)
        if hub is not None:
            self._ending.add(hub)
        return self._close(hub, code, reason)

    async def _close(self, hub: Hub | None, code: int, reason: str) -> None:
        if hub is None:
            return
        try:
            await self._end(hub, code, reason, kept=False)
        finally:
            if self._environment.keeper is not None and hub.kernel_id not in self._hubs:
                self._environment.keeper.forget(hub.kernel_id)

    def take(self, kernel_id: str) -> Hub | None:
        """Remove the hub of a kernel from the table, if there is one; the caller closes it."""
        return self._hubs.pop(kernel_id, None)

    async def _end(self, hub: Hub, code: int, reason: str, *, kept: bool) -> None:
        """Close a hub that was taken; its counters stay in the totals.

        `kept` is True if another process continues the journal.
        """
        try:
            await hub.aclose(code, reason, drain=kept or hub.connections > 0)
        finally:
            if hub in self._ending:
                self._ending.discard(hub)
                self._ended.add(hub.counters(), hub.round_trips)

    async def aclose(self, *, keep: bool = False) -> None:
        """Close all hubs because the server shuts down; may be called twice.

        If the call is cancelled, messages that have arrived may be lost, but all is closed.

        Clients may reconnect to another server with the same kernels: their websockets are closed
        with `GOING_AWAY`.

        Parameters
        ----------
        keep : bool
            True leaves the files of `open_journal` for the next process, because the kernels keep
            running; those of kernels whose hubs were closed with `close` are removed.
        """
        keeper = self._environment.keeper
        if keeper is not None and keep:
            keeper.leave()
        try:
            for kernel_id in list(self._followed):
                await self.unfollow(kernel_id)
            await self._end_all(kept=keep and self._store is not None)
        finally:
            store, self._store = self._store, None
            try:
                if store is not None:
                    self._environment = replace(self._environment, store=None)
                    await store.aclose(keep=keep)
            finally:
                if keeper is not None:
                    keeper.close()

    async def _end_all(self, *, kept: bool) -> None:
        """Close all hubs at once, and wait for those that other calls close.

        If the call is cancelled, so is each delivery of last messages: the hubs are closed then.
        """
        steps = [hub.aclose() for hub in self._ending]  # they may still deliver messages
        for hub in self:
            self.take(hub.kernel_id)
            self._ending.add(hub)
            steps.append(self._end(hub, GOING_AWAY, "the server is shutting down", kept=kept))
        for error in await asyncio.gather(*steps, return_exceptions=True):
            if error is not None:
                raise error

    def __iter__(self) -> Iterator[Hub]:
        return iter(list(self._hubs.values()))

    def __len__(self) -> int:
        return len(self._hubs)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each hub, by kernel id."""
        return {hub.kernel_id: hub.statistics() for hub in self}

    def totals(self) -> Totals:
        """Return the counters of all hubs together, closed ones included."""
        totals = Totals()
        totals.add(self._ended.counts, self._ended.round_trips)
        for hub in (*self._hubs.values(), *self._ending):
            totals.add(hub.counters(), hub.round_trips)
        return totals

    def journal_statistics(self) -> dict[str, int]:
        """Return the figures of all journals on disk; empty if they are in memory only.

        `failing_kernels` counts the kernels whose journals are not written at the moment.
        """
        return {} if self._store is None else self._store.statistics()


def _store_settings(settings: HubSettings) -> StoreSettings:
    return StoreSettings(
        Path(settings.journal_dir).expanduser().absolute(),
        settings.journal_disk_limit,
        settings.journal_disk_total,
        settings.journal_disk_reserve,
    )
