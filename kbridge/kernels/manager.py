"""The kernels of one server: started, restarted, interrupted, culled, ended.

Invariants:

- a kernel is in one place: starting, waiting in the pool, or in use;
- kernels in use and starts under way together never exceed `max_kernels`;
- no kernel starts after `shutdown_all` or `leave_all` was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import DottedObjectName, Instance, default

from kbridge.errors import Busy, InvalidRequest
from kbridge.hub import HubTable
from kbridge.hub.context import kernel_log
from kbridge.kernels.attached.attacher import Attacher
from kbridge.kernels.attached.directory import AttachDirectory, ids_in
from kbridge.kernels.attached.manager import AttachedKernelManager
from kbridge.kernels.index import KernelIndex
from kbridge.kernels.interface import Kernel
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.culling import Culler
from kbridge.kernels.lifecycle.environment import working_dir
from kbridge.kernels.lifecycle.factory import KernelFactory, KernelRequest
from kbridge.kernels.lifecycle.kernel_log import KeptLogs
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.pool import Pool
from kbridge.kernels.lifecycle.start_counts import StartCounts
from kbridge.kernels.lifecycle.start_limits import StartLimits
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.registry.adoption import Adopter
from kbridge.kernels.registry.models import KernelRole, SessionRow
from kbridge.kernels.registry.transfer import KernelTransfer
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.kernels.services import KernelServices
from kbridge.kernels.settings import KernelOptions, KernelSettings
from kbridge.kernels.shutdown import Shutdown, run_all
from kbridge.kernels.specs import Specs
from kbridge.kernels.tasks import in_thread
from kbridge.private import prepare_directory

__all__ = ["BridgeKernelManager"]


class BridgeKernelManager(KernelSettings, AsyncMultiKernelManager):
    """The kernels that clients use, and the settings for them.

    Parameters
    ----------
    hubs : HubTable
        The table of hubs; this manager opens and closes the hubs of its kernels in it.
    writer : RegistryWriter, optional
        Records the kernels. With a registry behind it, kernels keep running when this process
        ends, unless `shutdown_all` was called.
    lease : Lease, optional
        Decides whether this server may act for its kernels; by default always.
    **kwargs
        As for any configurable: `parent`, `config`, `log`, traits.

    Attributes
    ----------
    specs : Specs
        The kernelspecs.
    index : KernelIndex
        The kernels in use, and those that start or wait.
    kept_logs : KeptLogs
        The log files of kernels that failed.
    lease : Lease
        Decides whether this server may act for its kernels.
    transfer : KernelTransfer
        Serves and releases kernels as they pass between the replicas of a cluster.
    attach_directory : AttachDirectory or None
        Attaches the kernels of `attach_dir`, if that is set.
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
        self,
        *,
        hubs: HubTable,
        writer: RegistryWriter | None = None,
        lease: Lease | None = None,
        **kwargs: Any,
    ) -> None:
        self.index = KernelIndex()  # first: traitlets asks whether its parent is empty
        super().__init__(**kwargs)
        self.hubs = hubs
        self.specs = Specs(self.kernel_spec_manager)
        self.kept_logs = KeptLogs()
        self._options = options = KernelOptions.of(self)
        self.writer = writer or RegistryWriter()
        self._limits = StartLimits(
            options.max_kernels, options.max_concurrent_starts, options.max_kernels_per_user
        )
        self.lease = lease or Lease()
        services = KernelServices(
            *(hubs, self.writer, options, self._limits, self.kept_logs, self.log, self.lease)
        )
        self._factory = KernelFactory(self, self.specs, services, self.index)
        self._attacher = Attacher(services, self.index, self)
        self._adopter = Adopter(self._factory, self.index, self.log)
        self.transfer = KernelTransfer(self._adopter, services, self.index, self)
        self._pool = Pool(self._factory, self.log, lease=self.lease)
        self._culler = Culler(services, self.index)
        self._background: list[Culler | AttachDirectory] = [self._culler]
        self.attach_directory: AttachDirectory | None = None
        if options.attach_dir:
            self.attach_directory = AttachDirectory(options.attach_dir, self._attacher, self.log)
            self._background.append(self.attach_directory)
        self._shutdown = Shutdown(services, self.index, self._pool, self._background)
        self._adopting: asyncio.Task[list[SessionRow]] | None = None
        self._opening = asyncio.Lock()
        self._opened = False

    # -- the beginning --------------------------------------------------------------------------

    async def adopt(self, owner: str = "", attached: Collection[str] = ()) -> list[SessionRow]:
        """Serve the kernels of an earlier server again; called before any other method.

        Parameters
        ----------
        owner : str
            Names this server in the directory of the journals; see `HubTable.open_journal`.
        attached : collection of str
            Ids of the kernels of other programs that are going to be attached.

        Returns
        -------
        list of SessionRow
            The sessions of that server.

        Raises
        ------
        RegistryError
            If the registry cannot be used.
        """
        # Adoption continues if the caller is cancelled: no kernel is left between two servers.
        self._adopting = asyncio.create_task(self._adopt(owner, attached))
        return await asyncio.shield(self._adopting)

    async def _adopt(self, owner: str, attached: Collection[str]) -> list[SessionRow]:
        claim = await self.writer.open()
        keep = {*attached, *(row.kernel_id for row in claim.kernels)}
        if self._options.attach_dir:
            keep |= await in_thread(ids_in, self._options.attach_dir)
        await self.hubs.open_journal(owner, keep)
        for kernel in await self._adopter.adopt(claim.kernels):
            if kernel.role is KernelRole.POOLED:
                self._pool.readopt(kernel)
                continue
            self.index.add(kernel)
            kernel.watch()
            log = kernel_log(self.log, kernel.kernel_id)
            log.info("Kernel found again: %s (%s)", kernel.kernel_id, kernel.kernel_name)
        if self.attach_directory is not None:  # so that their connections go on
            await self.attach_directory.look()
        await self.hubs.wait_resumed()
        # An ended kernel is reported once: not again if this server dies now.
        await self.writer.settled()
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
            plan = await self._factory.pool_plan()
            if self._limits.closed:  # the pool would be filled, and never drained
                raise Busy("The server is shutting down")
            self._opened = True
            surplus = self._pool.open(plan)
            for part in self._background:
                part.open()
            await run_all((kernel.discard(keep_log=False) for kernel in surplus), self.log)

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
        user: str = "",
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
        user : str
            The name of the user whose kernel it is; empty for the operator.

        Raises
        ------
        InvalidRequest
            If an argument is invalid.
        KernelspecNotFound
            If there is no such kernelspec.
        KernelLimitReached
            If `max_kernels` kernels run already, or the user has `max_kernels_per_user`.
        KernelStartError
            If the kernel cannot start or dies at once, with the last lines of its log.
        Busy
            If the server is shutting down.
        """
        with self.starting():
            await self.open()
            if kernel_id is not None and kernel_id in self.index:
                if self.index.find(kernel_id).user != user:
                    raise InvalidRequest(f"The id {kernel_id} is taken")
                return kernel_id
            await self.lease.ensure()
            name, spec = await self._factory.resolve(kernel_name)
            cwd = await in_thread(working_dir, Path(self._options.root_dir), path, env)
            with self._limits.admit(self.index.counted, user, self.index.counted_of(user)):
                kernel = None
                plain = env is None and kernel_id is None and str(cwd) == self._options.root_dir
                if plain and self._factory.may_give(spec, user):
                    kernel = await self._pool.take(name)
                if kernel is None:
                    request = KernelRequest(name, spec, cwd, env, kernel_id, session_name, user)
                    kernel = await self._factory.launch(request)
                elif self._limits.closed:
                    await kernel.discard(keep_log=False)
                    raise Busy("The server is shutting down")
                else:
                    await kernel.reserve(user)
                self.index.add(kernel)
                kernel.use(session_name, user=user)
            log = kernel_log(self.log, kernel.kernel_id)
            log.info("Kernel started: %s (%s)", kernel.kernel_id, kernel.kernel_name)
            await self.writer.settled()
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
        Busy
            If the server is shutting down, or about to be restarted.
        """
        self.index.find(kernel_id)
        self._limits.check_held()
        kernel = await self._find_to_act(kernel_id)
        if isinstance(kernel, StartedKernel) and kernel.failed:
            # It has not counted since it died.
            user = kernel.user
            with self._limits.admit(self.index.counted, user, self.index.counted_of(user)):
                await kernel.process.reserve()
                await kernel.restart(now=now)
        else:
            await kernel.restart(now=now)
        self.index.touch()
        kernel_log(self.log, kernel_id).info("Kernel restarted: %s", kernel_id)

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
        kernel = await self._find_to_act(kernel_id)
        await kernel.interrupt()

    async def shutdown_kernel(self, kernel_id: str, now: bool = False) -> None:  # type: ignore[override]
        """End a kernel and return when its process has ended; detach one that others started.

        Its end is in the registry then, if that can be written: in a cluster, no replica lists the
        kernel or counts it for its user any longer. A second call waits for the first.

        Raises
        ------
        KernelNotFound
            If there is no such kernel.
        KernelError
            If its provisioner cannot end it.
        """
        kernel = await self._find_to_act(kernel_id)
        await self.index.shutdown(kernel, now=now)
        await self.writer.settled()

    async def _find_to_act(self, kernel_id: str) -> Kernel:
        """Return a kernel in use, once this server holds the lease to act for it."""
        self.index.find(kernel_id)
        await self.lease.ensure()
        kernel = self.index.get(kernel_id)
        if kernel is None or kernel.ended:
            # It was taken over, or has ended, while this server had no lease.
            raise Busy(f"This server does not serve kernel {kernel_id} any longer; try again")
        return kernel

    def check_start(self) -> None:
        """Check that the server may start another process; starts nothing.

        `max_kernels` is not checked: a server that is full works as it should.

        Raises
        ------
        Busy
            If the server is shutting down, or too few file descriptors are left.
        """
        if self._limits.closed:
            raise Busy("The server is shutting down")
        with self._limits.descriptors():
            pass

    def attach(self, kernel: AttachedKernelManager) -> str:
        """Serve a kernel that another program started, and return its id.

        Raises
        ------
        InvalidRequest
            If its id is taken, or its connection info is unusable.
        Busy
            If the server is shutting down, or too few file descriptors are left.
        """
        return self._attacher.attach(kernel).kernel_id

    async def cull(self) -> None:
        """Shut down unused kernels, by the `cull_*` settings."""
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
        await self._shutdown.end_all(now=now)
        self._close_resources()

    async def leave_all(self) -> None:
        """Leave every kernel to the next server, and start no more; takes at most 17 s.

        Kernels that are starting are ended, and those that are dead are removed.
        """
        await self._wait_adopted()
        await self._shutdown.leave_all()
        self._close_resources()

    def starting(self) -> AbstractContextManager[None]:
        """Return a context in which a client waits for the start of a kernel; may be nested."""
        return self._limits.request()

    def hold_starts(self) -> AbstractContextManager[None]:
        """Return a context in which new starts and restarts are refused with Busy.

        Those that clients wait for go on.
        """
        return self._limits.hold()

    async def wait_for_starts(self) -> None:
        """Wait for the starts and restarts that clients wait for; call it within `hold_starts`."""
        await self._shutdown.wait_for_starts()

    def count_starting(self) -> int:
        """Return the number of starts and restarts that clients wait for."""
        return self._shutdown.count_starting()

    def start_no_more(self) -> None:
        """Start no kernel from now on, because the server ends."""
        self._shutdown.start_no_more()

    def count_staying(self) -> int:
        """Return how many kernels `leave_all` would leave running."""
        return self._shutdown.count_staying()

    def _close_resources(self) -> None:
        """End the threads, and close the ZeroMQ context of jupyter_client.

        The garbage collector would find the context, which was made with the first kernel, unclosed
        if it comes to the context before the manager.
        """
        self.specs.close()
        if self._created_context and not self.context.closed:
            self.context.destroy(linger=0)

    async def _wait_adopted(self) -> None:
        if (adopting := self._adopting) is not None:
            await asyncio.wait({adopting})  # unlike gather, it cancels nothing
            _ = adopting.cancelled() or adopting.exception()  # the caller of `adopt` got it

    # -- what is shown --------------------------------------------------------------------------

    def model(self, kernel_id: str) -> dict[str, Any]:
        """Return the REST model of a kernel in use.

        Raises
        ------
        KernelNotFound
            If no kernel in use has that id.
        """
        return self.index.model(kernel_id)

    @property
    def starts(self) -> StartCounts:
        """Durations and failures of kernel starts."""
        return self._limits.counts

    def states(self) -> list[tuple[str, str, str]]:
        """Return id, kernelspec and state of each kernel, those starting or in a pool included.

        The state is that of the REST model, or `pooled`.
        """
        found = {
            kernel.kernel_id: (kernel.kernel_name, kernel.execution_state())
            for kernel in self.index
        }
        for kernel in self.index.known:
            state = "pooled" if kernel.role is KernelRole.POOLED else "starting"
            found.setdefault(kernel.kernel_id, (kernel.kernel_name, state))
        return [(kernel_id, *rest) for kernel_id, rest in found.items()]

    def users(self) -> dict[str, str]:
        """Return the users of kernels, by kernel id; kernels of the operator are not included."""
        kernels = [*self.index, *self.index.known]
        return {kernel.kernel_id: kernel.user for kernel in kernels if kernel.user}

    def reasons(self) -> dict[str, str]:
        """Return the reason of each kernel in use, by kernel id; see `Kernel.reason`."""
        return {kernel.kernel_id: kernel.reason for kernel in self.index}

    def pids(self) -> dict[str, int]:
        """Return the process ids of the kernels on this machine, by kernel id."""
        return self.index.pids()

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

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self.index

    def __len__(self) -> int:
        return len(self.index)

    def update_env(self, *, kernel_id: str, env: dict[str, str]) -> None:
        """Set environment variables of a kernel from its next restart on."""
        kernel = self.index.get(kernel_id)
        if kernel is not None:
            kernel.update_env(env)
