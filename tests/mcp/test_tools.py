"""The tools, with the client of the SDK in memory, against a server whose answers are scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult, ImageContent, TextContent

from kbridge.client import connect
from kbridge.mcp.runs import HEAD, TAIL, Kernels
from kbridge.mcp.tools import make_server
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from tests.support.scripted_server import Reply, ScriptedServer, scripted_server
from tests.support.waiting import TIMEOUT

TOKEN = "a-secret-token"
KERNEL = "a-kernel"


class Model:
    """A client of MCP, as a model uses it."""

    def __init__(self, client: Client, kernels: Kernels) -> None:
        self.client = client
        self.kernels = kernels
        self.progress: list[str] = []

    async def call(self, tool: str, **arguments: Any) -> CallToolResult:
        return await self.client.call_tool(tool, arguments, progress_callback=self.note)

    async def run(self, code: str = "code", timeout: float = TIMEOUT) -> CallToolResult:
        return await self.call("run_code", kernel_id=KERNEL, code=code, timeout=timeout)

    async def note(self, _progress: float, _total: float | None, message: str | None) -> None:
        self.progress.append(message or "")


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    async with asyncio.timeout(TIMEOUT), scripted_server() as server:
        yield server


@asynccontextmanager
async def opened(scripted: ScriptedServer, mode: str = "auto") -> AsyncIterator[Model]:
    server = connect(scripted.url, TOKEN, patience=TIMEOUT)
    mcp, kernels = make_server(server)
    try:
        async with Client(mcp, mode=mode) as client:
            yield Model(client, kernels)
    finally:
        await kernels.aclose()
        await server.aclose()


@pytest.fixture
async def model(scripted: ScriptedServer) -> AsyncIterator[Model]:
    """A client whose cancel scopes are entered and left in one task, as the SDK requires."""
    opening: asyncio.Future[Model] = asyncio.get_running_loop().create_future()
    closing = asyncio.Event()

    async def run() -> None:
        async with opened(scripted) as model:
            opening.set_result(model)
            await closing.wait()

    task = asyncio.create_task(run())
    await asyncio.wait([task, opening], return_when=asyncio.FIRST_COMPLETED)
    yield opening.result()
    closing.set()
    await task


def texts(result: CallToolResult) -> list[str]:
    return [part.text if isinstance(part, TextContent) else part.type for part in result.content]


def text(result: CallToolResult) -> str:
    [only] = texts(result)
    return only


def status(result: CallToolResult) -> str:
    return texts(result)[-1]


def execution_id(result: CallToolResult) -> str:
    return status(result).removeprefix("[execution ").partition(". ")[0]


def executing(
    scripted: ScriptedServer, run: Callable[[Message], None]
) -> Callable[[Message], None]:
    """Return a handler that calls `run` for code, and answers all other requests."""

    def on_message(message: Message) -> None:
        if message.msg_type == "execute_request":
            run(message)
        elif message.msg_type.endswith("_request"):
            scripted.answer(message)

    return on_message


def code_of(message: Message) -> str:
    return str(json.loads(bytes(message.content))["code"])


def info(msg_id: str, state: str, **more: Any) -> dict[str, Any]:
    return {"id": msg_id, "state": state, "started": "2026-01-01T00:00:00Z", **more}


def listing(*models: dict[str, Any]) -> Callable[[str, str], Reply]:
    """Return an answer for requests to list executions, and to describe one."""

    def on_rest(_method: str, path: str) -> Reply:
        if path.endswith("/executions"):
            return 200, list(models)
        return next(
            ((200, model) for model in models if path.endswith(f"/executions/{model['id']}")),
            (404, {"message": "nothing here"}),
        )

    return on_rest


# Kernels.


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_each_tool_has_a_description_and_described_arguments(
    scripted: ScriptedServer, mode: str
) -> None:
    async with opened(scripted, mode) as model:
        tools = (await model.client.list_tools()).tools
        assert {tool.name for tool in tools} == {
            *("list_kernelspecs", "list_kernels", "start_kernel"),
            *("interrupt_kernel", "restart_kernel", "shutdown_kernel"),
            *("run_code", "answer_input", "list_executions", "read_output"),
        }
        for tool in tools:
            assert tool.description
            assert "\n  " not in tool.description, "indentation"
            for name, schema in tool.input_schema.get("properties", {}).items():
                assert schema.get("description"), f"{tool.name}: {name}"
            assert "context" not in tool.input_schema.get("properties", {})


async def test_kernelspecs_and_kernels_are_listed(scripted: ScriptedServer, model: Model) -> None:
    spec = {"spec": {"display_name": "Python", "language": "python", "argv": ["secret"]}}
    replies: dict[str, Any] = {
        "/api/kernelspecs": {"default": "python3", "kernelspecs": {"python3": spec}},
        "/api/kernels": [{"id": "k", "name": "python3", "execution_state": "idle", "more": 1}],
    }
    scripted.on_rest = lambda _method, path: (200, replies[path])
    assert json.loads(text(await model.call("list_kernelspecs"))) == {
        "default": "python3",
        "kernelspecs": [{"name": "python3", "display_name": "Python", "language": "python"}],
    }
    [kernel] = json.loads(text(await model.call("list_kernels")))
    assert (kernel["id"], kernel["execution_state"]) == ("k", "idle")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_kernel_is_started_and_used(scripted: ScriptedServer, mode: str) -> None:
    scripted.on_rest = lambda _method, _path: (201, {"id": KERNEL})
    async with opened(scripted, mode) as model:
        started = await model.call("start_kernel", name="python3", env={"A": "1"})
        assert json.loads(text(started)) == {"kernel_id": KERNEL}
        assert ("POST", "/api/kernels") in scripted.requests
        assert not (await model.run()).is_error
        assert len(scripted.websockets) == 1, "the session of the start is used"


async def test_a_kernel_that_does_not_start(scripted: ScriptedServer, model: Model) -> None:
    scripted.on_rest = lambda _method, _path: (500, {"message": "no engine"})
    failed = await model.call("start_kernel")
    assert failed.is_error
    assert "KernelStartError: no engine" in text(failed)


async def test_the_life_of_a_kernel(scripted: ScriptedServer, model: Model) -> None:
    for tool, request in [
        ("interrupt_kernel", ("POST", f"/api/kernels/{KERNEL}/interrupt")),
        ("restart_kernel", ("POST", f"/api/kernels/{KERNEL}/restart")),
        ("shutdown_kernel", ("DELETE", f"/api/kernels/{KERNEL}")),
    ]:
        assert not (await model.call(tool, kernel_id=KERNEL)).is_error
        assert scripted.requests[-1] == request
    assert (await model.run()).is_error is False
    assert len(scripted.websockets) == 2, "a new session after the shutdown"


async def test_no_error_shows_the_token(scripted: ScriptedServer, model: Model) -> None:
    scripted.on_rest = lambda _method, _path: (403, {"message": "wrong token"})
    refused = await model.call("list_kernels")
    assert refused.is_error
    assert "wrong token" in text(refused)
    assert TOKEN not in text(refused)


# Code.


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_output_is_text_and_images_in_order(scripted: ScriptedServer, mode: str) -> None:
    def run(message: Message) -> None:
        scripted.stream(message, f"\x1b[1m{code_of(message)}\x1b[0m\n")
        image = {"image/png": "AAAA", "text/plain": "<Figure>"}
        scripted.send(message, "display_data", {"data": image, "metadata": {}})
        result = {"data": {"text/plain": "42"}, "metadata": {}, "execution_count": 1}
        scripted.send(message, "execute_result", result)
        scripted.answer(message)

    scripted.on_message = executing(scripted, run)
    async with opened(scripted, mode) as model:
        result = await model.run("6 * 7")
    assert not result.is_error
    assert texts(result)[:-1] == ["6 * 7\n", "image", "42\n"]
    [image] = [part for part in result.content if isinstance(part, ImageContent)]
    assert (image.mime_type, image.data) == ("image/png", "AAAA")
    assert status(result).endswith("It has ended: ok.]")


async def test_an_error_has_its_traceback_and_is_an_error(
    scripted: ScriptedServer, model: Model
) -> None:
    def run(message: Message) -> None:
        error = {"ename": "ValueError", "evalue": "bad", "traceback": ["\x1b[31mframe\x1b[0m"]}
        scripted.send(message, "error", error)
        scripted.send(message, "execute_reply", {"status": "error", **error}, Channel.SHELL)
        scripted.idle(message)

    scripted.on_message = executing(scripted, run)
    result = await model.run()
    assert result.is_error
    assert texts(result)[0] == "frame\nValueError: bad\n"
    assert status(result).endswith("It has ended: error.]")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_output_is_sent_as_progress_while_the_code_runs(
    scripted: ScriptedServer, mode: str
) -> None:
    running: asyncio.Queue[Message] = asyncio.Queue()
    scripted.on_message = executing(scripted, running.put_nowait)
    seen = asyncio.Event()

    class Watching(Model):
        async def note(self, progress: float, total: float | None, message: str | None) -> None:
            await super().note(progress, total, message)
            seen.set()

    async with opened(scripted, mode) as plain:
        model = Watching(plain.client, plain.kernels)
        call = asyncio.create_task(model.run())
        message = await running.get()
        scripted.stream(message, "half\n")
        await seen.wait()
        assert not call.done()
        assert model.progress == ["half\n"]
        scripted.stream(message, "all\n")
        scripted.answer(message)
        assert texts(await call)[0] == "half\nall\n"


async def test_long_output_is_cut_in_the_middle_and_the_rest_is_read_from_the_server(
    scripted: ScriptedServer, model: Model
) -> None:
    long = "".join(f"line {i}\n" for i in range(10_000))

    def run(message: Message) -> None:
        scripted.stream(message, long)
        scripted.answer(message)

    scripted.on_message = executing(scripted, run)
    result = await model.run()
    first, cut, last, _ = texts(result)
    assert (first, last) == (long[:HEAD], long[-TAIL:])
    msg_id = execution_id(result)
    assert f"read_output with execution_id {msg_id} and offset {HEAD}" in cut

    scripted.on_rest = listing(info(msg_id, "done"))
    scripted.on_message = replaying(scripted, msg_id, long)
    read = await model.call("read_output", kernel_id=KERNEL, execution_id=msg_id, offset=HEAD)
    before, middle, after, end = texts(read)
    assert middle == long[HEAD : 2 * HEAD + TAIL]
    assert f"{HEAD:,} characters" in before
    assert f"offset {2 * HEAD + TAIL}" in after
    assert end.endswith("It has ended: done.]")


def replaying(scripted: ScriptedServer, msg_id: str, text: str) -> Callable[[Message], None]:
    """Return a handler for the websocket of `follow`: the execution, then the reply to a probe."""
    parent = build(Channel.SHELL, "execute_request", {}, session="s", date="", msg_id=msg_id)

    def on_message(message: Message) -> None:
        scripted.stream(parent, text)
        scripted.answer(parent)
        scripted.answer(message)

    return on_message


async def test_code_that_runs_longer_than_the_timeout_goes_on(
    scripted: ScriptedServer, model: Model
) -> None:
    running: asyncio.Queue[Message] = asyncio.Queue()
    scripted.on_message = executing(scripted, running.put_nowait)
    result = await model.run(timeout=0)
    assert not result.is_error
    assert "still running" in status(result)
    message = await running.get()
    assert execution_id(result) == message.msg_id

    scripted.on_rest = listing(info(message.msg_id, "running"))
    reading = asyncio.create_task(
        model.call("read_output", kernel_id=KERNEL, execution_id=message.msg_id, timeout=TIMEOUT)
    )
    scripted.on_message = replaying(scripted, message.msg_id, "late\n")
    scripted.answer(message)
    late = await reading
    assert texts(late)[0] == "late\n"
    assert status(late).endswith("It has ended: ok.]")


async def test_input_is_asked_for_and_answered(scripted: ScriptedServer, model: Model) -> None:
    running: list[Message] = []

    def on_message(message: Message) -> None:
        if message.msg_type == "execute_request":
            running.append(message)
            scripted.stream(message, "before\n")
            prompt = {"prompt": "Name: ", "password": False}
            scripted.send(message, "input_request", prompt, Channel.STDIN)
        elif message.msg_type == "input_reply":
            name = json.loads(bytes(message.content))["value"]
            scripted.stream(running[0], f"hello {name}\n")
            scripted.answer(running[0])

    scripted.on_message = on_message
    asked = await model.run()
    assert not asked.is_error
    assert texts(asked)[0] == "before\n"
    assert "waits for input with the prompt 'Name: '" in status(asked)
    answered = await model.call(
        "answer_input", kernel_id=KERNEL, execution_id=execution_id(asked), text="Ada"
    )
    cut, hello, _ = texts(answered)
    assert "7 characters are not shown here" in cut
    assert hello == "hello Ada\n"
    assert status(answered).endswith("It has ended: ok.]")
    scripted.on_rest = listing(info(execution_id(asked), "done"))
    again = await model.call(
        "answer_input", kernel_id=KERNEL, execution_id=execution_id(asked), text="Ada"
    )
    assert again.is_error
    assert "has ended" in text(again)


async def test_a_long_prompt_is_cut(scripted: ScriptedServer, model: Model) -> None:
    def on_message(message: Message) -> None:
        if message.msg_type == "execute_request":
            prompt = {"prompt": "p" * 200_000, "password": False}
            scripted.send(message, "input_request", prompt, Channel.STDIN)

    scripted.on_message = on_message
    asked = status(await model.run())
    assert f"the prompt '{'p' * 1000}' and 199,000 more characters: call" in asked
    assert len(asked) < 2000


async def test_the_waits_of_an_answer_have_one_deadline(
    scripted: ScriptedServer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[Message] = []

    def on_message(message: Message) -> None:
        if message.msg_type == "execute_request":
            running.append(message)
            scripted.send(
                message, "input_request", {"prompt": "", "password": False}, Channel.STDIN
            )
        elif message.msg_type == "input_reply":
            scripted.answer(running[0])

    scripted.on_message = on_message
    asked = await model.run()
    timeout_at = asyncio.timeout_at
    deadlines: list[float | None] = []

    def noted(when: float | None) -> asyncio.Timeout:
        deadlines.append(when)
        return timeout_at(when)

    monkeypatch.setattr(asyncio, "timeout_at", noted)
    answered = await model.call(
        "answer_input", kernel_id=KERNEL, execution_id=execution_id(asked), text="", timeout=TIMEOUT
    )
    assert status(answered).endswith("It has ended: ok.]")
    assert len(deadlines) == 2, "it waits for the prompt, and for the end"
    assert len(set(deadlines)) == 1


async def test_an_execution_that_asks_for_nothing_cannot_be_answered(
    scripted: ScriptedServer, model: Model
) -> None:
    scripted.on_message = lambda _message: None
    result = await model.run(timeout=0)
    answered = await model.call(
        "answer_input",
        kernel_id=KERNEL,
        execution_id=execution_id(result),
        text="x",
        timeout=0,
    )
    assert answered.is_error
    assert "Conflict" in text(answered)


async def test_a_kernel_that_dies_ends_the_wait(scripted: ScriptedServer, model: Model) -> None:
    def run(message: Message) -> None:
        scripted.stream(message, "begun\n")
        scripted.send(None, "status", {"execution_state": "dead"})

    scripted.on_message = executing(scripted, run)
    result = await model.run()
    assert result.is_error
    assert texts(result)[0] == "begun\n"
    assert "the kernel died" in status(result)


async def test_executions_are_listed(scripted: ScriptedServer, model: Model) -> None:
    scripted.on_rest = listing(info("an-execution", "done", output_bytes=7, messages=1))
    [execution] = json.loads(text(await model.call("list_executions", kernel_id=KERNEL)))
    assert execution["id"] == "an-execution"
    assert execution["output_bytes"] == 7


async def test_an_execution_that_does_not_exist(scripted: ScriptedServer, model: Model) -> None:
    missing = await model.call("read_output", kernel_id=KERNEL, execution_id="none")
    assert missing.is_error
    assert "has no execution none" in text(missing)


async def test_an_execution_that_has_ended_is_not_kept(
    scripted: ScriptedServer, model: Model
) -> None:
    running: asyncio.Queue[Message] = asyncio.Queue()
    scripted.on_message = executing(scripted, running.put_nowait)
    result = await model.run(timeout=0)
    message = await running.get()
    run = await model.kernels.find(KERNEL, execution_id(result))
    assert run is not None
    scripted.answer(message)
    await run.settle(TIMEOUT)
    scripted.on_rest = listing(info(message.msg_id, "done"))
    assert await model.kernels.find(KERNEL, message.msg_id) is None
