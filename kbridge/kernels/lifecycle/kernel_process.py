"""The process of one kernel that this server starts, with its hub kept in step.

Invariants:

- a kernel has a hub from the start of its process until the process has ended, so that no output
  is lost;
- code that starts, replaces or ends the process holds `lock`, except while nobody else knows the
  kernel yet;
- after `refuse_restarts` no new process is started;
- the lease, and whether the kernel is still that of this server, are checked after the last wait
  before a process is started or ended;
- requests that clients send after they heard of the end of a process wait for the next process.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kbridge.errors import Busy, KernelError, KernelStartError
from kbridge.hub.context import kernel_log
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.job_wait import JobWait
from kbridge.kernels.lifecycle.seed import Seed, run_seed
from kbridge.kernels.services import KernelServices
from kbridge.kernels.tasks import stop

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["KernelProcess", "Launch"]

T = TypeVar("T")

# A start takes about a second; checking often during that time costs little.
_START_POLL = 0.05
# Seconds for a process to end after SIGKILL.
_KILL_TIMEOUT = 1.0
# Messages of kernels, in any programming language, that cannot bind a port.
_PORT_TAKEN = re.compile(r"address (already )?in use|EADDRINUSE|WinError 10048", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Launch:
    """The arguments of the first process of a kernel.

    Attributes
    ----------
    env : dict
        The environment of the process.
    cwd : Path
        Its working directory.
    seed : Seed or None
        Code to run before the kernel is used.
    """

    env: dict[str, str]
    cwd: Path
    seed: Seed | None = None


class KernelProcess:
    """Starts, replaces and ends the process of one kernel.

    Parameters
    ----------
    manager : BridgeKernel
        The process, through its provisioner.
    services : KernelServices
        The hubs, the registry and the limits.

    Attributes
    ----------
    lock : asyncio.Lock
        Held while the process is started, replaced or ended.
    hub : Hub or None
        The hub of the kernel; None before its process was started.
    lease : Lease
        Decides whether this server may act for the kernel.
    """

    def __init__(self, manager: BridgeKernel, services: KernelServices) -> None:
        self.manager = manager
        self.lock = asyncio.Lock()
        self.kernel_id = str(manager.kernel_id)
        self.hub: Hub | None = None
        self._hubs = services.hubs
        self._writer = services.writer
        self._options = services.options
        self._limits = services.limits
        self.lease = services.lease
        self._log = kernel_log(services.log, self.kernel_id)
        self._closing = False
        self._abandoned = False
        self._failed = False
        self._reason = ""
        self._job: JobWait | None = None  # for the job of a kernel that waits in a queue
        self._exit_announced = False  # clients know that the process has ended

    # -- state ----------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """True if the kernel is about to end, so that no process may be started."""
        return self._closing

    @property
    def failed(self) -> bool:
        """True if the process ended and is not restarted."""
        return self._failed

    @property
    def waiting(self) -> bool:
        """True while the kernel waits in a queue."""
        return self._job is not None and not self._job.over and self.manager.waiting

    @property
    def reason(self) -> str:
        """Why the kernel waits, or why it is dead; empty if neither is known."""
        return self.manager.queue_text if self.waiting else self._reason

    def refuse_restarts(self) -> None:
        """Start no process from now on."""
        self._closing = True

    def allow_restarts(self) -> None:
        """Undo `refuse_restarts`: the kernel goes on."""
        self._closing = self._abandoned

    @property
    def abandoned(self) -> bool:
        """True after `abandon`."""
        return self._abandoned

    def abandon(self) -> None:
        """Do nothing more to the process, even during a restart. May be called twice."""
        self._closing = self._abandoned = True
        if self._job is not None:
            self._job.cancel()
        self.manager.abandon()

    def check(self) -> None:
        """Check that this server may act for the kernel, right before it does.

        Raises
        ------
        Busy
            If another server has the kernel, it is about to end, or the lease is over.
        """
        if self._abandoned:
            raise Busy(f"Kernel {self.kernel_id} is served by another server now; try again")
        if self._closing:
            raise Busy(f"Kernel {self.kernel_id} is being shut down")
        self.lease.check()

    def record(self) -> None:
        """Write the kernel to the registry as it is now; log an error if that is impossible."""
        if not self.manager.independent or self._failed or self._abandoned:
            return
        try:
            identities = self.hub.identities if self.hub is not None else None
            self._writer.put_kernel(self.manager.record(identities))
        except KernelError as error:
            self._log.error("%s", error)

    async def reserve(self) -> None:
        """Write the kernel to the registry, in which the kernels of each user are counted.

        Raises
        ------
        KernelLimitReached
            If its user has as many kernels as `max_kernels_per_user` allows, at all replicas.
        Busy
            If they cannot be counted, because the database fails.
        """
        limit = self._options.max_kernels_per_user
        if limit is not None and self.manager.user and self.manager.independent:
            await self._writer.reserve(self.manager.record(), limit)
        self.record()

    # -- beginnings -----------------------------------------------------------------------------

    async def launch(self, launch: Launch) -> None:
        """Start the process; wait until it answers and is seeded, or `start_grace` has passed.

        Raises
        ------
        KernelStartError
            If the process does not start, dies at once, or fails to run the seed notebook.
        Busy
            If the server is shutting down, or too few file descriptors are left.
        """
        with self._limits.counts.start(str(self.manager.kernel_name)) as start:
            hub = await self._start(launch)
            start.measured = self._job is None or self._job.over
        if launch.seed is not None and self.manager.queued is None:
            await self._while_alive(self._run_seed(hub, launch.seed))

    async def _start(self, launch: Launch) -> Hub:
        async with self._limits.slot(local=self.manager.starts_here):
            if self._closing:
                raise Busy("The server is shutting down")
            await self.lease.ensure()
            with self._limits.descriptors():
                # Recorded before the process exists: an unrecorded process would run forever.
                await self.reserve()
                await self._writer.settled()
                await self.lease.ensure()  # the wait may have been long
                self.check()
                await self.manager.start(env=launch.env, cwd=launch.cwd)
                if self._abandoned:
                    await self.manager.kill()  # no client was told its id
                    self.check()
                return await self._connect(launch.seed)

    def adopt(self) -> None:
        """Open the hub of a kernel that an earlier server started.

        Raises
        ------
        KernelError
            If its connection info is unusable, or too few file descriptors are left.
        """
        try:
            with self._limits.descriptors():
                if self.manager.waiting:
                    self._wait_for_job(adopted=True)
                    return
                ran = any(self.manager.ports)  # else its job has ended in the queue
                self.hub = self._hubs.open(
                    self.kernel_id,
                    self.manager.get_connection_info() if ran else None,
                    former=self.manager.identities,
                    adopted=True,
                )
        except (ValueError, TypeError, Busy) as error:
            raise KernelError(f"Kernel {self.kernel_id} cannot be reached: {error}") from error
        self.record()

    async def _connect(self, seed: Seed | None) -> Hub:
        """Open the hub of a process that was just started, and wait until the kernel answers."""
        if self._closing:
            raise Busy("The server is shutting down")
        if self.manager.queued is not None:
            self.manager.seed_cells = () if seed is None else seed.cells
            return await self._wait_up(self._wait_for_job())
        hub = self.hub = self._hubs.open(self.kernel_id, self.manager.get_connection_info())
        self.record()
        return await self._wait_up(hub)

    def _wait_for_job(self, *, adopted: bool = False) -> Hub:
        """Wait in the background until a kernel that was submitted runs; return its hub.

        `adopted` is True if an earlier server submitted it.
        """
        hub = self.hub
        if hub is None or hub.closed:
            hub = self.hub = self._hubs.open(self.kernel_id, None, adopted=adopted)
        # Before the wait: the next server must know of the job.
        self.record()
        prepare = self._run_seed_in_job if self.manager.seed_cells else None
        self._job = JobWait(
            self.manager, hub, self.record, self._log, self._limits.descriptors, prepare
        )
        return hub

    async def _run_seed_in_job(self, hub: Hub) -> None:
        seed = Seed(str(self.manager.kernel_name), self.manager.seed_cells)
        await self._while_alive(self._run_seed(hub, seed))
        self.manager.seed_cells = ()
        self.record()

    async def leave_queue(self) -> bool:
        """Wait until the kernel has left the queue, if it is in one.

        Returns
        -------
        bool
            False if it was in none since the last call.

        Raises
        ------
        KernelStartError
            If its job ended before the kernel ran.
        """
        job = self._job
        if job is None:
            return False
        await job.wait()
        if self._job is job:
            self._job = None
        return True

    async def _wait_up(self, hub: Hub) -> Hub:
        """Wait for the first answer; start the kernel on other ports if one was taken.

        A port is free when it is chosen, but another process may bind it first. For a kernel that
        waits in a queue, this waits `queue_grace`.
        """
        if self._job is not None and not await self._job.wait(self._options.queue_grace):
            return hub
        left = self._options.port_attempts
        while True:
            try:
                await self._while_alive(hub.wait_ready(self._options.start_grace))
            except KernelStartError as error:
                left -= 1
                if not left or self._closing or not _PORT_TAKEN.search(error.log_tail):
                    raise
            else:
                return hub
            self._log.warning(
                "Another process took a port of kernel %s; starting the kernel on other ports"
                " (%d more attempt(s))",
                self.kernel_id,
                left - 1,
            )
            hub = await self._cycle(now=True, new_ports=True, requested=True)

    async def _run_seed(self, hub: Hub, seed: Seed) -> None:
        if not await hub.wait_ready(self._options.kernel_info_timeout):
            raise KernelStartError("The kernel does not answer, so it cannot be seeded")
        await run_seed(hub, seed, self._options.seed_timeout)

    # -- replacements ---------------------------------------------------------------------------

    async def replace(self, *, now: bool) -> None:
        """Replace the process, running or dead, because a client asked for it.

        A kernel that waits in a queue keeps its place there. The caller holds `lock`.

        Raises
        ------
        KernelError
            If the old process cannot be ended, or the new one does not start. The kernel is then
            marked as dead, and may be restarted once more.
        Busy
            If this server may not act for the kernel any longer.
        """
        try:
            await self._stop_job()  # from now on, the kernel does not leave the queue unnoticed
            if self.manager.waiting and self.hub is not None and await self.manager.is_alive():
                await self.hub.restarting(asked=True)
                hub = self._wait_for_job()
            else:
                hub = await self._cycle(now=now, new_ports=False, requested=True)
            await self._wait_up(hub)
        except Busy:
            raise
        except BaseException as error:
            if not self._abandoned:
                self.mark_dead(str(error) if isinstance(error, KernelError) else "")
            raise

    async def announce_exit(self) -> None:
        """Tell the clients that the process has ended, because its restart has to wait.

        Requests that were sent are forgotten, as with any restart. Requests from now on wait for
        the next process.
        """
        async with self.lock:
            hub = self.hub
            if self._closing or self._exit_announced or hub is None or hub.closed:
                return
            if not await self.manager.is_alive():
                self._exit_announced = True
                await hub.restarting()

    async def restart_after_exit(self, *, new_ports: bool) -> None:
        """Start a new process if the old one has ended.

        Raises
        ------
        KernelError
            If the new process cannot be started.
        Busy
            If this server may not act for the kernel.
        """
        async with self.lock:
            self.check()
            if await self.manager.is_alive():
                return
            reason = await self.manager.exit_description()
            self._log.warning("%s; restarting %s", reason, self.kernel_id)
            # If another process has taken a port of the kernel, it still has it.
            new_ports = new_ports or bool(_PORT_TAKEN.search(self.manager.output.tail()))
            async with self._limits.slot(local=self.manager.starts_here):
                told = reason if self.manager.queued is not None else ""
                await self._cycle(now=True, new_ports=new_ports, requested=False, reason=told)

    async def may_restart(self) -> bool:
        """Return True if the process, which has ended, may be replaced without a request.

        The end of a job may be meant: see `resubmit_after`.
        """
        await self.manager.exit_description()  # the scheduler tells how the job has ended
        return self.manager.ended_as_one_of(self._options.resubmit_after)

    async def _cycle(self, *, now: bool, new_ports: bool, requested: bool, reason: str = "") -> Hub:
        """End the process, start another one, and connect the hub to it."""
        hub = self.hub
        self.check()
        await self._stop_job()
        await self.manager.stop(now=now, restart=True)
        if self._abandoned:
            self.check()  # the next owner tells the clients
        if hub is not None and (requested or not self._exit_announced):
            # Not earlier: the old process may send messages until its end.
            await hub.restarting(asked=requested, reason=reason)
        try:
            self.check()
        except Busy:
            self._exit_announced = hub is not None  # the restarter goes on from here
            raise
        await self.manager.start_again(newports=new_ports)
        if self._abandoned:
            self.manager.abandon()  # the next owner finds the process
            self.check()
        self._failed = self._exit_announced = False
        self._reason = ""
        if self.manager.queued is not None:
            return self._wait_for_job()
        info = self.manager.get_connection_info()
        if hub is None or hub.closed:
            hub = self.hub = self._hubs.open(self.kernel_id, info)
        else:
            hub.reconnect(info)
        self.record()
        return hub

    # -- ends -----------------------------------------------------------------------------------

    def mark_dead(self, reason: str = "") -> None:
        """Note that the process ended and is not restarted, and tell the clients.

        Parameters
        ----------
        reason : str
            Why it ended, if that is known.
        """
        self._failed = True
        self._reason = reason
        self._writer.drop_kernel(self.kernel_id)
        self._log.error(
            "Kernel %s is dead%s; its output is in %s",
            *(self.kernel_id, f": {reason}" * bool(reason), self.manager.output.path),
        )
        hub = self.hub
        if hub is not None:
            # The end of a process on this machine is in its log.
            hub.dead(reason if self.manager.queued is not None else "")

    async def _stop_job(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            await job.aclose()

    async def end(self, *, now: bool) -> None:
        """End the process, close the hub, and remove the connection file and registry row.

        Raises
        ------
        KernelError
            If the provisioner cannot end the process. The rest is done nevertheless.
        """
        # The next server tries again to end a job that its scheduler does not end now.
        ended = self.manager.queued is None
        try:
            await self._stop_job()
            await self.manager.stop(now=now)
            ended = True
        except BaseException:
            # Also if the caller was cancelled: no process and no key outlives its kernel.
            with suppress(KernelError, TimeoutError):
                async with asyncio.timeout(_KILL_TIMEOUT):
                    await self.manager.stop(now=True)
                    ended = True
            raise
        finally:
            try:
                await self._hubs.close(self.kernel_id)
            finally:
                if ended:
                    self._writer.drop_kernel(self.kernel_id)

    async def end_job(self, *, now: bool) -> None:
        """End the job of a kernel, if a scheduler has one; if that fails, the kernel goes on.

        Raises
        ------
        KernelError
            If the provisioner cannot end the job.
        """
        if self.manager.queued is None:
            return
        await self._stop_job()
        async with self._limits.remote_ends:
            try:
                await self.manager.stop(now=now)
            except KernelError:
                if self.manager.waiting and not self._limits.closed:
                    self._wait_for_job()
                raise

    async def kill(self) -> None:
        """Kill the process without waiting, even while another task holds `lock`.

        Raises
        ------
        KernelError
            If the provisioner cannot.
        """
        if self.manager.queued is None:
            await self.manager.kill()
        else:
            async with self._limits.remote_ends:
                await self.manager.kill()

    async def _while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`; raise KernelStartError at once if the process ends before it is done."""
        task = asyncio.create_task(work)
        # A scheduler should not be asked often.
        interval = self._options.watch_interval if self.manager.queued else _START_POLL
        exited = asyncio.create_task(self.manager.wait_exit(interval))
        try:
            await asyncio.wait({task, exited}, return_when=asyncio.FIRST_COMPLETED)
            if self._abandoned:
                self.check()
            if exited.done():
                exited.result()
                raise KernelStartError(
                    await self.manager.exit_description(), self.manager.output.tail()
                )
            return task.result()
        finally:
            await stop(task, exited)
