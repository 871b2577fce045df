"""The rows of a cluster on SQLite and PostgreSQL, with several replicas."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import delete, event, insert, select, text, update

from kbridge.errors import InvalidRequest, KernelLimitReached, RegistryError
from kbridge.kernels.registry import engine
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.engine import make_engine
from kbridge.kernels.registry.models import (
    ExecutionRow,
    KeptRows,
    KernelRow,
    Place,
    Replica,
    SessionRow,
)
from kbridge.kernels.registry.schema import CLUSTERS, ENDED, REPLICAS
from tests.support.waiting import eventually

T = TypeVar("T")

LEASE = 600.0  # no lease ends by itself during a test


def replica(name: str, cluster: str = "c", host: str = "here") -> Replica:
    return Replica(name, cluster, f"http://{name}:8888", host, 7, "start", "1.0")


def kernel(name: str = "k", **fields: Any) -> KernelRow:
    usual = {"kernel_name": "python3", "role": "used", "pid": 7, "start_id": "b"}
    return KernelRow(**{"kernel_id": name, "log_path": "/l", "details": "{}", **usual, **fields})


def session(name: str = "s", path: str = "a.ipynb", kernel_id: str = "k") -> SessionRow:
    return SessionRow(name, kernel_id, path, None, "notebook")


def put(store: ClusterStore, *rows: KernelRow) -> frozenset[str]:
    return store.write({("kernel", row.kernel_id): row for row in rows})


def insist(work: Callable[[], T]) -> T:
    """Try again while other threads keep an SQLite file locked, as a server does."""
    while True:
        try:
            return work()
        except RegistryError as error:
            if "keeps it locked" not in str(error):
                raise


def expire(store: ClusterStore, replica_id: str, seconds: float = 1.0) -> None:
    """Let the lease of a replica have ended some seconds ago."""
    with store.registry.transaction("written to") as connection:
        left = connection.execute(
            select(REPLICAS.c.lease_until).where(REPLICAS.c.replica_id == replica_id)
        ).scalar_one()
        connection.execute(
            update(REPLICAS)
            .where(REPLICAS.c.replica_id == replica_id)
            .values(lease_until=left - LEASE - seconds)
        )


@pytest.fixture
def a(connect):
    return ClusterStore(connect(), replica("a"))


@pytest.fixture
def b(connect):
    return ClusterStore(connect(), replica("b", host="there"))


@pytest.fixture
def both(a, b):
    a.join(LEASE)
    b.join(LEASE)
    return a, b


def row_of(store: ClusterStore, replica_id: str) -> Replica:
    return {r.replica_id: r for r in store.view().replicas}[replica_id]


def owner(store: ClusterStore, kernel_id: str = "k") -> str:
    found = store.kernel(kernel_id)
    return found.replica_id if found is not None else ""


def test_the_first_replica_makes_the_secret_and_the_others_get_it(connect, a, b):
    secret = a.join(LEASE)
    assert len(secret) >= 40
    assert b.join(LEASE) == secret
    other = ClusterStore(connect(), replica("o", cluster="other"))
    assert other.join(LEASE) not in ("", secret)


def test_replicas_that_start_at_once_have_one_secret(connect):
    stores = [ClusterStore(connect(), replica(f"r{i}")) for i in range(4)]
    barrier = threading.Barrier(len(stores))

    def join(store: ClusterStore) -> str:
        barrier.wait()
        return store.join(LEASE)

    with ThreadPoolExecutor(len(stores)) as threads:
        assert len(set(threads.map(join, stores))) == 1


def test_replicas_see_each_other_until_they_leave(both):
    a, b = both
    view = a.renew(LEASE)
    found = {r.replica_id: r for r in view.replicas}
    assert found.keys() == {"a", "b"}
    assert (found["b"].url, found["b"].hostname) == ("http://b:8888", "there")
    assert 0 < found["b"].lease_left <= LEASE
    assert not found["b"].draining
    b.drain()
    assert {r.replica_id: r.draining for r in a.renew(LEASE).replicas} == {"a": False, "b": True}
    b.leave()
    assert [r.replica_id for r in a.renew(LEASE).replicas] == ["a"]


def test_a_lease_ends_and_is_renewed(both):
    a, b = both
    expire(a, "b")
    assert {r.replica_id: r.alive for r in a.view().replicas} == {"a": True, "b": False}
    b.renew(LEASE)
    assert {r.replica_id: r.alive for r in a.view().replicas} == {"a": True, "b": True}


def test_a_replica_that_was_forgotten_comes_back(both):
    a, b = both
    expire(a, "b", seconds=1000)
    assert [r.replica_id for r in a.renew(LEASE).replicas] == ["a"]
    assert {r.replica_id for r in b.renew(LEASE).replicas} == {"a", "b"}


def test_kernels_of_all_replicas_are_seen_with_their_changes(both):
    a, b = both
    put(a, kernel("k"), kernel("l"))
    first = b.renew(LEASE)
    assert first.whole
    assert {k.kernel_id: (k.replica_id, k.hostname) for k in first.kernels} == {
        "k": ("a", "here"),
        "l": ("a", "here"),
    }
    assert first.kernels[0].row in (kernel("k"), kernel("l"))
    assert b.renew(LEASE, since=first.revision).kernels == ()
    put(a, kernel("l", pid=8))
    second = b.renew(LEASE, since=first.revision)
    assert [(k.kernel_id, k.row.pid) for k in second.kernels] == [("l", 8)]
    a.write({("kernel", "k"): None})
    third = b.renew(LEASE, since=second.revision)
    assert (third.kernels, third.ended, third.whole) == ((), {"k"}, False)
    assert [k.kernel_id for k in b.kernels()] == ["l"]
    assert b.kernel("k") is None


def test_states_are_written_with_the_renewal(both):
    a, b = both
    put(a, kernel("k"), kernel("l"))
    since = b.renew(LEASE).revision
    a.renew(LEASE, {"k": '{"state": "busy"}'})
    assert [(k.kernel_id, k.state) for k in b.renew(LEASE, since=since).kernels] == [
        ("k", '{"state": "busy"}')
    ]
    b.renew(LEASE, {"k": "not mine"})
    assert b.kernel("k").state == '{"state": "busy"}'


def test_a_kernel_is_taken_only_after_the_lease(both):
    a, b = both
    put(a, kernel())
    assert b.take("k", "a") is None
    assert owner(a) == "a"
    expire(b, "a")
    taken = b.take("k", "a")
    assert (taken.replica_id, taken.hostname, taken.row) == ("b", "here", kernel())
    assert owner(a) == "b"
    assert b.take("k", "a") is None, "the owner is another one now"


def test_a_kernel_of_a_replica_that_has_gone_is_taken_at_once(both):
    a, b = both
    put(a, kernel("k"), kernel("l"))
    assert b.take("k", "a", gone=row_of(b, "a")) is not None
    a.leave()
    assert b.take("l", "a") is not None


def test_a_replica_that_renews_after_it_was_seen_keeps_its_kernels(both):
    a, b = both
    put(a, kernel())
    seen = row_of(b, "a")
    a.renew(LEASE + 1)
    assert b.take("k", "a", gone=seen) is None
    assert owner(b) == "a"
    assert b.take("k", "a", gone=row_of(b, "a")) is not None


def test_the_duration_of_a_lease_is_in_the_row_of_the_replica(both):
    a, b = both
    a.renew(7.0)
    assert {r.replica_id: r.lease_seconds for r in b.view().replicas} == {"a": 7.0, "b": LEASE}


def test_who_renews_in_time_keeps_the_kernels(both):
    a, b = both
    put(a, kernel())
    expire(b, "a")
    a.renew(LEASE)
    assert b.take("k", "a") is None


def test_of_many_that_take_a_kernel_one_gets_it(connect, a):
    a.join(LEASE)
    put(a, *(kernel(f"k{i}") for i in range(10)))
    stores = [ClusterStore(connect(), replica(f"r{i}")) for i in range(4)]
    for store in stores:
        store.join(LEASE)
    expire(a, "a")
    barrier = threading.Barrier(len(stores))

    def take(store: ClusterStore) -> list[str]:
        barrier.wait()
        return [f"k{i}" for i in range(10) if store.take(f"k{i}", "a") is not None]

    with ThreadPoolExecutor(len(stores)) as threads:
        found = list(threads.map(take, stores))
    assert sorted(name for each in found for name in each) == [f"k{i}" for i in range(10)]
    for store, names in zip(stores, found, strict=True):
        assert {owner(a, name) for name in names} <= {store.replica.replica_id}


def test_a_renewal_and_a_take_at_the_same_time_agree(both):
    """Either the lease is renewed first, or the replica sees in its view that it lost a kernel."""
    a, b = both
    for _ in range(20):
        put(a, kernel())
        since = a.view().revision
        expire(b, "a")
        barrier = threading.Barrier(2)

        def renew(since=since, barrier=barrier):
            barrier.wait()
            return a.renew(LEASE, since=since)

        def take(barrier=barrier):
            barrier.wait()
            return b.take("k", "a")

        with ThreadPoolExecutor(2) as threads:
            renewed, taken = threads.submit(renew), threads.submit(take)
            view, found = renewed.result(), taken.result()
        lost = any(k.replica_id == "b" for k in view.kernels)
        assert lost == (found is not None)
        if found is not None:
            assert b.give("k", "a")


ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@ON_POSTGRESQL
def test_a_renewal_waits_for_no_lock_on_another_replica(both):
    """That replica may wait for the row of the cluster, which the renewal has locked."""
    a, b = both
    put(a, kernel())
    a.write({("kernel", "k"): None})
    put(a, kernel("l"))
    expire(a, "b", seconds=1000)
    with b.registry.transaction("written to") as connection:
        connection.execute(update(ENDED).values(until=0.0))
        connection.execute(update(REPLICAS).where(REPLICAS.c.replica_id == "b").values(draining=1))
        a.renew(LEASE, {"l": "{}"})
        connection.execute(update(CLUSTERS).values(revision=CLUSTERS.c.revision + 1))
    view = a.renew(LEASE)
    assert {r.replica_id: r.alive for r in view.replicas} == {"a": True, "b": False}
    for _ in range(30):
        view = a.renew(LEASE, since=0)
    assert ([r.replica_id for r in view.replicas], view.ended) == (["a"], frozenset())


@ON_POSTGRESQL
def test_a_program_that_is_stopped_while_it_sends_statements_holds_no_lock(both, monkeypatch):
    """PostgreSQL waits for the rest of them without a limit, whatever its settings are."""
    monkeypatch.setattr(engine, "_STATEMENT_MS", 200)
    monkeypatch.setattr(engine, "_IDLE_MS", 200)
    monkeypatch.setattr(engine, "_STUCK_SECONDS", 1.0)
    a, b = both

    def is_written() -> bool:
        try:
            put(b, kernel("of b"))
        except RegistryError:
            return False
        return True

    def stop_while_it_sends() -> None:
        with a.registry.transaction("written to") as connection:
            driver = connection.connection.driver_connection
            with driver.pipeline():
                driver.execute("UPDATE kbridge_clusters SET revision = revision + 1")
                driver.pgconn.send_flush_request()
                driver.pgconn.flush()
                assert not is_written()
                eventually(is_written, "the other transaction has ended")

    with pytest.raises(RegistryError):
        stop_while_it_sends()
    put(a, kernel())
    assert {each.kernel_id: each.replica_id for each in a.kernels()} == {"k": "a", "of b": "b"}


@ON_POSTGRESQL
def test_a_take_waits_for_a_replica_that_adds_its_row(both, database_server):
    """The replica was forgotten. Its renewal has read that it has the kernel."""
    a, b = both
    put(a, kernel())
    with a.registry.transaction("written to") as connection:
        connection.execute(REPLICAS.delete().where(REPLICAS.c.replica_id == "a"))
        engine = connection.engine
    with ThreadPoolExecutor(1) as threads:
        takes: list[Any] = []

        def on_execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "FROM kbridge_kernels" in statement and not takes:
                takes.append(threads.submit(b.take, "k", "a"))
                waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
                eventually(
                    lambda: takes[0].done() or database_server.query(waits) != [(0,)],
                    "the other replica takes the kernel, or waits",
                )

        event.listen(engine, "after_cursor_execute", on_execute)
        view = a.renew(LEASE)
        assert takes[0].result() is None
    assert [k.replica_id for k in view.kernels] == [owner(b)] == ["a"]


def test_a_renewal_after_the_end_does_not_bring_the_replica_back(both):
    """It may have waited for the database when the replica left."""
    a, b = both
    a.leave()
    with pytest.raises(RegistryError, match="left"):
        a.renew(LEASE)
    assert [r.replica_id for r in b.renew(LEASE).replicas] == ["b"]
    a.join(LEASE)
    assert {r.replica_id for r in a.renew(LEASE).replicas} == {"a", "b"}


def test_a_kernel_is_given_by_its_owner_only(both):
    a, b = both
    put(a, kernel())
    assert not b.give("k", "b")
    assert a.give("k", "b")
    assert owner(a) == "b"
    assert not a.give("k", "a")


def test_a_kernel_is_not_given_to_a_replica_that_does_not_serve_it(both):
    a, b = both
    put(a, kernel())
    b.drain()
    assert not a.give("k", "b")
    b.leave()
    assert not a.give("k", "b")
    b.join(LEASE)
    expire(a, "b")
    assert not a.give("k", "b")
    assert owner(a) == "a"
    b.renew(LEASE)
    assert a.give("k", "b")


def test_the_former_owner_writes_nothing(both):
    a, b = both
    put(a, kernel("k"), kernel("l"))
    a.give("k", "b")
    assert put(a, kernel("k", pid=99), kernel("l", pid=99)) == {"k"}
    assert (b.kernel("k").row.pid, b.kernel("l").row.pid) == (7, 99)
    a.write({("kernel", "k"): None})
    assert owner(b) == "b"
    b.write({("kernel", "k"): None})
    assert put(a, kernel("k")) == {"k"}, "it has ended meanwhile"
    assert b.kernel("k") is None


def test_an_id_is_used_again(both):
    a, b = both
    put(a, kernel())
    a.write({("kernel", "k"): None})
    assert put(a, kernel()) == frozenset(), "a dead kernel that was restarted"
    a.write({("kernel", "k"): None})
    assert put(b, kernel(role="starting")) == frozenset()
    assert owner(a) == "b"
    view = a.renew(LEASE, since=0)
    assert "k" not in view.ended


def test_users_are_counted_in_the_cluster(connect, both):
    a, b = both
    other = ClusterStore(connect(), replica("c", cluster="other"))
    other.join(LEASE)
    other.reserve(kernel("o", user="alice"), 1)
    a.reserve(kernel("k1", user="alice"), 2)
    b.reserve(kernel("k2", user="alice"), 2)
    b.reserve(kernel("k2", user="alice", role="starting"), 2)  # the kernel itself is not counted
    for store in both:
        with pytest.raises(KernelLimitReached, match="alice has 2"):
            store.reserve(kernel("k3", user="alice"), 2)
        store.reserve(kernel(f"b-{store.replica.replica_id}", user="bob"), 2)
    assert {k.kernel_id: k.row.user for k in a.view().kernels} == {
        "k1": "alice",
        "k2": "alice",
        "b-a": "bob",
        "b-b": "bob",
    }
    assert b.write({("kernel", "k2"): None}) == frozenset()
    a.reserve(kernel("k3", user="alice"), 2)
    with pytest.raises(InvalidRequest, match="The id k3 is taken"):
        b.reserve(kernel("k3", user="carol"), 2)


def test_of_many_that_start_at_once_as_many_as_allowed_start(connect):
    stores = [ClusterStore(connect(), replica(f"r{n}")) for n in range(6)]
    for store in stores:
        store.join(LEASE)
    barrier = threading.Barrier(len(stores))

    def start(store: ClusterStore) -> int:
        barrier.wait()
        started = 0
        for n in range(4):
            row = kernel(f"{store.replica.replica_id}-{n}", user="alice", role="starting")
            try:
                insist(partial(store.reserve, row, 5))
            except KernelLimitReached:
                continue
            started += 1
        return started

    with ThreadPoolExecutor(len(stores)) as threads:
        assert sum(threads.map(start, stores)) == 5
    assert len(stores[0].view().kernels) == 5


@pytest.mark.parametrize("earlier", ["ended", "ended and forgotten", "never ran"])
def test_a_second_end_of_a_kernel_does_not_stop_the_other_rows(both, earlier):
    """For example if the acknowledgement of the first one was lost."""
    a, b = both
    if earlier != "never ran":
        put(a, kernel())
        a.write({("kernel", "k"): None})
    before = b.renew(LEASE)
    if earlier == "ended and forgotten":
        with a.registry.transaction("written to") as connection:
            connection.execute(delete(ENDED))
    rows = {("kernel", "k"): None, ("kernel", "l"): kernel("l"), ("session", "s"): session("s")}
    assert a.write(rows) == frozenset()
    assert (owner(b, "l"), b.session("s")) == ("a", session("s"))
    assert "k" not in b.renew(LEASE, since=before.revision).ended


def test_an_end_replaces_the_row_of_an_earlier_end(both):
    a, b = both
    put(a, kernel())
    ended = {"cluster": "c", "replica_id": "b", "changed": 0, "until": 0.0}
    with a.registry.transaction("written to") as connection:  # no replica leaves both rows
        connection.execute(insert(ENDED).values(kernel_id="k", **ended))
    before = b.renew(LEASE)
    a.write({("kernel", "k"): None})
    assert b.renew(LEASE, since=before.revision).ended == {"k"}
    assert b.kernel("k") is None


def test_a_kernel_that_starts_does_not_replace_one_that_another_replica_runs(both):
    a, b = both
    put(a, kernel())
    assert put(b, kernel(role="starting", pid=99)) == {"k"}
    assert (owner(a), a.kernel("k").row.pid) == ("a", 7)


def test_the_machine_of_a_process_stays_when_another_replica_writes(both):
    a, b = both
    put(a, kernel())
    b.take("k", "a", gone=row_of(b, "a"))
    put(b, kernel(role="used", details='{"new": 1}'))
    assert (b.kernel("k").hostname, b.kernel("k").row.details) == ("here", '{"new": 1}')


def test_places_and_executions_are_those_of_the_owner(both):
    a, b = both
    put(a, kernel("k"), kernel("l"))
    first = [Place("k", "s", "m1"), Place("k", "t", "m2"), Place("l", "s", "m3")]
    two = [ExecutionRow("k", "m1", "{}"), ExecutionRow("k", "m2", "{}")]
    assert a.put_changes(first, two) == frozenset()
    changed = [ExecutionRow("k", "m1", '{"state": 1}'), ExecutionRow("k", "m2", "")]
    places = [Place("k", "s", "m4"), Place("none", "s", "m")]
    assert a.put_changes(places, changed) == {"none"}
    assert sorted(b.places("k"), key=repr) == [Place("k", "s", "m4"), Place("k", "t", "m2")]
    assert b.places("none") == []
    assert b.executions("k") == [ExecutionRow("k", "m1", '{"state": 1}')]
    b.take("k", "a", gone=row_of(b, "a"))
    late = [Place("k", "s", "late"), Place("l", "s", "m5")]
    assert a.put_changes(late, [ExecutionRow("k", "m1", "late")]) == frozenset()
    assert Place("k", "s", "m4") in b.places("k")
    assert b.places("l") == [Place("l", "s", "m5")]
    assert b.executions("k") == [ExecutionRow("k", "m1", '{"state": 1}')]
    b.write({("kernel", "k"): None})
    assert (b.places("k"), b.executions("k")) == ([], [])
    assert b.put_changes([Place("k", "s", "late")], [ExecutionRow("k", "m", "{}")]) == frozenset()
    assert (b.places("k"), b.executions("k")) == ([], []), "nobody would delete them"


def test_rows_that_are_not_kept_are_deleted(both):
    a, b = both
    put(a, kernel("k"), kernel("l"))
    for name in ("k", "l"):
        places = [Place(name, each, "m") for each in ("end", "s", "t")]
        a.put_changes(places, [ExecutionRow(name, each, "{}") for each in ("m1", "m2")])
    kept = {name: KeptRows({"end", "t", "u"}, {"m2"}) for name in ("k", "none")}
    gone, new = Place("k", "t", ""), Place("k", "u", "m")
    assert a.put_changes([gone, new, Place("none", "s", "m")], [], kept) == {"none"}
    assert {p.session_id for p in b.places("k")} == {"end", "u"}
    assert [e.msg_id for e in b.executions("k")] == ["m2"]
    assert len(b.places("l")) + len(b.executions("l")) == 5
    b.take("l", "a", gone=row_of(b, "a"))
    a.put_changes([Place("l", "v", "m")], [], {"l": KeptRows((), ())})
    assert len(a.places("l")) + len(a.executions("l")) == 5
    kept = {name: KeptRows({"end"}, ()) for name in ("k", "l", "none")}
    assert a.put_changes([], [], kept) == {"none"}
    assert [p.session_id for p in b.places("k")] == ["end"]
    assert b.executions("k") == []
    assert len(b.places("l")) + len(b.executions("l")) == 5


def test_sessions_are_shared(both):
    a, b = both
    assert a.create_session(session("s")) == session("s")
    assert b.create_session(session("other")) == session("s")
    assert b.sessions() == [session("s")]
    assert b.session("s") == session("s")
    assert b.session("other") is None
    assert b.change_session(session("s", path="b.ipynb"))
    assert not b.change_session(session("other", path="b.ipynb"))
    assert a.session_for_path("a.ipynb") is None
    assert a.session_for_path("b.ipynb") == session("s", path="b.ipynb")
    assert a.drop_session("s")
    assert not b.drop_session("s")
    assert a.sessions() == []


def test_of_two_sessions_for_a_path_at_once_there_is_one(connect):
    stores = [ClusterStore(connect(), replica(f"r{i}")) for i in range(4)]
    for store in stores:
        store.join(LEASE)
    barrier = threading.Barrier(len(stores))

    def create(store: ClusterStore) -> SessionRow:
        barrier.wait()
        return store.create_session(session(f"s-{store.replica.replica_id}"))

    with ThreadPoolExecutor(len(stores)) as threads:
        made = set(threads.map(create, stores))
    assert set(stores[0].sessions()) == made
    assert len(made) == 1


def test_clusters_of_one_database_are_apart(connect, both):
    a, _ = both
    put(a, kernel())
    a.create_session(session())
    other = ClusterStore(connect(), replica("o", cluster="other"))
    other.join(LEASE)
    view = other.renew(LEASE)
    assert ([r.replica_id for r in view.replicas], view.kernels) == (["o"], ())
    assert (other.kernels(), other.sessions(), other.kernel("k")) == ([], [], None)
    assert other.take("k", "a", gone=row_of(a, "a")) is None
    assert not other.drop_session("s")
    assert owner(a) == "a"


def test_a_view_is_whole_if_the_database_is_another_one(both):
    a, _ = both
    put(a, kernel())
    assert a.renew(LEASE, since=10_000).whole


def test_ended_kernels_are_forgotten_in_the_end(both):
    a, _ = both
    put(a, kernel())
    a.write({("kernel", "k"): None})
    with a.registry.transaction("written to") as connection:
        connection.execute(update(ENDED).values(until=0.0))
    assert a.renew(LEASE, since=0).ended == frozenset()


def test_rows_of_a_cluster_that_were_removed_are_an_error(both):
    a, _ = both
    with a.registry.transaction("written to") as connection:
        connection.execute(CLUSTERS.delete())
    with pytest.raises(RegistryError, match="lost the cluster"):
        a.renew(LEASE)


def test_changes_become_visible_in_the_order_of_their_revisions(both):
    """A change that is not committed yet does not get a lower revision than one that is."""
    a, b = both
    put(a, kernel("k"), kernel("l"))
    seen: dict[str, int] = {}
    stop = threading.Event()

    def watch() -> None:
        since, last = 0, False
        while not last:
            last = stop.is_set()
            view = insist(partial(b.renew, LEASE, since=since))
            since = view.revision
            seen.update({each.kernel_id: each.row.pid for each in view.kernels})

    def change(name: str) -> None:
        for pid in range(8, 28):
            insist(partial(put, a, kernel(name, pid=pid)))

    with ThreadPoolExecutor(3) as threads:
        watching = threads.submit(watch)
        try:
            for work in [threads.submit(change, name) for name in ("k", "l")]:
                work.result()
        finally:
            stop.set()
        watching.result()
    assert seen == {"k": 27, "l": 27}


# Versions of the tables

VERSION_2 = [
    "CREATE TABLE kbridge_schema (version INTEGER NOT NULL)",
    """CREATE TABLE kbridge_kernels (kernel_id VARCHAR(80) NOT NULL, address TEXT NOT NULL,
    hostname TEXT NOT NULL, owner_pid INTEGER NOT NULL, owner_birth VARCHAR(80) NOT NULL,
    kernel_name TEXT NOT NULL, standing VARCHAR(20) NOT NULL, pid INTEGER NOT NULL,
    birth VARCHAR(80) NOT NULL, log_path TEXT NOT NULL, details TEXT NOT NULL,
    PRIMARY KEY (kernel_id))""",
    """CREATE TABLE kbridge_sessions (session_id VARCHAR(80) NOT NULL, address TEXT NOT NULL,
    hostname TEXT NOT NULL, owner_pid INTEGER NOT NULL, owner_birth VARCHAR(80) NOT NULL,
    kernel_id VARCHAR(80) NOT NULL, path TEXT NOT NULL, name TEXT, type TEXT NOT NULL,
    PRIMARY KEY (session_id))""",
    """INSERT INTO kbridge_kernels VALUES
    ('k', '127.0.0.1:8888/', 'here', 100, 'first', 'python3', 'used', 7, 'b', '/l', '{}')""",
    """INSERT INTO kbridge_sessions VALUES
    ('s', '127.0.0.1:8888/', 'here', 100, 'first', 'k', 'a.ipynb', NULL, 'notebook')""",
]


VERSION_3 = [
    *VERSION_2[:1],
    """CREATE TABLE kbridge_kernels (kernel_id VARCHAR(80) NOT NULL, address TEXT NOT NULL,
    hostname TEXT NOT NULL, owner_pid INTEGER NOT NULL, owner_birth VARCHAR(80) NOT NULL,
    kernel_name TEXT NOT NULL, standing VARCHAR(20) NOT NULL, pid INTEGER NOT NULL,
    birth VARCHAR(80) NOT NULL, log_path TEXT NOT NULL, details TEXT NOT NULL,
    replica_id VARCHAR(80) DEFAULT '' NOT NULL, changed BIGINT DEFAULT '0' NOT NULL,
    state TEXT DEFAULT '' NOT NULL, PRIMARY KEY (kernel_id))""",
    VERSION_2[2],
    """CREATE TABLE kbridge_clusters (name VARCHAR(200) NOT NULL, secret VARCHAR(200) NOT NULL,
    revision BIGINT NOT NULL, PRIMARY KEY (name))""",
    """CREATE TABLE kbridge_replicas (replica_id VARCHAR(80) NOT NULL,
    cluster VARCHAR(200) NOT NULL, url TEXT NOT NULL, hostname TEXT NOT NULL,
    pid INTEGER NOT NULL, start_id VARCHAR(80) NOT NULL, version VARCHAR(80) NOT NULL,
    lease_until DOUBLE PRECISION NOT NULL, draining INTEGER NOT NULL, PRIMARY KEY (replica_id))""",
    """INSERT INTO kbridge_kernels VALUES ('k', '127.0.0.1:8888/', 'here', 100, 'first',
    'python3', 'used', 7, 'b', '/l', '{}', 'o', 3, '')""",
    VERSION_2[4],
    "INSERT INTO kbridge_clusters VALUES ('c', 'the secret', 3)",
    """INSERT INTO kbridge_replicas VALUES
    ('o', 'c', 'http://o', 'there', 7, 'start', '0.9', 99999999999.5, 0)""",
]
VERSION_4 = [
    *VERSION_3[:4],
    VERSION_3[4].replace(
        " PRIMARY KEY", " lease_seconds DOUBLE PRECISION DEFAULT '0' NOT NULL,\n    PRIMARY KEY"
    ),
    *VERSION_3[5:-1],
    VERSION_3[-1].replace("0)", "0, 3.5)"),
]
VERSIONS = {1: VERSION_2, 2: VERSION_2, 3: VERSION_3, 4: VERSION_4}


def make_old(connect, database_url, version):
    connect()  # makes the directory of the file
    url = (
        Path(database_url.removeprefix("sqlite:///")) if "sqlite" in database_url else database_url
    )
    engine = make_engine(url)
    with engine.begin() as connection:
        for statement in [*VERSIONS[version], f"INSERT INTO kbridge_schema VALUES ({version})"]:
            connection.execute(text(statement))
    engine.dispose()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_version_is_changed_and_keeps_its_rows(connect, database_url, version):
    from kbridge.kernels.lifecycle.processes import ProcessState
    from kbridge.kernels.registry.models import Owner

    make_old(connect, database_url, version)
    registry = connect()
    owner = Owner("127.0.0.1:8888/", "here", 200, "second")
    claim = registry.claim(owner, lambda pid, start: ProcessState.GONE)
    assert (claim.kernels, claim.sessions) == ([kernel()], [session()])
    with registry.transaction("read") as connection:
        assert connection.execute(text("SELECT version FROM kbridge_schema")).all() == [(5,)]
    store = ClusterStore(connect(), replica("a"))
    store.join(LEASE)
    put(store, kernel("new"))
    view = store.renew(LEASE)
    assert [k.kernel_id for k in view.kernels] == ["new"]
    durations = {r.replica_id: r.lease_seconds for r in view.replicas}
    assert durations == {"a": LEASE, **{3: {"o": 0.0}, 4: {"o": 3.5}}.get(version, {})}


def test_servers_that_open_an_old_database_at_once_change_it_once(connect, database_url):
    make_old(connect, database_url, 2)
    stores = [ClusterStore(connect(), replica(f"r{i}")) for i in range(4)]
    barrier = threading.Barrier(len(stores))

    def join(store: ClusterStore) -> str:
        barrier.wait()
        return store.join(LEASE)

    with ThreadPoolExecutor(len(stores)) as threads:
        assert len(set(threads.map(join, stores))) == 1
    assert len(stores[0].renew(LEASE).replicas) == 4


@pytest.mark.parametrize("version", [2, 3, 4])
def test_the_tables_of_an_older_version_get_the_columns_of_today(connect, database_url, version):
    from sqlalchemy import inspect

    make_old(connect, database_url, version)
    changed, registry = connect(), connect()
    with changed.transaction("read") as connection:
        old = {
            name: {column["name"] for column in inspect(connection).get_columns(name)}
            for name in inspect(connection).get_table_names()
        }
    with registry.transaction("written to") as connection:
        for name in old:
            connection.execute(text(f"DROP TABLE {name}"))
    fresh = connect()
    with fresh.transaction("read") as connection:
        new = {
            name: {column["name"] for column in inspect(connection).get_columns(name)}
            for name in inspect(connection).get_table_names()
        }
    assert old == new
