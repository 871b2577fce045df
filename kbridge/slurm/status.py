"""The state of a Slurm job, and what users read about it. Pure: no commands are run here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kbridge.kernels.lifecycle.queued import JobEnd

__all__ = ["SQUEUE_FORMAT", "JobStatus", "parse_sacct", "parse_scontrol", "parse_squeue"]

# %r, the reason, is last: nothing else may contain the separator.
SQUEUE_FORMAT: Final = "%i|%T|%P|%B|%l|%r"
SACCT_FORMAT: Final = "JobIDRaw,State,Partition,NodeList,Timelimit"

_WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"})
_FORGOTTEN = "FORGOTTEN"  # not one of Slurm's
_NONE = frozenset({"", "None", "N/A", "(null)", "Unknown", "n/a"})
_KINDS: Final = {
    "TIMEOUT": JobEnd.TIME_LIMIT,
    "DEADLINE": JobEnd.TIME_LIMIT,
    "PREEMPTED": JobEnd.PREEMPTION,
    "NODE_FAIL": JobEnd.NODE_FAILURE,
    "BOOT_FAIL": JobEnd.NODE_FAILURE,
    "CANCELLED": JobEnd.CANCELLED,
    "REVOKED": JobEnd.CANCELLED,
    "OUT_OF_MEMORY": JobEnd.CRASH,
    "FAILED": JobEnd.CRASH,
    "COMPLETED": JobEnd.CRASH,
    "SPECIAL_EXIT": JobEnd.CRASH,
    "LAUNCH_FAILED": JobEnd.NODE_FAILURE,
    "RECONFIG_FAIL": JobEnd.NODE_FAILURE,
    _FORGOTTEN: JobEnd.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The state of a job, as Slurm names it.

    Attributes
    ----------
    job_id : int
    state : str
        Slurm's name of the state, such as PENDING; `FORGOTTEN` if Slurm has no record of the job.
    partition : str
    host : str
        The node that runs the batch script; empty before it runs.
    time_limit : str
        As Slurm writes it, such as `1:00:00`.
    reason : str
        Why the job waits, or why it failed; empty if Slurm names no reason.
    """

    job_id: int
    state: str
    partition: str = ""
    host: str = ""
    time_limit: str = ""
    reason: str = ""

    @property
    def waits(self) -> bool:
        """True if the job has no node yet."""
        return self.state in _WAITING

    @property
    def runs(self) -> bool:
        """True if processes of the job may run, also in a state that is not known here."""
        return not self.waits and not self.ended

    @property
    def completing(self) -> bool:
        """True if the job is about to end; its final state is not known yet."""
        return self.state == "COMPLETING"

    @property
    def ended(self) -> bool:
        """True if the job has ended."""
        return self.state in _KINDS

    @property
    def end_kind(self) -> JobEnd:
        """The kind of the end."""
        return _KINDS[self.state] if self.ended else JobEnd.UNKNOWN

    @property
    def text(self) -> str:
        """One line for users."""
        job = f"Slurm job {self.job_id}"
        if self.waits:
            where = f" in partition {self.partition}" if self.partition else ""
            reason = f": {self.reason}" if self.reason else ""
            return f"{job} waits{where}{reason}"
        if self.state == _FORGOTTEN:
            return f"{job} ended; Slurm has no record of it any longer"
        if self.ended:
            return f"{job} ended: {self.state}{self._cause()}"
        where = f" on {self.host}" if self.host else ""
        if self.state == "RUNNING":
            return f"{job} runs{where}"
        return f"{job} is {self.state}{where}"

    def _cause(self) -> str:
        node = self.host or "a node of the job"
        causes = {
            "TIMEOUT": f"time limit of {self.time_limit or 'the job'} reached",
            "DEADLINE": "its deadline was reached",
            "PREEMPTED": "a job with a higher priority got its resources",
            "NODE_FAIL": f"{node} failed",
            "BOOT_FAIL": f"{node} did not boot",
            "CANCELLED": "with scancel, or by an administrator",
            "OUT_OF_MEMORY": "it used more memory than it had asked for",
        }
        cause = causes.get(self.state, self.reason)
        return f" ({cause})" if cause else ""


def parse_squeue(text: str) -> dict[int, JobStatus]:
    """Return the jobs in the output of ``squeue --noheader --format=SQUEUE_FORMAT``."""
    jobs = {}
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) == 6 and fields[0].isdecimal():
            job = _status(*fields)
            jobs[job.job_id] = job
    return jobs


def parse_scontrol(text: str) -> JobStatus | None:
    """Return the job in the output of ``scontrol --oneliner show job ID``, if there is one."""
    # The first of equal names counts: the name of the job, which has no spaces, is before JobState.
    fields: dict[str, str] = {}
    for part in text.split():
        name, found, value = part.partition("=")
        if found and name not in fields:
            fields[name] = value
    if not fields.get("JobId", "").isdecimal():
        return None
    names = ("JobId", "JobState", "Partition", "BatchHost", "TimeLimit", "Reason")
    job_id, *others = (fields.get(name, "") for name in names)
    return _status(job_id, *others)


def parse_sacct(text: str) -> JobStatus | None:
    """Return the job in the output of ``sacct --parsable2``, if there is one."""
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 5 and fields[0].isdecimal():
            job_id, state, partition, host, limit = fields
            state = state.split(" ")[0].rstrip("+")  # "CANCELLED by 1000"
            return _status(job_id, state, partition, host, limit, "")
    return None


def _status(
    job_id: str, state: str, partition: str, host: str, time_limit: str, reason: str
) -> JobStatus:
    partition, host, time_limit, reason = (
        "" if value in _NONE else value[:100] for value in (partition, host, time_limit, reason)
    )
    return JobStatus(int(job_id), state[:40], partition, host, time_limit, reason)
