"""The batch of one replica, and how the other one reads it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from kbridge.cluster import state_writer
from kbridge.cluster.state_writer import StateWriter
from kbridge.errors import RegistryError
from kbridge.flow.handover import END, Changes
from kbridge.hub import Hub
from kbridge.hub.broadcast import client_sessions
from kbridge.hub.broadcast.broadcaster import Broadcaster
from kbridge.kernels.registry.models import ExecutionRow, Place
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel
from tests.cluster.rig import INFO, ReplicaRig, kernel_row, line, message, read_handover
from tests.hub.rig import Peer
from tests.support.waiting import TIMEOUT, until

LOG = logging.getLogger("test")


class Counted:
    """A database that counts the calls, and fails while `down`."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.calls = 0
        self.rows = 0
        self.down = False

    def put_changes(self, places: Any, executions: Any, kept: Any) -> Any:
        self.calls += 1
        self.rows = len(places) + len(executions)
        if self.down:
            raise RegistryError("down")
        return self._store.put_changes(places, executions, kept)


@pytest.fixture
def a(both: tuple[ReplicaRig, ReplicaRig]) -> ReplicaRig:
    return both[0]


@pytest.fixture
def b(both: tuple[ReplicaRig, ReplicaRig]) -> ReplicaRig:
    return both[1]


def attach(replica: ReplicaRig, session_id: str, kernel_id: str = "k") -> Any:
    hub, client = replica.hubs[kernel_id], Peer()
    cursor = hub.attach(client, V1, session_id)
    client.hear = lambda payload: hub.on_pong(cursor, payload)
    return cursor


async def test_the_changes_of_all_kernels_are_one_call(a: ReplicaRig, b: ReplicaRig) -> None:
    store = Counted(a.store)
    writer = StateWriter(store, a.hubs, LOG)
    a.put(kernel_row("k"), kernel_row("l"))
    ends = {}
    for name in ("k", "l"):
        hub = a.hubs.open(name, INFO)
        cursor = attach(a, "s\0\N{SNOWMAN}", name)
        request = message(Channel.SHELL, "execute_request", {"code": "1"})
        hub.submit(cursor, request)
        output = line("1\n", request.header)
        a.say(output)
        ends[name] = (output.msg_id, request.msg_id)
    assert await writer.write()
    assert store.calls == 1
    for name, (end, request_id) in ends.items():
        found = read_handover(b.store, name)
        assert found.places == {END: end, "s\0\N{SNOWMAN}": end}
        assert [each.execution.msg_id for each in found.requests()] == [request_id]
        assert list(found.identities) == a.hubs[name].identities


async def test_nothing_is_written_if_nothing_has_changed(a: ReplicaRig) -> None:
    store = Counted(a.store)
    writer = StateWriter(store, a.hubs, LOG)
    a.put(kernel_row())
    a.hubs.open("k", INFO)
    attach(a, "s")
    await writer.write()
    await writer.write()
    await writer.write()
    assert store.calls == 1


async def test_new_sessions_are_written_at_once_and_together(a: ReplicaRig, b: ReplicaRig) -> None:
    """The next batch is an hour away."""
    store = Counted(a.store)
    writer = StateWriter(store, a.hubs, LOG, every=3600)
    writer.open()
    a.put(kernel_row("k"), kernel_row("l"))
    for name in ("k", "l"):
        a.hubs.open(name, INFO)
    output = line("1\n")
    a.say(output)
    for number in range(20):
        attach(a, f"s{number}", "kl"[number % 2])
    attach(a, "", "k")
    await until(lambda: store.calls, "the sessions were written")
    async with asyncio.timeout(TIMEOUT):
        await writer.write_sessions()  # after the one that runs
    assert (store.calls, store.rows) == (1, 20)
    assert read_handover(b.store, "l").places == {f"s{n}": output.msg_id for n in range(1, 20, 2)}
    assert set(read_handover(b.store, "k").places) == {f"s{n}" for n in range(0, 20, 2)}
    attach(a, "s1", "l")  # a known session
    await writer.write_sessions()
    assert store.calls == 1
    await writer.write()
    assert (store.calls, store.rows) == (2, 4), "the identities and the ends only"
    attach(a, "later", "l")
    await until(
        lambda: "later" in read_handover(b.store, "l").places, "the next session was written"
    )
    await writer.aclose()


async def test_many_rows_are_written_in_several_transactions(
    a: ReplicaRig, b: ReplicaRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other replicas wait for the end of each transaction."""
    monkeypatch.setattr(state_writer, "_ROWS", 10)
    monkeypatch.setattr(state_writer, "_SWEPT", 2)
    sizes: list[tuple[int, int]] = []
    put_changes = a.store.put_changes

    def note(places: Any, executions: Any, kept: Any) -> Any:
        sizes.append((len(places) + len(executions), len(kept)))
        return put_changes(places, executions, kept)

    monkeypatch.setattr(a.store, "put_changes", note)
    writer = StateWriter(a.store, a.hubs, LOG)
    names = [f"kernel-{i}" for i in range(6)]
    a.put(*map(kernel_row, names[1:]))  # the first one has no row yet
    a.store.put_changes([Place(name, '"old"', '"m"') for name in names[1:]], [], {})
    sizes.clear()
    requests = {}
    for name in names:
        hub = a.hubs.open(name, INFO)
        cursor = attach(a, "s", name)
        requests[name] = [
            message(Channel.SHELL, "execute_request", {"code": "1"}) for _ in range(12)
        ]
        for request in requests[name]:
            hub.submit(cursor, request)
    assert await writer.write()
    assert all(rows <= 10 and swept <= 2 for rows, swept in sizes)
    assert sum(rows for rows, _ in sizes) == 15 * 5 + 10
    for name in names[1:]:
        found = read_handover(b.store, name)
        assert set(found.places) == {END, "s"}
        assert set(found.executions) == {request.msg_id for request in requests[name]}
    a.put(kernel_row(names[0]))
    assert await writer.write()
    assert len(read_handover(b.store, names[0]).executions) == 12
    sizes.clear()
    assert await writer.write()
    assert sizes == []


async def test_rows_of_a_call_that_fails_are_written_by_the_call_that_waits_for_it(
    a: ReplicaRig, b: ReplicaRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel is given after the second call has succeeded."""
    put_changes, faults = a.store.put_changes, ["down"]

    def fail_once(*arguments: Any) -> Any:
        if faults:
            raise RegistryError(faults.pop())
        return put_changes(*arguments)

    monkeypatch.setattr(a.store, "put_changes", fail_once)
    writer = StateWriter(a.store, a.hubs, LOG)
    a.put(kernel_row())
    a.hubs.open("k", INFO)
    attach(a, "s")
    assert await asyncio.gather(writer.write(), writer.write()) == [False, True]
    assert set(read_handover(b.store, "k").places) == {END, "s"}


async def test_hubs_are_collected_in_slices(
    a: ReplicaRig, b: ReplicaRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_writer, "_SLICE", -1.0)
    names = [f"kernel-{i}" for i in range(5)]
    a.put(*map(kernel_row, names))
    passes: list[list[str]] = [[]]  # the kernels of each pass of the loop
    take_changes = Hub.take_changes

    def note(hub: Hub) -> Changes:
        if not passes[-1]:
            asyncio.get_running_loop().call_soon(passes.append, [])
        passes[-1].append(hub.kernel_id)
        return take_changes(hub)

    monkeypatch.setattr(Hub, "take_changes", note)
    for name in names:
        a.hubs.open(name, INFO)
    closed = asyncio.create_task(a.hubs.close(names[-1]))  # meanwhile
    assert await StateWriter(a.store, a.hubs, LOG).write()
    assert [kernels for kernels in passes if kernels] == [[name] for name in names[:-1]]
    await closed


async def test_an_error_with_one_kernel_does_not_stop_the_writer(
    a: ReplicaRig,
    b: ReplicaRig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    a.put(kernel_row("k"), kernel_row("l"))
    take_changes, put_changes, faults = Hub.take_changes, a.store.put_changes, ["a fault"]

    def fail(hub: Hub) -> Changes:
        if hub.kernel_id == "k":
            raise RuntimeError("a fault")
        return take_changes(hub)

    def fail_once(*arguments: Any) -> Any:
        if faults:
            raise RuntimeError(faults.pop())
        return put_changes(*arguments)

    monkeypatch.setattr(Hub, "take_changes", fail)
    monkeypatch.setattr(a.store, "put_changes", fail_once)
    writer = StateWriter(a.store, a.hubs, LOG, every=0.01)
    for name in "kl":
        a.hubs.open(name, INFO)
    writer.open()
    await until(lambda: END in read_handover(b.store, "l").places, "the other kernel is written")
    assert "The state of kernel k cannot be collected" in caplog.messages
    assert "The state of kernels cannot be written" in caplog.messages
    await writer.aclose()


async def test_forgotten_rows_are_deleted_after_a_failure_without_other_changes(
    a: ReplicaRig, b: ReplicaRig
) -> None:
    store = Counted(a.store)
    writer = StateWriter(store, a.hubs, LOG)
    a.put(kernel_row())
    hub = a.hubs.open("k", INFO)
    cursor = attach(a, "s")
    request = message(Channel.SHELL, "execute_request", {"code": "1"})
    hub.submit(cursor, request)
    await writer.write()
    assert set(read_handover(b.store, "k").executions) == {request.msg_id}
    a.say(message(Channel.SHELL, "execute_reply", {"status": "ok"}, request.header))
    a.say(message(Channel.IOPUB, "status", {"execution_state": "idle"}, request.header))
    await writer.write()
    hub.forget_execution(request.msg_id)
    store.down = True
    assert not await writer.write()
    assert not await writer.write()
    assert store.rows == 0
    store.down = False
    assert await writer.write()
    assert not read_handover(b.store, "k").executions


async def test_new_sessions_wait_while_the_database_is_down(a: ReplicaRig, b: ReplicaRig) -> None:
    store = Counted(a.store)
    writer = StateWriter(store, a.hubs, LOG, every=3600)
    a.put(kernel_row())
    a.hubs.replicate(writer)
    a.hubs.open("k", INFO)
    store.down = True
    attach(a, "s")
    await writer.write_sessions()
    store.down = False
    await writer.write_sessions()
    assert set(read_handover(b.store, "k").places) == {"s"}


async def test_a_forgotten_session_has_no_place(
    a: ReplicaRig, b: ReplicaRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_sessions, "_REMEMBERED", 2)
    writer = StateWriter(a.store, a.hubs, LOG)
    a.put(kernel_row())
    hub = a.hubs.open("k", INFO)
    for name in "stu":
        hub.detach(attach(a, name))
        await writer.write()
    assert set(read_handover(b.store, "k").places) == {END, "t", "u"}
    attach(a, "s")
    await writer.write()
    assert set(read_handover(b.store, "k").places) == {END, "s", "t", "u"}


async def test_rows_that_are_forgotten_while_the_database_is_down_take_no_memory(
    a: ReplicaRig, b: ReplicaRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards, the rows of before are deleted."""
    monkeypatch.setattr(client_sessions, "_REMEMBERED", 2)
    store = Counted(a.store)
    writer = StateWriter(store, a.hubs, LOG)
    a.put(kernel_row())
    hub = a.hubs.open("k", INFO)

    def use(name: str) -> str:
        """Connect, run a cell whose execution is forgotten, and go."""
        cursor = attach(a, name)
        request = message(Channel.SHELL, "execute_request", {"code": "1"})
        hub.submit(cursor, request)
        reply = message(Channel.SHELL, "execute_reply", {"status": "ok"}, request.header)
        a.say(reply)
        idle = message(Channel.IOPUB, "status", {"execution_state": "idle"}, request.header)
        a.say(idle)
        hub.detach(cursor)
        return request.msg_id

    old = use("old")
    await writer.write()
    assert set(read_handover(b.store, "k").executions) == {old}
    store.down = True
    hub.forget_execution(old)
    sizes = []
    for number in range(6):
        hub.forget_execution(use(f"s{number}"))
        assert not await writer.write()
        sizes.append(store.rows)
    assert sizes[1] == sizes[-1]
    store.down = False
    last = use("last")
    await writer.write()
    found = read_handover(b.store, "k")
    assert (set(found.places), set(found.executions)) == ({END, "s5", "last"}, {last})


async def test_rows_that_the_new_owner_does_not_know_are_deleted(
    a: ReplicaRig, b: ReplicaRig
) -> None:
    a.put(kernel_row())
    places = [Place("k", "{", '"m"'), Place("k", '"s"', '"m"'), Place("k", "end", '"m"')]
    a.store.put_changes(places, [ExecutionRow("k", '"m"', "{"), ExecutionRow("k", '"n"', "{}")])
    a.hubs.open("k", INFO)
    attach(a, "s")
    await StateWriter(a.store, a.hubs, LOG).write()
    assert {row.session_id for row in b.store.places("k")} == {"end", "identities", '"s"'}
    assert b.store.executions("k") == []


async def test_a_kernel_that_is_being_taken_over_is_left_alone(
    a: ReplicaRig, b: ReplicaRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub does not know yet what the former owner has written."""
    a.put(kernel_row())
    a.store.put_changes([Place("k", '"s"', '"m"')], [])
    hub = a.hubs.open("k", INFO, adopted=True)
    take_over, go_on = Broadcaster.take_over, asyncio.Event()

    async def later(*arguments: Any) -> Any:
        await go_on.wait()
        return await take_over(*arguments)

    monkeypatch.setattr(Broadcaster, "take_over", later)
    taking = asyncio.create_task(hub.take_over(read_handover(b.store, "k")))
    await asyncio.sleep(0)
    writer = StateWriter(a.store, a.hubs, LOG)
    await writer.write()
    assert set(read_handover(b.store, "k").places) == {"s"}
    go_on.set()
    await taking
    await writer.write()
    assert set(read_handover(b.store, "k").places) == {END, "s"}


async def test_changes_wait_for_the_database(
    a: ReplicaRig, b: ReplicaRig, caplog: pytest.LogCaptureFixture
) -> None:
    store = Counted(a.store)
    writer = StateWriter(store, a.hubs, LOG)
    a.put(kernel_row())
    a.hubs.open("k", INFO)
    attach(a, "s")
    store.down = True
    messages = [line("1\n"), line("2\n")]
    for each in messages:
        a.say(each)
        assert not await writer.write()
    assert len(caplog.records) == 1
    store.down = False
    assert await writer.write()
    assert read_handover(b.store, "k").places == dict.fromkeys((END, "s"), messages[-1].msg_id)


async def test_changes_wait_for_the_row_of_their_kernel(a: ReplicaRig, b: ReplicaRig) -> None:
    writer = StateWriter(a.store, a.hubs, LOG)
    a.hubs.open("k", INFO)
    attach(a, "s")
    await writer.write()
    a.put(kernel_row())
    await writer.write()
    assert set(read_handover(b.store, "k").places) == {END, "s"}


async def test_changes_of_a_kernel_that_has_ended_are_dropped(a: ReplicaRig) -> None:
    store = Counted(a.store)
    writer = StateWriter(store, a.hubs, LOG)
    a.hubs.open("k", INFO)
    attach(a, "s")
    await writer.write()
    await a.hubs.close("k")
    await writer.write()
    await writer.write()
    assert store.calls == 2


async def test_ids_that_are_too_long_for_the_tables_are_left_out(
    a: ReplicaRig, b: ReplicaRig
) -> None:
    writer = StateWriter(a.store, a.hubs, LOG)
    a.put(kernel_row())
    hub = a.hubs.open("k", INFO)
    cursor = attach(a, "\N{SNOWMAN}" * 100)
    request = message(Channel.SHELL, "execute_request", {"code": "1"})
    long = request._replace(header=request.header.replace(request.msg_id.encode(), b"x" * 300))
    hub.submit(cursor, long)
    hub.submit(cursor, request)
    await writer.write()
    found = read_handover(b.store, "k")
    assert (set(found.places), set(found.executions)) == ({END}, {request.msg_id})


async def test_rows_that_cannot_be_read_are_ignored(b: ReplicaRig) -> None:
    class Odd:
        def places(self, _kernel_id: str) -> list[Any]:
            from kbridge.kernels.registry.models import Place

            return [Place("k", "{", '"m"'), Place("k", '"s"', "{"), Place("k", '"t"', '"m"')]

        def executions(self, _kernel_id: str) -> list[Any]:
            from kbridge.kernels.registry.models import ExecutionRow

            return [ExecutionRow("k", '"m"', "{"), ExecutionRow("k", '"n"', "{}")]

    found = read_handover(Odd(), "k", (b"i",))
    assert (found.places, found.executions, found.identities) == ({"t": "m"}, {"n": {}}, (b"i",))


async def test_the_last_changes_are_written_at_the_end(a: ReplicaRig, b: ReplicaRig) -> None:
    writer = StateWriter(a.store, a.hubs, LOG, every=3600)
    writer.open()
    a.put(kernel_row())
    a.hubs.open("k", INFO)
    attach(a, "s")
    await writer.aclose()
    await writer.aclose()
    assert set(read_handover(b.store, "k").places) == {END, "s"}
