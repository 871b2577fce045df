"""Kernelspecs and kernels of a test cluster, under plain jupyter_client."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from kbridge.slurm import SlurmProvisioner

__all__ = ["IPYKERNEL", "connected", "install", "job_of", "managed", "run"]

IPYKERNEL = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
TIMEOUT = 120


def install(
    folder: Path,
    name: str,
    argv: tuple[str, ...] = IPYKERNEL,
    *,
    encrypts: bool = True,
    env: dict[str, str] | None = None,
    **config: Any,
) -> None:
    """Write a kernelspec into `folder`, a directory of JUPYTER_PATH."""
    place = folder / "kernels" / name
    place.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {
        "kernel_provisioner": {
            "provisioner_name": "slurm-provisioner",
            "config": {"callback_ip": "127.0.0.1", "poll_interval": 0.5, **config},
        }
    }
    if encrypts:
        metadata["supported_encryption"] = ["curve"]
    spec = {"argv": list(argv), "display_name": name, "language": "python", "metadata": metadata}
    (place / "kernel.json").write_text(json.dumps({**spec, "env": env or {}}))


@asynccontextmanager
async def managed(name: str, folder: Path, **start: Any) -> AsyncIterator[AsyncKernelManager]:
    """Start a kernel, and end it at the end of the context."""
    manager = AsyncKernelManager(
        kernel_name=name, connection_file=str(folder / f"connection-{name}.json")
    )
    await manager.start_kernel(**start)
    try:
        yield manager
    finally:
        await manager.shutdown_kernel(now=True)


def job_of(manager: AsyncKernelManager) -> int:
    """Return the id of the Slurm job of a kernel."""
    provisioner = manager.provisioner
    assert isinstance(provisioner, SlurmProvisioner)
    assert provisioner.job_id is not None
    return provisioner.job_id


@asynccontextmanager
async def connected(manager: AsyncKernelManager) -> AsyncIterator[AsyncKernelClient]:
    """Return a client of a kernel that answers."""
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=TIMEOUT)
        yield client
    finally:
        client.stop_channels()


async def run(client: AsyncKernelClient, code: str) -> str:
    """Run code in a kernel; return its output, or the name of its exception."""
    output: list[str] = []

    def note(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            output.append(content["text"])
        elif message["msg_type"] == "error":
            output.append(content["ename"])

    await client.execute_interactive(code, output_hook=note, timeout=TIMEOUT)
    return "".join(output).strip()
