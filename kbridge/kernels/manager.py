"""The kernels of one server: started within the limit, restarted, interrupted, culled, ended.

Invariants:

- a kernel is in one place: being launched, waiting in the pool, or in use (`_kernels`);
- kernels in use and starts under way together never exceed `max_kernels`;
- once `shutdown_all` was called no kernel comes up any more.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traitlets import TraitError

from kbridge.errors import (
    Busy,
    InvalidRequest,
    KbridgeError,
    KernelError,
    KernelLimitReached,
    KernelNotFound,
    NotSupported,
)
from kbridge.kernels.attached import AttachedKernel
from kbridge.kernels.attaching import AttachingTable
from kbridge.kernels.culling import Culler, to_cull
from kbridge.kernels.environment import kernel_environment, working_dir
from kbridge.kernels.hubs import Hubs
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle import Lifecycle
from kbridge.kernels.logs import KernelLog
from kbridge.kernels.pool import Pool
from kbridge.kernels.seed import Seed, load_seed
from kbridge.kernels.tasks import spawn, stop
from kbridge.wire.message import Channel

__all__ = ["BridgeKernelManager"]

# Kernels get `shutdown_wait_time` (5 s) to end by themselves; what is left is killed.
_SHUTDOWN_TIMEOUT = 6.0
_KILL_TIMEOUT = 1.5
_KERNEL_ID = re.compile(r"(?=.{9,64}$)[0-9A-Za-z_]+(-[0-9A-Za-z_]+){4}", re.ASCII)


class BridgeKernelManager(AttachingTable):
    """Start and end kernels, and keep their hubs in step with them.

    Parameters
    ----------
    hubs : Hubs
        The table of hubs; this manager opens and closes the hubs of its kernels in it.
    **kwargs
        As for any configurable: `parent`, `config`, `log`, traits.
    """

    def __init__(self, *, hubs: Hubs, **kwargs: Any) -> None:
        super().__init__(hubs=hubs, **kwargs)
        self._life = Lifecycle(hubs, self, self.log)
        self._starts = 0
        self._no_starts = asyncio.Event()
        self._no_starts.set()
        self._closing = False
        self._ending: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()
        self._pool: Pool[BridgeKernel] | None = None
        self._culler: Culler | None = None

    # Opening and closing

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
                self._life.seed = Seed(self._spec_name(name) if name else "", seed.cells)
            self._pool = Pool(
                self._pool_sizes(),
                start=self._launch,
                until_dead=lambda kernel: kernel.died(self.watch_interval),
                is_alive=lambda kernel: kernel.is_alive(),
                discard=lambda kernel: self._life.discard(kernel, badly=True),
                log=self.log,
            )
            self._pool.open()
            self._culler = Culler(self.cull, self.cull_interval, self.log)
            self._open_attach_dir()

    async def shutdown_all(self, now: bool = False) -> None:  # type: ignore[override]
        """End every kernel, and start no more; takes less than 8 s.

        Kernels go in parallel and are asked first; those that have not gone after 6 s are
        killed. May be called again, also while it is at work: with `now` to kill them at once.
        """
        if not self._closing:
            self._closing = True
            # Before anything else: a kernel that is told to go must not come up again.
            for kernel in self._life.kernels:
                kernel.closing = True
            starting = self._life.kernels - set(self._kernels.values())
            work = [self.shutdown_kernel(kernel_id) for kernel_id in self._kernels]
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

    async def _kill_all(self) -> None:
        await self._each(kernel.kill() for kernel in self._life.kernels)

    async def _each(self, steps: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Take all steps; one that fails is logged, and the others are waited for."""
        for error in await asyncio.gather(*steps, return_exceptions=True):
            if error is not None:
                self.log.error("%s", error)

    async def _end_pool(self) -> None:
        # Nobody has anything in these, so that there is nothing to ask them.
        waiting = await self._pool.drain() if self._pool is not None else []
        await self._each(self._life.discard(kernel, badly=False) for kernel in waiting)

    async def _end_starts(self, starting: set[BridgeKernel]) -> None:
        # Whoever waits for these to come up sees them die, and clears them away.
        await self._each(kernel.kill() for kernel in starting)
        await self._no_starts.wait()

    # Life and death. jupyter_client, too, puts async methods in the place of these sync ones.

    async def start_kernel(  # type: ignore[override]
        self,
        kernel_name: str | None = None,
        *,
        env: Mapping[str, Any] | None = None,
        path: str | None = None,
        kernel_id: str | None = None,
        session_name: str | None = None,
    ) -> str:
        """Start a kernel, or take one that waits, and return its id.

        Returns when the kernel answers, or after `start_grace` seconds if it still comes up.

        Parameters
        ----------
        kernel_name : str, optional
            The kernelspec; the default one where it is not given.
        env : mapping, optional
            Environment variables; see `kernel_environment` for those that are let through.
        path : str, optional
            An API path under `root_dir`, for the working directory.
        kernel_id : str, optional
            The uuid it is to have. The id of a kernel in use returns that kernel.
        session_name : str, optional
            The document it is for (JPY_SESSION_NAME).

        Raises
        ------
        InvalidRequest
            If an argument is not what it must be.
        KernelspecNotFound
            If there is no such kernelspec.
        KernelLimitReached
            If `max_kernels` run already.
        KernelStartError
            If it cannot start or dies at once, with the last lines of its log.
        Busy
            If the server is shutting down.
        """
        await self.open()
        if kernel_id is not None and kernel_id in self._kernels:
            return kernel_id
        name = self._spec_name(kernel_name)
        cwd = working_dir(Path(self.root_dir), path)
        environment = self._environment(env)
        if session_name:
            environment["JPY_SESSION_NAME"] = session_name
        with self._starting():
            kernel = None
            if self._pool and env is None and kernel_id is None and str(cwd) == self.root_dir:
                kernel = await self._pool.take(name)
            if kernel is None:
                kernel = await self._launch(name, environment, cwd, kernel_id)
            elif self._closing:
                await self._life.discard(kernel, badly=False)
                raise Busy("The server is shutting down")
            self._use(kernel, session_name)
        return kernel.kernel_id

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """End a kernel's process and start a new one in its place.

        Returns as `start_kernel` does. A kernel that does not come up again is left dead, and
        may be restarted once more.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelStartError
            If the new process cannot start or dies at once.
        NotSupported
            If somebody else has started it.
        """
        kernel = self._find(kernel_id)
        if isinstance(kernel, AttachedKernel):
            raise NotSupported(
                f"Kernel {kernel_id} was started elsewhere; it can be restarted only there"
            )
        async with kernel.lock:
            if kernel.closing:
                raise KernelNotFound(f"Kernel {kernel_id} has been shut down")
            await self._life.restart(kernel, now=now)
        self._last_change = time.time()
        self.log.info("Kernel restarted: %s", kernel_id)

    async def interrupt_kernel(self, kernel_id: str) -> None:  # type: ignore[override]
        """Interrupt a kernel, by signal or by message as its kernelspec says.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelError
            If its process has gone, or it does not answer the message.
        NotSupported
            If somebody else has started it, and it does not answer the message.
        """
        kernel = self._find(kernel_id)
        if isinstance(kernel, AttachedKernel):
            await self._interrupt_attached(kernel)
            return
        hub = self.hubs.get(kernel_id)
        spec = kernel.kernel_spec
        if spec is None or spec.interrupt_mode != "message" or hub is None:
            await kernel.signal_interrupt()
            return
        try:
            await hub.request(
                "interrupt_request", {}, channel=Channel.CONTROL, timeout=self.interrupt_timeout
            )
        except TimeoutError:
            seconds = f"{self.interrupt_timeout:g} s"
            raise KernelError(
                f"Kernel {kernel_id} left the interrupt unanswered {seconds}"
            ) from None

    async def shutdown_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """End a kernel; returns when its process has gone. One that others started is let go of.

        A second call that comes while the first is at work waits for it.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelError
            If its provisioner cannot end it.
        """
        kernel = self._find(kernel_id)
        if isinstance(kernel, AttachedKernel):
            await self.detach(kernel)
            return
        kernel.closing = True
        async with kernel.lock:
            if self._kernels.get(kernel_id) is not kernel:
                return
            try:
                await self._life.discard(kernel, badly=kernel.failed, now=now)
            finally:
                del self._kernels[kernel_id]
                self._last_change = time.time()
        self.log.info("Kernel shut down: %s", kernel_id)

    async def cull(self) -> None:
        """Shut down the kernels that nobody uses, by the `cull_*` settings."""

        async def cull_one(kernel_id: str) -> None:
            self.log.warning("Culling kernel %s", kernel_id)
            try:
                await self.shutdown_kernel(kernel_id)
            except KbridgeError as error:
                self.log.error("%s", error)

        unused = to_cull(self._uses(), time.time(), self.cull_settings)
        await asyncio.gather(*(cull_one(kernel_id) for kernel_id in unused))

    def rename_session(self, kernel_id: str, session_name: str) -> None:
        """Give a kernel another JPY_SESSION_NAME, from its next restart on."""
        self.update_env(kernel_id=kernel_id, env={"JPY_SESSION_NAME": session_name})

    def statistics(self) -> dict[str, Any]:
        """Kernels in use, starts under way, the limit, and the pools."""
        return {
            "kernels": len(self._kernels),
            "starting": self._starts,
            "max_kernels": self.max_kernels,
            "kept_logs": len(self._life.kept_logs),
            "pool": self._pool.statistics() if self._pool is not None else {},
        }

    # Helpers

    def _environment(self, requested: Mapping[str, Any] | None) -> dict[str, str]:
        return kernel_environment(
            os.environ, requested, allowed=self.allowed_envs, inherited=self.inherited_envs
        )

    def _pool_sizes(self) -> dict[str, int]:
        sizes = {self._spec_name(name): size for name, size in self.pool.items()}
        if self.prespawn_count:
            # The gateway prespawns what its seed notebook is for.
            name = self._spec_name(self._life.seed.kernel_name if self._life.seed else None)
            sizes[name] = max(sizes.get(name, 0), self.prespawn_count)
        return sizes

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Hold one of the `max_kernels` places until the kernel is in use."""
        if self._closing:
            raise Busy("The server is shutting down")
        ours = [k for k in self._kernels.values() if not isinstance(k, AttachedKernel)]
        used = sum(not kernel.failed for kernel in ours) + self._starts
        if self.max_kernels is not None and used >= self.max_kernels:
            raise KernelLimitReached(f"{used} kernels run, and no more are allowed")
        self._starts += 1
        self._no_starts.clear()
        try:
            yield
        finally:
            self._starts -= 1
            if not self._starts:
                self._no_starts.set()

    async def _launch(
        self,
        name: str,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        kernel_id: str | None = None,
    ) -> BridgeKernel:
        """Make a kernel of a kernelspec and start its process; nobody uses it yet."""
        if kernel_id is None:
            kernel_id = self.new_kernel_id()
        elif not isinstance(kernel_id, str) or not _KERNEL_ID.fullmatch(kernel_id):
            raise InvalidRequest("The id of a kernel is a uuid")
        elif any(kernel.kernel_id == kernel_id for kernel in self._life.kernels):
            raise InvalidRequest(f"Kernel {kernel_id} is being started already")
        kernel, _, _ = self.pre_start_kernel(name, {"kernel_id": kernel_id})
        if not isinstance(kernel, BridgeKernel):
            raise TraitError(f"{self.kernel_manager_class} is not a subclass of BridgeKernel")
        kernel.kernel_id = kernel_id
        if self.transport is not None:
            kernel.transport = self.transport
        if self.kernel_ip:
            kernel.ip = self.kernel_ip
        if self.transport_encryption is not None:
            kernel.encrypt(self.transport_encryption)
        kernel.output = KernelLog(kernel.output.path, self.log_limit)
        if env is None:
            env = self._environment(None)
        await self._life.launch(kernel, env, cwd or Path(self.root_dir))
        return kernel

    def _use(self, kernel: BridgeKernel, session_name: str | None) -> None:
        """Put a kernel that was launched in the table, and begin to watch it."""
        self._kernels[kernel.kernel_id] = kernel
        self._last_change = time.time()
        if session_name:
            self.rename_session(kernel.kernel_id, session_name)
        hub = self.hubs.get(kernel.kernel_id)
        if hub is not None:
            hub.activity.touch(self._last_change)  # hours in the pool are no idleness
        self._life.watch(kernel)
        self.log.info("Kernel started: %s (%s)", kernel.kernel_id, kernel.kernel_name)

    def _is_ours(self, kernel_id: str) -> bool:
        return any(kernel.kernel_id == kernel_id for kernel in self._life.kernels)
