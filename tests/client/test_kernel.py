"""A session on a kernel whose answers are scripted: no error ends it in silence."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kbridge.client import Gap, Kernel, Server, Stream, connect
from kbridge.client.address import Address
from kbridge.client.comms import Comm, CommMessage
from kbridge.client.kernel import ClientOptions
from kbridge.client.rest import Rest
from kbridge.client.session import KernelSession
from kbridge.errors import BridgeError, KernelDied, KernelNotFound
from kbridge.wire.message import Channel, Message
from tests.support.scripted_server import Reply, ScriptedServer, scripted_server
from tests.support.waiting import TIMEOUT


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    async with asyncio.timeout(TIMEOUT), scripted_server() as kernel:
        yield kernel


@pytest.fixture
async def client(scripted: ScriptedServer) -> AsyncIterator[Server]:
    server = connect(scripted.url, "t", patience=TIMEOUT)
    yield server
    await server.aclose()


@pytest.fixture
async def kernel(client: Server) -> Kernel:
    return await client.kernel("a-kernel")


async def test_a_callback_of_a_comm_target_that_raises_is_reported(
    scripted: ScriptedServer, kernel: Kernel
) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, what: reports.append(what))

    def fails(_comm: Comm, _message: CommMessage) -> None:
        raise ZeroDivisionError

    def opens(message: Message) -> None:
        scripted.send(message, "comm_open", {"comm_id": "c", "target_name": "t", "data": {}})
        scripted.answer(message)

    scripted.on_message = opens
    kernel.register_target("t", fails)
    assert (await (await kernel.execute("1"))).ok
    assert (await kernel.kernel_info())["status"] == "ok"
    assert all(isinstance(what["exception"], ZeroDivisionError) for what in reports)
    assert reports


async def test_output_of_an_execution_whose_sending_was_cancelled_is_dropped(
    scripted: ScriptedServer, kernel: Kernel
) -> None:
    received: asyncio.Queue[Message] = asyncio.Queue()
    reads = asyncio.Event()

    async def blocks(message: Message) -> None:
        received.put_nowait(message)
        await reads.wait()

    scripted.on_message = blocks
    await kernel.execute("the server does not read on")
    await received.get()
    sending = asyncio.create_task(kernel.execute("#" * (32 << 20)))  # more than all buffers hold
    for _ in range(5):
        await asyncio.sleep(0)
    assert not sending.done()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    reads.set()
    message = await received.get()
    scripted.on_message = scripted.answer
    scripted.stream(message, "output that nobody waits for")
    scripted.answer(message)
    assert (await kernel.kernel_info())["status"] == "ok"


@pytest.mark.parametrize("refusal", [500, 502, 503])
async def test_a_question_after_a_restart_is_asked_until_the_server_answers(
    scripted: ScriptedServer, kernel: Kernel, refusal: int
) -> None:
    replies: list[Reply] = [(refusal, {}), (refusal, {})]
    messages: asyncio.Queue[Message] = asyncio.Queue()
    scripted.on_message = messages.put_nowait
    running = await kernel.execute("running")
    queued = await kernel.execute("queued")
    scripted.stream(await messages.get(), "begun")
    assert await anext(running) == Stream("stdout", "begun")
    model = {"id": queued.msg_id, "state": "aborted"}
    scripted.on_rest = lambda _method, _path: replies.pop(0) if replies else (200, [model])
    scripted.send(None, "status", {"execution_state": "restarting"})
    for execution in (running, queued):
        with pytest.raises(KernelDied):
            await execution
    assert not replies
    scripted.on_message = scripted.answer
    assert (await (await kernel.execute("1"))).ok


async def test_a_refused_question_after_a_restart_ends_everything(
    scripted: ScriptedServer, kernel: Kernel
) -> None:
    scripted.on_message = lambda _message: None
    queued = await kernel.execute("queued")
    scripted.on_rest = lambda _method, _path: (404, {"message": "no such kernel"})
    scripted.send(None, "status", {"execution_state": "restarting"})
    with pytest.raises(KernelNotFound):
        await queued
    with pytest.raises(KernelNotFound):
        await kernel.execute("1")


async def test_a_fault_of_the_client_ends_everything(
    scripted: ScriptedServer, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.on_message = lambda _message: None
    waiting = await kernel.execute("1")

    def fails(*_args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(KernelSession, "receive", fails)
    scripted.send(None, "status", {"execution_state": "busy"})
    with pytest.raises(BridgeError, match="ZeroDivisionError"):
        await waiting
    with pytest.raises(BridgeError, match="ZeroDivisionError"):
        await kernel.kernel_info()


async def test_an_input_callback_has_to_return_text(
    scripted: ScriptedServer, kernel: Kernel
) -> None:
    def asks(message: Message) -> None:
        scripted.send(message, "input_request", {"prompt": "?"}, Channel.STDIN)

    scripted.on_message = asks
    execution = await kernel.execute("input()", input=lambda _prompt, _password: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="returned NoneType instead of a string"):
        await execution


async def test_a_call_does_not_wait_for_output_that_is_not_read(
    scripted: ScriptedServer,
) -> None:
    def answers(message: Message) -> None:
        if message.msg_type == "execute_request":
            for number in range(10):
                scripted.stream(message, str(number))
        scripted.answer(message)

    scripted.on_message = answers
    async with connect(scripted.url, "t", buffer=1) as server:
        kernel = await server.kernel("a-kernel")
        execution = await kernel.execute("1")
        async for _ in execution:
            break
        assert (await kernel.kernel_info())["status"] == "ok"
        assert (await (await kernel.execute("2"))).ok
        assert await execution.collect() == [Stream("stdout", str(n)) for n in range(1, 10)]


async def test_a_cancelled_collect_loses_nothing(scripted: ScriptedServer, kernel: Kernel) -> None:
    requests: asyncio.Queue[Message] = asyncio.Queue()
    scripted.on_message = requests.put_nowait
    execution = await kernel.execute("1")
    request = await requests.get()
    collecting = asyncio.create_task(execution.collect())
    scripted.stream(request, "a")
    waiting = asyncio.create_task(kernel.kernel_info())
    scripted.answer(await requests.get())
    await waiting  # the output has arrived before this reply
    collecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collecting
    scripted.answer(request)
    assert await execution.collect() == [Stream("stdout", "a")]


async def test_a_start_tells_why_the_kernel_waits(scripted: ScriptedServer) -> None:
    def on_rest(method: str, _path: str) -> Reply:
        return (201, {"id": "k"}) if method == "POST" else (200, {"kernelspecs": {}})

    def wait_twice(message: Message) -> None:
        for reason in ("Priority", "Resources"):
            waits = {"execution_state": "starting", "reason": reason}
            scripted.send(None, "status", waits)
        scripted.answer(message)

    scripted.on_rest, scripted.on_message = on_rest, wait_twice
    stages: list[str] = []
    async with connect(scripted.url, "t") as server:
        kernel = await server.start_kernel(on_progress=stages.append)
        assert kernel.reason == ""
    told = ["waiting: Priority", "waiting: Resources"]
    assert stages == ["starting", "connecting", "waiting", *told, "ready"]


async def test_a_start_that_is_cancelled_leaves_no_kernel(scripted: ScriptedServer) -> None:
    asked, goes_on = asyncio.Event(), asyncio.Event()

    async def starts() -> dict[str, str]:
        asked.set()
        await goes_on.wait()
        return {"id": "a-kernel"}

    scripted.on_rest = lambda method, _path: {
        "POST": (201, starts()) if method == "POST" else (200, []),
        "DELETE": (204, None),
    }.get(method, (200, []))
    async with connect(scripted.url, "t") as server:
        starting = asyncio.create_task(server.start_kernel())
        await asked.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        goes_on.set()
    assert scripted.requests[-1] == ("DELETE", "/api/kernels/a-kernel")


async def test_a_start_that_fails_leaves_no_kernel(scripted: ScriptedServer) -> None:
    scripted.on_rest = lambda method, _path: (
        (201, {"id": "a-kernel"})
        if method == "POST"
        else ((204, None) if method == "DELETE" else (200, []))
    )
    scripted.on_message = lambda _message: scripted.send(
        None, "status", {"execution_state": "dead"}
    )
    async with connect(scripted.url, "t") as server:
        with pytest.raises(KernelDied):
            await server.start_kernel()
    assert scripted.requests[-1] == ("DELETE", "/api/kernels/a-kernel")


async def test_kernels_that_were_closed_are_forgotten(client: Server) -> None:
    references = []
    for _ in range(5):
        async with await client.kernel("a-kernel") as kernel:
            references.append(weakref.ref(kernel))
        del kernel
    gc.collect()
    assert len([each for each in references if each() is not None]) <= 1


async def test_an_execution_whose_idle_status_the_kernel_dropped_ends_with_a_gap(
    scripted: ScriptedServer,
) -> None:
    def drops(message: Message) -> None:
        if message.msg_type == "execute_request":
            scripted.reply(message)
        else:
            scripted.answer(message)

    scripted.on_message = drops
    options = ClientOptions(8 << 20, TIMEOUT, TIMEOUT, idle_timeout=0.0)
    server = Server(Rest(Address.parse(scripted.url)), options)
    try:
        execution = await (await server.kernel("a-kernel")).execute("1")
        [gap] = await execution.collect()
        assert isinstance(gap, Gap)
        assert (await execution).ok
    finally:
        await server.aclose()


async def test_a_request_that_is_cancelled_logs_no_error(caplog: pytest.LogCaptureFixture) -> None:
    asked = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writers.append(writer)
        asked.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        rest = Rest(Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", "t"))
        request = asyncio.create_task(rest.kernels())
        await asked.wait()
        request.cancel()
        await asyncio.wait({request})
        for writer in writers:
            writer.transport.abort()
        for _ in range(10):  # the client reads the end of the connection
            await asyncio.sleep(0)
        rest.close()
    assert "Exception" not in caplog.text
