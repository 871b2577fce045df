"""Several real servers that are replicas of one cluster, with real kernels.

Replicas that act at the same moment do so over each database. The other tests use one of them.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from tests.support.client import attach
from tests.support.postgresql import PASSWORD, PostgreSQL
from tests.support.require import require
from tests.support.server import Server, kill_all
from tests.support.waiting import eventually, until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

Start = Callable[..., Server]


def make_servers(folder: Path, url: str) -> Iterator[Start]:
    require("ipykernel")
    servers: list[Server] = []
    numbers = itertools.count()

    def start(*args: str, cluster: str = "lab", **more: Any) -> Server:
        home = folder / f"server{next(numbers)}"
        home.mkdir()
        server = Server(home, f"--cluster={cluster}", f"--registry-url={url}", *args, **more)
        servers.append(server)
        return server.start()

    try:
        yield start
    finally:
        kill_all(*servers)  # SIGKILL ends also a server that a test has stopped


@pytest.fixture
def replica(tmp_path: Path, database_url: str) -> Iterator[Start]:
    """Start replicas of one cluster, over each kind of database: `replica(*options)`."""
    yield from make_servers(tmp_path, database_url)


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Start]:
    yield from make_servers(tmp_path, f"sqlite:///{tmp_path / 'database' / 'registry.sqlite'}")


@pytest.fixture
def database(database_server: PostgreSQL) -> Iterator[PostgreSQL]:
    """PostgreSQL, which a test may stop."""
    yield database_server
    if not database_server.running:
        database_server.start()


@pytest.fixture
def on_postgresql(tmp_path: Path, database: PostgreSQL) -> Iterator[Start]:
    yield from make_servers(tmp_path, database.new_database())


def has_said(server: Server, text: str) -> bool:
    return text in server.log.read_text(errors="replace")


def took(server: Server, kernel_id: str) -> bool:
    return has_said(server, f"Kernel taken over: {kernel_id}")


def die(server: Server) -> None:
    """Kill only the server; its kernels run on."""
    server.process.kill()
    server.process.wait()


def start_kernel(server: Server) -> str:
    """Start a kernel on a replica whose lease is so short that it may be over for a moment."""

    def attempt() -> str:
        reply = server.request("POST", "/api/kernels", {"name": "python3"})
        assert reply.status == 201 or b"lease" in reply.body, reply
        return str(reply.json()["id"]) if reply.status == 201 else ""

    return eventually(attempt, "the kernel is started")


async def ask(server: Server, kernel_id: str, code: str) -> str:
    async with attach(server, kernel_id) as client:
        return (await client.execute(code)).text()


async def test_one_of_two_takes_over_the_kernels_of_a_replica_that_was_killed(
    replica: Start,
) -> None:
    first, *others = replica(), replica(), replica()
    kernel_ids = [first.start_kernel() for _ in range(2)]
    for kernel_id in kernel_ids:
        assert await ask(first, kernel_id, "x = 42; print('set')") == "set\n"
    pids = {process.pid for process, _ in first.started()}
    die(first)
    for kernel_id in kernel_ids:
        await until(lambda k=kernel_id: any(took(s, k) for s in others), "a replica took over")
        [owner] = [server for server in others if took(server, kernel_id)]
        assert await ask(owner, kernel_id, "print(x)") == "42\n"
    assert {process.pid for process, _ in first.started()} == pids
    for server in others:
        server.assert_clean_log()


async def test_the_new_owner_restarts_and_ends_the_kernel(on_sqlite: Start) -> None:
    first, second = on_sqlite(), on_sqlite()
    kernel_id = first.start_kernel()
    die(first)
    await until(lambda: took(second, kernel_id), "the other replica took over")
    [(process, _)] = first.started()
    process.kill()
    await until(lambda: has_said(second, "restart 1 of at most"), "the kernel is restarted")
    await until(lambda: any(p.pid != process.pid for p, _ in first.started()), "it runs again")
    assert await ask(second, kernel_id, "print('again')") == "again\n"
    assert second.request("DELETE", f"/api/kernels/{kernel_id}").status == 204
    await until(lambda: not first.started(), "the kernel has ended")


ASK_AFTER = """import pathlib, time
while not pathlib.Path({path!r}).exists():
    time.sleep(0.01)
print(input("name?"))"""


async def test_a_replica_that_was_stopped_restarts_no_kernel_that_it_has_lost(
    on_postgresql: Start, tmp_path: Path
) -> None:
    """Both replicas watch the process when it ends; the one without the lease leaves it alone.

    While the owner is stopped, its connections to the kernel are still there. ipykernel sends input
    requests and replies to the newest connection of an identity, which is that of the new owner.
    """
    first, second = on_postgresql("--lease-seconds=3"), on_postgresql("--lease-seconds=3")
    kernel_id = first.start_kernel()
    async with attach(first, kernel_id) as client:
        assert (await client.execute("print(1)")).text() == "1\n"
        begin = tmp_path / "begin"
        cell = await client.start(ASK_AFTER.format(path=str(begin)), allow_stdin=True)
        await client.until(lambda m: m["header"]["msg_type"] == "execute_input")
        first.process.send_signal(signal.SIGSTOP)
        await until(lambda: took(second, kernel_id), "the other replica took over")
        begin.touch()
        async with attach(second, kernel_id, session=client.session) as other:
            *_, asked = await other.until(lambda m: m["channel"] == "stdin")
            answer = {"value": "an answer", "status": "ok"}
            await other.send("input_reply", answer, channel="stdin", parent=asked["header"])
            done = await other.finish(cell)
            assert done.text() == "an answer\n"
            assert done.reply["user_expressions"] == {}, "the reply is that of the kernel"
        [(process, _)] = first.started()
        process.kill()
        await until(lambda: has_said(second, "restart 1 of at most"), "the kernel is restarted")
        await until(lambda: any(p.pid != process.pid for p, _ in first.started()), "it runs")
        first.process.send_signal(signal.SIGCONT)
        assert await client.closed() == (1012, "the server is restarting")
    await until(
        lambda: has_said(first, f"Kernel {kernel_id} is served by another replica now"),
        "the first replica has released the kernel",
    )
    assert not has_said(first, "restart 1 of at most")
    assert len(first.started()) == 1
    assert await ask(second, kernel_id, "print('one')") == "one\n"
    await until(lambda: first.request("GET", "/readyz").status == 200, "it has a lease again")
    for server in (first, second):
        server.assert_clean_log()


async def test_a_replica_that_was_stopped_culls_no_kernel_that_it_has_lost(
    on_postgresql: Start,
) -> None:
    cull = ("--cull-idle=1", "--BridgeKernelManager.cull_interval=1")
    first = on_postgresql("--lease-seconds=3", *cull)
    second = on_postgresql("--lease-seconds=3")
    kernel_id = first.start_kernel()
    first.process.send_signal(signal.SIGSTOP)
    await until(lambda: took(second, kernel_id), "the other replica took over")
    first.process.send_signal(signal.SIGCONT)
    await until(
        lambda: has_said(first, f"Kernel {kernel_id} is served by another replica now"),
        "the first replica has released the kernel",
    )
    assert not has_said(first, f"Culling kernel {kernel_id}")
    assert await ask(second, kernel_id, "print('here')") == "here\n"


async def test_replicas_that_start_at_once_share_the_kernels_of_a_dead_one(
    replica: Start,
) -> None:
    first = replica()
    kernel_ids = {first.start_kernel() for _ in range(3)}
    pids = {process.pid for process, _ in first.started()}
    die(first)
    with ThreadPoolExecutor(2) as threads:
        others = [work.result() for work in [threads.submit(replica) for _ in range(2)]]

    def owners(kernel_id: str) -> list[Server]:
        said = (f"Kernel found again: {kernel_id}", f"Kernel taken over: {kernel_id}")
        return [server for server in others if any(has_said(server, text) for text in said)]

    for kernel_id in kernel_ids:
        eventually(lambda k=kernel_id: owners(k), "a replica serves the kernel")
        [owner] = owners(kernel_id)
        assert await ask(owner, kernel_id, "print('here')") == "here\n"
    assert {process.pid for process, _ in first.started()} == pids
    for server in others:
        server.assert_clean_log()


async def test_a_replica_that_is_stopped_gives_its_kernels_to_another(
    on_postgresql: Start,
) -> None:
    first, second = on_postgresql("--drain-seconds=1"), on_postgresql()
    kernel_id = first.start_kernel()
    async with attach(first, kernel_id) as client:
        assert (await client.execute("x = 42; print(x)")).text() == "42\n"
        stopping = asyncio.create_task(asyncio.to_thread(first.stop))
        assert await client.closed() == (1012, "the server is restarting")
        # The other replica serves the kernel already.
        assert await ask(second, kernel_id, "print(x)") == "42\n"
        assert took(second, kernel_id)
        assert await stopping == 0
    assert not has_said(second, "has ended without")
    # The last replica of a cluster ends its kernels, as any server does.
    assert await asyncio.to_thread(second.stop) == 0
    assert not first.started()
    for server in (first, second):
        server.assert_clean_log()


async def test_a_replica_finds_the_kernels_of_its_cluster_again_and_no_others(
    on_sqlite: Start,
) -> None:
    first = on_sqlite("--shutdown-kernels-on-exit=False")
    kernel_id = first.start_kernel()
    assert await ask(first, kernel_id, "x = 42; print(x)") == "42\n"
    assert first.stop() == 0
    with ThreadPoolExecutor(2) as threads:  # another cluster, and a server without one
        others = list(threads.map(lambda name: on_sqlite(cluster=name), ("other", "")))
    for server in others:
        assert server.request("GET", "/api/kernels").json() == []
    again = on_sqlite()
    assert [m["id"] for m in again.request("GET", "/api/kernels").json()] == [kernel_id]
    assert has_said(again, f"Kernel found again: {kernel_id}")
    assert await ask(again, kernel_id, "print(x)") == "42\n"


# PostgreSQL that is restarted


# As many leases as 60 s have with the default of 5 s.
OUTAGE = 12
TICKS = f"import time\nfor n in range({OUTAGE}):\n    time.sleep(1)\n    print(n)"


async def test_websockets_do_not_notice_that_the_database_is_down_for_twelve_leases(
    on_postgresql: Start, database: PostgreSQL
) -> None:
    first = on_postgresql("--lease-seconds=1")
    kernel_id = start_kernel(first)
    ready = lambda: first.request("GET", "/readyz")  # noqa: E731
    async with attach(first, kernel_id) as client:
        assert (await client.execute("print('before')")).text() == "before\n"
        await asyncio.to_thread(database.stop, crash=True)
        ticks = await client.execute(TICKS)
        assert ticks.text() == "".join(f"{n}\n" for n in range(OUTAGE))
        assert ticks.reply["status"] == "ok"
        assert ready().status == 503
        assert "lease" in ready().json()["checks"]["cluster"]
        # Requests that need no lease are answered; the others name the reason.
        assert (await client.execute("print('meanwhile')")).text() == "meanwhile\n"
        assert [m["id"] for m in first.request("GET", "/api/kernels").json()] == [kernel_id]
        refused = first.request("POST", f"/api/kernels/{kernel_id}/restart")
        assert (refused.status, b"lease" in refused.body) == (503, True)
        assert first.request("POST", "/api/kernels", {"name": "python3"}).status == 503
        await asyncio.to_thread(database.start)
        await until(lambda: ready().status == 200, "the lease is held again")
        assert (await client.execute("print('after')")).text() == "after\n"
    other = start_kernel(first)
    second = on_postgresql()
    die(first)
    for each in (kernel_id, other):
        await until(lambda k=each: took(second, k), "kernels were recorded after the restart")
    assert not has_said(first, "restart 1 of at most")
    first.assert_clean_log()


async def test_a_kernel_that_dies_without_a_lease_is_restarted_once_there_is_one(
    on_postgresql: Start, database: PostgreSQL
) -> None:
    """Requests that a client sends after it has heard of the end wait for the next process."""
    first = on_postgresql("--lease-seconds=1")
    kernel_id = start_kernel(first)
    async with attach(first, kernel_id) as client:
        assert (await client.execute("print('before')")).text() == "before\n"
        await asyncio.to_thread(database.stop)
        await until(lambda: b"lease" in first.request("GET", "/readyz").body, "the lease is over")
        [(process, _)] = first.started()
        process.kill()
        psutil.wait_procs([process])
        await client.until(lambda m: m["content"].get("execution_state") == "restarting")
        waiting = await client.start("print('waited')")
        assert not has_said(first, "restart 1 of at most")
        assert not first.started()
        await asyncio.to_thread(database.start)
        assert (await client.finish(waiting)).text() == "waited\n"
        states = [m["content"].get("execution_state") for m in client.seen]
        assert states.count("restarting") == 1
    assert has_said(first, "restart 1 of at most")
    [(restarted, _)] = first.started()
    assert restarted.pid != process.pid
    assert await ask(first, kernel_id, "print('again')") == "again\n"
    first.assert_clean_log()


async def test_neither_the_secret_nor_the_password_is_logged(
    on_postgresql: Start, database: PostgreSQL
) -> None:
    first, second = on_postgresql("--debug"), on_postgresql("--debug")
    kernel_id = first.start_kernel()
    die(first)
    await until(lambda: took(second, kernel_id), "the other replica took over")
    [[secret]] = database.query("SELECT secret FROM kbridge_clusters")
    await asyncio.to_thread(database.stop)
    await until(lambda: has_said(second, "The registry postgresql"), "the error is logged")
    for server in (first, second):
        for text in (secret, PASSWORD, quote(PASSWORD, safe="")):
            assert not has_said(server, text)


async def test_a_server_without_its_database_says_so_and_ends(
    on_postgresql: Start, database: PostgreSQL
) -> None:
    await asyncio.to_thread(database.stop)
    with pytest.raises(AssertionError, match="The registry postgresql") as ended:
        on_postgresql()
    assert "word" not in str(ended.value), "the password is not shown"
