"""Runs Slurm's commands: never on the event loop, within a time, and without a shell."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from kbridge.errors import KernelError
from kbridge.slurm.status import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    JobStatus,
    parse_sacct,
    parse_scontrol,
    parse_squeue,
)

__all__ = ["SlurmCommands"]

# sbatch reads options from SBATCH_*, and a server that runs inside a job has that job's SLURM_*.
# Variables of a request never get here: this is the environment of the server.
_PASSED: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "LD_LIBRARY_PATH"),
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "KRB5CCNAME"),
)
_MOST_OUTPUT = 16 << 20
_MOST_TEXT = 500  # characters of an error that are shown


class SlurmCommands:
    """Slurm's programs, as the user of this server.

    Parameters
    ----------
    directory : str
        The directory of the programs; empty to look for them in PATH.
    timeout : float
        Seconds that a command may take.
    """

    def __init__(self, directory: str = "", timeout: float = 30.0) -> None:
        self._directory = directory
        self._timeout = timeout

    async def submit(self, options: Sequence[str], script: bytes) -> int:
        """Submit a batch script; return the id of the job.

        Raises
        ------
        KernelError
            If Slurm refuses the job, with its reason.
        """
        output = await self._run("sbatch", "--parsable", *options, stdin=script)
        first = output.strip().split(";")[0]  # "42;cluster" in a federation
        if not first.isdecimal():
            raise KernelError(f"sbatch printed no job id: {_short(output)}")
        return int(first)

    async def statuses(self, job_ids: Sequence[int]) -> dict[int, JobStatus]:
        """Return the jobs that the controller knows, in one call.

        `squeue --json` is not used: in Slurm 22.05 it ignores `--jobs`, and prints every job of the
        cluster with 3 kB each; later versions changed its structure twice.

        Raises
        ------
        KernelError
            If squeue fails.
        """
        ids = ",".join(map(str, job_ids))
        arguments = ["--noheader", "--states=all", f"--format={SQUEUE_FORMAT}", f"--jobs={ids}"]
        try:
            return parse_squeue(await self._run("squeue", *arguments))
        except KernelError as error:
            if "Invalid job id" in str(error):
                return {}  # none of them is known
            raise

    async def past_status(self, job_id: int) -> JobStatus:
        """Return the state of a job that squeue does not list.

        Raises
        ------
        KernelError
            If the controller does not answer.
        """
        try:
            shown = parse_scontrol(
                await self._run("scontrol", "--oneliner", "show", "job", str(job_id))
            )
        except KernelError as error:
            if "Invalid job id" not in str(error):
                raise
            shown = None
        if shown is None:
            with suppress(KernelError):  # many clusters have no accounting
                shown = parse_sacct(
                    await self._run(
                        "sacct",
                        *("--noheader", "--parsable2", "--allocations"),
                        f"--format={SACCT_FORMAT}",
                        f"--jobs={job_id}",
                    )
                )
        return shown or JobStatus(job_id, "FORGOTTEN")

    async def find(self, comment: str) -> list[int]:
        """Return the waiting and running jobs of this user with a comment.

        Raises
        ------
        KernelError
            If squeue fails.
        """
        output = await self._run("squeue", "--noheader", "--me", "--format=%i|%k")
        lines = (line.partition("|") for line in output.splitlines())
        return [int(job) for job, _, text in lines if job.isdecimal() and text == comment]

    async def cancel(self, job_id: int) -> None:
        """End a job, waiting or running. A job that has ended is not an error.

        Raises
        ------
        KernelError
            If scancel fails.
        """
        await self._run("scancel", "--quiet", str(job_id))

    async def signal(self, job_id: int, number: int) -> None:
        """Send a signal to the batch script of a job.

        Raises
        ------
        KernelError
            If scancel fails.
        """
        await self._run("scancel", "--quiet", "--batch", f"--signal={number}", str(job_id))

    async def node_address(self, node: str) -> str:
        """Return the address of a node in Slurm's configuration (NodeAddr); empty if unknown."""
        output = await self._run("scontrol", "--oneliner", "show", "node", node)
        for part in output.split():
            if part.startswith("NodeAddr="):
                return part.partition("=")[2]
        return ""

    async def _run(self, program: str, *arguments: str, stdin: bytes = b"") -> str:
        """Run a program; return its output.

        Raises
        ------
        KernelError
            If the program is missing, fails, or does not end in time; with its output.
        """
        path = str(Path(self._directory, program)) if self._directory else program
        try:
            process = await asyncio.create_subprocess_exec(
                path,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(os.environ),
                limit=_MOST_OUTPUT,
            )
        except OSError as error:
            raise KernelError(
                f"{path} cannot be run: {error.strerror or error}. Install Slurm's commands on this"
                " machine, or set SlurmProvisioner.commands_dir"
            ) from None
        try:
            async with asyncio.timeout(self._timeout):
                output, errors = await process.communicate(stdin)
        except TimeoutError:
            raise KernelError(
                f"{program} did not end within {self._timeout:g} s"
                " (SlurmProvisioner.command_timeout). Is slurmctld overloaded or down?"
            ) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        if process.returncode:
            text = errors.decode(errors="replace") or output.decode(errors="replace")
            raise KernelError(f"{program} failed: {_short(text) or process.returncode}")
        return output.decode(errors="replace")


def _environment(server: Mapping[str, str]) -> dict[str, str]:
    return {name: server[name] for name in _PASSED if name in server} | {"LC_ALL": "C.UTF-8"}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_TEXT else f"{line[:_MOST_TEXT]}..."
