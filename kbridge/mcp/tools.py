"""The tools of `kbridge mcp`: their names, their descriptions, and the text of their results."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Annotated, Any, Final, ParamSpec, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import Field

from kbridge._version import __version__
from kbridge.client import Server
from kbridge.errors import KbridgeError, KernelDied
from kbridge.mcp.runs import Kernels, Run
from kbridge.mcp.transcript import Cut, Image, Part, Transcript

__all__ = ["make_server"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_MOST_WAIT_S: Final = 3600.0
_PROGRESS_S: Final = 0.2  # between progress notifications
_MOST_PROMPT: Final = 1000  # characters of the prompt of input()
_INSTRUCTIONS = """\
Runs code on Jupyter kernels of a kbridge server. Start a kernel (start_kernel), or take one that
runs (list_kernels); then run_code keeps variables, imports and files between calls. Code that takes
longer than the timeout goes on: read_output waits for the rest. Output is kept by the server, so
that it can be read again later, also by another conversation."""

_LOST = "Variables are lost. list_kernels shows if the kernel runs again."
_RUNNING = """It is still running, or waits for earlier code. Call read_output with a timeout to
 wait for it, or interrupt_kernel to stop it.""".replace("\n", "")

KernelId = Annotated[
    str, Field(description="The id of the kernel, from start_kernel or list_kernels.")
]
ExecutionId = Annotated[
    str, Field(description="The id of the execution, from run_code or list_executions.")
]
Timeout = Annotated[
    float,
    Field(
        ge=0,
        le=_MOST_WAIT_S,
        description="Seconds to wait for the end. The code goes on after it; nothing is lost.",
    ),
]


def make_server(server: Server) -> tuple[MCPServer[Any], Kernels]:
    """Return an MCP server with the tools, and the sessions that must be closed after it.

    Parameters
    ----------
    server : Server
        The server of kernels.
    """
    kernels = Kernels(server)
    mcp: MCPServer[Any] = MCPServer(
        "kbridge",
        title="Jupyter kernels",
        instructions=_INSTRUCTIONS,
        version=__version__,
        log_level="WARNING",
        subscriptions=False,
    )
    _add_start_tools(mcp, kernels)
    _add_kernel_tools(mcp, kernels)
    _add_code_tools(mcp, kernels)
    _add_output_tools(mcp, kernels)
    return mcp, kernels


def _add_start_tools(mcp: MCPServer[Any], kernels: Kernels) -> None:
    """Add the tools that find a kernel or start one."""
    server = kernels.server

    @mcp.tool(annotations=_hints(read_only=True), structured_output=False)
    @_reported
    async def list_kernelspecs() -> str:
        """List the kinds of kernels that can be started: name, title and language of each."""
        found = await server.kernelspecs()
        specs = [
            {
                "name": name,
                "display_name": model["spec"].get("display_name", name),
                "language": model["spec"].get("language", ""),
            }
            for name, model in sorted(found["kernelspecs"].items())
        ]
        return _json({"default": found["default"], "kernelspecs": specs})

    @mcp.tool(annotations=_hints(read_only=True), structured_output=False)
    @_reported
    async def list_kernels() -> str:
        """List the kernels that run: id, name, state (idle, busy, ...) and last activity."""
        fields = ("id", "name", "execution_state", "reason", "last_activity", "connections")
        models = await server.kernels()
        return _json([{f: model[f] for f in fields if f in model} for model in models])

    @mcp.tool(annotations=_hints(), structured_output=False)
    @_reported
    async def start_kernel(
        context: Context[Any, Any],
        name: Annotated[
            str, Field(description="From list_kernelspecs; by default the server's default.")
        ] = "",
        env: Annotated[
            dict[str, str] | None,
            Field(description="Environment variables. Usually only KERNEL_... are allowed."),
        ] = None,
    ) -> str:
        """Start a kernel, and return its id when it is ready for run_code.

        It keeps its variables until shutdown_kernel or restart_kernel.
        """
        stages: asyncio.Queue[str] = asyncio.Queue()
        reporter = asyncio.create_task(_report_stages(context, stages))
        try:
            kernel = await server.start_kernel(name, env=env, on_progress=stages.put_nowait)
        finally:
            reporter.cancel()
        kernels.add(kernel)
        return _json({"kernel_id": kernel.kernel_id})


def _add_kernel_tools(mcp: MCPServer[Any], kernels: Kernels) -> None:
    """Add the tools that act on the process of a kernel."""

    @mcp.tool(annotations=_hints(), structured_output=False)
    @_reported
    async def interrupt_kernel(kernel_id: KernelId) -> str:
        """Interrupt the code that runs on a kernel, as Ctrl-C does; its variables stay."""
        await (await kernels.get(kernel_id)).interrupt()
        return "The kernel was interrupted. read_output shows how the execution ended."

    @mcp.tool(annotations=_hints(destructive=True), structured_output=False)
    @_reported
    async def restart_kernel(kernel_id: KernelId) -> str:
        """Restart a kernel: running code ends, and all variables are lost. Its id stays."""
        await (await kernels.get(kernel_id)).restart()
        return "The kernel was restarted. Its variables are gone."

    @mcp.tool(annotations=_hints(destructive=True), structured_output=False)
    @_reported
    async def shutdown_kernel(kernel_id: KernelId) -> str:
        """Shut a kernel down: running code ends, and variables and outputs are lost."""
        kernel = await kernels.get(kernel_id)
        await kernel.shutdown()
        await kernels.drop(kernel_id)
        return "The kernel was shut down."


def _add_code_tools(mcp: MCPServer[Any], kernels: Kernels) -> None:
    """Add the tools that run code."""

    @mcp.tool(annotations=_hints(destructive=True, open_world=True), structured_output=False)
    @_reported
    async def run_code(
        context: Context[Any, Any],
        kernel_id: KernelId,
        code: Annotated[str, Field(description="Code in the language of the kernel.")],
        timeout: Timeout = 60.0,
    ) -> CallToolResult:
        """Run code on a kernel, and return its output: text, images, and the traceback of an error.

        The value of the last expression is shown, as in a notebook. If the code still runs after
        the timeout, the result says so and names its execution: go on with read_output, or stop it
        with interrupt_kernel. If the code calls input(), the result has the prompt: use
        answer_input. Code that is sent while other code runs waits for it.
        """
        run = await kernels.execute(kernel_id, code)
        return await _follow(context, kernels, kernel_id, run, _deadline(timeout))

    @mcp.tool(annotations=_hints(destructive=True, open_world=True), structured_output=False)
    @_reported
    async def answer_input(
        context: Context[Any, Any],
        kernel_id: KernelId,
        execution_id: ExecutionId,
        text: Annotated[str, Field(description="The line that input() returns.")],
        timeout: Timeout = 60.0,
    ) -> CallToolResult:
        """Answer code that waits for input(); return its output from there, as run_code does."""
        run = await kernels.find(kernel_id, execution_id)
        if run is None:
            raise ToolError(f"execution {execution_id} has ended")
        deadline = _deadline(timeout)
        await _wait(context, run, deadline)  # the prompt of another client's execution may be late
        run.answer(text)
        return await _follow(context, kernels, kernel_id, run, deadline)


def _add_output_tools(mcp: MCPServer[Any], kernels: Kernels) -> None:
    """Add the tools that read earlier executions."""

    @mcp.tool(annotations=_hints(read_only=True), structured_output=False)
    @_reported
    async def list_executions(
        kernel_id: KernelId,
        limit: Annotated[
            int, Field(ge=1, le=1000, description="At most so many, the newest.")
        ] = 20,
    ) -> str:
        """List the executions of a kernel, also those of other clients: ids, states and times.

        States: waiting, running, done, error, aborted. read_output shows the output of one.
        """
        kernel = await kernels.get(kernel_id)
        fields = ("id", "state", "submitted", "started", "ended", "execution_count", "output_bytes")
        return _json(
            [
                {field: getattr(info, field) for field in fields}
                for info in await kernel.executions(limit=limit)
            ]
        )

    @mcp.tool(annotations=_hints(read_only=True), structured_output=False)
    @_reported
    async def read_output(
        context: Context[Any, Any],
        kernel_id: KernelId,
        execution_id: ExecutionId,
        offset: Annotated[
            int, Field(ge=0, description="The position of the first character to show.")
        ] = 0,
        timeout: Timeout = 0.0,
    ) -> CallToolResult:
        """Read the output of an execution from an offset on, while it runs or after its end.

        With a timeout, waits for the end of the execution first.
        """
        run = await kernels.find(kernel_id, execution_id)
        if run is not None:
            await _wait(context, run, _deadline(timeout))
        transcript = await kernels.read(kernel_id, execution_id, offset)
        if run is None:
            info = await kernels.describe(await kernels.get(kernel_id), execution_id)
            status, failed = f"It has ended: {info.state}.", info.state == "error"
        else:
            status, failed = await _status(kernels, kernel_id, run)
        ended = run is None or run.ended
        return _result(transcript, execution_id, status, failed=failed, ended=ended)


def _deadline(timeout: float) -> float:
    """Return the end of a timeout that begins now, in the time of the event loop."""
    return asyncio.get_running_loop().time() + timeout


async def _follow(
    context: Context[Any, Any], kernels: Kernels, kernel_id: str, run: Run, deadline: float
) -> CallToolResult:
    """Wait for an execution; return its output since the last result."""
    await _wait(context, run, deadline)
    status, failed = await _status(kernels, kernel_id, run)
    return _result(run.take(), run.msg_id, status, failed=failed, ended=run.ended)


async def _wait(context: Context[Any, Any], run: Run, deadline: float) -> None:
    """Wait until an execution has ended or asks for input; send its output as notifications."""
    total = 0
    try:
        async with asyncio.timeout_at(deadline):
            while not run.ended and run.prompt is None:
                if text := await run.news():
                    total += len(text)
                    await context.report_progress(total, message=text)
                    # More output is collected meanwhile, and sent with one notification.
                    await run.settle(_PROGRESS_S)
    except TimeoutError:
        pass


async def _status(kernels: Kernels, kernel_id: str, run: Run) -> tuple[str, bool]:
    """Return a sentence on the state of an execution, and True if it has failed."""
    if run.result is not None:
        return f"It has ended: {run.result.status}.", not run.result.ok
    if isinstance(run.error, KernelDied):
        return f"It has ended: {run.error.reason}. {_LOST}", True
    if isinstance(run.error, KbridgeError):
        await kernels.drop(kernel_id)  # the next call opens another session
        return f"Its end is not known: {run.error.reason}.", True
    if run.error is not None:
        return f"Its end is not known: {type(run.error).__name__}.", True
    if run.prompt is not None:
        kind = "a password" if run.password else "input"
        prompt = repr(run.prompt[:_MOST_PROMPT])
        if (more := len(run.prompt) - _MOST_PROMPT) > 0:
            prompt += f" and {more:,} more characters"
        return f"It waits for {kind} with the prompt {prompt}: call answer_input.", False
    return _RUNNING, False


def _result(
    transcript: Transcript, msg_id: str, status: str, *, failed: bool, ended: bool
) -> CallToolResult:
    content: list[ContentBlock] = [_block(part, msg_id) for part in transcript.parts()]
    size = f" Its output so far has {transcript.position:,} characters." * (not ended)
    content.append(TextContent(type="text", text=f"[execution {msg_id}. {status}{size}]"))
    return CallToolResult(content=content, is_error=failed)


def _block(part: Part, msg_id: str) -> ContentBlock:
    match part:
        case Image():
            return ImageContent(type="image", data=part.data, mime_type=part.mime_type)
        case Cut():
            text = (
                f"[{part.size:,} characters are not shown here: read_output with execution_id"
                f" {msg_id} and offset {part.start} shows them]"
            )
        case _:
            text = part
    return TextContent(type="text", text=text)


async def _report_stages(context: Context[Any, Any], stages: asyncio.Queue[str]) -> None:
    count = 0
    while True:
        stage = await stages.get()
        count += 1
        await context.report_progress(count, message=stage)


def _reported(
    tool: Callable[_P, Awaitable[_R]],
) -> Callable[_P, Awaitable[_R]]:
    """Pass the reasons of errors of kbridge on to the model; they never contain a token."""

    @wraps(tool)
    async def reported(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return await tool(*args, **kwargs)
        except KbridgeError as error:
            raise ToolError(f"{type(error).__name__}: {error.reason}") from None

    reported.__doc__ = inspect.getdoc(tool)  # without indentation
    return reported


def _hints(
    *, read_only: bool = False, destructive: bool = False, open_world: bool = False
) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=read_only, destructive_hint=destructive, open_world_hint=open_world
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
