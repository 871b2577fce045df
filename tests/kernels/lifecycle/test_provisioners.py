"""The provisioners of kernelspecs are imported off the event loop."""

import threading
from types import SimpleNamespace

import pytest
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from kbridge.errors import KernelStartError
from kbridge.kernels.lifecycle.provisioners import LOCAL, load_provisioner, provisioner_name
from tests.kernels.conftest import FakeProvisioner


@pytest.fixture
def imports(fake, monkeypatch):
    """The threads that have imported the fake provisioner, in their order."""
    threads = []

    def load():
        threads.append(threading.current_thread())
        return FakeProvisioner

    monkeypatch.setitem(KernelProvisionerFactory.provisioners, "fake", SimpleNamespace(load=load))
    return threads


def test_the_name():
    chosen = {"kernel_provisioner": {"provisioner_name": "fake", "config": {"a": 1}}}
    assert provisioner_name(chosen, None) == "fake"
    for metadata in ({}, {"kernel_provisioner": None}, {"kernel_provisioner": {}}):
        assert provisioner_name(metadata, None) == LOCAL


async def test_it_is_imported_in_a_thread(imports):
    await load_provisioner("fake", None)
    [thread] = imports
    assert thread is not threading.main_thread()


async def test_one_that_is_not_installed_is_left_to_jupyter_client(imports):
    await load_provisioner("not-installed", None)
    assert imports == []


async def test_a_start_waits_for_the_import_in_a_thread(make_manager, fake, imports):
    await make_manager().start_kernel(fake())
    assert imports[0] is not threading.main_thread()


async def test_an_import_that_fails(make_manager, fake, monkeypatch):
    def load():
        raise ImportError("no module named far_away")

    monkeypatch.setitem(KernelProvisionerFactory.provisioners, "fake", SimpleNamespace(load=load))
    with pytest.raises(KernelStartError, match="by its provisioner fake: no module named far_away"):
        await make_manager().start_kernel(fake())
