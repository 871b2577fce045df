"""Fakes of what kernels stand on: hubs without sockets, provisioners without processes."""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerBase
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from traitlets import Integer

from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.models import KernelRole
from kbridge.wire.message import Channel, Message

LOUD = 20.0


class FakeActivity:
    at_work = ""

    def __init__(self) -> None:
        self.execution_state = "starting"
        self.last_activity = 1_700_000_000.0

    def touch(self, now: float) -> None:
        self.last_activity = now


class FakeHub:
    """Notes what it is told; answers requests with what `reply` returns."""

    def __init__(self, info: Mapping[str, Any], ready: bool) -> None:
        self.info = dict(info)
        self.activity = FakeActivity()
        self.connections = 0
        self.events: list[str] = []
        self.timeouts: list[float] = []
        self.requests: list[tuple[str, dict[str, Any], Channel]] = []
        self.reply: Callable[[str, Mapping[str, Any]], dict[str, Any] | None] = lambda *_: {
            "status": "ok"
        }
        self.answered = asyncio.Event()
        self._news = asyncio.Condition()
        if ready:
            self.answered.set()

    timed_out = False
    closed = False
    identities: Sequence[bytes] = ()
    adopted = False

    @property
    def ready(self) -> bool:
        return self.answered.is_set()

    async def wait_ready(self, timeout: float | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self.answered.wait()
        except TimeoutError:
            return False
        self.activity.execution_state = "idle"
        return True

    async def restarting(self, *, asked: bool = False) -> None:
        await self._note("restarting, as asked" if asked else "restarting")
        self.activity.execution_state = "restarting"

    def reconnect(self, connection_info: Mapping[str, Any]) -> None:
        self.info = dict(connection_info)
        self.events.append("reconnect")
        self._wake()

    def verify_busy(self) -> None:
        self.events.append("verify busy")

    def announce(self, status: str) -> None:
        self.events.append(f"announce {status}")
        self._wake()

    def dead(self) -> None:
        self.activity.execution_state = "dead"
        self.events.append("dead")
        self._wake()

    async def request(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        channel: Channel = Channel.SHELL,
        timeout: float = 10.0,
    ) -> Message:
        self.requests.append((msg_type, dict(content), channel))
        self.timeouts.append(timeout)
        reply = self.reply(msg_type, content)
        if reply is None:
            raise TimeoutError
        return Message(channel, b"{}", b"{}", b"{}", json.dumps(reply).encode())

    async def seen(self, event: str, times: int = 1) -> None:
        async with asyncio.timeout(LOUD), self._news:
            await self._news.wait_for(lambda: self.events.count(event) >= times)

    async def _note(self, event: str) -> None:
        self.events.append(event)
        async with self._news:
            self._news.notify_all()

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._news:
                self._news.notify_all()

        self._task = asyncio.ensure_future(wake())


class FakeHubs:
    def __init__(self) -> None:
        self.hubs: dict[str, FakeHub] = {}
        self.opened: list[FakeHub] = []
        self.closed: list[str] = []
        self.ready = True
        self.reply: Callable[..., dict[str, Any] | None] | None = None

    def open(
        self,
        kernel_id: str,
        connection_info: Mapping[str, Any],
        *,
        former: Sequence[bytes] = (),
        adopted: bool = False,
    ) -> FakeHub:
        hub = self.hubs[kernel_id] = FakeHub(connection_info, self.ready)
        hub.identities = [*former, f"hub {len(self.opened)} of {kernel_id}".encode()]
        hub.adopted = adopted
        if self.reply is not None:
            hub.reply = self.reply
        self.opened.append(hub)
        return hub

    def get(self, kernel_id: str) -> FakeHub | None:
        return self.hubs.get(kernel_id)

    async def close(self, kernel_id: str) -> None:
        if hub := self.hubs.pop(kernel_id, None):
            hub.closed = True
            self.closed.append(kernel_id)

    def connections(self, kernel_id: str) -> int:
        hub = self.hubs.get(kernel_id)
        return hub.connections if hub else 0


class FakeProvisioner(KernelProvisionerBase):
    """A process that is a number; `fleet` holds them all, so that tests can kill them."""

    fleet: ClassVar[list["FakeProvisioner"]] = []
    shell_port = Integer(5000)
    code: int | None = 0
    launches = 0
    signals: list[int]
    env: dict[str, str]
    cwd: str

    @property
    def has_process(self) -> bool:
        return self.launches > 0

    async def poll(self) -> int | None:
        return self.code

    async def wait(self) -> int | None:
        return self.code

    async def send_signal(self, signum: int) -> None:
        self.signals.append(signum)

    async def kill(self, restart: bool = False) -> None:
        self.code = -9

    async def terminate(self, restart: bool = False) -> None:
        self.code = -15

    async def shutdown_requested(self, restart: bool = False) -> None:
        self.code = 0

    async def cleanup(self, restart: bool = False) -> None:
        pass

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        return await super().pre_launch(cmd=["fake"], **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        if not self.launches:
            self.signals = []
            self.fleet.append(self)
        self.launches += 1
        self.code = None
        self.env = kwargs["env"]
        self.cwd = kwargs["cwd"]
        kwargs["stdout"].write(b"launched\n")
        names = ("shell", "iopub", "stdin", "hb", "control")
        ports = {f"{name}_port": self.shell_port + i for i, name in enumerate(names)}
        return {
            **ports,
            "ip": "127.0.0.1",
            "transport": "tcp",
            "key": b"k",
            "signature_scheme": "hmac-sha256",
        }


def pooled(manager: BridgeKernelManager, name: str) -> list[StartedKernel]:
    """Return the kernels of a kernelspec that nobody uses yet."""
    known = manager.index.known
    return [k for k in known if k.role is KernelRole.POOLED and k.kernel_name == name]


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> list[FakeProvisioner]:
    monkeypatch.setattr(FakeProvisioner, "fleet", [])
    monkeypatch.setitem(
        KernelProvisionerFactory.provisioners, "fake", SimpleNamespace(load=lambda: FakeProvisioner)
    )
    return FakeProvisioner.fleet


@pytest.fixture
def spec(tmp_path):
    """Installs kernelspecs: spec(name, code or argv, **fields of kernel.json)."""

    def install(name: str, code: str = "import time; time.sleep(600)", **fields: Any) -> str:
        there = tmp_path / "specs" / name
        there.mkdir(parents=True)
        spec = {
            "argv": [sys.executable, "-c", code, "{connection_file}"],
            "display_name": name,
            "language": "python",
            **fields,
        }
        (there / "kernel.json").write_text(json.dumps(spec))
        return name

    return install


@pytest.fixture
def fake(spec, fleet):
    """A kernelspec whose kernels have no processes."""

    def install(name: str = "fake", **fields: Any) -> str:
        metadata = {
            "kernel_provisioner": {"provisioner_name": "fake"},
            **fields.pop("metadata", {}),
        }
        return spec(name, metadata=metadata, **fields)

    return install


@pytest.fixture
def hubs() -> FakeHubs:
    return FakeHubs()


@pytest.fixture
async def make_manager(tmp_path, hubs):
    """Makes managers, and fails when they leave a kernel behind."""
    managers = []
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    root = tmp_path / "root"
    root.mkdir()

    def make(**traits: Any) -> BridgeKernelManager:
        specs = KernelSpecManager(
            kernel_dirs=[str(tmp_path / "specs")], ensure_native_kernel=traits.pop("native", False)
        )
        given = {"kernel_spec_manager": specs} if traits.pop("own_specs", True) else {}
        options = {"start_grace": LOUD, "watch_interval": 0.02, "root_dir": str(root), **traits}
        manager = BridgeKernelManager(hubs=hubs, connection_dir=str(runtime), **given, **options)
        managers.append(manager)
        return manager

    yield make
    for manager in managers:
        await manager.shutdown_all(now=True)
        assert not manager.index.known
    assert not hubs.hubs
    assert not list(runtime.glob("*.json"))
