"""A replica that goes on with the kernels of another one."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from kbridge.cluster.takeover import ReplicaHubs
from kbridge.errors import RegistryError
from kbridge.flow.handover import Handover
from kbridge.hub import Hub
from kbridge.kernels.registry.models import Place
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel
from tests.cluster.rig import INFO, LOG, ReplicaRig, kernel_row, line
from tests.hub.rig import Peer, texts
from tests.support.waiting import TIMEOUT


def attach(hub: Hub, session_id: str, since: str = "") -> Peer:
    client = Peer()
    cursor = hub.attach(client, V1, session_id, since)
    client.hear = lambda payload: hub.on_pong(cursor, payload)
    client.answer()
    return client


@pytest.mark.parametrize("follows", [True, False])
async def test_clients_go_on(both: tuple[ReplicaRig, ReplicaRig], follows: bool) -> None:
    a, b = both
    one = ReplicaHubs(a.membership, a.hubs, LOG)
    two = ReplicaHubs(b.membership, b.hubs, LOG)
    a.put(kernel_row())
    first = a.hubs.open("k", INFO)
    await b.see()
    if follows:
        two.followers.open()
    attach(first, "s")
    output = [line(f"{i}\n") for i in range(4)]
    for each in output[:2]:
        for replica in both if follows else [a]:
            replica.say(each)
    await one.hand_over("k")
    identity = first.identities[-1]
    await a.hubs.aclose()
    kernel = b.take("k", "a")
    assert kernel is not None
    await two.promote(kernel)
    hub = b.hubs["k"]
    assert not b.hubs.followed
    assert b.hubs.open("k", INFO) is hub
    assert identity in b.links[-1].former
    for each in output[2:]:
        b.say(each)
    assert "".join(texts(attach(hub, "s"))) == "2\n3\n"
    await two.aclose()
    await one.aclose()


async def test_requests_for_a_kernel_that_waits_are_answered_after_a_takeover(
    both: tuple[ReplicaRig, ReplicaRig],
) -> None:
    a, b = both
    one = ReplicaHubs(a.membership, a.hubs, LOG)
    two = ReplicaHubs(b.membership, b.hubs, LOG)
    a.put(kernel_row(connection=None))
    first = a.hubs.open("k", None)
    client = Peer()
    cursor = first.attach(client, V1, "s")
    client.answer()
    request = build(Channel.SHELL, "execute_request", {"code": "1"}, session="s", date="")
    first.submit(cursor, request)
    await one.hand_over("k")
    await a.hubs.aclose()
    kernel = b.take("k", "a")
    assert kernel is not None
    await two.promote(kernel)
    assert not b.links
    hub = b.hubs["k"]
    assert hub.waiting_requests == 0
    assert [each.state for each in hub.executions.find()] == ["waiting"]
    hub.reconnect(INFO)
    assert len(b.links) == 1
    await two.aclose()
    await one.aclose()


async def test_a_database_that_fails_does_not_stop_a_takeover(
    both: tuple[ReplicaRig, ReplicaRig],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = both
    two = ReplicaHubs(b.membership, b.hubs, LOG)
    a.put(kernel_row())
    await b.see()
    two.followers.open()
    b.say(line("0\n"))

    def fail(*_args: Any) -> Any:
        raise RegistryError("down")

    monkeypatch.setattr(b.store, "places", fail)
    await two.promote(b.kernels()["k"])
    assert "twice: down" in caplog.text
    assert b.links[-1].former == [b"old"]
    assert texts(attach(b.hubs["k"], "s", "start")) == ["0\n"]
    await two.aclose()


async def written_by_a(a: ReplicaRig, b: ReplicaRig, names: list[str]) -> None:
    """Let the first replica serve kernels, write their state, and lose them."""
    a.put(*map(kernel_row, names))
    a.store.put_changes([Place(name, '"s"', '"m"') for name in names], [])
    rows = {replica.replica_id: replica for replica in a.store.view().replicas}
    assert len(b.store.take_all(names, "a", gone=rows["a"])) == len(names)


async def test_many_kernels_are_taken_over_with_few_reads(
    both: tuple[ReplicaRig, ReplicaRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while all other calls of the database hang."""
    a, b = both
    two = ReplicaHubs(b.membership, b.hubs, LOG)
    names = [f"kernel-{i}" for i in range(45)]
    await written_by_a(a, b, names)
    kernels, go_on = b.kernels(), threading.Event()
    reads: list[tuple[str, ...]] = []
    taken: dict[str, Handover] = {}
    places = b.store.places

    def note(*kernel_ids: str) -> list[Place]:
        reads.append(kernel_ids)
        return places(*kernel_ids)

    async def take_over(kernel_id: str, _info: Any, handover: Handover, _joined: Any) -> None:
        taken[kernel_id] = handover

    monkeypatch.setattr(b.store, "places", note)
    monkeypatch.setattr(b.hubs, "take_over", take_over)
    others = [asyncio.create_task(b.membership.call(go_on.wait)) for _ in range(10)]
    try:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(two.promote(kernels[name]) for name in names))
    finally:
        go_on.set()
        await asyncio.gather(*others)
    assert len(reads) == 3
    assert {name: dict(each.places) for name, each in taken.items()} == {
        name: {"s": "m"} for name in names
    }
    await two.aclose()


async def test_a_database_that_fails_is_asked_once_by_kernels_that_wait(
    both: tuple[ReplicaRig, ReplicaRig],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = both
    two = ReplicaHubs(b.membership, b.hubs, LOG)
    names = [f"kernel-{i}" for i in range(45)]
    await written_by_a(a, b, names)
    kernels = b.kernels()
    reads = []

    def fail(*kernel_ids: str) -> Any:
        reads.append(kernel_ids)
        raise RegistryError("down")

    monkeypatch.setattr(b.store, "places", fail)
    await asyncio.gather(*(two.promote(kernels[name]) for name in names))
    assert len(reads) == 1
    assert caplog.text.count("twice: down") == len(names)
    assert {hub.kernel_id for hub in b.hubs} == set(names)
    monkeypatch.undo()
    b.put(kernel_row("later"))
    b.store.put_changes([Place("later", '"s"', '"m"')], [])
    await two.promote(b.kernels()["later"])
    assert caplog.text.count("twice") == len(names)
    await two.aclose()


async def test_a_kernel_without_a_usable_connection_is_not_promoted(
    both: tuple[ReplicaRig, ReplicaRig], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = both
    two = ReplicaHubs(b.membership, b.hubs, LOG)
    for connection in ({}, {"transport": "x"}):
        a.put(kernel_row(connection=connection))
        await two.promote(b.kernels()["k"])
    assert b.hubs.get("k") is None
    assert caplog.text.count("cannot be reached") == 1
    await two.aclose()


@pytest.mark.parametrize("role", ["used", "pooled"])
async def test_a_replica_lacks_the_output_of_kernels_that_others_follow(
    both: tuple[ReplicaRig, ReplicaRig], role: str
) -> None:
    a, b = both
    two = ReplicaHubs(b.membership, b.hubs, LOG)
    a.put(kernel_row(role=role))
    await b.see()
    kernel = b.kernels()["k"]
    followed = role == "used"
    assert two.lacks_output(kernel, 0) is followed
    two.followers.open()
    assert set(b.hubs.followed) == ({"k"} if followed else set())
    assert not two.lacks_output(kernel, 0)
    # The first one in the order is only silent: this replica has begun to follow since then.
    assert two.lacks_output(kernel, 1) is followed
    await two.aclose()


async def test_a_kernel_that_was_lost_is_followed(both: tuple[ReplicaRig, ReplicaRig]) -> None:
    a, b = both
    one = ReplicaHubs(a.membership, a.hubs, LOG)
    a.put(kernel_row())
    client = attach(a.hubs.open("k", INFO), "s")
    assert b.take("k", "a")
    await one.open()
    await a.see()
    assert a.hubs.get("k") is not None
    await one.demote("k")
    assert client.closed_with == (1012, "the server is restarting")
    assert set(a.hubs.followed) == {"k"}
    await one.aclose()


async def test_a_replica_that_is_started_again_goes_on_with_its_kernels(
    both: tuple[ReplicaRig, ReplicaRig],
) -> None:
    a, b = both
    one = ReplicaHubs(a.membership, a.hubs, LOG)
    two = ReplicaHubs(b.membership, b.hubs, LOG)
    a.put(kernel_row())
    attach(a.hubs.open("k", INFO), "s")
    a.say(line("0\n"))
    await one.hand_over("k")
    await a.hubs.aclose()
    assert b.take("k", "a")
    hub = b.hubs.open("k", INFO, former=[b"old"], adopted=True)  # its adoption at the start
    await two.open()
    assert b.hubs["k"] is hub
    b.say(line("1\n"))
    assert texts(attach(hub, "s")) == ["1\n"]
    await two.aclose()
    await one.aclose()
