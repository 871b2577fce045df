"""Asks Slurm for the state of all jobs of this process at once.

Nobody asks in the background: the callers that want to know the state of a job do, and share the
answers. A thousand kernels therefore cost one squeue per interval.
"""

from __future__ import annotations

import asyncio
import time
from weakref import WeakKeyDictionary

from kbridge.errors import KernelError
from kbridge.slurm.commands import SlurmCommands
from kbridge.slurm.status import JobStatus

__all__ = ["JobWatch"]

# Each loop has its own: futures and locks belong to a loop.
_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, JobWatch]] = WeakKeyDictionary()


class JobWatch:
    """The states of jobs, as of the last answer of Slurm.

    Parameters
    ----------
    commands : SlurmCommands
        Slurm's commands.

    Attributes
    ----------
    error : str
        Why Slurm did not answer the last time; empty if it did.
    """

    def __init__(self, commands: SlurmCommands) -> None:
        self._commands = commands
        self._jobs: dict[int, JobStatus | None] = {}
        self._asked = -float("inf")  # when the last question was asked, monotonic
        self._lock = asyncio.Lock()
        self.error = ""

    @classmethod
    def shared(cls, commands_dir: str, timeout: float) -> JobWatch:
        """Return the watch of the running loop for the commands of a directory."""
        watches = _watches.setdefault(asyncio.get_running_loop(), {})
        if commands_dir not in watches:
            watches[commands_dir] = cls(SlurmCommands(commands_dir, timeout))
        return watches[commands_dir]

    def add(self, job_id: int) -> None:
        """Ask for a job from now on."""
        self._jobs.setdefault(job_id, None)

    def discard(self, job_id: int) -> None:
        """Ask no longer for a job."""
        self._jobs.pop(job_id, None)

    async def status(self, job_id: int, max_age: float) -> JobStatus | None:
        """Return the state of a job; None if Slurm has not said anything about it yet.

        Parameters
        ----------
        job_id : int
            A job that was added.
        max_age : float
            Seconds for which an earlier answer is good enough; 0 for a question asked after this
            call. If Slurm does not answer, the last state is returned and `error` says why.
        """
        called = time.monotonic()
        known = self._jobs.get(job_id)
        if known is not None and (known.ended or self._asked > called - max_age):
            return known
        async with self._lock:
            if self._asked <= called - max_age or (known is None and self._asked < called):
                await self._ask()
        return self._jobs.get(job_id)

    async def _ask(self) -> None:
        self._asked = time.monotonic()
        wanted = [number for number, job in self._jobs.items() if job is None or not job.ended]
        if not wanted:
            return
        try:
            found = await self._commands.statuses(wanted)
            for number in wanted:
                if number not in found:
                    found[number] = await self._commands.past_status(number)
        except KernelError as error:
            self.error = str(error)
            return
        self.error = ""
        for number in wanted:
            if number in self._jobs:
                self._jobs[number] = found[number]
