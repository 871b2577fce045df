"""A scheduler of files, for servers in other processes; its jobs are real kernels.

`FileQueue` is the test's side: it lets jobs wait, run and end. `FileProvisioner` is the server's
side. Both meet in a directory, so a job outlives the server, as with a real scheduler.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo, write_connection_file
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from traitlets import Unicode

from kbridge.errors import KernelStartError
from kbridge.kernels.lifecycle.queued import JobEnd, QueuedProvisioner
from tests.support.waiting import TIMEOUT, eventually

__all__ = ["FileProvisioner", "FileQueue", "register"]

_ROOT = Path(__file__).parents[2]
_POLL = 0.02  # seconds


def _jobs(directory: Path) -> int:
    return sum(1 for _ in directory.glob("job-*"))


class FileProvisioner(QueuedProvisioner):
    """Waits for what `FileQueue` writes into the directory `directory`."""

    directory = Unicode()
    number = 0
    running = False
    _said = ""

    def _file(self, name: str) -> Path:
        return Path(self.directory) / f"{name}-{self.number}"

    def _read(self, name: str) -> str:
        try:
            return self._file(name).read_text()
        except FileNotFoundError:
            return ""

    async def submit(self, cmd: list[str], **kwargs: Any) -> None:
        self.number = _jobs(Path(self.directory)) + 1
        self.running = False
        self._file("job").write_text("submitted")

    async def wait_running(self) -> KernelConnectionInfo:
        while not (text := self._read("connection")):
            if end := self.end_text:
                raise KernelStartError(end)
            if self.queue_text != self._said:
                self._said = self.queue_text
                self.changed()
            await asyncio.sleep(_POLL)
        self.running = True
        info = json.loads(text)
        self.connection_info = {**info, "key": info["key"].encode()}
        return self.connection_info

    @property
    def waiting(self) -> bool:
        return bool(self.number) and not self.running and not self.end_text

    @property
    def queue_text(self) -> str:
        reason = self._read("reason") or "Priority"
        return f"job {self.number} waits: {reason}" if self.waiting else ""

    @property
    def end_text(self) -> str:
        return self._read("end")

    @property
    def end_kind(self) -> JobEnd:
        return JobEnd.TIME_LIMIT if "TIMEOUT" in self.end_text else JobEnd.CANCELLED

    @property
    def has_process(self) -> bool:
        return bool(self.number)

    async def poll(self) -> int | None:
        return 0 if not self.number or self.end_text else None

    async def wait(self) -> int | None:
        while await self.poll() is None:  # noqa: ASYNC110 - files set no event
            await asyncio.sleep(_POLL)
        return 0

    async def send_signal(self, signum: int) -> None:
        self._file("signal").write_text(str(signum))

    async def kill(self, restart: bool = False) -> None:
        if not self.end_text:
            self._file("end").write_text(f"job {self.number} ended: by the server")

    async def terminate(self, restart: bool = False) -> None:
        await self.kill()

    async def cleanup(self, restart: bool = False) -> None:
        pass

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        return await super().pre_launch(cmd=["a program"], **kwargs)

    async def get_provisioner_info(self) -> dict[str, Any]:
        info = await super().get_provisioner_info()
        return {**info, "number": self.number, "running": self.running}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        await super().load_provisioner_info(provisioner_info)
        self.number, self.running = provisioner_info["number"], provisioner_info["running"]


class _EntryPoint:
    def load(self) -> type[FileProvisioner]:
        return FileProvisioner


def register() -> None:
    """Let kernelspecs name the provisioner `file-queue`; called in the config file of a server."""
    KernelProvisionerFactory.provisioners["file-queue"] = _EntryPoint()


class FileQueue:
    """The scheduler: lets jobs run and end.

    Parameters
    ----------
    home : Path
        The home of a test server, which gets the kernelspec `queued`.
    """

    def __init__(self, home: Path) -> None:
        self.directory = home / "queue"
        self.directory.mkdir()
        self._kernels: list[subprocess.Popen[bytes]] = []
        config = {"directory": str(self.directory)}
        spec = {
            "argv": ["a program", "{connection_file}"],
            "display_name": "queued",
            "language": "python",
            "metadata": {
                "kernel_provisioner": {"provisioner_name": "file-queue", "config": config}
            },
        }
        there = home / "data" / "kernels" / "queued"
        there.mkdir(parents=True)
        (there / "kernel.json").write_text(json.dumps(spec))
        self.config = home / "queue_config.py"
        self.config.write_text(
            f"import sys\nsys.path.insert(0, {str(_ROOT)!r})\n"
            "from tests.support.file_queue import register\nregister()\n"
            "c = get_config()\n"
            "c.BridgeKernelManager.queue_grace = 0.1\n"
            "c.BridgeKernelManager.watch_interval = 0.05\n"
        )

    @property
    def jobs(self) -> int:
        """The number of jobs so far."""
        return _jobs(self.directory)

    def wait_because(self, reason: str, number: int = 1) -> None:
        """Change the reason why a job waits."""
        (self.directory / f"reason-{number}").write_text(reason)

    def run(self, number: int = 1) -> None:
        """Start the kernel of a job."""
        file, info = write_connection_file(str(self.directory / f"kernel-{number}.json"))
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", file]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._kernels.append(subprocess.Popen(command, **silent))
        text = json.dumps(info)
        part = self.directory / f"part-{number}"
        part.write_text(text)
        part.rename(self.directory / f"connection-{number}")

    def end(self, text: str, number: int = 1) -> None:
        """End a job, with its kernel."""
        self.aclose()
        part = self.directory / f"part-{number}"
        part.write_text(text)
        part.rename(self.directory / f"end-{number}")

    def end_of(self, number: int = 1) -> str:
        """Wait for the end of a job, and return its text."""
        file = self.directory / f"end-{number}"
        return eventually(lambda: file.exists() and file.read_text(), "the job ended")

    def aclose(self) -> None:
        """Kill all kernels."""
        for kernel in self._kernels:
            kernel.kill()
            kernel.wait(TIMEOUT)
        self._kernels.clear()
