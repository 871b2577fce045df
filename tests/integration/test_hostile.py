"""Hostile input against a live server: no attack disturbs a cooperative client."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

from tests.conftest import ServerFactory
from tests.support.client import attach
from tests.support.fuzz import SECONDS, Case, Target, cases
from tests.support.fuzz_http import http_case
from tests.support.fuzz_websocket import ECHOED, frame, websocket_case
from tests.support.hostile import Heard, RawConnection, open_files, unharmed
from tests.support.require import lack, require
from tests.support.server import Server
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel

MIB = 1 << 20
# The close codes of docs/websocket.md for errors of the client, and 1000 for a normal close.
DOCUMENTED = {1000, 1002, 1003, 1007, 1008, 1009}
AT_ONCE = 8
# Seconds of silence after which a case counts as answered. If an answer that belongs to the cases
# was not heard, the machine is slow: then they are sent once more, with more patience.
QUIET = (0.3, 5.0)
COUNT = 400
NOT_IMPLEMENTED = 501
# Memory that the allocator and caches may keep in addition.
SLACK = 24 * MIB
# In a long run the journals of two kernels may fill up, because disconnected clients may resume.
FUZZ_MEMORY = SLACK + (2 * 64 * MIB if SECONDS else 0)
CROWD = 5_000
# The default of KbridgeApp.max_unauthenticated_connections, and the maximum memory for the heads
# and bodies of so many connections (max_header_size, twice).
STRANGERS = 512
CROWD_MEMORY = STRANGERS * (128 << 10)
GUESSES = 3_000 - 3_000 % AT_ONCE


Live = tuple[Server, str, str]


def ready_kernel(server: Server) -> str:
    """Start a kernel and wait for it: its connections count among the server's descriptors."""
    kernel = server.start_kernel()

    async def meet() -> None:
        async with attach(server, kernel) as client:
            for channel in ("shell", "control"):
                await client.request("kernel_info_request", {}, channel=channel)
            asked = await client.start("input()", allow_stdin=True)
            (question,) = [
                m
                for m in await client.until(lambda m: m["channel"] == "stdin")
                if m["channel"] == "stdin"
            ]
            await client.send(
                "input_reply", {"value": ""}, channel="stdin", parent=question["header"]
            )
            await client.finish(asked)

    asyncio.run(meet())
    return kernel


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with two kernels: one for a cooperative client, and one for the attacks."""
    require("ipykernel")
    server = Server(tmp_path_factory.mktemp("server"), "--max-kernels=2").start()
    try:
        kernels = [ready_kernel(server) for _ in range(2)]
        yield server, *kernels
        server.assert_clean_log()
    finally:
        server.kill()


async def every(made: Iterator[Case], judge: Callable[[Case], Awaitable[None]]) -> int:
    """Run cases, a few at a time; return their number."""
    judged = 0

    async def work() -> None:
        nonlocal judged
        for case in made:
            async with asyncio.timeout(TIMEOUT):
                await judge(case)
            judged += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return judged


@pytest.mark.timeout(2 * SECONDS + 900)
async def test_no_http_request_causes_an_internal_error(live: Live) -> None:
    server, kernel, harmed = live
    seen: Counter[int] = Counter()
    expected = {101, 200, 400, 403, 404, 405}

    async def judge(case: Case, quiet: float) -> None:
        async with await RawConnection.dial(server) as wire:
            await wire.send(*case.pieces)
            statuses = await wire.statuses(quiet)
        assert not any(status >= 500 and status != NOT_IMPLEMENTED for status in statuses), case
        seen.update(statuses)

    async with unharmed(server, kernel, FUZZ_MEMORY):
        for quiet in QUIET:
            if not expected <= set(seen):
                made = cases(http_case, Target(harmed, server.port), COUNT)
                assert await every(made, partial(judge, quiet=quiet)) >= COUNT
    assert expected <= set(seen), f"too few cases: {seen}"


@pytest.mark.timeout(2 * SECONDS + 900)
async def test_every_websocket_is_answered_or_closed_with_a_code(live: Live) -> None:
    server, kernel, harmed = live
    seen: Counter[int] = Counter()
    expected = {0, *DOCUMENTED} - {1000}

    async def send(case: Case, quiet: float) -> Heard:
        async with await RawConnection.upgrade(server, harmed, case.dialect) as wire:
            await wire.send(*case.pieces, frame(9, b"the end"))
            return await wire.hear(b"the end", quiet)

    async def judge(case: Case, quiet: float) -> None:
        heard = await send(case, quiet)
        if heard.ended and not heard.closes:
            # On a machine that stands still for 2 s, the close frame is lost (`link.linger`).
            heard = await send(case, quiet)
        assert set(heard.closes) <= DOCUMENTED | set(ECHOED), (heard, case)
        assert heard.closes or not heard.ended, f"connections ended without a close frame: {case}"
        seen.update(heard.closes or [0])

    async with unharmed(server, kernel, FUZZ_MEMORY):
        for quiet in QUIET:
            if not expected <= set(seen):
                made = cases(websocket_case, Target(harmed, server.port), COUNT)
                assert await every(made, partial(judge, quiet=quiet)) >= COUNT
    assert expected <= set(seen), f"too few cases: {seen}"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server with small limits, and the kernel of a cooperative client."""
    require("ipykernel")
    limits = {"websocket_max_message_size": MIB, "max_body_size": MIB, "request_timeout": 1.0}
    args = [f"--KbridgeApp.{name}={value}" for name, value in limits.items()]
    server = Server(tmp_path_factory.mktemp("server"), *args).start()
    try:
        yield server, ready_kernel(server)
        server.assert_clean_log()
    finally:
        server.kill()


OVERSIZE = {
    "one frame": [frame(2, b"x" * (MIB + 1))],
    "fragments": [frame(2, b"x" * MIB, final=False), frame(0, b"x", final=True)],
    "a claim alone": [frame(2, b"", claim=MIB + 1)],
    "a claim beyond all memory": [frame(2, b"", claim=1 << 63, width=8)],
    "a claim of all bits": [frame(1, b"", claim=(1 << 64) - 1, width=8)],
    "a fragment's claim": [frame(2, b"x", final=False), frame(0, b"", claim=1 << 63, width=8)],
}


@pytest.mark.parametrize("case", OVERSIZE)
async def test_a_message_over_the_limit_is_closed_with_1009(
    strict: tuple[Server, str], case: str
) -> None:
    server, kernel = strict
    async with unharmed(server, kernel, SLACK), await RawConnection.upgrade(server, kernel) as wire:
        await wire.send(*OVERSIZE[case])
        heard = await wire.hear(b"", TIMEOUT)
        assert heard.closes == [1009], heard
        assert heard.reasons == [f"over websocket_max_message_size ({MIB} bytes)"]


async def test_a_body_over_the_limit_is_answered_with_413(strict: tuple[Server, str]) -> None:
    server, kernel = strict
    async with unharmed(server, kernel, SLACK):
        reply = await server.call("POST", "/api/kernels", b"x" * (2 * MIB))
        assert reply.status == 413
        assert "KbridgeApp.max_body_size" in reply.json()["message"]


async def test_a_head_over_the_limit_ends_the_connection(strict: tuple[Server, str]) -> None:
    server, kernel = strict
    async with unharmed(server, kernel, SLACK), await RawConnection.dial(server) as wire:
        await wire.send(b"GET /api HTTP/1.1\r\nHost: localhost\r\nX: ", b"x" * MIB)
        assert (await wire.until_end()).startswith(b"HTTP/1.1 431 ")


BEGINNINGS = {
    "silence": b"",
    "half a line": b"GET /api/ker",
    "half a handshake": b"GET /api/kernels/x/channels HTTP/1.1\r\nHost: localhost\r\nUpgrade: we",
    "half a body": b"POST /api/kernels HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
    "half a chunk": (
        b"POST /api/kernels HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"
    ),
}


@pytest.mark.parametrize("drips", [False, True], ids=["stops", "trickles"])
async def test_requests_that_never_finish_are_closed(
    strict: tuple[Server, str], drips: bool
) -> None:
    """The setting says one second."""
    server, kernel = strict

    async def attack(beginning: bytes) -> None:
        async with await RawConnection.dial(server) as wire:
            await wire.send(beginning)
            ending = asyncio.create_task(wire.until_end())
            while drips and beginning and not ending.done():
                await wire.send(b"a")
                await asyncio.wait({ending}, timeout=0.1)
            await ending

    async with unharmed(server, kernel, SLACK), asyncio.TaskGroup() as group:
        for beginning in list(BEGINNINGS.values()) * 20:
            group.create_task(attack(beginning))


@pytest.mark.slow
async def test_five_thousand_half_open_connections_harm_no_client(live: Live) -> None:
    server, kernel, _ = live
    need_descriptors(CROWD + 500)
    handshake = BEGINNINGS["half a handshake"]
    async with unharmed(server, kernel, CROWD_MEMORY) as one:
        crowd: list[RawConnection] = []
        for _ in range(CROWD // 500):
            batch = await asyncio.gather(*(RawConnection.dial(server) for _ in range(500)))
            for wire in batch[::2]:
                await wire.send(handshake)
            crowd += batch
            # A new client can connect too.
            assert (await server.call("GET", "/api/kernels")).status == 200
        await one.goes_on(20)
        held = open_files(server)
        assert held < STRANGERS + 100, f"{held} descriptors"
        async with attach(server, kernel) as newcomer:
            assert (await newcomer.execute("print('in')")).text() == "in\n"
        for wire in crowd:
            wire.cut()


async def test_thousands_of_wrong_tokens_harm_no_client(live: Live) -> None:
    server, kernel, _ = live
    lines = len(server.log.read_text().splitlines())
    statuses: Counter[int] = Counter()

    async def guess(at: int) -> None:
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        head = (
            f"GET /api/kernels/{kernel}/channels?token={at:048x} HTTP/1.1\r\n{upgrade}"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            if at % 2
            else f"GET /api/kernels HTTP/1.1\r\nAuthorization: token {at:048x}\r\n"
        )
        async with await RawConnection.dial(server) as wire:
            await wire.send(f"{head}Host: localhost\r\n\r\n".encode())
            statuses.update([int((await wire.until_end()).split()[1])])

    async def guesser(begin: int) -> None:
        for at in range(begin, begin + GUESSES // AT_ONCE):
            await guess(at)

    async with unharmed(server, kernel, SLACK), asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(guesser(number * GUESSES))
    assert statuses == {403: GUESSES}
    # It is limited per minute.
    assert len(server.log.read_text().splitlines()) - lines < GUESSES / 4
    assert f"{1:048x}" not in server.log.read_text(), "the log contains a guess"


async def test_without_free_descriptors_connected_clients_continue(
    new_server: ServerFactory,
) -> None:
    command = [sys.executable, "-m", "kbridge", "--ip=127.0.0.1"]
    server = new_server(
        "--KbridgeApp.min_open_files_limit=0",
        command=["sh", "-c", 'ulimit -n 100 && exec "$@"', "sh", *command],
    )
    kernel = await asyncio.to_thread(ready_kernel, server)
    async with unharmed(server, kernel, SLACK) as one:
        crowd = [await RawConnection.dial(server) for _ in range(400)]
        await one.goes_on(20)
        for wire in crowd:
            wire.cut()
    assert server.request("GET", "/api/kernels").status == 200
    complaints = [line for line in server.log.read_text().splitlines() if "min_open_files" in line]
    assert 1 <= len(complaints) <= 3, complaints


async def test_a_start_that_would_use_the_last_descriptors_is_refused(
    new_server: ServerFactory,
) -> None:
    command = [sys.executable, "-m", "kbridge", "--ip=127.0.0.1"]
    server = new_server(
        "--KbridgeApp.min_open_files_limit=0",
        command=["sh", "-c", 'ulimit -n 80 && exec "$@"', "sh", *command],
    )
    kernels = []
    while (reply := await server.call("POST", "/api/kernels", {"name": "mute"})).status == 201:
        kernels.append(reply.json()["id"])
    assert reply.status == 503
    assert "min_open_files_limit" in reply.json()["message"]
    assert len(kernels) >= 4
    crowd = [
        await RawConnection.dial(server) for _ in range(200)
    ]  # unauthenticated connections leave memory too
    assert {model["id"] for model in server.request("GET", "/api/kernels").json()} == set(kernels)
    async with attach(server, kernels[0]):
        assert (await server.call("DELETE", f"/api/kernels/{kernels.pop()}")).status == 204
    for wire in crowd:
        wire.cut()
    assert (await server.call("POST", f"/api/kernels/{kernels[0]}/restart")).status == 200
    # The attached kernel has opened its journal; that takes more than one mute kernel leaves.
    for kernel in kernels[1:]:
        assert (await server.call("DELETE", f"/api/kernels/{kernel}")).status == 204

    def another() -> bool:
        return server.request("POST", "/api/kernels", {"name": "mute"}).status == 201

    await asyncio.to_thread(eventually, another, "there is room for one more")
    assert "Traceback" not in server.log.read_text()


def need_descriptors(count: int) -> None:
    """Raise the limit of descriptors of this process, or skip the test."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        lack(f"a process may have {hard} descriptors here: ulimit -Hn {count}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
