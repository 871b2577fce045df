"""The number of kernels of each user, on one server."""

import asyncio
import contextlib

import pytest

from kbridge.errors import KernelLimitReached
from kbridge.kernels.lifecycle.start_limits import StartLimits, check_user
from tests.kernels.conftest import FakeProvisioner, pooled
from tests.support.waiting import until


def test_the_message_names_user_and_setting():
    check_user("alice", 1, 2)
    check_user("alice", 100, None)
    with pytest.raises(
        KernelLimitReached,
        match=r"alice has 2 kernel\(s\), and max_kernels_per_user allows no more",
    ):
        check_user("alice", 2, 2)


def test_starts_under_way_count_for_their_user():
    limits = StartLimits(None, 4, 2)
    with contextlib.ExitStack() as under_way:
        under_way.enter_context(limits.admit(1, "alice", 1))
        with pytest.raises(KernelLimitReached), limits.admit(1, "alice", 1):
            pass
        under_way.enter_context(limits.admit(1, "bob", 0))
        under_way.enter_context(limits.admit(1, "bob", 0))
        with pytest.raises(KernelLimitReached), limits.admit(1, "bob", 0):
            pass
        for _ in range(5):  # the operator
            under_way.enter_context(limits.admit(1))
    with limits.admit(1, "alice", 1):
        pass


async def start_all(manager, name, *users):
    """Start a kernel for each user at once; return the users who got one, and the errors."""
    starts = [manager.start_kernel(name, user=user) for user in users]
    ends = await asyncio.gather(*starts, return_exceptions=True)
    errors = [end for end in ends if isinstance(end, BaseException)]
    assert all(type(error) is KernelLimitReached for error in errors), errors
    return [u for u, end in zip(users, ends, strict=True) if isinstance(end, str)], errors


async def test_a_user_gets_as_many_kernels_as_allowed(make_manager, fake):
    manager = make_manager(max_kernels_per_user=2)
    got, errors = await start_all(manager, fake(), *["alice", "bob", ""] * 4)
    assert sorted(got) == [""] * 4 + ["alice"] * 2 + ["bob"] * 2
    assert len(errors) == 4
    [mine, _] = [m["id"] for m in manager.models() if m.get("user") == "alice"]
    await manager.shutdown_kernel(mine)
    assert (await start_all(manager, "fake", "alice", "alice"))[0] == ["alice"]


async def test_kernels_of_a_pool_count(make_manager, spec):
    manager = make_manager(max_kernels_per_user=1, pool={spec("s"): 1})
    await manager.open()
    await until(lambda: pooled(manager, "s"), "the pool is full")
    [waiting] = pooled(manager, "s")
    got, _ = await start_all(manager, "s", "alice", "alice")
    assert got == ["alice"]
    assert waiting.user == "alice"


async def test_a_failed_start_does_not_count(make_manager, fake, monkeypatch):
    manager = make_manager(max_kernels_per_user=1)
    name = fake()

    async def launch(*_args, **_kwargs):
        raise RuntimeError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(FakeProvisioner, "launch_kernel", launch)
        for _ in range(3):
            with pytest.raises(Exception, match="no room"):
                await manager.start_kernel(name, user="alice")
    assert await manager.start_kernel(name, user="alice")


async def test_a_dead_kernel_counts_again_once_it_is_restarted(make_manager, fake, fleet):
    manager = make_manager(max_kernels_per_user=1, restart_limit=0)
    first = await manager.start_kernel(fake(), user="alice")
    fleet[0].code = 1
    await until(lambda: manager.model(first)["execution_state"] == "dead", "it is dead")
    second = await manager.start_kernel("fake", user="alice")
    with pytest.raises(KernelLimitReached, match="alice has 1"):
        await manager.restart_kernel(first)
    await manager.shutdown_kernel(second)
    await manager.restart_kernel(first)
    with pytest.raises(KernelLimitReached):
        await manager.start_kernel("fake", user="alice")


async def test_a_restart_of_a_kernel_that_runs_needs_no_room(make_manager, fake):
    manager = make_manager(max_kernels_per_user=1, max_kernels=1)
    kernel_id = await manager.start_kernel(fake(), user="alice")
    await manager.restart_kernel(kernel_id)
    assert manager.model(kernel_id)["user"] == "alice"
