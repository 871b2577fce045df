"""A scheduler that does what a test says: its jobs wait, run and end when the test wants it.

Jobs are in memory and outlive the provisioners, as those of a real scheduler do.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jupyter_client.connect import KernelConnectionInfo

from kbridge.errors import KernelStartError
from kbridge.kernels.lifecycle.queued import JobEnd, QueuedProvisioner

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")


@dataclass(slots=True)
class Job:
    """A job: it waits (`reason`), runs (`connection`), or has ended (`end`)."""

    number: int
    env: dict[str, str]
    reason: str = "Submitted"
    connection: dict[str, Any] | None = None
    end: str = ""
    kind: JobEnd = JobEnd.UNKNOWN
    signals: list[int] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    exited: asyncio.Event = field(default_factory=asyncio.Event)


class ScriptedProvisioner(QueuedProvisioner):
    """A provisioner of the scripted scheduler.

    Attributes
    ----------
    jobs : dict of int to Job
        All jobs, by number; shared. Empty it before each test.
    created : list
        All provisioners, oldest first; shared.
    submitted : asyncio.Event
        Set when this provisioner has submitted a job.
    refusal : str
        The reason why the scheduler refuses jobs; empty if it does not.
    """

    jobs: ClassVar[dict[int, Job]] = {}
    created: ClassVar[list[ScriptedProvisioner]] = []
    refusal: ClassVar[str] = ""
    numbers: ClassVar[itertools.count[int]] = itertools.count(1)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.created.append(self)
        self.job: Job | None = None
        self._running = False
        self.submitted = asyncio.Event()

    @classmethod
    def reset(cls) -> None:
        """Forget all jobs."""
        cls.jobs.clear()
        cls.created.clear()
        cls.refusal = ""
        cls.numbers = itertools.count(1)

    # -- what the test does -----------------------------------------------------------------------

    @property
    def current(self) -> Job:
        """The job that was submitted last."""
        assert self.job is not None
        return self.job

    def wait_because(self, reason: str) -> None:
        """Change the reason why the job waits."""
        self.current.reason = reason
        self.changed()

    def run(self, shell_port: int = 5000) -> None:
        """Let the kernel of the job run."""
        ports = {f"{name}_port": shell_port + i for i, name in enumerate(CHANNELS)}
        self.run_as({**ports, "ip": "127.0.0.1", "transport": "tcp", "key": b"k"})

    def run_as(self, connection: dict[str, Any]) -> None:
        """Let the kernel of the job run, with this connection information."""
        self.current.connection = {"signature_scheme": "hmac-sha256", **connection}
        self.current.changed.set()

    def end(self, text: str, kind: JobEnd = JobEnd.UNKNOWN) -> None:
        """End the job."""
        job = self.current
        if not job.end:
            job.end, job.kind = text, kind
        job.changed.set()
        job.exited.set()

    # -- what a server does -----------------------------------------------------------------------

    async def submit(self, cmd: list[str], **kwargs: Any) -> None:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.job = Job(next(self.numbers), kwargs["env"])
        self.jobs[self.job.number] = self.job
        self._running = False
        self.submitted.set()

    async def wait_running(self) -> KernelConnectionInfo:
        job = self.current
        while job.connection is None and not job.end:
            await job.changed.wait()
            job.changed.clear()
        if job.connection is None:
            raise KernelStartError(job.end)
        self._running = True
        self.connection_info = job.connection
        return job.connection  # type: ignore[return-value]

    @property
    def waiting(self) -> bool:
        return self.job is not None and not self.job.end and not self._running

    @property
    def queue_text(self) -> str:
        return f"job {self.current.number} waits: {self.current.reason}" if self.waiting else ""

    @property
    def end_text(self) -> str:
        return self.job.end if self.job is not None else ""

    @property
    def end_kind(self) -> JobEnd:
        return self.current.kind

    @property
    def has_process(self) -> bool:
        return self.job is not None

    async def poll(self) -> int | None:
        return 0 if self.job is None or self.job.end else None

    async def wait(self) -> int | None:
        await self.current.exited.wait()
        return 0

    async def send_signal(self, signum: int) -> None:
        self.current.signals.append(signum)

    async def kill(self, restart: bool = False) -> None:
        self.end("ended by the server")

    async def terminate(self, restart: bool = False) -> None:
        self.end("ended by the server")

    async def shutdown_requested(self, restart: bool = False) -> None:
        self.end("ended by the server")

    async def cleanup(self, restart: bool = False) -> None:
        pass

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        return await super().pre_launch(cmd=["program"], **kwargs)

    async def get_provisioner_info(self) -> dict[str, Any]:
        info = await super().get_provisioner_info()
        number = self.job.number if self.job is not None else 0
        return {**info, "job": number, "running": self._running}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        await super().load_provisioner_info(provisioner_info)
        self.job = self.jobs.get(provisioner_info["job"])
        self._running = provisioner_info["running"]
