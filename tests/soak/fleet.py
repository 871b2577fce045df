"""The servers and kernels of the soak."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.soak.findings import Findings
from tests.soak.resource_usage import observed_command
from tests.support.server import Server

__all__ = ["Fleet", "SoakKernel"]

STUB = Path(__file__).parents[2] / "benchmarks" / "kernel.py"
CONNECTION = "--ZMQChannelsWebsocketConnection"
_OPTIONS = {
    # Default settings, except those that keep the soak short.
    "roomy": ["--KbridgeApp.websocket_max_message_size=1048576"],
    # A small journal, so that slow readers miss frames.
    "narrow": [
        f"{CONNECTION}.journal_limit=524288",
        f"{CONNECTION}.history_limit=65536",
        f"{CONNECTION}.limit_rate=False",
    ],
}
_COMMON = [
    # The soak kills kernels more often than the default limit.
    "--BridgeKernelManager.restart_limit=100000",
    f"{CONNECTION}.kernel_info_timeout=60",
]


@dataclass(eq=False)
class SoakKernel:
    """One kernel.

    Attributes
    ----------
    calm : bool
        True if the soak does not disturb it.
    gone : bool
        True after it was shut down.
    """

    server: Server
    kernel_id: str
    spec: str
    calm: bool
    gone: bool = False

    @property
    def narrow(self) -> bool:
        return self.server.home.name == "narrow"

    def __str__(self) -> str:
        return f"{'calm' if self.calm else 'rough'} {self.spec} {self.kernel_id[:8]}"

    def process(self) -> psutil.Process | None:
        """The pid of the kernel, found by its connection file; None if there is none."""
        for child in psutil.Process(self.server.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if any(self.kernel_id in word for word in child.cmdline()):
                    return child
        return None


@dataclass
class Fleet:
    """All of them.

    Attributes
    ----------
    pids : set of int
        The pids of all children seen so far.
    """

    home: Path
    findings: Findings
    servers: dict[str, Server] = field(default_factory=dict)
    kernels: list[SoakKernel] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)

    async def open(self) -> None:
        """Start the servers."""
        for name, options in _OPTIONS.items():
            home = self.home / name
            spec = home / "data" / "kernels" / "stub" / "kernel.json"
            spec.parent.mkdir(parents=True)
            argv = [sys.executable, str(STUB), "{connection_file}"]
            spec.write_text(json.dumps({"argv": argv, "display_name": "Stub", "language": "json"}))
            server = Server(home, *_COMMON, *options, command=observed_command(home))
            self.servers[name] = server
        await asyncio.gather(*(asyncio.to_thread(s.start) for s in self.servers.values()))

    async def add(self, server: str, spec: str, *, calm: bool) -> SoakKernel:
        """Start a kernel."""
        running = self.servers[server]
        kernel_id = await asyncio.to_thread(running.start_kernel, spec)
        kernel = SoakKernel(running, kernel_id, spec, calm)
        self.kernels.append(kernel)
        self.look()
        return kernel

    async def remove(self, kernel: SoakKernel) -> None:
        """Shut a kernel down."""
        self.look()
        self.kernels.remove(kernel)
        kernel.gone = True
        reply = await kernel.server.call("DELETE", f"/api/kernels/{kernel.kernel_id}")
        if reply.status != 204:
            self.findings.fault("fleet", f"DELETE of a kernel: {reply.status} {reply.body!r}")

    def choose(self, dice: random.Random, *, narrow: bool) -> SoakKernel:
        """Return a kernel for a client."""
        return dice.choice([kernel for kernel in self.kernels if kernel.narrow is narrow])

    def look(self) -> None:
        """Record the current processes."""
        for server in self.servers.values():
            with suppress(psutil.NoSuchProcess):
                self.pids |= server.children()

    def kill(self) -> None:
        """Kill all servers and kernels."""
        for server in self.servers.values():
            server.kill()
