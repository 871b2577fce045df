"""`kbridge.client` and real servers: executions, input, comms, broken networks, restarts."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from kbridge.client import (
    Error,
    ExecuteResult,
    Execution,
    Kernel,
    Output,
    Server,
    Stream,
    connect,
    sync,
)
from kbridge.errors import (
    Conflict,
    Forbidden,
    KernelDied,
    KernelNotFound,
    KernelspecNotFound,
    KernelStartError,
    NotFound,
)
from kbridge.link.holder.client import is_supported
from tests.support.network import network_to
from tests.support.restartable_server import RestartableServer
from tests.support.server import LINK, TOKEN
from tests.support.server import Server as ServerProcess
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL | re.MULTILINE
)
# Prints numbered lines until a file exists, and then a last one.
UNTIL_FILE = """
import pathlib, time
number = 0
while not pathlib.Path({path!r}).exists():
    print(number, flush=True)
    number += 1
    time.sleep(0.005)
print("last", number, flush=True)
"""


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[Server]:
    async with asyncio.timeout(TIMEOUT), connect(server.url, TOKEN) as opened:
        yield opened


@pytest.fixture
async def session(client: Server, kernel: str) -> Kernel:
    return await client.kernel(kernel)


def text_of(outputs: Iterable[Output]) -> str:
    return "".join(output.text for output in outputs if isinstance(output, Stream))


async def run(kernel: Kernel, code: str, **how: Any) -> list[Output]:
    return await (await kernel.execute(code, **how)).collect()


async def read_numbers(execution: Execution, wanted: int) -> str:
    """Read outputs until a number was printed, and return the text."""
    text = ""
    async for output in execution:
        assert isinstance(output, Stream), output
        text += output.text
        if f"{wanted}\n" in text:
            return text
    raise AssertionError(f"it ended: {text[-100:]}")


def assert_whole(text: str) -> None:
    """Fail unless every number is there once, in order, and the last line names their count."""
    *numbers, last = text.splitlines()
    assert numbers == [str(number) for number in range(len(numbers))]
    assert last == f"last {len(numbers)}"


async def test_outputs_are_typed(session: Kernel) -> None:
    execution = await session.execute("print('a'); 6 * 7")
    outputs = [output async for output in execution]
    assert outputs[0] == Stream("stdout", "a\n")
    assert isinstance(outputs[1], ExecuteResult)
    assert outputs[1].data == {"text/plain": "42"}
    result = await execution
    assert result.ok
    assert result.execution_count == outputs[1].execution_count


async def test_an_error_is_an_output_and_a_status(session: Kernel) -> None:
    execution = await session.execute("1 / 0")
    [error] = await execution.collect()
    assert isinstance(error, Error)
    assert error.ename == "ZeroDivisionError"
    result = await execution
    assert (result.status, result.error) == ("error", error)


async def test_user_expressions(session: Kernel) -> None:
    result = await (await session.execute("a = 3", user_expressions={"b": "a + 1"}))
    assert result.user_expressions["b"]["data"]["text/plain"] == "4"


async def test_requests_have_the_names_of_jupyter_client(session: Kernel) -> None:
    assert (await session.kernel_info())["implementation"] == "ipython"
    assert "print" in (await session.complete("prin"))["matches"]
    assert (await session.inspect("print"))["found"]
    assert (await session.is_complete("for a in b:"))["status"] == "incomplete"
    await run(session, "'to remember'")
    history = await session.history(hist_access_type="tail", n=1)
    assert history["history"][0][2] == "'to remember'"


@pytest.mark.parametrize("is_async", [False, True])
async def test_input(session: Kernel, is_async: bool) -> None:
    asked: list[tuple[str, bool]] = []

    def answer(prompt: str, password: bool) -> str:
        asked.append((prompt, password))
        return "Ada"

    async def answer_later(prompt: str, password: bool) -> str:
        await asyncio.sleep(0)
        return answer(prompt, password)

    callback: Callable[[str, bool], str | Awaitable[str]] = answer_later if is_async else answer
    outputs = await run(session, "print(input('Name: ') * 2)", input=callback)
    assert text_of(outputs) == "AdaAda\n"
    assert asked == [("Name: ", False)]


async def test_an_error_of_the_callback_ends_the_execution(session: Kernel) -> None:
    def refuse(prompt: str, password: bool) -> str:
        raise LookupError(prompt)

    execution = await session.execute("input('Name: ')", input=refuse, stop_on_error=False)
    with pytest.raises(LookupError, match="Name"):
        await execution
    assert text_of(await run(session, "print('goes on')")) == "goes on\n"


async def test_code_that_may_not_ask_fails(session: Kernel) -> None:
    result = await (await session.execute("input()"))
    assert result.error is not None
    assert result.error.ename == "StdinNotImplementedError"


async def test_interrupt(session: Kernel) -> None:
    execution = await session.execute("while True: print('a', flush=True)")
    async for _ in execution:
        await session.interrupt()
        break
    result = await execution
    assert result.error is not None
    assert result.error.ename == "KeyboardInterrupt"


async def test_comms_carry_buffers(session: Kernel) -> None:
    code = next(snippet for snippet in SNIPPETS if "register_target" in snippet)
    namespace: dict[str, Any] = {}
    exec(code[: code.index("async def main")], namespace)
    await (await session.execute(namespace["ECHO"]))
    comm = await session.open_comm("echo")
    big = os.urandom(1 << 20)
    await comm.send(buffers=[big])
    message = await anext(comm)
    assert message.data == {"size": 1 << 20}
    assert bytes(message.buffers[0]) == big
    await comm.close()


async def test_the_kernel_opens_and_closes_a_comm(session: Kernel) -> None:
    opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    session.register_target("back", lambda comm, message: opened.set_result((comm, message)))
    await run(
        session,
        "from ipykernel.comm import Comm\n"
        "c = Comm('back', data={'a': 1}); c.send({'b': 2}); c.close()",
    )
    comm, message = await opened
    assert message.data == {"a": 1}
    assert [message.data async for message in comm] == [{"b": 2}]


async def test_two_clients_on_one_kernel(client: Server, kernel: str) -> None:
    first, second = await client.kernel(kernel), await client.kernel(kernel)
    outputs = await asyncio.gather(
        run(first, "for i in range(100): print('first')"),
        run(second, "for i in range(100): print('second')"),
    )
    assert [text_of(each) for each in outputs] == ["first\n" * 100, "second\n" * 100]


async def test_100_mb_of_output_arrive_at_a_reader_that_begins_late(
    client: Server, kernel: str
) -> None:
    session = await client.kernel(kernel)
    code = "import sys\nfor i in range(1000): sys.stdout.write(str(i % 10) * 99_999 + '\\n')"
    execution = await session.execute(code)
    other = await client.kernel(kernel)
    await (await other.execute("pass"))  # the output has been written
    size = 0
    async for output in execution:
        assert isinstance(output, Stream)
        size += len(output.text)
    assert size == 100_000_000
    assert (await execution).ok


async def test_an_execution_can_be_followed_later(client: Server, kernel: str) -> None:
    first = await client.kernel(kernel)
    execution = await first.execute("print('kept'); 1 / 0", cell_id="a-cell")
    await execution
    await first.aclose()
    second = await client.kernel(kernel)
    [info] = await second.executions(cell_id="a-cell", limit=1)
    assert (info.id, info.state, info.over) == (execution.msg_id, "error", True)
    followed = await second.follow(execution.msg_id)
    assert text_of(await followed.collect()) == "kept\n"
    assert (await followed).status == "error"
    with pytest.raises(NotFound):
        await second.follow("another")


async def test_following_may_end_with_the_output_so_far(client: Server, own_kernel: str) -> None:
    session = await client.kernel(own_kernel)
    running = await session.execute("print('begun', flush=True)\nwhile True: pass")
    assert await anext(running) == Stream("stdout", "begun\n")
    so_far = await session.follow(running.msg_id, wait=False)
    assert text_of(await so_far.collect()) == "begun\n"
    with pytest.raises(Conflict):
        await so_far


async def test_a_restart_fails_what_ran(client: Server, own_kernel: str) -> None:
    session = await client.kernel(own_kernel)
    running = await session.execute("print('runs', flush=True)\nwhile True: pass")
    assert await anext(running) == Stream("stdout", "runs\n")
    waiting = await session.execute("1")
    await session.restart()
    with suppress(KernelDied):  # or it answers the interrupt before it ends
        assert (await running).status == "error"
    with pytest.raises(KernelDied):
        await waiting
    assert text_of(await run(session, "print('new')")) == "new\n"


async def test_a_kernel_that_dies_fails_what_ran(client: Server, own_kernel: str) -> None:
    session = await client.kernel(own_kernel)
    with pytest.raises(KernelDied):
        await (await session.execute("import os; os._exit(1)"))


async def test_a_kernel_that_is_shut_down_ends_other_sessions(client: Server) -> None:
    stages: list[str] = []
    kernel = await client.start_kernel("python3", on_progress=stages.append)
    assert stages == ["starting", "connecting", "waiting", "ready"]
    other = await client.kernel(kernel.kernel_id)
    running = await other.execute("while True: pass")
    await kernel.shutdown()
    with pytest.raises((KernelDied, KernelNotFound)):
        await running
    with pytest.raises(KernelNotFound):
        await client.kernel(kernel.kernel_id)


async def test_mistakes(client: Server, server: ServerProcess) -> None:
    with pytest.raises(KernelNotFound):
        await client.kernel("another")
    with pytest.raises(KernelspecNotFound):
        await client.start_kernel("another")
    with pytest.raises(KernelStartError, match="no engine"):
        await client.start_kernel("broken")
    with pytest.raises(Forbidden):
        async with connect(server.url, "wrong"):
            pass


async def test_a_unix_socket(server: ServerProcess, tmp_path: Path) -> None:
    sock = tmp_path / "s"  # leads to the port of the server
    listening = await asyncio.start_unix_server(
        lambda reader, writer: _forward(reader, writer, server.port), sock
    )
    url = f"http+unix://{quote(str(sock), safe='')}/"
    async with listening, asyncio.timeout(TIMEOUT), connect(url, TOKEN) as client:
        kernel = await client.start_kernel()
        assert text_of(await run(kernel, "print(1)")) == "1\n"
        await kernel.shutdown()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
        sink.close()

    await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))


async def test_a_broken_network_loses_nothing(
    server: ServerProcess, own_kernel: str, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    async with (
        asyncio.timeout(TIMEOUT),
        network_to(server.port) as network,
        connect(network.url, TOKEN) as client,
    ):
        kernel = await client.kernel(own_kernel)
        execution = await kernel.execute(UNTIL_FILE.format(path=str(go)))
        text = await read_numbers(execution, 20)
        for cut in (network.reset, network.cut):
            await cut()
            await network.restore()
            last = int(text.split()[-1])
            text += await read_numbers(execution, last + 20)
        go.touch()
        text += text_of(await execution.collect())
        assert_whole(text)
        assert (await execution).ok


async def test_code_that_is_sent_while_the_network_is_cut_runs_once(
    server: ServerProcess, own_kernel: str
) -> None:
    async with (
        asyncio.timeout(TIMEOUT),
        network_to(server.port) as network,
        connect(network.url, TOKEN) as client,
    ):
        kernel = await client.kernel(own_kernel)
        await run(kernel, "count = 0")
        for _ in range(3):
            await network.cut()
            sending = asyncio.create_task(run(kernel, "count += 1"))
            await network.restore()
            await sending
        assert text_of(await run(kernel, "print(count)")) == "3\n"


@pytest.mark.skipif(not is_supported() or LINK == "pyzmq", reason="connections do not stay")
async def test_a_server_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    home, go = tmp_path / "home", tmp_path / "go"
    home.mkdir()
    server = RestartableServer(home, "--ZMQChannelsWebsocketConnection.link=auto").start()
    try:
        async with asyncio.timeout(TIMEOUT), connect(server.url, TOKEN) as client:
            kernel = await client.start_kernel()
            execution = await kernel.execute(UNTIL_FILE.format(path=str(go)))
            text = await read_numbers(execution, 20)
            await asyncio.to_thread(server.crash)
            await asyncio.to_thread(server.start)
            text += await read_numbers(execution, int(text.split()[-1]) + 20)
            go.touch()
            text += text_of(await execution.collect())
            assert_whole(text)
            assert (await execution).ok
            assert text_of(await run(kernel, "print('goes on')")) == "goes on\n"
    finally:
        await asyncio.to_thread(server.kill)


def test_the_synchronous_client(server: ServerProcess, kernel: str) -> None:
    with sync.connect(server.url, TOKEN) as client:
        assert client.url == f"{server.url}/"
        assert "python3" in client.kernelspecs()["kernelspecs"]
        assert kernel in [model["id"] for model in client.kernels()]
        with client.kernel(kernel) as session:
            execution = session.execute("print(input('?'))", input=lambda prompt, _: prompt)
            assert text_of(execution) == "?\n"
            assert execution.result().ok
            assert execution.ended
            assert session.kernel_info()["status"] == "ok"
            assert session.complete("prin")["matches"] == ["print"]
            assert session.inspect("print")["found"]
            assert session.is_complete("1")["status"] == "complete"
            assert session.history(hist_access_type="tail", n=1)["status"] == "ok"
            [info] = session.executions(limit=1)
            assert text_of(session.follow(info.id)) == "?\n"
            endless = session.execute("while True: print('a', flush=True)")
            next(iter(endless))
            session.interrupt()
            assert endless.result().status == "error"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda code: str(SNIPPETS.index(code)))
def test_the_examples_of_the_page_run(server: ServerProcess, snippet: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", snippet],
        env={**os.environ, "KBRIDGE_URL": server.url, "KBRIDGE_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr.replace("ZeroDivisionError", "")
    assert done.stdout
