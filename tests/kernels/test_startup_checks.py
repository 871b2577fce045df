"""Invalid settings end the start with an error that names the setting."""

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from kbridge.errors import InvalidRequest, KernelspecNotFound, KernelStartError
from kbridge.kernels.startup_checks import check_settings, warn_of_shared_account


@pytest.mark.parametrize(
    ("traits", "reason"),
    [
        ({"pool": {"jula": 1}}, "BridgeKernelManager.pool names .did you mean 'julia'"),
        ({"default_kernel_name": "R"}, "default_kernel_name names.* Installed: ir, julia"),
        ({"force_kernel_name": "bash"}, "force_kernel_name names. Installed"),
    ],
)
async def test_an_unknown_kernelspec(make_manager, spec, traits, reason):
    for name in ("julia", "ir"):
        spec(name)
    with pytest.raises(KernelspecNotFound, match=reason):
        await check_settings(make_manager(**traits))


async def test_one_that_cannot_be_read(make_manager, spec, tmp_path):
    spec("broken")
    (tmp_path / "specs" / "broken" / "kernel.json").write_text("{")
    with pytest.raises(KernelStartError, match=r"'broken', which BridgeKernelManager\.pool names"):
        await check_settings(make_manager(pool={"broken": 1}))


async def test_no_kernelspec_at_all(make_manager):
    manager = make_manager()
    with pytest.raises(KernelspecNotFound, match="pip install ipykernel"):
        await check_settings(manager)
    await check_settings(manager, starts_kernels=False)


async def test_without_the_default_kernelspec_others_can_be_started(make_manager, spec, caplog):
    spec("ir")
    await check_settings(make_manager(), starts_kernels=False)
    assert caplog.text == ""
    await check_settings(make_manager())
    assert "default_kernel_name to one of: ir" in caplog.text


async def test_a_directory_that_is_not_there(make_manager, spec, tmp_path):
    spec("python3")
    with pytest.raises(InvalidRequest, match=r"attach_dir: .*nowhere' is not a directory"):
        await check_settings(make_manager(attach_dir=str(tmp_path / "nowhere")))
    await check_settings(make_manager(attach_dir=str(tmp_path)))


async def test_what_is_right_says_nothing(make_manager, spec, caplog):
    spec("ir")
    await check_settings(make_manager(default_kernel_name="ir", pool={"ir": 1}))
    await check_settings(make_manager(force_kernel_name="IR", pool={"other": 1}))
    spec("python3")
    await check_settings(make_manager(pool={"python": 1}))
    assert caplog.text == ""


async def test_kernelspecs_of_another_class_count(make_manager):
    class Elsewhere(KernelSpecManager):
        def get_all_specs(self):
            return {"env-a": {}}

        def get_kernel_spec(self, kernel_name):
            return {"env-a": 1}[kernel_name]

    traits = {"kernel_spec_manager_class": Elsewhere, "own_specs": False}
    await check_settings(make_manager(pool={"env-a": 1}, **traits))
    with pytest.raises(KernelspecNotFound, match="did you mean 'env-a'"):
        await check_settings(make_manager(pool={"env-b": 1}, **traits))


async def test_kernels_of_all_users_in_one_account_are_named(make_manager, spec, caplog):
    away = {"kernel_provisioner": {"provisioner_name": "slurm-provisioner"}}
    spec("away", metadata=away)
    await warn_of_shared_account(make_manager())
    assert "account of this server" not in caplog.text
    spec("here")
    await warn_of_shared_account(make_manager())
    assert "account of this server: here. See" in caplog.text
