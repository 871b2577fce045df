"""Outputs of Slurm's commands, and the texts for users."""

from __future__ import annotations

import pytest

from kbridge.kernels.lifecycle.queued import JobEnd
from kbridge.slurm.status import JobStatus, parse_sacct, parse_scontrol, parse_squeue

SQUEUE = """\
41|PENDING|gpu|n/a|1:00:00|Resources
42|RUNNING|gpu|n1|2-00:00:00|None
43|TIMEOUT|cpu|n2|1:00|TimeLimit
44_[1-3]|PENDING|cpu|n/a|1:00|None
slurm says something else
"""
SCONTROL = (
    "JobId=1 JobName=jupyter UserId=root(0) Account=(null) JobState=CANCELLED Reason=None "
    "ExitCode=0:15 TimeLimit=UNLIMITED StartTime=2026-11-30T09:10:33 Partition=cpu NodeList=n1 "
    "BatchHost=n1 Comment=kernel JobState=RUNNING"
)


def test_squeue() -> None:
    jobs = parse_squeue(SQUEUE)
    assert jobs == {
        41: JobStatus(41, "PENDING", "gpu", "", "1:00:00", "Resources"),
        42: JobStatus(42, "RUNNING", "gpu", "n1", "2-00:00:00", ""),
        43: JobStatus(43, "TIMEOUT", "cpu", "n2", "1:00", "TimeLimit"),
    }
    assert [job.waits for job in jobs.values()] == [True, False, False]
    assert [job.runs for job in jobs.values()] == [False, True, False]
    assert [job.ended for job in jobs.values()] == [False, False, True]


def test_scontrol_and_sacct() -> None:
    job = parse_scontrol(SCONTROL)
    assert job == JobStatus(1, "CANCELLED", "cpu", "n1", "UNLIMITED", "")
    assert parse_scontrol("No jobs in the system") is None
    job = parse_sacct("7|CANCELLED by 1000|cpu|n1|01:00:00\n")
    assert job is not None
    assert (job.job_id, job.state) == (7, "CANCELLED")
    assert parse_sacct("Slurm accounting storage is disabled\n") is None
    assert parse_sacct("") is None


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (
            JobStatus(1, "PENDING", "gpu", reason="Resources"),
            "Slurm job 1 waits in partition gpu: Resources",
        ),
        (JobStatus(1, "RUNNING", host="n1"), "Slurm job 1 runs on n1"),
        (JobStatus(1, "SUSPENDED", host="n1"), "Slurm job 1 is SUSPENDED on n1"),
        (
            JobStatus(1, "TIMEOUT", time_limit="1:00:00"),
            "Slurm job 1 ended: TIMEOUT (time limit of 1:00:00 reached)",
        ),
        (JobStatus(1, "NODE_FAIL", host="n1"), "Slurm job 1 ended: NODE_FAIL (n1 failed)"),
        (
            JobStatus(1, "FAILED", reason="NonZeroExitCode"),
            "Slurm job 1 ended: FAILED (NonZeroExitCode)",
        ),
        (JobStatus(1, "COMPLETED"), "Slurm job 1 ended: COMPLETED"),
        (JobStatus(1, "FORGOTTEN"), "Slurm job 1 ended; Slurm has no record of it any longer"),
    ],
)
def test_texts(job: JobStatus, text: str) -> None:
    assert job.text == text


def test_kinds_of_ends() -> None:
    kinds = {
        state: JobStatus(1, state).end_kind
        for state in (
            "TIMEOUT",
            "PREEMPTED",
            "NODE_FAIL",
            "CANCELLED",
            "OUT_OF_MEMORY",
            "FORGOTTEN",
        )
    }
    assert kinds == {
        "TIMEOUT": JobEnd.TIME_LIMIT,
        "PREEMPTED": JobEnd.PREEMPTION,
        "NODE_FAIL": JobEnd.NODE_FAILURE,
        "CANCELLED": JobEnd.CANCELLED,
        "OUT_OF_MEMORY": JobEnd.CRASH,
        "FORGOTTEN": JobEnd.UNKNOWN,
    }


def test_a_state_of_a_later_slurm_ends_no_kernel() -> None:
    job = JobStatus(1, "SOMETHING_NEW")
    assert not job.ended
    assert job.runs
