"""The client without an event loop of the caller, against a scripted server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from kbridge.client import Stream, sync
from kbridge.errors import Conflict, NetworkError
from kbridge.wire.message import Channel, Message
from tests.support.scripted_server import ScriptedServer, scripted_server
from tests.support.waiting import TIMEOUT


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """A scripted kernel on an event loop in a thread."""
    kernels: list[ScriptedServer] = []
    ready = threading.Event()
    ends: list[Callable[[], object]] = []

    async def serve() -> None:
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with scripted_server() as kernel:
            kernels.append(kernel)
            ends.append(lambda: loop.call_soon_threadsafe(end.set))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(TIMEOUT)
    yield kernels[0]
    ends[0]()
    thread.join(TIMEOUT)


def asks(scripted: ScriptedServer) -> Callable[[Message], None]:
    def on_message(message: Message) -> None:
        if message.msg_type == "execute_request":
            scripted.send(message, "input_request", {"prompt": "?"}, Channel.STDIN)
        else:
            scripted.answer(message)

    return on_message


async def test_it_works_while_a_loop_of_the_caller_runs() -> None:
    def use(url: str) -> None:
        async def notebook() -> None:
            with sync.connect(url, "t") as server:
                assert server.kernel("a-kernel").kernel_info()["status"] == "ok"

        asyncio.run(notebook())

    async with scripted_server() as scripted:
        await asyncio.to_thread(use, scripted.url)


def test_closing_twice_has_no_effect(scripted: ScriptedServer) -> None:
    server = sync.connect(scripted.url, "t")
    kernel = server.kernel("a-kernel")
    execution = kernel.execute("1")
    server.close()
    server.close()
    kernel.close()
    execution.close()
    execution.discard()
    with pytest.raises(NetworkError, match="the client was closed"):
        kernel.kernel_info()


def test_a_callback_on_the_loop_cannot_call_the_client(scripted: ScriptedServer) -> None:
    scripted.on_rest = lambda method, _path: (200, {"id": "a-kernel"} if method == "POST" else [])
    with (
        sync.connect(scripted.url, "t") as server,
        pytest.raises(Conflict, match="callback"),
    ):
        server.start_kernel(on_progress=lambda _stage: server.kernels())


def test_an_input_callback_may_call_the_client_and_nothing_waits_for_it(
    scripted: ScriptedServer,
) -> None:
    scripted.on_message = asks(scripted)
    asked, leave, left = (threading.Event() for _ in range(3))
    found: list[object] = []

    def ask(_prompt: str, _password: bool) -> str:
        found.append(kernel.kernel_info()["status"])
        asked.set()
        leave.wait(TIMEOUT)
        left.set()
        return ""

    with sync.connect(scripted.url, "t") as server:
        kernel = server.kernel("a-kernel")
        kernel.execute("input()", input=ask)
        assert asked.wait(TIMEOUT)
    assert not left.is_set()
    assert found == ["ok"]
    leave.set()


def test_closing_ends_the_calls_of_other_threads(scripted: ScriptedServer) -> None:
    received = threading.Event()
    scripted.on_message = lambda _message: received.set()
    errors: list[BaseException] = []
    server = sync.connect(scripted.url, "t")
    kernel = server.kernel("a-kernel")

    def waits() -> None:
        try:
            kernel.kernel_info()
        except NetworkError as error:
            errors.append(error)

    thread = threading.Thread(target=waits)
    thread.start()
    assert received.wait(TIMEOUT)
    server.close()
    thread.join(TIMEOUT)
    assert len(errors) == 1


def test_an_interrupted_call_loses_no_output(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(message: Message) -> None:
        for number in range(4):
            scripted.stream(message, str(number))
        scripted.answer(message)

    wait_for: Callable[..., Any] = Future.result
    interrupts = 0

    def result(self: Future[Any], timeout: float | None = None) -> Any:
        """Interrupt every second call, when its work is done."""
        nonlocal interrupts
        value = wait_for(self, timeout)
        interrupts += 1
        if interrupts % 2:
            raise KeyboardInterrupt
        return value

    scripted.on_message = answers
    numbers = [Stream("stdout", str(number)) for number in range(4)]
    found: list[object] = []
    with sync.connect(scripted.url, "t") as server:
        kernel = server.kernel("a-kernel")
        first, second = kernel.execute("1"), kernel.execute("2")
        with monkeypatch.context() as patch:
            patch.setattr(Future, "result", result)
            while len(found) < len(numbers):
                with suppress(KeyboardInterrupt):
                    found += [next(iter(first))]
            interrupts = 0
            with pytest.raises(KeyboardInterrupt):
                second.collect()
        assert found == numbers
        assert second.collect() == numbers
