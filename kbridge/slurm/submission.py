"""Submits a job: the script, sbatch's options, and a submission whose result is not known."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Mapping
from typing import Any

from kbridge.errors import KernelError, KernelStartError
from kbridge.slurm.callback import JobKeys, default_ip
from kbridge.slurm.commands import SlurmCommands
from kbridge.slurm.endings import keep_trying
from kbridge.slurm.options import extra_options, sbatch_options
from kbridge.slurm.script import address_text, batch_script
from kbridge.slurm.settings import SlurmSettings

__all__ = ["announced", "job_options", "job_script", "submit_job"]


def announced(ip: str, port: int) -> str:
    """Return the address at which jobs find a server that listens on `ip`.

    Raises
    ------
    SetupError
        If the server listens on all addresses, and none of them is known to nodes.
    """
    return address_text(default_ip() if ipaddress.ip_address(ip).is_unspecified else ip, port)


def job_script(
    settings: SlurmSettings, keys: JobKeys, address: str, certificate: str | None
) -> bytes:
    """Return the batch script for a kernel."""
    return batch_script(
        settings.python,
        {
            "kernel": settings.kernel_id,
            "addresses": list(settings.callback_addresses) or [address],
            "certificate": certificate,
            "token": keys.token.hex(),
            "bridge": keys.public.hex(),
            "patience": settings.callback_timeout,
        },
    )


def job_options(settings: SlurmSettings, resources: Mapping[str, str]) -> list[str]:
    """Return the arguments of sbatch.

    Raises
    ------
    SetupError
        If the kernelspec has an option that cannot be used.
    """
    return [
        *extra_options(settings.sbatch_options),
        # The last one counts: these are kbridge's.
        *sbatch_options(resources),
        "--no-requeue",
        "--nodes=1",
        "--ntasks=1",
        f"--job-name={settings.job_name}",
        f"--comment={_comment(str(settings.kernel_id))}",
        f"--output={settings.output or '/dev/null'}",
        "--chdir=/tmp",  # it exists on each node; the script goes on from there
    ]


async def submit_job(
    commands: SlurmCommands,
    kernel_id: str,
    options: list[str],
    script: bytes,
    log: logging.Logger | logging.LoggerAdapter[Any],
) -> int:
    """Submit a job; return its id.

    A submission that fails for lack of an answer, or that the caller gives up, may have made a job:
    it is looked for by its comment, and ended.

    Raises
    ------
    KernelStartError
        If sbatch fails, with Slurm's reason.
    """
    task = asyncio.create_task(commands.submit(options, script))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            job_id = task.result()
            keep_trying(lambda: commands.cancel(job_id), f"Slurm job {job_id}", log)
        raise
    except KernelError as error:
        if "timed out" in str(error).lower() or "did not end" in str(error):
            keep_trying(
                lambda: _end_all(commands, kernel_id), f"the job of kernel {kernel_id}", log
            )
        raise KernelStartError(str(error)) from None


async def _end_all(commands: SlurmCommands, kernel_id: str) -> None:
    for job_id in await commands.find(_comment(kernel_id)):
        await commands.cancel(job_id)


def _comment(kernel_id: str) -> str:
    return f"kernel {kernel_id}"
