"""Kernelspecs: read in a thread, cached until a file changes."""

import asyncio
import json
import threading

import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from kbridge.errors import KernelspecNotFound, KernelStartError
from kbridge.kernels.specs import Specs


class Counted:
    """Record the calls of a KernelSpecManager, and their threads."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.threads = set()
        for name in ("get_all_specs", "get_kernel_spec"):
            monkeypatch.setattr(KernelSpecManager, name, self._counted(name))

    def _counted(self, name):
        real = getattr(KernelSpecManager, name)

        def call(manager, *arguments):
            self.calls.append(name)
            self.threads.add(threading.current_thread())
            return real(manager, *arguments)

        return call


class FromElsewhere(KernelSpecManager):
    """Names without a directory, as in nb_conda_kernels."""

    found = ("env-a",)

    def find_kernel_specs(self):
        return {**super().find_kernel_specs(), **dict.fromkeys(self.found, "/nowhere")}

    def get_kernel_spec(self, kernel_name):
        if kernel_name in self.found:
            return KernelSpec(argv=["sleep", "600"], display_name=f"Env {kernel_name}")
        return super().get_kernel_spec(kernel_name)


@pytest.fixture
def specs(tmp_path):
    return Specs(
        KernelSpecManager(kernel_dirs=[str(tmp_path / "specs")], ensure_native_kernel=False)
    )


async def test_they_are_read_in_a_thread_and_once(specs, spec, monkeypatch):
    for name in ("a", "b"):
        spec(name)
    counted = Counted(monkeypatch)
    for _ in range(3):
        assert set(await specs.get_all_specs()) == {"a", "b"}
        assert (await specs.get_kernel_spec("a")).display_name == "a"
    assert sorted(counted.calls) == ["get_all_specs", "get_kernel_spec"]
    assert threading.main_thread() not in counted.threads


async def test_what_has_changed_is_read_again(specs, spec, tmp_path):
    spec("a")
    assert set(await specs.get_all_specs()) == {"a"}
    with pytest.raises(NoSuchKernel):
        await specs.get_kernel_spec("b")
    spec("b")
    assert set(await specs.get_all_specs()) == {"a", "b"}
    assert (await specs.get_kernel_spec("b")).display_name == "b"
    file = tmp_path / "specs" / "a" / "kernel.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "display_name": "another"}))
    assert (await specs.get_kernel_spec("a")).display_name == "another"
    assert (await specs.get_all_specs())["a"]["spec"]["display_name"] == "another"
    file.unlink()
    assert set(await specs.get_all_specs()) == {"b"}
    specs.manager.allowed_kernelspecs = {"a"}
    assert await specs.get_all_specs() == {}


async def test_a_kernelspec_that_is_not_allowed_cannot_be_started(make_manager, fake):
    manager = make_manager()
    allowed, other = fake("allowed"), fake("other")
    manager.kernel_spec_manager.allowed_kernelspecs = {allowed}
    for name in (allowed, allowed.upper()):
        assert await manager.start_kernel(name)
    with pytest.raises(KernelspecNotFound):
        await manager.start_kernel(other)


async def test_of_other_managers_nothing_is_cached(tmp_path):
    manager = FromElsewhere(kernel_dirs=[str(tmp_path)], ensure_native_kernel=False)
    specs = Specs(manager)
    assert set(await specs.get_all_specs()) == {"env-a"}
    manager.found = ("env-a", "env-b")
    assert set(await specs.get_all_specs()) == {"env-a", "env-b"}
    assert (await specs.get_kernel_spec("env-b")).display_name == "Env env-b"


async def test_calls_do_not_run_beside_each_other(tmp_path):
    inside = threading.Semaphore(1)

    class Careful(FromElsewhere):
        def get_all_specs(self):
            assert inside.acquire(blocking=False), "two threads at once"
            try:
                return super().get_all_specs()
            finally:
                inside.release()

    specs = Specs(Careful(kernel_dirs=[str(tmp_path)], ensure_native_kernel=False))
    given_up = asyncio.create_task(specs.get_all_specs())
    await asyncio.sleep(0)
    given_up.cancel()
    for found in await asyncio.gather(*(specs.get_all_specs() for _ in range(20))):
        assert set(found) == {"env-a"}
    with pytest.raises(asyncio.CancelledError):
        await given_up


async def test_a_manager_that_is_asynchronous():
    class Remote:
        async def get_all_specs(self):
            return {"far": {}}

        async def get_kernel_spec(self, name):
            return name.upper()

    specs = Specs(Remote())
    assert await specs.get_all_specs() == {"far": {}}
    assert await specs.get_kernel_spec("far") == "FAR"


async def test_the_class_is_a_setting(make_manager):
    manager = make_manager(kernel_spec_manager_class=FromElsewhere, own_specs=False)
    kernel_id = await manager.start_kernel("env-a")
    assert manager.model(kernel_id)["name"] == "env-a"
    with pytest.raises(KernelspecNotFound):
        await manager.start_kernel("env-c")


async def test_an_empty_argv_says_so(make_manager, spec, tmp_path):
    manager = make_manager()
    spec("empty", argv=[])
    with pytest.raises(KernelStartError, match="empty argv") as caught:
        await manager.start_kernel("empty")
    assert str(tmp_path / "specs" / "empty" / "kernel.json") in str(caught.value)


async def test_a_kernelspec_whose_provisioner_is_missing(make_manager, spec):
    manager = make_manager()
    spec("far", metadata={"kernel_provisioner": {"provisioner_name": "not-installed"}})
    with pytest.raises(KernelspecNotFound, match="'far' needs the provisioner 'not-installed'"):
        await manager.start_kernel("far")
    with pytest.raises(KernelspecNotFound, match="There is no kernelspec 'elsewhere'"):
        await manager.start_kernel("elsewhere")


async def test_a_kernel_that_changes_its_kernelspec_changes_no_other(make_manager, fake):
    manager = make_manager()
    name = fake(env={"A": "1"})
    kernels = [manager.get_kernel(await manager.start_kernel(name)) for _ in range(2)]
    kernels[0].kernel_spec.env["A"] = "2"
    kernels.append(manager.get_kernel(await manager.start_kernel(name)))
    assert [kernel.kernel_spec.env["A"] for kernel in kernels] == ["2", "1", "1"]
