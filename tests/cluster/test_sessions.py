"""The sessions of two replicas with one database."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kbridge.cluster.peers import Peers
from kbridge.cluster.remote_kernel import shown_state
from kbridge.cluster.remote_kernels import RemoteKernels
from kbridge.cluster.sessions import ClusterSessions
from kbridge.errors import (
    Busy,
    InvalidRequest,
    KernelError,
    KernelNotFound,
    Misdirected,
    RegistryError,
    SessionNotFound,
)
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import ClusterKernel, KernelRow, Replica, SessionRow
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.users import User
from tests.support.waiting import TIMEOUT, until

NOTEBOOK = {"path": "a/nb.ipynb", "type": "notebook", "name": "nb", "kernel": {"name": "py"}}


class Kernels:
    """The kernels of one replica, which are in the database while they run."""

    def __init__(self, store: ClusterStore) -> None:
        self.store = store
        self.running: dict[str, str] = {}
        self.users: dict[str, str] = {}
        self.renamed: list[tuple[str, str]] = []
        self.before_start: Callable[[], Any] = lambda: None

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        yield

    def __contains__(self, kernel_id: str) -> bool:
        return kernel_id in self.running

    def model(self, kernel_id: str) -> dict[str, Any]:
        return {
            "id": kernel_id,
            "name": self.running[kernel_id],
            "last_activity": "2030-01-01T00:00:00.000000Z",
            "execution_state": "idle",
            "connections": 0,
            **({"user": self.users[kernel_id]} if self.users.get(kernel_id) else {}),
        }

    async def start_kernel(
        self,
        kernel_name: str | None = None,
        *,
        path: str | None = None,
        kernel_id: str | None = None,
        session_name: str | None = None,
        user: str = "",
    ) -> str:
        await asyncio.sleep(0)
        self.before_start()
        kernel_id = kernel_id or f"{self.store.replica.replica_id}-{len(self.running)}"
        self.running[kernel_id] = kernel_name or "default"
        self.users[kernel_id] = user
        row = KernelRow(kernel_id, self.running[kernel_id], "used", 1, "b", "", "{}", user)
        self.store.write({("kernel", kernel_id): row})
        self.store.renew(600, {kernel_id: shown_state(self.model(kernel_id))})
        return kernel_id

    async def shutdown_kernel(self, kernel_id: str) -> None:
        if self.running.pop(kernel_id, None) is None:
            raise KernelNotFound(kernel_id)
        self.store.write({("kernel", kernel_id): None})

    def rename_session(self, kernel_id: str, session_name: str) -> None:
        self.renamed.append((kernel_id, session_name))


class View:
    """The cluster, as a replica knows it after a refresh."""

    def __init__(self, store: ClusterStore) -> None:
        self.store = store
        self.me = store.replica
        self.replicas: dict[str, Replica] = {}
        self.kernels: dict[str, ClusterKernel] = {}

    async def refresh(self) -> None:
        with contextlib.suppress(RegistryError):
            await self.read()

    async def fetch(self, kernel_id: str) -> ClusterKernel | None:
        await self.read()
        return self.kernels.get(kernel_id)

    async def read(self) -> None:
        found = await asyncio.to_thread(self.store.view)
        self.replicas = {replica.replica_id: replica for replica in found.replicas}
        self.kernels = {kernel.kernel_id: kernel for kernel in found.kernels}


class PeersInMemory(Peers):
    """Requests between two replicas that only end kernels."""

    def __init__(self, kernels: dict[str, Kernels]) -> None:
        super().__init__("secret")
        self.kernels = kernels

    async def request(self, replica: Replica, method: str, path: str, **_: Any) -> Any:
        assert method == "DELETE"
        kernels, kernel_id = self.kernels[replica.replica_id], path.rpartition("/")[2]
        if kernel_id not in kernels:
            raise Misdirected("not here")
        await kernels.shutdown_kernel(kernel_id)
        return await asyncio.sleep(0, type("Reply", (), {"status": 204}))


class Side:
    """One replica."""

    def __init__(self, name: str, registry: Registry, everywhere: dict[str, Kernels]) -> None:
        self.registry = registry
        here = Replica(name, "lab", f"http://{name}:1/", name, 1, "b", "1.0")
        self.store = ClusterStore(self.registry, here)
        self.store.join(600)
        self.kernels = everywhere[name] = Kernels(self.store)
        others = RemoteKernels(View(self.store), PeersInMemory(everywhere))
        self.sessions = ClusterSessions(self.kernels, others, self.store)  # type: ignore[arg-type]


@pytest.fixture
def three(connect: Callable[[], Registry]) -> Iterator[tuple[Side, Side, Side]]:
    everywhere: dict[str, Kernels] = {}
    a, b, c = (Side(name, connect(), everywhere) for name in ("a", "b", "c"))
    yield a, b, c
    for side in (a, b, c):
        side.sessions.close()


def break_store(side: Side, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let some methods of a database fail."""

    def fail(*_: Any) -> Any:
        raise RegistryError("down")

    for name in names:
        monkeypatch.setattr(side.store, name, fail)


@pytest.fixture
def sides(three: tuple[Side, Side, Side]) -> tuple[Side, Side]:
    return three[:2]


async def test_a_session_is_the_same_at_each_replica(sides) -> None:
    a, b = sides
    model = await a.sessions.create(NOTEBOOK)
    assert model == {
        "id": model["id"],
        "path": "a/nb.ipynb",
        "name": "nb",
        "type": "notebook",
        "kernel": a.kernels.model("a-0"),
        "notebook": {"path": "a/nb.ipynb", "name": "nb"},
    }
    assert await b.sessions.create({**NOTEBOOK, "kernel": {"name": "other"}}) == model
    assert not b.kernels.running
    for side in sides:
        assert await side.sessions.get(model["id"]) == model
        assert await side.sessions.list() == [model]


async def test_users_have_separate_sessions_at_all_replicas(sides) -> None:
    a, b = sides
    alice, bob, admin = User("alice"), User("bob"), User("root", admin=True)
    hers, his = await a.sessions.create(NOTEBOOK, alice), await b.sessions.create(NOTEBOOK, bob)
    assert (hers["kernel"]["user"], his["kernel"]["user"]) == ("alice", "bob")
    assert (await b.sessions.create(NOTEBOOK, alice))["id"] == hers["id"]
    for side in (a, b):
        assert [each["id"] for each in await side.sessions.list(alice)] == [hers["id"]]
        both = {each["id"] for each in await side.sessions.list(admin)}
        assert both >= {hers["id"], his["id"]}
        for refused in (
            side.sessions.get(hers["id"], bob),
            side.sessions.patch(hers["id"], {"path": "mine"}, bob),
            side.sessions.delete(hers["id"], bob),
        ):
            with pytest.raises(SessionNotFound):
                await refused
        kernel = {"kernel": {"id": hers["kernel"]["id"]}}
        with pytest.raises(InvalidRequest, match="There is no kernel"):
            await side.sessions.patch(his["id"], kernel, bob)
        other = await side.sessions.create(
            {**NOTEBOOK, "path": side.store.replica.replica_id, **kernel}, bob
        )
        assert other["kernel"]["id"] != hers["kernel"]["id"]
    assert (await a.sessions.get(hers["id"], admin))["kernel"]["id"] == hers["kernel"]["id"]


async def test_a_session_whose_kernel_the_user_may_not_reach_any_longer_is_replaced(sides) -> None:
    a, b = sides
    kernel_id = await b.kernels.start_kernel(user="bob")
    body = {**NOTEBOOK, "kernel": {"id": kernel_id}}
    assert (await a.sessions.create(body, User("ann", admin=True)))["kernel"]["user"] == "bob"
    assert await a.sessions.list(User("ann")) == []
    assert (await a.sessions.create(NOTEBOOK, User("ann")))["kernel"]["user"] == "ann"


async def test_a_session_that_another_replica_made_with_such_a_kernel_is_replaced(sides) -> None:
    """The session is made after this replica has seen that there is none."""
    a, b = sides
    kernel_id = await b.kernels.start_kernel(user="bob")

    def race() -> None:
        a.kernels.before_start = lambda: None
        row = SessionRow("raced", kernel_id, NOTEBOOK["path"], None, "notebook", "ann")
        b.store.create_session(row)

    a.kernels.before_start = race
    model = await a.sessions.create(NOTEBOOK, User("ann"))
    assert (model["id"] != "raced", model["kernel"]["user"]) == (True, "ann")


async def test_nothing_is_told_of_or_done_to_the_session_of_another_user(sides) -> None:
    """Its kernel is starting, or has ended."""
    a, b = sides
    starting = KernelRow("a-secret-id", "py", "starting", 1, "b", "", "{}", "alice")
    a.store.write({("kernel", starting.kernel_id): starting})
    for name, kernel_id in (("s", starting.kernel_id), ("o", "gone")):
        a.store.create_session(SessionRow(name, kernel_id, name, None, "file", "alice"))
        with pytest.raises(SessionNotFound):
            await b.sessions.get(name, User("bob"))
        assert a.store.session(name) is not None
    with pytest.raises(Busy, match="is starting") as caught:
        await b.sessions.get("s", User("alice"))
    assert starting.kernel_id not in str(caught.value)
    with pytest.raises(SessionNotFound):
        await b.sessions.get("o", User("alice"))
    assert a.store.session("o") is None


async def test_a_user_does_not_learn_from_an_id_whether_it_is_taken(sides) -> None:
    a, b = sides
    starting = KernelRow("starting", "py", "starting", 1, "b", "", "{}", "alice")
    a.store.write({("kernel", starting.kernel_id): starting})
    for kernel_id in ("starting", "free"):
        body = {**NOTEBOOK, "path": kernel_id, "kernel": {"id": kernel_id}}
        assert (await b.sessions.create(body, User("bob")))["kernel"]["id"] != kernel_id
    body = {**NOTEBOOK, "kernel": {"id": "free"}}
    assert (await b.sessions.create(body))["kernel"]["id"] == "free"
    with pytest.raises(InvalidRequest, match="being started"):
        await b.sessions.create({**NOTEBOOK, "path": "x", "kernel": {"id": "starting"}})
    assert a.store.kernel("starting").replica_id == "a"


async def test_a_session_of_another_replica_is_deleted_with_its_kernel(sides) -> None:
    a, b = sides
    model = await a.sessions.create(NOTEBOOK)
    await b.sessions.delete(model["id"])
    assert not a.kernels.running
    for side in sides:
        assert await side.sessions.list() == []
        with pytest.raises(SessionNotFound):
            await side.sessions.get(model["id"])
        with pytest.raises(SessionNotFound):
            await side.sessions.delete(model["id"])


async def test_two_replicas_make_one_session_of_a_path(sides) -> None:
    """Both have seen that there is none; the second one ends the kernel that it has started."""
    a, b = sides
    both = asyncio.Barrier(2)

    def wait_for_both(kernels: Kernels) -> None:
        start = kernels.start_kernel

        async def later(*arguments: Any, **options: Any) -> str:
            async with asyncio.timeout(TIMEOUT):
                await both.wait()
            return await start(*arguments, **options)

        kernels.start_kernel = later  # type: ignore[method-assign]

    for side in sides:
        wait_for_both(side.kernels)
    one, two = await asyncio.gather(a.sessions.create(NOTEBOOK), b.sessions.create(NOTEBOOK))
    assert one == two
    assert [*a.kernels.running, *b.kernels.running] == [one["kernel"]["id"]]
    assert await a.sessions.list() == [one]


async def test_a_replica_makes_one_session_of_a_path(sides) -> None:
    a, _ = sides
    one, two = await asyncio.gather(a.sessions.create(NOTEBOOK), a.sessions.create(NOTEBOOK))
    assert one == two
    assert len(a.kernels.running) == 1


async def test_a_session_may_use_a_kernel_of_another_replica(sides) -> None:
    a, b = sides
    kernel_id = await a.kernels.start_kernel("py")
    model = await b.sessions.create({**NOTEBOOK, "kernel": {"id": kernel_id}})
    assert model["kernel"]["id"] == kernel_id
    assert not b.kernels.running
    second = await b.kernels.start_kernel("py")
    patched = await a.sessions.patch(
        model["id"], {"kernel": {"id": second}, "name": "new", "path": "b/nb.ipynb"}
    )
    assert (patched["kernel"]["id"], patched["name"]) == (second, "new")
    assert not a.kernels.running  # no session used it any longer
    assert await b.sessions.list() == [patched]
    with pytest.raises(InvalidRequest):
        await a.sessions.patch(model["id"], {"kernel": {"id": "unknown"}})
    third = await a.sessions.patch(model["id"], {"kernel": {"name": "py"}})
    assert third["kernel"]["id"] in a.kernels.running
    assert not b.kernels.running


async def test_a_session_whose_kernel_has_moved_is_deleted_at_the_new_owner(three) -> None:
    """The third replica still knows the first one as the owner, and gets a 421 from it."""
    a, b, c = three
    model = await a.sessions.create(NOTEBOOK)
    kernel_id = model["kernel"]["id"]
    assert await c.sessions.list() == [model]
    b.kernels.running[kernel_id] = a.kernels.running.pop(kernel_id)
    assert a.store.give(kernel_id, "b")
    await c.sessions.delete(model["id"])
    assert not b.kernels.running


async def test_a_session_ends_with_its_kernel(sides) -> None:
    a, b = sides
    model = await a.sessions.create(NOTEBOOK)
    assert await b.sessions.list() == [model]
    await a.kernels.shutdown_kernel(model["kernel"]["id"])
    with pytest.raises(SessionNotFound):
        await a.sessions.get(model["id"])
    again = await b.sessions.create(NOTEBOOK)
    assert again["id"] != model["id"]
    assert again["kernel"]["id"] in b.kernels.running
    assert await a.sessions.list() == [again]


async def test_a_session_that_is_deleted_while_it_gets_a_kernel_leaves_none(sides) -> None:
    a, b = sides
    model = await a.sessions.create(NOTEBOOK)
    b.kernels.before_start = lambda: a.store.drop_session(model["id"])
    with pytest.raises(SessionNotFound):
        await b.sessions.patch(model["id"], {"kernel": {"name": "py"}})
    assert not b.kernels.running


async def test_a_session_stays_if_its_kernel_cannot_be_shut_down(sides, monkeypatch) -> None:
    a, b = sides
    model = await a.sessions.create(NOTEBOOK)

    async def refuse(_kernel_id: str) -> None:
        raise KernelError("its provisioner does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(a.kernels, "shutdown_kernel", refuse)
        for side in sides:
            with pytest.raises(KernelError):
                await side.sessions.delete(model["id"])
    assert await a.sessions.list() == [model]
    await b.sessions.delete(model["id"])
    assert (a.kernels.running, await a.sessions.list()) == ({}, [])


async def test_a_session_is_deleted_twice_at_once(sides) -> None:
    a, b = sides
    model = await a.sessions.create(NOTEBOOK)
    done = await asyncio.gather(
        *(side.sessions.delete(model["id"]) for side in sides), return_exceptions=True
    )
    assert all(each is None or isinstance(each, SessionNotFound) for each in done)
    assert None in done
    assert (a.kernels.running, await b.sessions.list()) == ({}, [])


async def test_a_session_that_cannot_be_written_leaves_no_kernel(sides, monkeypatch) -> None:
    a, b = sides
    with monkeypatch.context() as patch:
        break_store(a, patch, "create_session")
        with pytest.raises(Busy):
            await a.sessions.create(NOTEBOOK)
    assert not a.kernels.running
    model = await a.sessions.create(NOTEBOOK)
    break_store(b, monkeypatch, "change_session")
    with pytest.raises(Busy):
        await b.sessions.patch(model["id"], {"kernel": {"name": "py"}})
    assert not b.kernels.running
    assert await a.sessions.list() == [model]


async def test_a_slow_query_of_sessions_does_not_delay_other_threads(sides, monkeypatch) -> None:
    """These do not delay a query, either: the threads of asyncio may all be busy."""
    a, _ = sides
    model = await a.sessions.create(NOTEBOOK)
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        go_on, ask = threading.Event(), a.store.session
        other = asyncio.create_task(asyncio.to_thread(go_on.wait))
        try:
            async with asyncio.timeout(TIMEOUT):
                assert await a.sessions.get(model["id"]) == model
        finally:
            go_on.set()
            await other
        go_on.clear()
        monkeypatch.setattr(a.store, "session", lambda name: go_on.wait(TIMEOUT) and ask(name))
        query = asyncio.create_task(a.sessions.get(model["id"]))
        try:
            await until(lambda: go_on.is_set() or not query.done(), "the query runs")
            async with asyncio.timeout(TIMEOUT):
                assert await asyncio.to_thread(lambda: 1) == 1
        finally:
            go_on.set()
        assert await query == model


async def test_without_the_database_the_list_is_the_last_one(sides, monkeypatch) -> None:
    a, _ = sides
    model = await a.sessions.create(NOTEBOOK)
    assert await a.sessions.list() == [model]
    with monkeypatch.context() as patch:
        break_store(a, patch, "sessions", "session", "session_for_path", "view")
        assert await a.sessions.list() == [model]
        with pytest.raises(Busy, match="database"):
            await a.sessions.get(model["id"])
        with pytest.raises(Busy):
            await a.sessions.create(NOTEBOOK)
    assert await a.sessions.get(model["id"]) == model


@pytest.mark.parametrize("body", [{}, {"path": "a"}, {"type": "t"}, {"path": 1, "type": "t"}, []])
async def test_invalid_bodies(sides, body) -> None:
    a, _ = sides
    with pytest.raises(InvalidRequest):
        await a.sessions.create(body)
