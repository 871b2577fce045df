"""A kernel that this server started."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kbridge.errors import Busy, KernelError, KernelNotFound, KernelStartError
from kbridge.hub.context import kernel_log
from kbridge.kernels.attached.heartbeats import HeartbeatWatch
from kbridge.kernels.interface import Kernel
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.interrupt import interrupt_by_message
from kbridge.kernels.lifecycle.kernel_process import KernelProcess, Launch
from kbridge.kernels.lifecycle.restarter import Restarter, RestartPolicy
from kbridge.kernels.registry.models import KernelRole, KernelRow
from kbridge.kernels.services import KernelServices

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["StartedKernel"]

# Seconds to wait for the reply to interrupt_request: a kernel that fails replies at once.
_INTERRUPT_REPLY = 0.5


class StartedKernel(Kernel):
    """A kernel with a process that this server, or an earlier one, started.

    Parameters
    ----------
    manager : BridgeKernel
        The process, through its provisioner; not started yet.
    services : KernelServices
        The objects that all kernels share.

    Attributes
    ----------
    process : KernelProcess
        The process, with its hub.
    heartbeat : HeartbeatWatch or None
        Pings the kernel, if its process cannot be watched.
    """

    def __init__(self, manager: BridgeKernel, services: KernelServices) -> None:
        self.kernel_id = str(manager.kernel_id)
        self.kernel_name = str(manager.kernel_name)
        self.manager: BridgeKernel = manager
        self._services = services
        self.process = KernelProcess(manager, services)
        self._restarter: Restarter | None = None
        self.heartbeat: HeartbeatWatch | None = None
        self.ended = False

    # -- what is shown --------------------------------------------------------------------------

    @property
    def hub(self) -> Hub | None:
        """The hub of the kernel; None before its process was started."""
        return self.process.hub

    @property
    def user(self) -> str:  # type: ignore[override]  # the manager records it
        """The name of the user who started the kernel; empty for the operator."""
        return self.manager.user

    @property
    def role(self) -> KernelRole:
        """The use of the kernel: starting, pooled or used."""
        return self.manager.role

    @property
    def pool_fingerprint(self) -> str:
        """The digest of what a kernel that was started for a pool was made from."""
        return self.manager.pool_fingerprint

    @property
    def failed(self) -> bool:
        """True if the process of the kernel ended and is not restarted."""
        return self.process.failed

    @property
    def counts_toward_limit(self) -> bool:
        """True unless the kernel is dead."""
        return not self.failed

    @property
    def outlives_server(self) -> bool:
        """False: the kernel ends with this server, unless `leave` is called."""
        return False

    @property
    def connections_stay(self) -> bool:
        """True if the connections outlive this server, or the kernel is dead or waits."""
        hub = self.process.hub
        return hub is None or self.failed or self.waiting or hub.connections_stay

    @property
    def cull_metadata(self) -> Mapping[str, Any] | None:
        """Metadata of the kernelspec."""
        return self.manager.metadata

    @property
    def waiting(self) -> bool:
        """True while the kernel waits in the queue of a scheduler."""
        return self.process.waiting and not self.failed

    @property
    def reason(self) -> str:
        """Why the kernel waits, or why it is dead."""
        return self.process.reason

    def execution_state(self) -> str:
        """Return the state that the REST model shows."""
        hub = self.process.hub
        if hub is None:
            return "dead"
        if self.waiting:
            return "starting"
        lost = self.heartbeat.lost_status if self.heartbeat is not None else ""
        return lost or hub.activity.execution_state

    def update_env(self, env: dict[str, str]) -> None:
        """Set environment variables from the next restart on."""
        self.manager.update_env(env=env)
        self.process.record()

    async def is_alive(self) -> bool:
        """Return True if the process runs."""
        return bool(await self.manager.is_alive())

    async def wait_exit(self) -> None:
        """Return when the process has ended."""
        await self.manager.wait_exit(self._services.options.watch_interval)

    # -- beginnings -----------------------------------------------------------------------------

    async def launch(self, launch: Launch) -> None:
        """Start the process; nothing is left of it if that fails.

        Raises
        ------
        KernelStartError, Busy
            See `KernelProcess.launch`.
        """
        try:
            await self.process.launch(launch)
        except BaseException as error:
            # Errors in our own code, and cancellation, leave no log worth keeping.
            await self.discard(keep_log=isinstance(error, KernelStartError))
            raise

    def adopt(self) -> None:
        """Connect to the process, which an earlier server started.

        Raises
        ------
        KernelError
            See `KernelProcess.adopt`.
        """
        self.process.adopt()

    def pool(self, fingerprint: str) -> None:
        """Note that the kernel waits in a pool, and what it was made from."""
        self.manager.set_role(KernelRole.POOLED, fingerprint)
        self.process.record()

    async def reserve(self, user: str) -> None:
        """Count a kernel that waited in a pool for a user; end it if that is not possible.

        Raises
        ------
        KernelLimitReached, Busy
            See `KernelProcess.reserve`.
        """
        self.manager.give_to(user)
        try:
            await self.process.reserve()
        except BaseException:
            await self.discard(keep_log=False)
            raise

    def use(self, session_name: str | None = None, *, user: str = "") -> None:
        """Put the kernel in use: watch its process and restart it when it ends.

        Parameters
        ----------
        session_name : str, optional
            The value of JPY_SESSION_NAME from the next restart on.
        user : str
            The name of the user whose kernel it is; empty for the operator.
        """
        self.manager.set_role(KernelRole.USED)
        self.manager.give_to(user)
        if session_name:
            self.manager.update_env(env={"JPY_SESSION_NAME": session_name})
        hub = self.process.hub
        if hub is not None:
            hub.activity.touch(time.time())  # hours in the pool are not idle time
        self.process.record()
        self.watch()

    def watch(self) -> None:
        """Watch the process, and ping the kernel if the process cannot be watched."""
        self._watch_process()
        hub = self.process.hub
        if self.manager.process is None and not self.manager.starts_here and hub is not None:
            services = self._services
            self.heartbeat = HeartbeatWatch.start(self.manager, hub, services.options, services.log)

    def _watch_process(self) -> None:
        options = self._services.options
        policy = RestartPolicy(
            limit=options.restart_limit if self.manager.autorestart else 0,
            stable_time=self.manager.stable_time(options.stable_start_time),
            started=time.monotonic(),
        )
        self._restarter = Restarter(
            self.process, policy, interval=options.watch_interval, log=self._services.log
        )

    # -- operations -----------------------------------------------------------------------------

    async def restart(self, *, now: bool = False) -> None:
        """Replace the process; see `BridgeKernelManager.restart_kernel` for the errors."""
        process = self.process
        async with process.lock:
            if process.closing and not process.abandoned:
                raise KernelNotFound(f"Kernel {self.kernel_id} has been shut down")
            async with self._services.limits.slot(local=self.manager.starts_here):
                # Until here, the old process runs.
                await process.lease.ensure()
                process.check()
                await self._stop_restarter()
                try:
                    await process.replace(now=now)
                except Busy:
                    # If the old process has ended, the restarter starts the next one.
                    if not process.closing:
                        self._watch_process()
                    raise
            self._watch_process()

    async def interrupt(self) -> None:
        """Interrupt the kernel by signal or by message, as its kernelspec says.

        Kernels need not reply to the message, so a missing reply is not a failure. A kernel that
        waits in a queue runs nothing: the requests to execute code that wait for it are aborted.
        """
        hub = self.process.hub
        if self.waiting and hub is not None:
            hub.abort_waiting()
            return
        spec = self.manager.kernel_spec
        if spec is None or spec.interrupt_mode != "message" or hub is None:
            await self.manager.signal_interrupt()
        elif not await interrupt_by_message(self.kernel_id, hub, _INTERRUPT_REPLY):
            self._services.log.info(
                "Kernel %s has not replied to interrupt_request yet", self.kernel_id
            )

    # -- ends -----------------------------------------------------------------------------------

    def refuse_restarts(self) -> None:
        """Start no process from now on."""
        self.process.refuse_restarts()

    async def shutdown(self, *, now: bool = False) -> None:
        """End the kernel; a second call waits for the first.

        Raises
        ------
        KernelError
            If the provisioner cannot end the process.
        Busy
            If the lease is over, after a wait for a restart. The kernel goes on.
        """
        ending = self.process.closing
        self.refuse_restarts()
        async with self.process.lock:
            if self.ended:
                return
            try:
                await self.process.lease.ensure()
            except Busy:
                if not ending:
                    await self._stop_restarter()
                    self.process.allow_restarts()
                    self._watch_process()
                raise
            if self.process.abandoned:
                return
            await self._stop_restarter()
            try:
                await self.process.end_job(now=now)
            except KernelError:
                # Its job may run on: a client can try again, and so does the next server.
                if not self._services.limits.closed:
                    self.process.allow_restarts()
                    self._watch_process()
                raise
            await self.discard(keep_log=self.failed, now=now)
        log = kernel_log(self._services.log, self.kernel_id)
        log.info("Kernel shut down: %s", self.kernel_id)

    async def discard(self, *, keep_log: bool, now: bool = True) -> None:
        """End the process and remove its files; the caller makes sure that nobody uses it.

        Parameters
        ----------
        keep_log : bool
            True to keep the log file, because the kernel failed.
        now : bool
            False to send a shutdown request first.

        Raises
        ------
        KernelError
            If the provisioner cannot end the process. The rest is done nevertheless.
        """
        await self._stop_restarter()
        self._stop_heartbeat()
        try:
            await self.process.end(now=now)
        finally:
            self.ended = True
            if keep_log:
                # A failed start returned the end of its log; a later death named the file.
                self._services.kept_logs.keep(self.manager.output, lasting=self.failed)
            elif not self.process.abandoned:
                self.manager.output.remove()

    async def leave(self) -> None:
        """Stop serving the kernel because the server ends; its process keeps running."""
        if self.failed:
            await self.discard(keep_log=True)
            return
        await self._stop_restarter()
        async with self.process.lock:  # wait for a restart that is under way
            self.abandon()

    def abandon(self) -> None:
        """Release the process at once, even during a restart. May be called twice."""
        self.ended = True  # a waiting shutdown must not remove files of a running kernel
        self._stop_heartbeat()
        self.process.abandon()

    async def clear_away(self, row: KernelRow) -> None:
        """Remove the files of a kernel whose process ended before this server started."""
        self.manager.remove_files()
        try:
            await self._services.hubs.close(row.kernel_id)  # removes its journal
        finally:
            self._services.writer.drop_kernel(row.kernel_id)
        if self.role is KernelRole.USED:
            self._services.kept_logs.keep(self.manager.output)
        else:
            self.manager.output.remove()

    async def kill(self) -> None:
        """Kill the process without waiting.

        Raises
        ------
        KernelError
            If the provisioner cannot.
        """
        await self.process.kill()

    async def _stop_restarter(self) -> None:
        if self._restarter is not None:
            await self._restarter.aclose()

    def _stop_heartbeat(self) -> None:
        if self.heartbeat is not None:
            self.heartbeat.close()
