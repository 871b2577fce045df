"""Starts and watches of kernels while the disk is full."""

import uuid

import pytest

from kbridge.errors import KernelStartError
from kbridge.kernels.lifecycle import kernel_log


async def test_a_log_that_cannot_be_made_fails_the_start_with_its_name(
    make_manager, fake, tmp_path
):
    manager = make_manager()
    kernel_id = str(uuid.uuid4())
    path = tmp_path / "runtime" / f"kernel-{kernel_id}.log"
    path.symlink_to("/dev/full")  # a link is not followed, and its target has no room either
    expected = rf"could not be started by its provisioner fake: .*kernel-{kernel_id}\.log"
    with pytest.raises(KernelStartError, match=expected):
        await manager.start_kernel(fake(), kernel_id=kernel_id)
    assert manager.models() == []


async def test_the_end_of_a_process_is_noticed_if_its_log_cannot_be_trimmed(
    make_manager, fake, fleet, hubs, monkeypatch
):
    manager = make_manager()
    kernel_id = await manager.start_kernel(fake())
    kernel = hubs.kernel(kernel_id)
    kernel.connect_client()
    tried = []

    def fail(self):
        tried.append(self.path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_log.KernelLog, "_trim", fail)
    fleet[0].code = -9
    await kernel.told("restarting")
    assert tried
