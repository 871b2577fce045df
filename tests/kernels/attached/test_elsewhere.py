"""Kernels of a cluster whose processes are on another machine: rows, and hubs in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kbridge.errors import KernelError, KernelNotFound, NotSupported
from kbridge.kernels.registry.models import ClusterKernel, KernelRole, KernelRow, encode
from kbridge.wire.message import Channel

INFO = {
    **{f"{name}_port": port for port, name in enumerate(("shell", "iopub", "stdin", "control"), 1)},
    "hb_port": 5,
    "ip": "10.0.0.1",
    "transport": "tcp",
    "key": b"a secret",
    "signature_scheme": "hmac-sha256",
}


def taken(kernel_id: str = "far", **details) -> ClusterKernel:
    text = encode({"connection": INFO, "kernelspec": {"metadata": {"a": 1}}, **details})
    row = KernelRow(kernel_id, "python3", "used", 4711, "another boot", "/no/log", text)
    return ClusterKernel(row, "me", "a machine far away", 1)


@pytest.fixture
async def manager(make_manager):
    made = make_manager()
    assert await made.transfer.serve(taken())
    return made


async def test_it_is_served_by_messages(manager, hubs):
    (model,) = manager.models()
    assert (model["id"], model["name"]) == ("far", "python3")
    assert hubs.kernel("far").info.key == b"a secret"
    kernel = manager.index.find("far")
    assert kernel.counts_toward_limit
    assert kernel.cull_metadata == {"a": 1}
    assert await manager.transfer.serve(taken()), "a second call changes nothing"
    assert len(manager.models()) == 1


async def test_it_cannot_be_restarted(manager):
    with pytest.raises(NotSupported, match="runs on a machine far away"):
        await manager.restart_kernel("far")


async def test_it_is_asked_to_end(manager, hubs):
    memory = hubs.kernel("far")
    await manager.shutdown_kernel("far")
    assert ("shutdown_request", {"restart": False}, Channel.CONTROL) in memory.requests
    assert hubs.closed == ["far"]
    with pytest.raises(KernelNotFound):
        manager.model("far")


async def test_it_is_released_without_being_asked_to_end(manager, hubs):
    memory = hubs.kernel("far")
    manager.transfer.lose("far")
    await manager.transfer.release("far")
    await manager.transfer.release("far")
    assert manager.models() == []
    assert hubs.closed == []
    assert [kind for kind, _, _ in memory.requests if kind == "shutdown_request"] == []
    await hubs.close("far")


async def test_a_kernel_without_a_connection_is_not_served(make_manager):
    manager = make_manager()
    with pytest.raises(KernelError, match="cannot be served"):
        await manager.transfer.serve(taken(connection={}))
    assert manager.models() == []
    assert not manager.writer.knows_kernel("far"), "the caller may try again"


@pytest.mark.parametrize("role", [KernelRole.POOLED, KernelRole.STARTING])
async def test_a_kernel_that_no_client_knows_is_asked_to_end(make_manager, hubs, role):
    manager = make_manager()
    kernel = taken()
    assert not await manager.transfer.serve(replace(kernel, row=replace(kernel.row, role=role)))
    assert manager.models() == []
    assert hubs.closed == ["far"]
    [memory] = hubs.opened
    assert ("shutdown_request", {"restart": False}, Channel.CONTROL) in memory.requests


async def test_a_kernel_that_was_starting_without_a_connection_is_forgotten(make_manager, caplog):
    manager = make_manager()
    kernel = taken(connection={})
    row = replace(kernel.row, role=KernelRole.STARTING, pid=0, start_id="")
    assert not await manager.transfer.serve(replace(kernel, row=row))
    assert "may run on there" in caplog.text
    assert manager.models() == []
