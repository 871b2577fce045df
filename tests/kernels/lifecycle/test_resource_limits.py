"""Limits of processors and memory, as environment variables for provisioners."""

import pytest
from traitlets import TraitError

from kbridge.errors import InvalidRequest, KernelStartError
from kbridge.kernels.lifecycle.resource_limits import ResourceLimits, parse_cpus, parse_memory
from tests.kernels.conftest import FakeProvisioner

APPLIES = {"kbridge": {"limits": True}}


@pytest.mark.parametrize(
    ("text", "cpus"), [("2", 2.0), ("0.5", 0.5), ("500m", 0.5), ("1.", 1.0), (".25", 0.25)]
)
def test_processors(text, cpus):
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4Gi", 4 * 2**30),
        ("512Mi", 512 * 2**20),
        ("1.5Gi", 1.5 * 2**30),
        ("2G", 2e9),
        ("64k", 64_000),
        ("1Ti", 2**40),
        ("1000", 1000),
    ],
)
def test_memory(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("parse", [parse_cpus, parse_memory])
@pytest.mark.parametrize(
    "text", ["", "-1", "0", "inf", "nan", "1e3", "two", "4 Gi", "4GiB", "m", "1_0", "٣", "9" * 31]
)
def test_other_texts_are_refused(parse, text):
    with pytest.raises(ValueError, match="not a positive number"):
        parse(text)


def limited(env, cpus="2", memory="4Gi", provisioner="fake", metadata=APPLIES):
    """Return the environment with the limits."""
    ResourceLimits(cpus, memory).apply(env, "spec", provisioner, metadata)
    return env


def test_a_kernel_gets_the_limits():
    assert limited({"A": "1"}) == {
        "A": "1",
        "KERNEL_CPUS_LIMIT": "2",
        "KERNEL_MEMORY_LIMIT": "4Gi",
    }
    assert limited({}, memory="") == {"KERNEL_CPUS_LIMIT": "2"}
    assert limited({}, cpus="", memory="", metadata={}) == {}


def test_a_request_may_ask_for_less():
    asked = {"KERNEL_CPUS_LIMIT": "500m", "KERNEL_MEMORY_LIMIT": "4294967296", "KERNEL_CPUS": "2"}
    assert limited(dict(asked)) == asked


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("KERNEL_CPUS_LIMIT", "2.1", "kernel_cpus_limit"),
        ("KERNEL_CPUS", "2001m", "kernel_cpus_limit"),
        ("KERNEL_MEMORY_LIMIT", "5Gi", "kernel_memory_limit"),
        ("KERNEL_MEMORY", "1Ti", "kernel_memory_limit"),
    ],
)
def test_a_request_for_more_names_the_setting(name, value, setting):
    with pytest.raises(InvalidRequest, match=f"{name}={value} is more than {setting} "):
        limited({name: value})
    with pytest.raises(InvalidRequest, match=f"{name}: 'lots' is not a positive number"):
        limited({name: "lots"})


def test_a_provisioner_that_ignores_them_is_refused():
    for metadata in ({}, {"kbridge": {"limits": False}}, {"kbridge": "limits"}):
        with pytest.raises(
            KernelStartError, match="local-provisioner does not apply kernel_cpus_limit and kernel"
        ):
            limited({}, provisioner="local-provisioner", metadata=metadata)
    assert limited({}, provisioner="kubernetes-provisioner", metadata={})


async def test_kernels_are_started_with_the_limits(make_manager, fake, fleet):
    manager = make_manager(kernel_cpus_limit="2", kernel_memory_limit="4Gi")
    name = fake(metadata=APPLIES)
    await manager.start_kernel(name)
    await manager.start_kernel(name, env={"KERNEL_CPUS_LIMIT": "1"})
    assert [kernel.env["KERNEL_CPUS_LIMIT"] for kernel in fleet] == ["2", "1"]
    assert [kernel.env["KERNEL_MEMORY_LIMIT"] for kernel in fleet] == ["4Gi", "4Gi"]
    with pytest.raises(InvalidRequest, match="kernel_memory_limit"):
        await manager.start_kernel(name, env={"KERNEL_MEMORY_LIMIT": "1Ti"})
    with pytest.raises(KernelStartError, match="provisioner fake does not apply"):
        await manager.start_kernel(fake("other"))
    assert len(FakeProvisioner.fleet) == 2


@pytest.mark.parametrize("name", ["kernel_cpus_limit", "kernel_memory_limit"])
def test_a_setting_that_is_not_a_limit(make_manager, name):
    with pytest.raises(TraitError, match=f"{name}: 'lots' is not a positive number"):
        make_manager(**{name: "lots"})
