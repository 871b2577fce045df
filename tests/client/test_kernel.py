"""A session on a kernel whose answers are scripted: no error ends it in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kbridge.client import Kernel, Server, Stream, connect
from kbridge.client.comms import Comm, CommMessage
from kbridge.client.session import KernelSession
from kbridge.errors import BridgeError, KernelDied, KernelNotFound
from kbridge.wire.message import Channel, Message
from tests.support.scripted_kernel import Reply, ScriptedKernel, scripted_kernel
from tests.support.waiting import TIMEOUT


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedKernel]:
    async with asyncio.timeout(TIMEOUT), scripted_kernel() as kernel:
        yield kernel


@pytest.fixture
async def client(scripted: ScriptedKernel) -> AsyncIterator[Server]:
    server = connect(scripted.url, "t", patience=TIMEOUT)
    yield server
    await server.aclose()


@pytest.fixture
async def kernel(client: Server) -> Kernel:
    return await client.kernel("a-kernel")


async def test_a_callback_of_a_comm_target_that_raises_is_reported(
    scripted: ScriptedKernel, kernel: Kernel
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
    scripted: ScriptedKernel, kernel: Kernel
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
    scripted: ScriptedKernel, kernel: Kernel, refusal: int
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
    scripted: ScriptedKernel, kernel: Kernel
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
    scripted: ScriptedKernel, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
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
    scripted: ScriptedKernel, kernel: Kernel
) -> None:
    def asks(message: Message) -> None:
        scripted.send(message, "input_request", {"prompt": "?"}, Channel.STDIN)

    scripted.on_message = asks
    execution = await kernel.execute("input()", input=lambda _prompt, _password: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="returned NoneType instead of a string"):
        await execution
