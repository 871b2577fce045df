"""The job of docs/slurm.md on this machine, and a server that watches its directory."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import ServerFactory
from tests.support.client import attach
from tests.support.require import require
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel

PAGE = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
[JOB] = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
ADDRESS = '"$(hostname -i | cut -d" " -f1)"'


@contextmanager
def running(script: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the script; end it with its kernel if it still runs."""
    job = subprocess.Popen(["bash", script], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield job
    finally:
        if job.poll() is None:
            parent = psutil.Process(job.pid)
            for process in (*parent.children(recursive=True), parent):
                process.kill()
        job.wait(TIMEOUT)


async def test_the_kernel_of_a_job_is_served(new_server: ServerFactory, tmp_path: Path) -> None:
    require("ipykernel")
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    assert "kbridge --attach-dir ~/kernels" in PAGE
    server = await asyncio.to_thread(new_server, "--attach-dir", str(kernels))
    assert ADDRESS in JOB
    script = tmp_path / "kernel.sh"
    script.write_text(JOB.replace(ADDRESS, "127.0.0.1"))
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "SLURM_JOB_ID": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with running(script, environment) as job:

        def served() -> list[dict[str, str]]:
            assert job.poll() is None
            return list(server.request("GET", "/api/kernels").json())

        [kernel] = await asyncio.to_thread(eventually, served, "the server has the kernel")
        assert (kernels / "job-1.json").stat().st_mode & 0o077 == 0
        async with attach(server, kernel["id"]) as client:
            assert (await client.execute("print(6 * 7)")).text() == "42\n"
            await client.send("shutdown_request", {"restart": False}, channel="control")
            assert await asyncio.to_thread(job.wait, TIMEOUT) == 0
        assert not (kernels / "job-1.json").exists()
        await asyncio.to_thread(
            eventually,
            lambda: server.request("GET", "/api/kernels").json() == [],
            "the server has noticed that the file is gone",
        )
