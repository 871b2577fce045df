"""Kernels without processes, and real hubs with links in memory."""

import json
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerBase
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from traitlets import Integer

from kbridge.hub import HubTable
from kbridge.kernels.lifecycle.started import StartedKernel
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.models import KernelRole
from tests.kernels.memory_hubs import MemoryHubs
from tests.kernels.scripted_queue import ScriptedProvisioner
from tests.support.waiting import TIMEOUT


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
def queued(spec, monkeypatch):
    """A kernelspec whose kernels wait in a queue until a test lets them run."""
    ScriptedProvisioner.reset()
    monkeypatch.setitem(
        KernelProvisionerFactory.provisioners,
        "queue",
        SimpleNamespace(load=lambda: ScriptedProvisioner),
    )

    def install(name: str = "queued", **fields: Any) -> str:
        metadata = {
            "kernel_provisioner": {"provisioner_name": "queue"},
            **fields.pop("metadata", {}),
        }
        return spec(name, metadata=metadata, **fields)

    return install


@pytest.fixture
async def hubs(request):
    """Hubs with links in memory; with sockets in tests with the mark `kernel`."""
    table = HubTable() if request.node.get_closest_marker("kernel") else MemoryHubs()
    yield table
    await table.aclose()


@pytest.fixture
async def make_manager(tmp_path, hubs):
    """Make managers; fail if they leave a kernel behind."""
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
        options = {"start_grace": TIMEOUT, "watch_interval": 0.02, "root_dir": str(root), **traits}
        manager = BridgeKernelManager(hubs=hubs, connection_dir=str(runtime), **given, **options)
        managers.append(manager)
        return manager

    yield make
    for manager in managers:
        attached = {kernel.kernel_id for kernel in manager.index if kernel.outlives_server}
        await manager.shutdown_all(now=True)
        assert not manager.index.known
        for kernel_id in attached:  # their hubs are left open for `HubTable.aclose`
            await hubs.close(kernel_id)
    assert not len(hubs)
    assert not list(runtime.glob("*.json"))
