"""The first and the last moments of a table of kernels.

First: kernels that outlived the bridge before are found, kernels are started ahead. Last: all are
ended, or let go of.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import NoSuchKernel
from traitlets import TraitError

from kbridge.kernels.attached.attached import AttachedKernel
from kbridge.kernels.attaching import AttachingTable
from kbridge.kernels.hubs import Hubs
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.culling import Culler, IdleTimes
from kbridge.kernels.lifecycle.environment import kernel_environment
from kbridge.kernels.lifecycle.kernel_log import KernelLog
from kbridge.kernels.lifecycle.pool import Pool
from kbridge.kernels.lifecycle.seed import Seed, load_seed
from kbridge.kernels.lifecycle.started import Lifecycle
from kbridge.kernels.registry.adoption import adopt
from kbridge.kernels.registry.models import KernelRecord, SessionRecord, Standing
from kbridge.kernels.registry.writer import Ledger
from kbridge.kernels.tasks import spawn, stop

__all__ = ["OpeningTable"]

# Kernels get `shutdown_wait_time` (5 s) to end by themselves; what is left is killed.
_SHUTDOWN_TIMEOUT = 6.0
_KILL_TIMEOUT = 1.5


class OpeningTable(AttachingTable):
    """A table that is opened and closed; `BridgeKernelManager` is what happens in between."""

    def __init__(self, *, hubs: Hubs, ledger: Ledger | None = None, **kwargs: Any) -> None:
        super().__init__(hubs=hubs, **kwargs)
        self._ledger = ledger or Ledger()
        self._life = Lifecycle(hubs, self, self.log, self._ledger)
        self._starts = 0
        self._no_starts = asyncio.Event()
        self._no_starts.set()
        self._closing = False
        self._ending: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()
        self._pool: Pool[BridgeKernel] | None = None
        self._to_pool: list[BridgeKernel] = []
        self._culler: Culler | None = None
        self._idle_times = IdleTimes(time.monotonic())
        self._adopting: asyncio.Task[list[SessionRecord]] | None = None

    # The first

    async def adopt(self) -> list[SessionRecord]:
        """Serve the kernels again that a server before this one left; to be called first of all.

        Returns
        -------
        list of SessionRecord
            What it left of sessions.

        Raises
        ------
        RegistryError
            If the registry cannot be used.
        """
        # Whoever gives up waiting: no kernel is left between two servers.
        self._adopting = asyncio.create_task(self._adopt())
        return await asyncio.shield(self._adopting)

    async def _adopt(self) -> list[SessionRecord]:
        claim = await self._ledger.open()
        found = await adopt(
            claim.kernels,
            make=self._remake,
            env=self._environment(None),
            life=self._life,
            ledger=self._ledger,
            log=self.log,
        )
        for kernel in found:
            if kernel.standing is Standing.POOLED:
                self._to_pool.append(kernel)
                continue
            self._kernels[str(kernel.kernel_id)] = kernel
            self._life.watch(kernel)
            self._heartbeats.watch(kernel)
            self.log.info("Kernel found again: %s (%s)", kernel.kernel_id, kernel.kernel_name)
        # What has gone is told once: not again if this server, too, should die now.
        await self._ledger.settled()
        return claim.sessions

    async def open(self) -> None:
        """Read the seed notebook, fill the pools, begin to cull. May be called twice.

        Raises
        ------
        BridgeError
            If the seed notebook cannot be read.
        KernelspecNotFound
            If a kernelspec that the settings name is not installed.
        """
        async with self._opening:
            if self._pool is not None:
                return
            if self.seed_uri:
                seed = await load_seed(self.seed_uri)
                name = self.force_kernel_name or seed.kernel_name
                self._life.seed = Seed(await self._spec_name(name) if name else "", seed.cells)
            self._pool = Pool(
                await self._pool_sizes(),
                start=self._launch_ahead,
                until_dead=lambda kernel: kernel.died(self.watch_interval),
                is_alive=lambda kernel: kernel.is_alive(),
                discard=lambda kernel: self._life.discard(kernel, badly=True),
                log=self.log,
            )
            again, self._to_pool = self._to_pool, []
            ahead = {name: await self._ahead(name) for name in {k.kernel_name for k in again}}
            fitting = [k for k in again if k.ahead == ahead[k.kernel_name]]
            surplus = self._pool.open((kernel.kernel_name, kernel) for kernel in fitting)
            surplus += [kernel for kernel in again if kernel not in fitting]
            self._culler = Culler(self.cull, self.cull_interval, self.log)
            self._open_attach_dir()
            await self._each(self._life.discard(kernel, badly=False) for kernel in surplus)

    # The last

    async def shutdown_all(self, now: bool = False) -> None:  # type: ignore[override]
        """End every kernel, and start no more; takes less than 8 s.

        Kernels go in parallel and are asked first; those that have not gone after 6 s are
        killed. May be called again, also while it is at work: with `now` to kill them at once.
        """
        await self._adopted()
        if not self._ending:
            self._closing = True
            # Before anything else: a kernel that is told to go must not come up again.
            for kernel in self._life.kernels:
                kernel.closing = True
            starting = self._life.kernels - set(self._kernels.values())
            work: list[Any] = [self.shutdown_kernel(kernel_id) for kernel_id in self._kernels]
            work += [self._end_pool(), self._end_starts(starting)]
            self._ending = {spawn(step, self.log) for step in work}
        await self._close_attach_dir()
        if self._culler is not None:
            await self._culler.aclose()
        if now:
            await self._kill_all()
        _, late = await asyncio.wait(self._ending, timeout=_SHUTDOWN_TIMEOUT)
        if late:
            self.log.warning("Kernels that would not go are killed")
            await self._kill_all()
            _, late = await asyncio.wait(late, timeout=_KILL_TIMEOUT)
            await stop(*late)
        self._life.kept_logs.end()

    async def let_go(self) -> None:
        """Leave every kernel to the next server, and start no more; takes less than 8 s.

        Only those that are just being started are ended, and those that died are cleared away.
        """
        await self._adopted()
        self._closing = True
        await self._close_attach_dir()
        if self._culler is not None:
            await self._culler.aclose()
        waiting = {*self._to_pool, *(await self._pool.drain() if self._pool is not None else [])}
        used = list(self._kernels.values())
        starting = self._life.kernels - waiting - set(used)
        for kernel in starting:
            kernel.closing = True
        try:
            async with asyncio.timeout(_SHUTDOWN_TIMEOUT):
                await self._end_starts(starting)
        except TimeoutError:  # a provisioner does not come back from its launch
            self.log.warning("%d start(s) of kernels do not end", self._starts)
        self._kernels.clear()
        staying = [kernel for kernel in (*used, *waiting) if isinstance(kernel, BridgeKernel)]
        pids = {str(k.kernel_id): k.process.pid for k in staying if k.process is not None}
        steps = [self._leave(kernel) for kernel in (*used, *waiting)]
        left = asyncio.ensure_future(self._each(steps))
        try:
            await asyncio.wait({left}, timeout=_SHUTDOWN_TIMEOUT)
        finally:
            await stop(left)
            # Of those that it was too late for, or a second signal: or their files would go.
            for kernel in staying:
                self._life.release(kernel)
        self._life.kept_logs.end()
        if not await self._ledger.settled():
            self.log.error("Some of the kernels that stay are not written down; pids: %s", pids)

    def staying(self) -> int:
        """How many kernels `let_go` would leave."""
        return sum(
            not kernel.failed and kernel.standing is not Standing.STARTING
            for kernel in self._life.kernels
        )

    async def _adopted(self) -> None:
        if self._adopting is not None:
            await asyncio.wait({self._adopting})  # unlike gather, it cancels nothing
            if not self._adopting.cancelled():
                self._adopting.exception()  # told by whoever called `adopt`

    async def _leave(self, kernel: BridgeKernel | AttachedKernel) -> None:
        if isinstance(kernel, AttachedKernel):
            await kernel.release()
        elif kernel.failed:
            await self._life.discard(kernel, badly=True)
        else:
            await self._life.let_go(kernel)

    async def _kill_all(self) -> None:
        await self._each(kernel.kill() for kernel in self._life.kernels)

    async def _each(self, steps: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Take all steps; one that fails is logged, and the others are waited for."""
        for error in await asyncio.gather(*steps, return_exceptions=True):
            if error is not None:
                self.log.error("%s", error)

    async def _end_pool(self) -> None:
        # Nobody has anything in these, so that there is nothing to ask them.
        waiting = [*self._to_pool, *(await self._pool.drain() if self._pool is not None else [])]
        await self._each(self._life.discard(kernel, badly=False) for kernel in waiting)

    async def _end_starts(self, starting: set[BridgeKernel]) -> None:
        # Whoever waits for these to come up sees them die, and clears them away.
        await self._each(kernel.kill() for kernel in starting)
        await self._no_starts.wait()

    # Making kernels

    def _make(self, name: str, kernel_id: str) -> BridgeKernel:
        kernel, _, _ = self.pre_start_kernel(name, {"kernel_id": kernel_id})
        if not isinstance(kernel, BridgeKernel):
            raise TraitError(f"{self.kernel_manager_class} is not a subclass of BridgeKernel")
        kernel.kernel_id = kernel_id
        kernel.output = KernelLog(kernel.output.path, self.log_limit)
        return kernel

    def _remake(self, record: KernelRecord) -> BridgeKernel:
        kernel = self._make(record.kernel_name, record.kernel_id)
        kernel.output = KernelLog(Path(record.log_path), self.log_limit)
        return kernel

    async def _launch_ahead(self, name: str) -> BridgeKernel:
        ahead = await self._ahead(name)
        kernel = await self._launch(name)
        kernel.ahead = ahead
        kernel.standing = Standing.POOLED
        self._life.note(kernel)
        return kernel

    async def _ahead(self, name: str) -> str:
        """What a kernel that is started ahead is made of, as far as settings and files say.

        One that a server before this one has made of something else is not handed out.
        """
        seed = self._life.seed
        cells = seed.cells if seed is not None and seed.fits(name) else ()
        try:
            spec = (await self.specs.get_kernel_spec(name)).to_dict()
        except NoSuchKernel:  # removed since; nobody gets one of it any more
            spec = {}
        links = (self.transport, self.kernel_ip, self.transport_encryption)
        made_of = repr((self.root_dir, cells, sorted(spec.items()), links))
        return hashlib.sha256(made_of.encode(errors="surrogateescape")).hexdigest()

    def _environment(self, requested: Mapping[str, Any] | None) -> dict[str, str]:
        return kernel_environment(
            os.environ, requested, allowed=self.allowed_envs, inherited=self.inherited_envs
        )

    async def _pool_sizes(self) -> dict[str, int]:
        sizes = {await self._spec_name(name): size for name, size in self.pool.items()}
        if self.prespawn_count:
            # The gateway prespawns what its seed notebook is for.
            name = await self._spec_name(self._life.seed.kernel_name if self._life.seed else None)
            sizes[name] = max(sizes.get(name, 0), self.prespawn_count)
        return sizes

    if TYPE_CHECKING:  # what the class that this is a part of has

        async def _launch(self, name: str) -> BridgeKernel: ...

        async def cull(self) -> None: ...  # noqa: D102
