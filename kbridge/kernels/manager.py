"""The kernels of one server: started, restarted, interrupted, culled, ended.

Invariants:

- a kernel is in one place: starting, waiting in the pool, or in use;
- kernels in use and starts under way together never exceed `max_kernels`;
- no kernel starts after `shutdown_all` or `leave_all` was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import DottedObjectName, Instance, default

from kbridge.errors import Busy
from kbridge.hub import HubTable
from kbridge.kernels.attached.attached import AttachedKernelManager, AttachedKernels
from kbridge.kernels.attached.directory import AttachDirectory
from kbridge.kernels.index import KernelIndex
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.culling import Culler
from kbridge.kernels.lifecycle.environment import working_dir
from kbridge.kernels.lifecycle.factory import KernelFactory, KernelRequest
from kbridge.kernels.lifecycle.pool import Pool
from kbridge.kernels.lifecycle.start_limits import StartLimits
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.registry.adoption import Adopter
from kbridge.kernels.registry.models import KernelRole, SessionRow
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.kernels.services import KernelServices
from kbridge.kernels.settings import KernelOptions, KernelSettings
from kbridge.kernels.specs import Specs
from kbridge.kernels.tasks import in_thread, spawn, stop
from kbridge.private import prepare_directory

__all__ = ["BridgeKernelManager"]

# Kernels get `shutdown_wait_time` (5 s) to end by themselves; the others are killed.
_SHUTDOWN_TIMEOUT = 6.0
_KILL_TIMEOUT = 1.5


class BridgeKernelManager(KernelSettings, AsyncMultiKernelManager):
    """The kernels that clients use, and the settings for them.

    Parameters
    ----------
    hubs : HubTable
        The table of hubs; this manager opens and closes the hubs of its kernels in it.
    writer : RegistryWriter, optional
        Records the kernels. With a registry behind it, kernels keep running when this process
        ends, unless `shutdown_all` was called.
    **kwargs
        As for any configurable: `parent`, `config`, `log`, traits.

    Attributes
    ----------
    specs : Specs
        The kernelspecs.
    index : KernelIndex
        The kernels in use, and those that start or wait.
    """

    kernel_manager_class = DottedObjectName(
        "kbridge.kernels.kernel.BridgeKernel",
        config=True,
        help="The class of one kernel; a subclass of kbridge.kernels.kernel.BridgeKernel.",
    )
    kernel_spec_manager = Instance(KernelSpecManager)

    @default("connection_dir")
    def _default_connection_dir(self) -> str:
        path = Path(jupyter_runtime_dir())
        if warning := prepare_directory(path):
            self.log.warning("%s", warning)
        return str(path)

    @default("kernel_spec_manager")
    def _default_kernel_spec_manager(self) -> KernelSpecManager:
        made = self.kernel_spec_manager_class(parent=self)
        assert isinstance(made, KernelSpecManager)
        return made

    def __init__(
        self, *, hubs: HubTable, writer: RegistryWriter | None = None, **kwargs: Any
    ) -> None:
        self.index = KernelIndex(hubs)  # first: traitlets asks whether its parent is empty
        super().__init__(**kwargs)
        self.hubs = hubs
        self.specs = Specs(self.kernel_spec_manager)
        self._options = KernelOptions.of(self)
        self._writer = writer or RegistryWriter()
        self._limits = StartLimits(
            self.index, self._options.max_kernels, self._options.max_concurrent_starts
        )
        services = KernelServices(
            hubs, self.index, self._writer, self._options, self._limits, self.log
        )
        self._factory = KernelFactory(self, self.specs, services)
        self._attached = AttachedKernels(services, self)
        self._adopter = Adopter(self._factory, services)
        self._pool = Pool(self._factory, self.log)
        self._culler = Culler(services)
        self._attach_directory: AttachDirectory | None = None
        self._readopted: list[StartedKernel] = []  # for the pool, once that is open
        self._adopting: asyncio.Task[list[SessionRow]] | None = None
        self._opening = asyncio.Lock()
        self._opened = False
        self._ending: set[asyncio.Task[None]] = set()

    # -- the beginning --------------------------------------------------------------------------

    async def adopt(self) -> list[SessionRow]:
        """Serve the kernels of an earlier server again; called before any other method.

        Returns
        -------
        list of SessionRow
            The sessions of that server.

        Raises
        ------
        RegistryError
            If the registry cannot be used.
        """
        # Adoption goes on if the caller is cancelled: no kernel is left between two servers.
        self._adopting = asyncio.create_task(self._adopt())
        return await asyncio.shield(self._adopting)

    async def _adopt(self) -> list[SessionRow]:
        claim = await self._writer.open()
        for kernel in await self._adopter.adopt(claim.kernels):
            if kernel.role is KernelRole.POOLED:
                self._readopted.append(kernel)
                continue
            self.index.add(kernel)
            kernel.watch()
            self.log.info("Kernel found again: %s (%s)", kernel.kernel_id, kernel.kernel_name)
        # An ended kernel is reported once: not again if this server dies now.
        await self._writer.settled()
        return claim.sessions

    async def open(self) -> None:
        """Read the seed notebook, fill the pool, begin to cull. May be called twice.

        Raises
        ------
        BridgeError
            If the seed notebook cannot be read.
        KernelspecNotFound
            If a kernelspec that the settings name is not installed.
        Busy
            If the server is shutting down.
        """
        async with self._opening:
            if self._opened:
                return
            await self._factory.load_seed()
            sizes = await self._factory.pool_sizes()
            names = {kernel.kernel_name for kernel in self._readopted}
            fingerprints = {name: await self._factory.fingerprint(name) for name in names}
            if self._limits.closed:  # the pool would be filled, and never drained
                raise Busy("The server is shutting down")
            self._opened = True
            readopted, self._readopted = self._readopted, []
            fitting = [
                kernel
                for kernel in readopted
                if kernel.manager.pool_fingerprint == fingerprints[kernel.kernel_name]
            ]
            surplus = self._pool.open(sizes, fitting)
            surplus += [kernel for kernel in readopted if kernel not in fitting]
            self._culler.open()
            if self._options.attach_dir:
                self._attach_directory = AttachDirectory(
                    self._options.attach_dir, self._attached, self.log
                )
            await self._each(kernel.discard(keep_log=False) for kernel in surplus)

    # -- operations -----------------------------------------------------------------------------
    # jupyter_client, too, overrides these synchronous methods with asynchronous ones.

    async def start_kernel(  # type: ignore[override]
        self,
        kernel_name: str | None = None,
        *,
        env: Mapping[str, Any] | None = None,
        path: str | None = None,
        kernel_id: str | None = None,
        session_name: str | None = None,
    ) -> str:
        """Start a kernel, or take one from the pool, and return its id.

        Returns when the kernel answers, or after `start_grace` seconds if it is still starting.

        Parameters
        ----------
        kernel_name : str, optional
            The kernelspec; by default `default_kernel_name`.
        env : mapping, optional
            Environment variables; see `kernel_environment` for those that are used.
        path : str, optional
            An API path under `root_dir`, for the working directory; see `working_dir`.
        kernel_id : str, optional
            The uuid of the kernel. The id of a kernel in use returns that kernel.
        session_name : str, optional
            The document that the kernel is for (JPY_SESSION_NAME).

        Raises
        ------
        InvalidRequest
            If an argument is invalid.
        KernelspecNotFound
            If there is no such kernelspec.
        KernelLimitReached
            If `max_kernels` kernels run already.
        KernelStartError
            If the kernel cannot start or dies at once, with the last lines of its log.
        Busy
            If the server is shutting down.
        """
        await self.open()
        if kernel_id is not None and kernel_id in self.index:
            return kernel_id
        name = await self._factory.spec_name(kernel_name)
        cwd = await in_thread(working_dir, Path(self._options.root_dir), path, env)
        with self._limits.admit():
            kernel = None
            if env is None and kernel_id is None and str(cwd) == self._options.root_dir:
                kernel = await self._pool.take(name)
            if kernel is None:
                request = KernelRequest(name, cwd, env, kernel_id, session_name)
                kernel = await self._factory.launch(request)
            elif self._limits.closed:
                await kernel.discard(keep_log=False)
                raise Busy("The server is shutting down")
            self.index.add(kernel)
            kernel.use(session_name)
        self.log.info("Kernel started: %s (%s)", kernel.kernel_id, kernel.kernel_name)
        await self._writer.settled()
        return kernel.kernel_id

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """End the process of a kernel and start a new one.

        Returns as `start_kernel` does. A kernel that does not start again is dead, and may be
        restarted once more.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelStartError
            If the new process cannot start or dies at once.
        NotSupported
            If another program started the kernel.
        """
        await self.index.find(kernel_id).restart(now=now)
        self.index.touch()
        self.log.info("Kernel restarted: %s", kernel_id)

    async def interrupt_kernel(self, kernel_id: str) -> None:  # type: ignore[override]
        """Interrupt a kernel, by signal or by message as its kernelspec says.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelError
            If its process has ended, or it replies that it failed.
        NotSupported
            If another program started the kernel, and it does not reply to the message.
        """
        await self.index.find(kernel_id).interrupt()

    async def shutdown_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """End a kernel and return when its process has ended; detach one that others started.

        A second call waits for the first.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelError
            If its provisioner cannot end it.
        """
        await self.index.shutdown(kernel_id, now=now)

    def attach(self, kernel: AttachedKernelManager) -> str:
        """Serve a kernel that another program started, and return its id.

        Raises
        ------
        InvalidRequest
            If its id is taken, or its connection info is unusable.
        Busy
            If the server is shutting down, or too few file descriptors are left.
        """
        return self._attached.attach(kernel).kernel_id

    async def cull(self) -> None:
        """Shut down the kernels that nobody uses, by the `cull_*` settings."""
        await self._culler.cull()

    def rename_session(self, kernel_id: str, session_name: str) -> None:
        """Set JPY_SESSION_NAME of a kernel from its next restart on."""
        self.update_env(kernel_id=kernel_id, env={"JPY_SESSION_NAME": session_name})

    # -- the end --------------------------------------------------------------------------------

    async def shutdown_all(self, now: bool = False) -> None:  # type: ignore[override]
        """End every kernel, and start no more; takes less than 8 s.

        Kernels end in parallel and get a shutdown request first; those that run after 6 s are
        killed. May be called again, also while it is at work: with `now` to kill them at once.
        """
        await self._wait_adopted()
        if not self._ending:
            self._limits.close()
            # Before anything else: a kernel that is told to end must not be restarted.
            for kernel in self.index.known:
                kernel.refuse_restarts()
            unused = [k for k in self.index.known if k.role is not KernelRole.USED]
            work: list[Coroutine[Any, Any, None]] = [
                self.index.shutdown(kernel.kernel_id) for kernel in self.index
            ]
            work += [self._end_pool(), self._end_starts(unused)]
            self._ending = {spawn(step, self.log) for step in work}
        await self._close_background()
        if now:
            await self._kill_all()
        _, late = await asyncio.wait(self._ending, timeout=_SHUTDOWN_TIMEOUT)
        if late:
            self.log.warning("Killing kernels that did not end within %g s", _SHUTDOWN_TIMEOUT)
            await self._kill_all()
            _, late = await asyncio.wait(late, timeout=_KILL_TIMEOUT)
            await stop(*late)
        self.index.kept_logs.end()

    async def leave_all(self) -> None:
        """Leave every kernel to the next server, and start no more; takes at most 17 s.

        Kernels that are starting are ended, and those that are dead are removed.
        """
        await self._wait_adopted()
        self._limits.close()
        await self._close_background()
        waiting = await self._drain_pool()
        starting = [k for k in self.index.known if k.role is KernelRole.STARTING]
        for started in starting:
            started.refuse_restarts()
        try:
            async with asyncio.timeout(_SHUTDOWN_TIMEOUT):
                await self._end_starts(starting)
        except TimeoutError:  # a provisioner does not return from its launch
            self.log.warning(
                "%d kernel(s) are still starting; not waiting for them", self._limits.admitted
            )
        staying = [*self.index.remove_all(), *waiting]
        pids = self._pids()
        leaving = asyncio.ensure_future(self._each(kernel.leave() for kernel in staying))
        try:
            await asyncio.wait({leaving}, timeout=_SHUTDOWN_TIMEOUT)
        finally:
            await stop(leaving)
            # Those that did not finish in time: otherwise their files would be removed at exit.
            for kernel in staying:
                kernel.abandon()
        self.index.kept_logs.end()
        if not await self._writer.settled():
            self.log.error(
                "Could not record all running kernels in the registry; some will not be found at"
                " the next start (pids: %s)",
                pids,
            )

    def count_staying(self) -> int:
        """Return how many kernels `leave_all` would leave running."""
        return sum(
            not kernel.failed and kernel.role is not KernelRole.STARTING
            for kernel in self.index.known
        )

    def _pids(self) -> dict[str, int]:
        """Return the process ids of the kernels on this machine, by kernel id."""
        processes = ((k.kernel_id, k.manager.process) for k in self.index.known)
        return {kernel_id: p.pid for kernel_id, p in processes if p is not None}

    async def _wait_adopted(self) -> None:
        if self._adopting is not None:
            await asyncio.wait({self._adopting})  # unlike gather, it cancels nothing
            if not self._adopting.cancelled():
                self._adopting.exception()  # the caller of `adopt` got it

    async def _close_background(self) -> None:
        if self._attach_directory is not None:
            await self._attach_directory.aclose()
        await self._culler.aclose()

    async def _end_pool(self) -> None:
        # Nobody has state in these kernels, so they need no shutdown request.
        waiting = await self._drain_pool()
        await self._each(kernel.discard(keep_log=False) for kernel in waiting)

    async def _drain_pool(self) -> list[StartedKernel]:
        """Return the kernels that nobody uses yet; they belong to the caller now."""
        drained = await self._pool.drain()
        readopted, self._readopted = self._readopted, []
        return [*readopted, *drained]

    async def _end_starts(self, starting: Iterable[StartedKernel]) -> None:
        # The callers that wait for these kernels see their processes end, and discard them.
        await self._each(kernel.kill() for kernel in starting)
        await self._limits.wait_for_admitted()

    async def _kill_all(self) -> None:
        await self._each(kernel.kill() for kernel in self.index.known)

    async def _each(self, steps: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run all steps at once; an error of one is logged and does not stop the others."""
        for error in await asyncio.gather(*steps, return_exceptions=True):
            if error is not None:
                self.log.error("%s", error)

    # -- what is shown --------------------------------------------------------------------------

    def model(self, kernel_id: str) -> dict[str, Any]:
        """Return the REST model of a kernel in use.

        Raises
        ------
        KernelNotFound
            If no kernel in use has that id.
        """
        return self.index.model(kernel_id)

    def models(self) -> list[dict[str, Any]]:
        """Return the REST models of all kernels in use; those in the pool are not included."""
        return self.index.models()

    kernel_model = model
    list_kernels = models

    @property
    def last_kernel_activity(self) -> float:
        """The time when any kernel was last active, started or shut down, in unix seconds."""
        return self.index.last_activity

    def get_kernel(self, kernel_id: str) -> BridgeKernel | AttachedKernelManager:  # type: ignore[override]
        """Return the manager of a kernel in use.

        Raises
        ------
        KernelNotFound
            If no kernel in use has that id.
        """
        manager: BridgeKernel | AttachedKernelManager = self.index.find(kernel_id).manager
        return manager

    # jupyter_client's versions of these read its own table of kernels.

    def list_kernel_ids(self) -> list[str]:
        """Return the ids of the kernels in use."""
        return [kernel.kernel_id for kernel in self.index]

    def __contains__(self, kernel_id: str) -> bool:
        return kernel_id in self.index

    def __len__(self) -> int:
        return len(self.index)

    def update_env(self, *, kernel_id: str, env: dict[str, str]) -> None:
        """Set environment variables of a kernel from its next restart on."""
        kernel = self.index.get(kernel_id)
        if kernel is not None:
            kernel.update_env(env)
