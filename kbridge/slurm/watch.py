"""Asks Slurm for the state of all jobs of this process at once.

Nobody asks in the background: the callers that want to know the state of a job do, and share the
answers. A thousand kernels therefore cost one squeue per interval. A question is a task that no
caller owns: it goes on if a caller is cancelled, or does not want to wait so long. It ends within
the time limit of Slurm's commands.
"""

from __future__ import annotations

import asyncio
import time
from weakref import WeakKeyDictionary

from kbridge.errors import KernelError
from kbridge.slurm.commands import SlurmCommands
from kbridge.slurm.status import JobStatus

__all__ = ["JobWatch"]

# Jobs that squeue does not list are looked up one by one, so many at the same time.
_LOOK_UPS = 4
# Each loop has its own: futures and tasks belong to a loop.
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
        self._added: dict[int, float] = {}
        self._asked = -float("inf")  # the beginning of the last question, monotonic
        self._answered = -float("inf")  # the beginning of the last question that is over
        self._question: asyncio.Task[None] | None = None
        self.error = ""

    @classmethod
    def shared(cls, commands_dir: str, timeout: float) -> JobWatch:
        """Return the watch of the running loop for the commands of a directory."""
        watches = _watches.setdefault(asyncio.get_running_loop(), {})
        if commands_dir not in watches:
            watches[commands_dir] = cls(SlurmCommands(commands_dir, timeout))
        return watches[commands_dir]

    def add(self, job_id: int) -> None:
        """Ask for a job from now on. May be called twice."""
        if job_id not in self._jobs:
            self._jobs[job_id] = None
            self._added[job_id] = time.monotonic()

    def discard(self, job_id: int) -> None:
        """Ask no longer for a job."""
        self._jobs.pop(job_id, None)
        self._added.pop(job_id, None)

    async def status(
        self, job_id: int, max_age: float, patience: float | None = None
    ) -> JobStatus | None:
        """Return the state of a job; None if Slurm has not said anything about it yet.

        Parameters
        ----------
        job_id : int
            A job that was added.
        max_age : float
            Seconds for which an earlier answer is good enough; 0 for a question asked after this
            call. If Slurm does not answer, the last state is returned and `error` says why.
        patience : float, optional
            Seconds to wait for an answer; the last state is returned after that.
        """
        called = time.monotonic()
        known = self._jobs.get(job_id)
        if known is not None and known.ended:
            return known
        since = called - max_age
        if known is None:
            since = max(since, self._added.get(job_id, called))
        until = None if patience is None else called + patience
        while self._answered < since:
            if self._question is None:
                self._question = asyncio.create_task(self._ask())
                self._question.add_done_callback(self._over)
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            await asyncio.wait({self._question}, timeout=left)
        return self._jobs.get(job_id)

    def _over(self, question: asyncio.Task[None]) -> None:
        self._question = None
        self._answered = self._asked
        if not question.cancelled() and question.exception() is not None:
            self.error = f"asking Slurm failed: {question.exception()}"

    async def _ask(self) -> None:
        self._asked = time.monotonic()
        wanted = [number for number, job in self._jobs.items() if job is None or not job.ended]
        if not wanted:
            return
        try:
            found = await self._commands.statuses(wanted)
        except KernelError as error:
            self.error = str(error)
            return
        self.error = ""
        for number, job in found.items():
            self._note(number, job)
        free = asyncio.Semaphore(_LOOK_UPS)
        missing = [number for number in wanted if number not in found]
        await asyncio.gather(*(self._look_up(number, free) for number in missing))

    async def _look_up(self, number: int, free: asyncio.Semaphore) -> None:
        async with free:
            try:
                self._note(number, await self._commands.past_status(number))
            except KernelError as error:
                self.error = str(error)

    def _note(self, number: int, job: JobStatus) -> None:
        if number in self._jobs:
            self._jobs[number] = job
