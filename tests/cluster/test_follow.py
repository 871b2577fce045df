"""The kernels that a replica follows."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from kbridge.cluster.follow import Followers, connection_of
from kbridge.cluster.remote_kernel import end_in, shown_state
from kbridge.hub import Hub
from kbridge.kernels.registry.models import KernelRole, KernelRow
from kbridge.wire.message import Channel
from kbridge.wire.zmq import parse, serialize
from tests.cluster.rig import (
    INFO,
    LEASE,
    LOG,
    SIGNER,
    ReplicaRig,
    kernel_row,
    message,
    other_ports,
)
from tests.support.waiting import until


@pytest.fixture
def a(both: tuple[ReplicaRig, ReplicaRig]) -> ReplicaRig:
    return both[0]


@pytest.fixture
def b(both: tuple[ReplicaRig, ReplicaRig]) -> ReplicaRig:
    return both[1]


@pytest.fixture
def following(b: ReplicaRig) -> Followers:
    return Followers(b.membership, b.hubs, LOG)


async def test_kernels_of_others_are_followed_until_they_end(
    a: ReplicaRig, b: ReplicaRig, following: Followers
) -> None:
    a.put(kernel_row("k"))
    b.put(kernel_row("own"))
    await b.see()
    following.open()
    assert set(b.hubs.followed) == {"k"}
    a.put(kernel_row("l"))
    await b.see()
    assert set(b.hubs.followed) == {"k", "l"}
    hub = b.hubs.followed["k"]
    assert hub.following
    a.store.write({("kernel", "k"): None})
    await b.see()
    assert set(b.hubs.followed) == {"l"}
    await until(lambda: hub.closed, "the hub is closed")
    await following.aclose()
    await following.aclose()


async def test_a_kernel_is_reported_once_it_answers(
    a: ReplicaRig, b: ReplicaRig, following: Followers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=LOG.name)
    a.put(kernel_row())
    await b.see()
    following.open()
    await b.see()
    assert "Following" not in caplog.text
    link = b.links[-1]
    link.connect()
    for channel, frames in list(link.sent):
        probe = parse(channel, frames, SIGNER)
        info = {"protocol_version": "5.3", "status": "ok"}
        reply = message(channel, "kernel_info_reply", info, probe.header)
        idle = message(Channel.IOPUB, "status", {"execution_state": "idle"}, probe.header)
        link.say(channel, serialize(reply, SIGNER))
        link.say(Channel.IOPUB, serialize(idle, SIGNER))
    assert b.hubs.followed["k"].ready
    await until(lambda: "Following kernel k of a" in caplog.messages, "the kernel is followed")
    await following.aclose()


async def test_another_replica_takes_its_share(
    a: ReplicaRig, b: ReplicaRig, following: Followers
) -> None:
    names = [f"kernel-{i}" for i in range(20)]
    a.put(*map(kernel_row, names))
    c = ReplicaRig(b.registry.path, "c")
    await b.see()
    following.open()
    kernels = b.kernels()
    expected = {name for name in names if b.membership.followers(kernels[name]) == ["b"]}
    assert 0 < len(expected) < 20
    await until(lambda: set(b.hubs.followed) == expected, "the share of this replica is followed")
    c.store.leave()
    await b.see()
    await until(lambda: set(b.hubs.followed) == set(names), "all kernels are followed")
    await c.membership.leave()
    c.registry.close()
    await following.aclose()


async def test_many_kernels_do_not_hold_the_event_loop_up(
    a: ReplicaRig, b: ReplicaRig, following: Followers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that comes or goes changes the followers of all kernels."""
    names = [f"kernel-{i}" for i in range(40)]
    a.put(*map(kernel_row, names))
    await b.see()
    passes: list[list[str]] = [[]]  # the kernels of each pass of the loop
    follow_one = b.hubs.follow

    def note(kernel_id: str, info: dict[str, Any]) -> Hub:
        if not passes[-1]:
            asyncio.get_running_loop().call_soon(passes.append, [])
        passes[-1].append(kernel_id)
        time.sleep(0.001)  # as long as a turn
        return follow_one(kernel_id, info)

    monkeypatch.setattr(b.hubs, "follow", note)
    following.open()
    assert 0 < len(b.hubs.followed) < 10
    await until(lambda: set(b.hubs.followed) == set(names), "all kernels are followed")
    assert {len(kernels) for kernels in passes[1:] if kernels} == {1}
    assert sum(map(len, passes)) == len(names)
    await following.aclose()


async def test_an_error_with_one_kernel_does_not_stop_the_others(
    a: ReplicaRig,
    b: ReplicaRig,
    following: Followers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [f"kernel-{i}" for i in range(40)]
    a.put(*map(kernel_row, names))
    await b.see()
    follow_one = b.hubs.follow
    bad = {names[0], names[20]}  # at once, and in a turn

    def fail(kernel_id: str, info: dict[str, Any]) -> Hub:
        if kernel_id in bad:
            raise RuntimeError("a fault")
        return follow_one(kernel_id, info)

    monkeypatch.setattr(b.hubs, "follow", fail)
    following.open()
    await until(lambda: set(b.hubs.followed) == {*names} - bad, "the others are followed")
    for name in bad:
        assert f"Kernel {name} cannot be followed" in caplog.messages
    a.put(*(kernel_row(f"later-{i}") for i in range(20)))
    await b.see()
    await until(lambda: len(b.hubs.followed) == 58, "later kernels are followed")
    await following.aclose()


async def test_the_hub_of_a_kernel_without_owner_stays(
    a: ReplicaRig, b: ReplicaRig, following: Followers
) -> None:
    a.put(kernel_row())
    await b.see()
    following.open()
    a.store.leave()
    await b.see()
    assert set(b.hubs.followed) == {"k"}
    assert b.take("k", "a")
    await b.see()  # before the takeover
    assert set(b.hubs.followed) == {"k"}
    await following.aclose()


@pytest.mark.parametrize("role", [KernelRole.STARTING, KernelRole.POOLED])
async def test_kernels_that_no_client_knows_are_not_followed(
    a: ReplicaRig, b: ReplicaRig, following: Followers, role: str
) -> None:
    a.put(kernel_row(role=role))
    await b.see()
    following.open()
    assert not b.hubs.followed
    a.put(kernel_row())
    await b.see()
    assert set(b.hubs.followed) == {"k"}
    await following.aclose()


async def test_a_follower_connects_to_the_next_process(
    a: ReplicaRig, b: ReplicaRig, following: Followers
) -> None:
    a.put(kernel_row())
    await b.see()
    following.open()
    a.put(kernel_row(pid=8))
    await b.see()
    assert len(b.links) == 1
    a.put(kernel_row(connection=other_ports(iopub_port=99)))
    await b.see()
    assert len(b.links) == 2
    assert b.links[0].closed
    await following.aclose()


async def test_a_kernel_that_waits_in_a_queue_is_followed_once_it_runs(
    a: ReplicaRig, b: ReplicaRig, following: Followers
) -> None:
    a.put(kernel_row(connection=None))
    await b.see()
    following.open()
    assert not b.hubs.followed
    a.put(kernel_row())
    await b.see()
    hub = b.hubs.followed["k"]
    a.put(kernel_row(connection=None))  # it is restarted with another job
    await b.see()
    assert b.hubs.followed["k"] is hub
    a.put(kernel_row(connection=other_ports(iopub_port=99)))
    await b.see()
    assert b.hubs.followed["k"] is hub
    assert [link.closed for link in b.links] == [True, False]
    await following.aclose()


async def test_a_kernel_that_cannot_be_reached_is_logged_once(
    a: ReplicaRig, b: ReplicaRig, following: Followers, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {"transport": "tcp", "ip": "127.0.0.1"}
    a.put(kernel_row(connection=bad))
    await b.see()
    following.open()
    a.put(kernel_row(connection=bad, pid=8))
    await b.see()
    assert not b.hubs.followed
    assert len([r for r in caplog.records if "cannot be followed" in r.getMessage()]) == 1


@pytest.mark.parametrize("details", ["", "{", "[]", '{"connection": 1}', '{"connection": {}}'])
def test_rows_without_a_connection(details: str) -> None:
    from kbridge.kernels.registry.models import ClusterKernel

    row: KernelRow = kernel_row()
    kernel = ClusterKernel(row, "a", "here", 1)
    assert connection_of(kernel) == INFO
    assert connection_of(replace(kernel, row=replace(row, details=details))) is None


async def test_the_end_of_the_owners_journal_is_one_that_was_written_later(
    a: ReplicaRig, b: ReplicaRig, following: Followers
) -> None:
    """An end that was written before this replica began does not say what it has missed."""

    async def owner_renews(end: str) -> None:
        model = {"last_activity": "", "execution_state": "busy", "connections": 1}
        a.store.renew(LEASE, {"k": shown_state(model, end)})
        await b.see()

    a.put(kernel_row())
    await owner_renews("old")
    following.open()
    await owner_renews("old")
    for _ in range(5):
        await owner_renews("before it listens")
    assert following.joined == {}
    b.links[-1].connect()
    for number in range(3):
        await owner_renews(f"{number}")
        assert following.joined == {}
        await b.see()  # another view with the same lease
    await owner_renews("3")
    assert following.joined == {"k": "3"}
    await owner_renews("4")
    assert following.taken("k") == "3"
    assert following.taken("k") is None
    await following.aclose()


@pytest.mark.parametrize("state", ["", "{", "[]", "{}", '{"end": 1}'])
def test_states_without_an_end(state: str) -> None:
    assert end_in(state) is None
