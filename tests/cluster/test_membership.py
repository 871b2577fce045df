"""Members of a cluster on real databases; only the kernels are rows without processes."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from kbridge.cluster import membership
from kbridge.cluster.membership import Change, Membership
from kbridge.errors import RegistryError
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.processes import ProcessState, start_id, state_of
from kbridge.kernels.registry.cluster_registry import ClusterRegistry
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import KernelRow, Owner, Replica, encode
from kbridge.kernels.registry.schema import REPLICAS
from tests.support.server import free_port
from tests.support.waiting import TIMEOUT, until

LOG = logging.getLogger("kbridge.test.membership")
HERE = platform.node()


class Watcher:
    """Notes what an observer hears, and describes kernels."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.described: dict[str, str] = {}

    def on_view(self, change: Change) -> None:
        self.changes.append(change)

    def states(self) -> Iterator[tuple[str, str]]:
        yield from self.described.items()


def replica(name: str, **more: Any) -> Replica:
    pid = os.getpid()
    usual = {"hostname": HERE, "pid": pid, "start_id": start_id(pid), "version": "1"}
    return Replica(**{"replica_id": name, "cluster": "c", "url": "http://x/", **usual, **more})


def other(name: str, **more: Any) -> Replica:
    """A replica on a machine that this test cannot look at."""
    return replica(name, **{"hostname": "elsewhere", **more})


def kernel(name: str = "k", ip: str = "10.0.0.1") -> KernelRow:
    details = encode({"connection": {"ip": ip, "transport": "tcp", "key": b"secret"}})
    return KernelRow(name, "python3", "used", 7, "b", "/l", details)


def row_of(store: ClusterStore, replica_id: str) -> Replica:
    return {r.replica_id: r for r in store.view().replicas}[replica_id]


def put(store: ClusterStore, *rows: KernelRow) -> None:
    store.write({("kernel", row.kernel_id): row for row in rows})


@pytest.fixture
def member(connect):
    """Members, started by `async with member(replica) as (membership, watcher)`."""

    @asynccontextmanager
    async def run(me: Replica, seconds: float = 60.0, count: int = 1):
        store = ClusterStore(connect(), me)
        made = Membership(store, Lease(seconds), count=count, log=LOG)
        watcher = Watcher()
        made.observe(watcher)
        made.add_source(watcher)
        await made.join()
        try:
            yield made, watcher
        finally:
            await made.leave()
            await made.leave()

    return run


@pytest.fixture
def process():
    """A process that waits."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as running:
        yield running
        running.kill()


async def test_a_member_has_a_lease_and_the_secret_and_leaves(member, connect):
    async with member(replica("a")) as (a, _), member(other("b")) as (b, _):
        assert a.lease.held
        assert a.joined
        assert len(a.secret) >= 40
        assert a.secret == b.secret
        await a.renew()
        assert {r.replica_id for r in a.alive()} == {"a", "b"}
    assert not a.joined
    assert not a.lease.held
    store = ClusterStore(connect(), replica("c"))
    store.join(60.0)
    assert [r.replica_id for r in store.view().replicas] == ["c"]


async def test_a_slow_query_does_not_delay_renewals(member, monkeypatch):
    """Its answer is older than the view of the renewal, which stays."""
    async with member(replica("a")) as (a, _), member(other("b")) as (b, _):
        put(b.store, kernel())
        await a.renew()
        go_on, started = threading.Event(), threading.Barrier(4)
        view, row = a.store.view, a.store.kernel

        def slow_view(since: int | None = None) -> Any:
            found = view(since)
            started.wait(TIMEOUT)
            go_on.wait(TIMEOUT)
            return found

        def slow_kernel(kernel_id: str) -> Any:
            started.wait(TIMEOUT)
            go_on.wait(TIMEOUT)
            return row(kernel_id)

        monkeypatch.setattr(a.store, "view", slow_view)
        monkeypatch.setattr(a.store, "kernel", slow_kernel)
        queries = [asyncio.create_task(a.refresh()), asyncio.create_task(a.refresh())]
        queries += [asyncio.create_task(a.fetch("k")) for _ in range(2)]
        await asyncio.to_thread(started.wait, TIMEOUT)  # each thread for queries has one
        try:
            put(b.store, replace(kernel(), pid=8))
            async with asyncio.timeout(TIMEOUT):
                await a.renew()
            assert a.kernels["k"].row.pid == 8
            monkeypatch.setattr(a.store, "view", view)
        finally:
            go_on.set()
        await asyncio.gather(*queries)
        assert a.kernels["k"].row.pid == 8


async def test_changes_of_other_replicas_are_reported(member):
    async with member(replica("a")) as (a, watcher), member(other("b")) as (b, told):
        put(b.store, kernel("k"), kernel("l"))
        told.described = {"k": '{"busy": 1}'}
        await b.renew()
        await a.renew()
        assert {k.kernel_id: k.state for k in a.kernels.values()} == {"k": '{"busy": 1}', "l": ""}
        assert a.owner("k").url == "http://x/"
        assert a.owner("none") is None
        assert {k.kernel_id for c in watcher.changes for k in c.kernels} == {"k", "l"}
        assert any(c.replicas for c in watcher.changes)
        watcher.changes.clear()
        b.store.write({("kernel", "k"): None})
        await a.renew()
        [change] = watcher.changes
        assert (change.kernels, change.ended, change.replicas) == ((), {"k"}, False)
        assert a.kernels.keys() == {"l"}


async def test_many_states_are_described_in_several_passes_of_the_loop(member):
    async with member(replica("a")) as (membership, watcher):
        passes: list[int] = [0]

        def states() -> Iterator[tuple[str, str]]:
            for number in range(500):
                if not passes[-1]:
                    asyncio.get_running_loop().call_soon(passes.append, 0)
                passes[-1] += 1
                yield f"k{number}", "{}"

        watcher.states = states
        await membership.renew()
        assert sum(passes) == 500
        assert max(passes) <= 100


async def test_an_error_that_nobody_expects_does_not_end_the_renewals(member, caplog):
    async with member(replica("a"), seconds=0.3) as (membership, watcher):

        def states() -> Iterator[tuple[str, str]]:
            raise ZeroDivisionError

        watcher.states = states
        await until(lambda: caplog.text.count("could not be renewed") > 1, "it is tried again")
        watcher.states = lambda: iter(())
        await until(lambda: membership.lease.held, "the lease is held again")


async def test_states_are_sent_once(member, monkeypatch):
    async with member(replica("a")) as (a, watcher):
        put(a.store, kernel("k"))
        sent = []
        renew = a.store.renew

        def note(seconds, states, since):
            sent.append(dict(states))
            return renew(seconds, states, since)

        monkeypatch.setattr(a.store, "renew", note)
        watcher.described = {"k": "one"}
        for _ in range(2):
            await a.renew()
        watcher.described = {"k": "two"}
        await a.renew()
        assert sent == [{"k": "one"}, {}, {"k": "two"}]


async def test_a_refresh_reads_the_view_and_writes_nothing(member):
    async with member(replica("a")) as (a, watcher), member(other("b")) as (b, _):
        put(a.store, kernel("l"))
        await a.renew()
        put(b.store, kernel("k"))
        watcher.described = {"l": "new"}
        a.lease.end()
        watcher.changes.clear()
        await a.refresh()
        assert a.kernels.keys() == {"k", "l"}
        assert [[k.kernel_id for k in change.kernels] for change in watcher.changes] == [["k"]]
        assert not a.lease.held
        assert a.store.kernel("l").state == ""
        b.store.write({("kernel", "k"): None})
        await a.refresh()
        assert a.kernels.keys() == {"l"}
        await a.renew()
        assert a.lease.held
        assert a.store.kernel("l").state == "new"


async def test_a_refresh_without_the_database_keeps_the_view(member, monkeypatch):
    async with member(replica("a")) as (a, _):
        put(a.store, kernel("k"))
        await a.refresh()

        def fail(*arguments):
            raise RegistryError("the database is gone")

        monkeypatch.setattr(a.store, "view", fail)
        await a.refresh()
        assert a.kernels.keys() == {"k"}
        assert a.problem == "the database is gone"


async def test_an_observer_that_fails_does_not_end_the_renewals(member, monkeypatch, caplog):
    async with member(replica("a")) as (a, watcher):

        class Broken:
            def on_view(self, change: Change) -> None:
                raise TypeError("a row that cannot be read")

        last = Watcher()
        a.observe(Broken())
        a.observe(last)
        put(a.store, kernel("k"))
        await a.renew()
        assert a.lease.held
        assert last.changes
        assert watcher.changes
    assert "could not be followed" in caplog.text


async def test_a_replica_is_not_steady_for_one_lease_after_it_was_without_the_database(
    member, monkeypatch
):
    async with member(replica("a"), seconds=60) as (a, _):
        assert a.is_steady("b"), "it has just joined"

        def fail(*arguments):
            raise RegistryError("the database is gone")

        with monkeypatch.context() as patch:
            patch.setattr(a.store, "renew", fail)
            await a.renew()
        await a.renew()
        assert not a.is_steady("b")
        now = a.lease.now()
        monkeypatch.setattr(a.lease, "now", lambda: now + 60)
        assert a.is_steady("b")


async def test_a_replica_that_joins_waits_for_one_lease_of_those_that_it_finds(
    member, connect, monkeypatch
):
    """All leases may be over because the database could not be used.

    If a lease ended later, the replica waits no more: the next one in the order, which does not
    follow the kernels, would take them before it.
    """
    ClusterStore(connect(), other("b")).join(60.0)
    with connect().transaction("written to") as connection:
        connection.execute(update(REPLICAS).values(lease_until=REPLICAS.c.lease_until - 61))
    ClusterStore(connect(), other("c")).join(60.0)
    async with member(replica("a"), seconds=10) as (a, _):
        assert not a.is_steady("b")
        assert a.is_steady("c")
        assert a.is_steady("none"), "it has left"
        now = a.lease.now()
        monkeypatch.setattr(a.lease, "now", lambda: now + 60)
        assert a.is_steady("b")


async def test_a_start_leaves_the_kernels_of_a_process_that_runs(tmp_path, process):
    """Its lease is over, and it renews it as soon as it can."""
    url = f"sqlite:///{tmp_path / 'claimed.sqlite'}"
    theirs = replica("b", pid=process.pid, start_id=start_id(process.pid))
    old, new = ClusterRegistry(url, theirs), ClusterRegistry(url, replica("a"))
    old.prepare()
    new.prepare()
    old.store.join(-1.0)
    put(old.store, kernel())
    owner = Owner("c", HERE, os.getpid(), "")
    assert new.claim(owner, state_of).kernels == []
    process.kill()
    process.wait()
    assert new.claim(owner, state_of).kernels == [kernel()]
    old.close()
    new.close()


@pytest.mark.parametrize("ip", ["127.0.0.1", "10.0.0.1"])
@pytest.mark.parametrize("hostname", [HERE, "far away"])
async def test_a_start_leaves_kernels_to_the_replicas_that_may_have_their_output(
    tmp_path, process, ip, hostname
):
    url = f"sqlite:///{tmp_path / 'claimed.sqlite'}"
    theirs = replica("b", pid=process.pid, start_id=start_id(process.pid))
    old, new = ClusterRegistry(url, theirs), ClusterRegistry(url, replica("a"))
    pid = os.getppid()
    third = ClusterRegistry(url, replica("c", hostname=hostname, pid=pid, start_id=start_id(pid)))
    for each in (old, new, third):
        each.prepare()
        each.store.join(60.0)
    row = kernel(ip=ip)
    put(old.store, row)
    process.kill()
    process.wait()
    owner = Owner("c", HERE, os.getpid(), "")
    reachable = hostname == HERE or ip != "127.0.0.1"
    assert new.claim(owner, state_of).kernels == ([] if reachable else [row])
    third.store.leave()
    assert new.claim(owner, state_of).kernels == ([row] if reachable else [])
    for each in (old, new, third):
        each.close()


async def test_a_kernel_is_fetched_before_the_next_view(member):
    async with member(replica("a")) as (a, watcher), member(other("b")) as (b, _):
        put(b.store, kernel("k"))
        assert "k" not in a.kernels
        found = await a.fetch("k")
        assert found.replica_id == "b"
        assert a.kernels["k"] == found
        assert watcher.changes[-1].kernels == (found,)
        count = len(watcher.changes)
        await a.fetch("k")
        assert len(watcher.changes) == count
        assert await a.fetch("none") is None


async def test_a_kernel_that_has_ended_is_not_fetched_again(member, monkeypatch):
    """Its row was read before the end, and arrives after the view that reports the end."""
    async with member(replica("a")) as (a, watcher), member(other("b")) as (b, _):
        put(b.store, kernel())
        await a.renew()
        row, read, go_on = a.store.kernel, asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def slow(kernel_id: str) -> Any:
            found = row(kernel_id)
            loop.call_soon_threadsafe(read.set)
            go_on.wait(TIMEOUT)
            return found

        monkeypatch.setattr(a.store, "kernel", slow)
        fetching = asyncio.create_task(a.fetch("k"))
        try:
            await asyncio.wait_for(read.wait(), TIMEOUT)
            b.store.write({("kernel", "k"): None})
            await a.renew()
        finally:
            go_on.set()
        assert await fetching is None
        assert "k" not in a.kernels
        assert watcher.changes[-1].ended == {"k"}


async def test_a_kernel_that_is_fetched_after_its_end_leaves_the_view(member):
    async with member(replica("a")) as (a, watcher), member(other("b")) as (b, _):
        put(b.store, kernel())
        await a.renew()
        b.store.write({("kernel", "k"): None})
        assert await a.fetch("k") is None
        assert "k" not in a.kernels
        assert watcher.changes[-1] == Change(ended=frozenset({"k"}))


async def test_a_kernel_that_ends_while_the_view_is_read_has_ended(member, monkeypatch):
    """PostgreSQL reads the ended kernels later than those that run."""
    async with member(replica("a")) as (a, watcher), member(other("b")) as (b, _):
        put(b.store, kernel())
        await a.renew()
        put(b.store, replace(kernel(), pid=8))
        view = a.store.view

        def both(since: int | None = None) -> Any:
            before = view(since)
            b.store.write({("kernel", "k"): None})
            return replace(view(since), revision=before.revision, kernels=before.kernels)

        monkeypatch.setattr(a.store, "view", both)
        await a.refresh()
        assert "k" not in a.kernels
        assert watcher.changes[-1] == Change(ended=frozenset({"k"}))


async def test_a_replica_whose_process_on_this_machine_has_ended_is_gone_at_once(
    member, connect, process
):
    store = ClusterStore(connect(), replica("b", pid=process.pid, start_id=start_id(process.pid)))
    store.join(1000.0)
    async with member(replica("a")) as (a, watcher):
        assert a.is_alive("b")
        watcher.changes.clear()
        process.kill()
        await until(lambda: a.gone("b"), "the replica is gone")
        assert not a.is_alive("b")
        assert watcher.changes[-1].replicas
        assert [r.replica_id for r in a.alive()] == ["a"]


async def test_a_replica_is_gone_although_the_last_renewal_failed(
    member, connect, process, monkeypatch
):
    store = ClusterStore(connect(), replica("b", pid=process.pid, start_id=start_id(process.pid)))
    store.join(1000.0)
    async with member(replica("a"), seconds=1000.0) as (a, _):

        def fail(*arguments):
            raise RegistryError("the database is gone")

        with monkeypatch.context() as patch:
            patch.setattr(a.store, "renew", fail)
            await a.renew()
            process.kill()
            await until(lambda: a.gone("b"), "the replica is gone")


async def test_a_replica_that_renews_again_is_not_gone(member, connect, process, monkeypatch):
    """The row that was seen after the end of the process is not that of the replica now."""
    store = ClusterStore(connect(), replica("b", pid=process.pid, start_id=start_id(process.pid)))
    store.join(1000.0)
    put(store, kernel())
    async with member(replica("a")) as (a, _):
        process.kill()
        await until(lambda: a.is_alive("b") is False, "the replica is gone")
        gone = a.gone("b")
        store.renew(1000.0)
        assert await a.call(lambda: a.store.take("k", "b", gone=gone)) is None
        monkeypatch.setattr(membership, "state_of", lambda *_: ProcessState.RUNNING)
        await a.renew()
        assert a.gone("b") is None
        assert a.is_alive("b")


async def test_a_start_of_another_boot_does_not_end_a_lease(member, connect):
    """Two machines may have the same name."""
    pid = os.getpid()
    _, namespace, start = start_id(pid).split("/")
    far = replica("b", start_id=f"another-boot/{namespace}/{start}")
    ClusterStore(connect(), far).join(1000.0)
    async with member(replica("a")) as (a, watcher):
        views = len(watcher.changes)
        a.suspect("b")
        await until(lambda: len(watcher.changes) > views, "the view was read again")
        assert a.is_alive("b")
        assert a.gone("b") is None


async def test_a_refused_connection_does_not_end_a_lease(member, connect):
    """The lease is overdue, and nothing listens at the address: the view is read, and no more."""
    url = f"http://127.0.0.1:{free_port()}/"
    store = ClusterStore(connect(), other("b", url=url))
    store.join(30.0)
    with store.registry.transaction("written to") as connection:
        connection.execute(update(REPLICAS).values(lease_seconds=60.0))
    async with member(replica("a")) as (a, watcher):
        views = len(watcher.changes)
        await until(lambda: len(watcher.changes) > views, "the view was read again")
        assert a.is_alive("b")
        assert a.gone("b") is None
        a.suspect("none")
        a.suspect("a")
        assert a.is_alive("a")


async def test_a_silent_replica_lives_until_the_end_of_its_lease(member, connect):
    ClusterStore(connect(), other("b")).join(1.0)
    async with member(replica("a"), seconds=1.0) as (a, _):
        await until(lambda: not a.is_alive("b"), "its lease is over")
        assert a.gone("b") is None


async def test_a_replica_is_judged_by_the_duration_of_its_own_lease(member, connect, monkeypatch):
    ClusterStore(connect(), other("b")).join(100.0)
    async with member(replica("a"), seconds=10.0) as (a, _):

        def fail(*arguments):
            raise RegistryError("the database is gone")

        with monkeypatch.context() as patch:
            patch.setattr(a.store, "renew", fail)
            await a.renew()
        await a.renew()
        now = a.lease.now()
        monkeypatch.setattr(a.lease, "now", lambda: now + 50)
        assert a.is_steady("none")
        assert not a.is_steady("b"), "it may be about to renew its lease"
        monkeypatch.setattr(a.lease, "now", lambda: now + 100)
        assert a.is_steady("b")


async def test_replicas_with_a_loopback_address_are_named_once(member, connect, caplog):
    async with member(replica("a", url="http://127.0.0.1:1/")) as (a, _):
        assert "cannot reach" not in caplog.text, "all replicas run on this machine"
        ClusterStore(connect(), other("b", url="http://localhost:2/")).join(60.0)
        ClusterStore(connect(), other("c", url="http://c.example/")).join(60.0)
        for _ in range(2):
            await a.renew()
    told = [r.getMessage() for r in caplog.records if "advertise_url" in r.getMessage()]
    assert len(told) == 2
    assert "the replica b on elsewhere at http://localhost:2/" in "".join(told)


async def test_a_replica_that_was_alive_a_short_time_ago_may_return(member, connect):
    async with member(replica("a"), seconds=10.0) as (a, _):
        for name, ago in (("short", 1), ("long", 31)):
            ClusterStore(connect(), other(name)).join(10.0)
            with connect().transaction("written to") as connection:
                connection.execute(
                    update(REPLICAS)
                    .where(REPLICAS.c.replica_id == name)
                    .values(lease_until=REPLICAS.c.lease_until - 10 - ago)
                )
        with connect().transaction("written to") as connection:
            connection.execute(update(REPLICAS).values(lease_seconds=10.0))
        ClusterStore(connect(), other("b")).join(10.0)
        put(ClusterStore(connect(), other("b")), kernel("k"))
        await a.renew()
        found = a.kernels["k"]
        assert a.successors(found) == ["a"]
        assert sorted(a.successors(found, silent=True)) == ["a", "short"]


async def test_successors_are_those_that_can_serve_the_kernel(member, connect):
    async with member(replica("a"), count=2) as (a, _), member(replica("b")) as (b, _):
        for name in ("x", "y"):
            ClusterStore(connect(), other(name)).join(60.0)
        put(a.store, kernel("far"), kernel("near", ip="127.0.0.1"))
        await a.renew()
        far, near = a.kernels["far"], a.kernels["near"]
        found = a.successors(far)
        assert found[0] == "b", "it is on the machine of the process"
        assert sorted(found[1:]) == ["x", "y"]
        assert a.followers(far) == found[:2]
        assert a.successors(near) == ["b"]
        await b.drain()
        await a.renew()
        assert a.successors(near) == []
        assert sorted(a.successors(far)) == ["x", "y"]
        await b.renew()
        assert b.successors(near) == []


async def test_the_end_of_a_lease_is_noticed_without_the_database(member, monkeypatch):
    async with member(replica("a"), seconds=1.0) as (a, _):
        renew = a.store.renew

        def fail(*arguments):
            raise RegistryError("the database is gone")

        monkeypatch.setattr(a.store, "renew", fail)
        await until(lambda: not a.lease.held, "the lease is over")
        assert a.problem == "the database is gone"
        monkeypatch.setattr(a.store, "renew", renew)
        await asyncio.wait_for(a.lease.wait(), 60)
        assert a.problem == ""


async def test_a_lost_kernel_is_reported_before_the_lease_is_held_again(member, connect):
    async with member(replica("a")) as (a, watcher):
        put(a.store, kernel("k"))
        await a.renew()
        b = ClusterStore(connect(), other("b"))
        b.join(60.0)
        assert b.take("k", "a", gone=row_of(b, "a")) is not None
        a.lease.end()
        held = []
        watcher.on_view = lambda change: held.append((a.lease.held, change.kernels))
        await a.renew()
        [(was_held, [lost])] = held
        assert (was_held, lost.replica_id) == (False, "b")
        assert a.lease.held


async def test_a_database_that_cannot_be_used_is_an_error_at_the_start(tmp_path):
    from kbridge.kernels.registry.registry import Registry

    (tmp_path / "file").touch()
    registry = Registry(str(tmp_path / "file" / "registry.sqlite"))
    made = Membership(ClusterStore(registry, replica("a")), Lease(5.0), count=1, log=LOG)
    with pytest.raises(RegistryError, match="cannot be opened"):
        await made.join()
    await made.leave()


async def test_a_view_that_is_older_than_a_takeover_does_not_undo_it(member, connect, monkeypatch):
    """The database made the view before the kernel was taken; the answer arrives later."""
    b = ClusterStore(connect(), other("b"))
    b.join(60.0)
    put(b, kernel("k"), kernel("l"))
    async with member(replica("a")) as (a, watcher):
        renew = a.store.renew
        b.renew(60.0)
        gone = row_of(b, "b")

        def slow(seconds, states, since):
            view = renew(seconds, states, None)
            a.kernels |= {k.kernel_id: k for k in a.store.take_all(["k"], "b", gone=gone)}
            return view

        monkeypatch.setattr(a.store, "renew", slow)
        put(b, kernel("k", "10.0.0.2"), kernel("l", "10.0.0.2"))
        watcher.changes.clear()
        await a.renew()
        assert a.kernels["k"].replica_id == "a"
        assert [[k.kernel_id for k in change.kernels] for change in watcher.changes] == [["l"]]
        monkeypatch.setattr(a.store, "renew", renew)
        await a.renew()
        assert a.kernels["k"].replica_id == "a"
