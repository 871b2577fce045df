"""A kernel manager and a manager of all kernels, with the parts that a `KernelWatch` uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from traitlets import Any as AnyTrait
from traitlets import HasTraits, Int, Unicode

from kbridge.hub.settings import HubSettings
from kbridge.jupyter.kernel_watch import KernelWatch
from kbridge.link.memory import MemoryClient
from kbridge.wire.message import Channel
from tests.hub.rig import INFO, Rig, received
from tests.support.waiting import TIMEOUT

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port")


class FakeKernel(HasTraits):
    """The interface of jupyter_client's KernelManager, without a process."""

    shell_port = Int(INFO["shell_port"])
    iopub_port = Int(INFO["iopub_port"])
    stdin_port = Int(INFO["stdin_port"])
    control_port = Int(INFO["control_port"])
    execution_state = Unicode("starting")
    last_activity = AnyTrait(LONG_AGO)

    def __init__(self, kernel_id: str = "a-kernel") -> None:
        super().__init__()
        self.kernel_id = kernel_id
        self.callbacks: dict[str, list[Callable[[], None]]] = {"restart": [], "dead": []}
        self._activity_stream: object = "a socket of the manager's"
        self._pending_restart_cleanup: Callable[[], None] | None = None

    def add_restart_callback(self, callback: Callable[[], None], event: str = "restart") -> None:
        self.callbacks[event].append(callback)

    def remove_restart_callback(self, callback: Callable[[], None], event: str = "restart") -> None:
        if callback in self.callbacks[event]:
            self.callbacks[event].remove(callback)

    def fire(self, event: str) -> None:
        for callback in self.callbacks[event]:
            callback()

    def get_connection_info(self) -> dict[str, Any]:
        return {**INFO, **{name: getattr(self, name) for name in PORTS}}

    def move(self, *ports: int) -> None:
        """Change the ports, one after the other."""
        for name, port in zip(PORTS, ports, strict=True):
            setattr(self, name, port)

    def listeners(self) -> int:
        """Return the number of registered callbacks and observers."""
        observers = sum(
            len(self._trait_notifiers.get(name, {}).get("change", [])) for name in PORTS
        )
        return sum(map(len, self.callbacks.values())) + observers


class FakeKernels(dict[str, FakeKernel]):
    """The manager of all kernels."""

    def __init__(self, *kernels: FakeKernel) -> None:
        super().__init__({kernel.kernel_id: kernel for kernel in kernels})
        self.last_kernel_activity = LONG_AGO
        self.unwatched: list[str] = []
        self.ports_asked: list[str] = []
        self.absences = 0  # number of further lookups that do not find a kernel
        self.asked = 0

    def __contains__(self, kernel_id: object) -> bool:
        self.asked += 1
        self.absences -= 1
        return self.absences < 0 and super().__contains__(kernel_id)

    def get_kernel(self, kernel_id: str) -> FakeKernel:
        return self[kernel_id]

    def stop_watching_activity(self, kernel_id: str) -> None:
        kernel = self[kernel_id]
        kernel._activity_stream = None
        if kernel._pending_restart_cleanup is not None:
            kernel._pending_restart_cleanup()
        self.unwatched.append(kernel_id)

    def ports_changed(self, kernel_id: str) -> bool:
        self.ports_asked.append(kernel_id)
        return True


class WatchRig(Rig):
    """A hub with a kernel in memory, and the watch that keeps it in step with a kernel manager."""

    def __init__(self, settings: HubSettings) -> None:
        super().__init__(settings)
        self.manager = FakeKernel()
        self.kernels_ = FakeKernels(self.manager)
        self.went: list[KernelWatch] = []
        self.watch = KernelWatch(self.hub, self.manager, self.kernels_, self._on_gone)

    def _on_gone(self, watch: KernelWatch) -> None:
        self.went.append(watch)
        watch.close()

    def end_process(self) -> None:
        """Disconnect the sockets of the kernel."""
        self.kernel.disconnect()

    async def settle(self) -> None:
        """Run all due callbacks."""
        for _ in range(20):
            await asyncio.sleep(0)

    def listening_at(self) -> tuple[int | str, ...]:
        """Return the ports that the hub is connected to."""
        ports = self.kernel.endpoints.ports
        return tuple(
            ports[c] for c in (Channel.SHELL, Channel.IOPUB, Channel.STDIN, Channel.CONTROL)
        )


async def until(condition: Callable[[], Any], what: Callable[[], str] | str = "") -> None:
    """Poll until a condition holds that no event announces; `condition` may be asynchronous."""
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        now = asyncio.get_running_loop().time()
        assert now < deadline, f"never: {what() if callable(what) else what or condition}"
        await asyncio.sleep(0.002)


def statuses(client: MemoryClient) -> list[str]:
    """Return the states that a v1 client received."""
    told = [m.content for m in received(client) if m.msg_type == "status"]
    return [c.decode().split('"')[3] for c in told]
