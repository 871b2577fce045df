"""Starts kernels as Slurm jobs.

One job runs one kernel, and the kernels that replace it within `restart_grace`. The job's side is
`kbridge.slurm.job`; this is the side of the bridge.

Invariants:

- the job gets everything beyond its token in the answer to its `hello`, encrypted: sbatch, the
  controller and the command lines of nodes never see a key, a command or a variable of the user;
- the address that kbridge connects to is chosen here, never by the job: the node from which the job
  called, or Slurm's address of that node;
- a message counts only if Slurm says that the job runs, and if its job id is that of sbatch's
  answer;
- no method waits for Slurm without a time limit, and a Slurm that does not answer ends no kernel.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo

from kbridge.errors import Conflict, KernelError, KernelStartError, ListenError, SetupError
from kbridge.kernels.lifecycle.queued import JobEnd
from kbridge.kernels.tasks import in_thread
from kbridge.slurm.callback import Callbacks, Endpoint, JobKeys, default_ip
from kbridge.slurm.commands import SlurmCommands
from kbridge.slurm.encryption import choose_encryption, connection_keys, trusted
from kbridge.slurm.endings import keep_trying
from kbridge.slurm.job import KILL
from kbridge.slurm.kernel_job import KernelJob
from kbridge.slurm.launch import kernel_argv, kernel_env
from kbridge.slurm.options import Allowance, requested_resources, within_limits
from kbridge.slurm.settings import SlurmSettings
from kbridge.slurm.status import JobStatus
from kbridge.slurm.submission import announced, job_options, job_script, submit_job
from kbridge.slurm.watch import JobWatch

__all__ = ["SlurmProvisioner"]

# Seconds before the end of a job's stay in which it is no longer used: it may be leaving.
_MARGIN: Final = 10.0
# Seconds to wait for Slurm's answer: while a job waits for ours, and while a server polls.
_PATIENCE: Final = 5.0
_POLL_PATIENCE: Final = 1.0
# Seconds to wait for Slurm's final state of a job whose kernel has ended.
_COMPLETING: Final = 10.0


class SlurmProvisioner(SlurmSettings):
    """Starts a kernel as a Slurm job, on a node that Slurm chooses."""

    def __init__(self, **kwargs: Any) -> None:
        known = set(self.trait_names()) | {"parent", "config", "log"}
        if unknown := sorted(set(kwargs) - known):
            raise SetupError(
                f"kernel_provisioner.config has unknown names: {', '.join(unknown)}. Known are"
                f" {', '.join(sorted(SlurmSettings.class_trait_names(config=True)))}"
            )
        super().__init__(**kwargs)
        self._job: KernelJob | None = None
        self._status: JobStatus | None = None
        self._callbacks: Callbacks | None = None
        self._happened = asyncio.Event()
        self._reaped = False
        self._waiting = False
        self._text = ""
        self._unheard = ""  # why jobs cannot call, as the log has it
        self._completing_until = 0.0

    @property
    def job_id(self) -> int | None:
        """The id of the Slurm job; None before `submit`."""
        return self._job.job_id if self._job is not None else None

    # -- Slurm ----------------------------------------------------------------------------------

    @property
    def _commands(self) -> SlurmCommands:
        return SlurmCommands(self.commands_dir, self.command_timeout)

    @property
    def _watch(self) -> JobWatch:
        return JobWatch.shared(self.commands_dir, self.command_timeout)

    async def _ask(self, max_age: float, patience: float | None = None) -> JobStatus | None:
        """Return the state of the job; the last known one if Slurm does not answer in time."""
        job = self._job
        if job is None:
            return None
        self._watch.add(job.job_id)
        status = await self._watch.status(job.job_id, max_age, patience)
        if status is not None and job is self._job:
            self._status = status
        self._note_text()
        return self._status

    async def _cancel(self) -> None:
        """End the job, because the server wants it.

        Raises
        ------
        KernelError
            If Slurm does not answer; the job may then still run.
        """
        job = self._job
        if job is None or (self._status is not None and self._status.ended):
            return
        job.cancelled = True
        await self._scancel(job)
        self._happened.set()

    async def _scancel(self, job: KernelJob) -> None:
        try:
            await self._commands.cancel(job.job_id)
        except KernelError as error:
            raise KernelError(
                f"{error}. Slurm job {job.job_id} may still run; end it with `scancel {job.job_id}`"
            ) from None

    # -- the start ------------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Check the resources and choose the keys; see `KernelProvisionerBase`.

        Raises
        ------
        InvalidRequest
            If the request asks for a resource that the kernelspec does not allow, or the job needs
            more than a kernel of this server may have.
        SetupError
            If the kernelspec, or a setting, is wrong.
        """
        from kbridge.kernels.kernel import BridgeKernel

        manager: Any = self.parent
        if manager.transport != "tcp":
            raise SetupError(f"Kernels of Slurm need the transport tcp, not {manager.transport}")
        # kbridge's own managers have a policy; the default of jupyter_client's is `disabled`.
        wish = self.encryption or ("" if isinstance(manager, BridgeKernel) else "auto")
        warning = choose_encryption(manager, kwargs.pop("transport_encryption", None), wish)
        if warning:
            self.log.warning("Kernel %s: %s", self.kernel_id, warning)
        values = {
            "prefix": sys.prefix,
            "resource_dir": self.kernel_spec.resource_dir,
            **(manager._launch_args or {}),  # noqa: SLF001 - as jupyter_client's own provisioner
        }
        command = [*self.kernel_spec.argv, *kwargs.pop("extra_arguments", [])]
        kwargs = await super().pre_launch(cmd=kernel_argv(command, values), **kwargs)
        self._resources(kwargs["env"])
        return kwargs

    def _resources(self, env: dict[str, str]) -> dict[str, str]:
        allowance = Allowance.parse(self.allow)
        return within_limits(self.resources() | requested_resources(env, allowance), env)

    def _launch(self, cmd: list[str], env: dict[str, str], cwd: str | None) -> dict[str, Any]:
        return {
            "argv": cmd,
            "env": kernel_env(env, os.environ, self.kernel_spec.env),
            "cwd": str(cwd or ""),
            "prologue": self.prologue,
            "inherit_output": bool(self.output),
            "start_timeout": self.start_timeout,
            "connection": connection_keys(self.parent),
        }

    async def submit(self, cmd: list[str], **kwargs: Any) -> None:
        """Give the kernel to Slurm, or to the job of the kernel that it replaces.

        Raises
        ------
        InvalidRequest, SetupError
            See `pre_launch`.
        KernelStartError
            If sbatch fails, with Slurm's reason.
        ListenError
            If jobs cannot call back.
        """
        self._check_resubmission()
        env = kwargs.get("env") or dict(os.environ)
        launch = self._launch(cmd, env, kwargs.get("cwd"))
        job = self._job
        if job is not None and await self._stays(job):
            job.launch_next(launch)
        else:
            await self._submit(launch, self._resources(env))
        self._reaped, self._waiting = False, True
        self._happened.clear()
        self._note_text()

    def _check_resubmission(self) -> None:
        """Refuse an automatic restart after an end that is not a crash; kbridge decides by itself.

        jupyter_client's restarter does not ask the kernel to end; a restart that a user wants does.
        """
        from kbridge.kernels.kernel import BridgeKernel

        job, status = self._job, self._status
        if isinstance(self.parent, BridgeKernel) or job is None:
            return
        if job.ended_by_slurm(status) and not job.restarts and self.end_kind is not JobEnd.CRASH:
            raise KernelStartError(f"{self.end_text}; restart the kernel to submit another job")

    async def _stays(self, job: KernelJob) -> bool:
        if job.code is None or job.cancelled or time.monotonic() > job.stays_until - _MARGIN:
            return False
        status = await self._ask(0, _PATIENCE)
        return status is not None and status.state == "RUNNING" and not self._watch.error

    async def _submit(self, launch: dict[str, Any], resources: dict[str, str]) -> None:
        options = job_options(self, resources)
        certificate = await in_thread(trusted, self.callback_certfile, self.callback_cafile)
        await self._leave_job()
        keys, kernel_id = JobKeys.new(), str(self.kernel_id)
        callbacks = await self._listen(self.callback_ip, self.callback_port)
        # Before sbatch: the socket closes with the last kernel, and the job may call at once.
        callbacks.expect(kernel_id, keys, self._called)
        try:
            address = await in_thread(announced, callbacks.ip, callbacks.port)
            script = job_script(self, keys, address, certificate)
            job_id = await submit_job(self._commands, kernel_id, options, script, self.log)
        except BaseException:
            callbacks.forget(kernel_id)
            raise
        self._callbacks, self._status = callbacks, None
        self._job = KernelJob(job_id, keys, launch, callbacks.ip, callbacks.port)
        self._watch.add(job_id)
        self.log.info("Kernel %s is Slurm job %d", self.kernel_id, job_id)

    async def _leave_job(self) -> None:
        """End the job of the kernel before, if it is still there."""
        job = self._job
        if job is not None and not (self._status is not None and self._status.ended):
            with suppress(KernelError):  # it leaves by itself, too
                await self._cancel()
        self._forget()

    async def _listen(self, ip: str, port: int) -> Callbacks:
        """Listen for jobs.

        Raises
        ------
        ListenError, SetupError
            If that is impossible.
        """
        ip = ip or await in_thread(default_ip)
        endpoint = Endpoint(ip, port, self.callback_certfile, self.callback_keyfile)
        return await Callbacks.shared(endpoint, self.log)

    # -- waiting --------------------------------------------------------------------------------

    async def wait_running(self) -> KernelConnectionInfo:
        """Return the connection information when the ports of the kernel are bound.

        Raises
        ------
        KernelStartError
            If the job, or the kernel in it, ended before.
        """
        job = self._job
        if job is None:
            raise KernelStartError("The kernel was not submitted")
        while not job.ports:
            status = await self._ask(self.poll_interval, _PATIENCE)
            if job.code is not None or job.cancelled or (status is not None and status.ended):
                break
            await self._expect(job)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.poll_interval):
                    await self._happened.wait()
            self._happened.clear()
        self._waiting = False
        self._note_text()
        if not job.ports:
            await self._settle(job)
            raise KernelStartError(self.end_text or "The kernel was shut down", job.tail)
        self.connection_info = cast("KernelConnectionInfo", job.connection)
        return self.connection_info

    async def _settle(self, job: KernelJob) -> None:
        """Let a job end whose kernel did not start, and learn why."""
        job.final = True
        with suppress(KernelError, TimeoutError):
            async with asyncio.timeout(_COMPLETING):
                while (status := await self._ask(0, _PATIENCE)) is not None and not status.ended:
                    if not status.completing:
                        await self._scancel(job)
                    await asyncio.sleep(0.2)
        if job.code is None:
            job.code = 1

    async def _expect(self, job: KernelJob) -> None:
        """Listen for the job of an earlier process; it is tried again if that is impossible."""
        if self._callbacks is not None or job.code is not None:
            return
        port = self.callback_port
        ip = (self.callback_ip or job.ip) if port else job.ip
        try:
            callbacks = await self._listen(ip, port or job.port)
        except (ListenError, SetupError) as error:
            if self._unheard != str(error):
                self._unheard = str(error)
                self.log.error("Kernel %s cannot be called by its job: %s", self.kernel_id, error)
            return
        self._unheard = ""
        self._callbacks = callbacks
        callbacks.expect(str(self.kernel_id), job.keys, self._called)

    async def _called(self, message: dict[str, Any], peer: str) -> dict[str, Any]:
        """Answer a call of the job."""
        job = self._job
        if job is None or message.get("job") != job.job_id:
            raise Conflict(f"the kernel is not that of Slurm job {message.get('job')!r:.20}")
        kind = message.get("kind")
        if kind == "ended":
            if not (job.final or job.cancelled):
                await self._ask(0, _PATIENCE)  # Slurm knows now whether it is ending the job
            answer = job.ended(
                message,
                by_itself=self._runs(),
                stay=self.restart_grace,
                now=time.monotonic(),
            )
            self._completing_until = time.monotonic() + _COMPLETING
        elif job.cancelled and kind in ("hello", "ready"):
            answer = {"end": True}  # also if Slurm does not answer
        elif kind in ("hello", "ready"):
            await self._check_running(job)
            node_ip = peer if self.kernel_address == "callback" else await self._node_ip()
            answer = (job.hello if kind == "hello" else job.ready)(message, node_ip)
        else:
            raise Conflict("an unknown kind of message")
        self._happened.set()
        return answer

    async def _check_running(self, job: KernelJob) -> None:
        await self._ask(self.poll_interval, _PATIENCE)
        if not self._runs():
            await self._ask(0, _PATIENCE)
        if not self._runs():
            raise Conflict(f"Slurm does not say that job {job.job_id} runs")

    def _runs(self) -> bool:
        status = self._status
        return status is not None and status.runs and not status.completing

    async def _node_ip(self) -> str:
        assert self._status is not None
        try:
            name = await self._commands.node_address(self._status.host)
            found = await asyncio.get_running_loop().getaddrinfo(name, None)
        except (KernelError, OSError) as error:
            raise Conflict(f"the address of the node is unknown: {error}") from None
        return str(found[0][4][0])

    @property
    def waiting(self) -> bool:
        """True from `submit` until the kernel runs, or did not start."""
        return self._waiting

    @property
    def queue_text(self) -> str:
        """One line on the state of a job that waits; empty if it does not."""
        return self._text

    def _note_text(self) -> None:
        text = self._current_text()
        if text != self._text:
            self._text = text
            self.changed()

    def _current_text(self) -> str:
        if not self._waiting or self._job is None:
            return ""
        return self._job.queue_text(self._status, self._watch.error)

    # -- the end --------------------------------------------------------------------------------

    @property
    def end_text(self) -> str:
        """One line on the end of the job or of the kernel in it; empty if it is unknown."""
        return self._job.end_text(self._status) if self._job is not None else ""

    @property
    def end_kind(self) -> JobEnd:
        """The kind of the end; see `JobEnd`."""
        return self._job.end_kind(self._status) if self._job is not None else JobEnd.UNKNOWN

    @property
    def has_process(self) -> bool:
        """True from `submit` until the end of the kernel was waited for."""
        return self._job is not None and not self._reaped

    async def poll(self) -> int | None:
        """Return None while the job waits or the kernel runs, else the exit code."""
        job = self._job
        if job is None:
            return 0
        await self._expect(job)
        if job.code is not None:
            status = self._status
            if status is None or not status.completing or self._reaped:
                return job.code
            if time.monotonic() > self._completing_until:
                return job.code
            status = await self._ask(0.2, _POLL_PATIENCE)
            return None if status is not None and status.completing else job.code
        # Nobody waits for a Slurm that is slow: until it says something, the kernel runs.
        status = await self._ask(self.poll_interval, _POLL_PATIENCE)
        if job.code is None and status is not None and status.ended:
            job.code = 0 if status.state == "COMPLETED" else 1
            self._happened.set()
        return job.code

    async def wait(self) -> int | None:
        """Return the exit code when the kernel has ended."""
        while (code := await self.poll()) is None:  # noqa: ASYNC110 - as all provisioners
            await asyncio.sleep(0.1)
        self._reaped = True
        return code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the processes of the kernel; without effect while the job waits.

        Raises
        ------
        KernelError
            If scancel fails.
        """
        job = self._job
        if job is None or not job.asked or job.code is not None or not signum:
            return
        # SIGKILL would end the batch script, and with it the job.
        await self._signal(job, KILL if signum == signal.SIGKILL else signum)

    async def _signal(self, job: KernelJob, number: int) -> None:
        try:
            await self._commands.signal(job.job_id, number)
        except KernelError as error:
            # jupyter_client sends signals on its way to the end of a kernel, and `cleanup` follows.
            if not getattr(self.parent, "shutting_down", False):
                raise
            self.log.warning("Kernel %s got no signal %d: %s", self.kernel_id, number, error)

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002
        """End the kernel at once; its job may stay for the next one. A waiting job is ended.

        Raises
        ------
        KernelError
            If scancel fails.
        """
        await self._end_by(KILL)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002
        """Ask the kernel to end. A waiting job is ended.

        Raises
        ------
        KernelError
            If scancel fails.
        """
        await self._end_by(signal.SIGTERM)

    async def _end_by(self, number: int) -> None:
        """End a kernel that runs with a signal, and the job of one that waits."""
        job = self._job
        if job is None or job.code is not None:
            return
        if job.ports and self._runs():
            await self._signal(job, number)
        else:
            await self._end_waiting(job)

    async def _end_waiting(self, job: KernelJob) -> None:
        await self._cancel()
        if not job.ports and job.code is None:
            job.code = 1
        self._happened.set()

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Note whether another kernel follows in the same job."""
        if self._job is not None:
            self._job.final = not restart
            self._job.restarts = restart

    async def cleanup(self, restart: bool = False) -> None:
        """End the job, unless the next kernel runs in it.

        If Slurm does not answer, the job is ended in the background.
        """
        job = self._job
        if job is None or (restart and job.code is not None and not job.cancelled):
            return
        try:
            await self._cancel()
        except KernelError as error:
            if restart:
                raise
            # The job is told to end when it calls; its node is not held until the time limit.
            keep_trying(lambda: self._end_given_up(job), f"Slurm job {job.job_id}", self.log)
            self.log.error("%s", error)
            return
        self._forget()

    async def _end_given_up(self, job: KernelJob) -> None:
        await self._scancel(job)
        if job is self._job:
            self._forget()

    def _forget(self) -> None:
        """Accept no more calls of the job. Its end can still be described."""
        job, callbacks = self._job, self._callbacks
        self._callbacks = None
        if job is not None:
            if job.code is None:
                job.code = 1
            self._watch.discard(job.job_id)
            if callbacks is not None:
                callbacks.forget(str(self.kernel_id))

    # -- another process ------------------------------------------------------------------------

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what another process needs to go on with the job. It contains secrets."""
        info = await super().get_provisioner_info()
        info["slurm"] = self._job and self._job.info()
        return info

    def release(self) -> None:
        """Accept no more calls of the job, and end nothing; another process goes on with it."""
        job, callbacks = self._job, self._callbacks
        self._job = self._callbacks = None
        if job is not None:
            self._watch.discard(job.job_id)
            if callbacks is not None:
                callbacks.forget(str(self.kernel_id))

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Go on with the job that another process has submitted."""
        await super().load_provisioner_info(provisioner_info)
        info = provisioner_info["slurm"]
        if info is None:
            return
        job = self._job = KernelJob.load(info)
        self._waiting = not job.ports
        await self._expect(job)  # Slurm is asked later: it may be slow, and the kernel runs
