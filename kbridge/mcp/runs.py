"""The kernels that a model uses, and the executions that it waits for.

Owns the sessions on kernels, and an object for each execution that has not ended. The output of
others is read from the journal of the server.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from kbridge.client import Execution, ExecutionInfo, Kernel, Output, Result, Server
from kbridge.errors import Conflict, KbridgeError, NotFound
from kbridge.mcp.transcript import Transcript

__all__ = ["HEAD", "TAIL", "Kernels", "Run"]

HEAD, TAIL = 12_000, 8_000
"""Characters of an output that are shown: of its beginning, and of its end."""

_READ_S = 30.0  # for the output so far from the journal


class Run:
    """An execution whose output is read as it arrives.

    Attributes
    ----------
    msg_id : str
        The id of the execution.
    transcript : Transcript
        The output since the last `take`.
    prompt : str or None
        The prompt of `input()` while it waits for an answer.
    password : bool
        True if the answer to the prompt is a password.
    result : Result or None
        The result, after the end.
    error : BaseException or None
        The error with which it ended without a result.
    """

    def __init__(self) -> None:
        self.msg_id = ""
        self.transcript = Transcript(0, HEAD, TAIL)
        self.prompt: str | None = None
        self.password = False
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._answer: asyncio.Future[str] | None = None
        self._progress = ""
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()  # it has ended, or asks for input
        self._task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """True if there is a result, or an error."""
        return self.result is not None or self.error is not None

    def start(self, execution: Execution) -> asyncio.Task[None]:
        """Read the outputs of an execution; return the task that does it."""
        self.msg_id = execution.msg_id
        self._task = asyncio.create_task(self._read(execution))
        return self._task

    async def aclose(self) -> None:
        """Stop reading; the execution goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def ask(self, prompt: str, password: bool) -> str:
        """Take the prompt of `input()`; return the answer. The callback of the execution."""
        self._answer = asyncio.get_running_loop().create_future()
        self.prompt, self.password = prompt, password
        self._settled.set()
        self._changed.set()
        try:
            return await self._answer
        finally:
            self.prompt = None

    def answer(self, text: str) -> None:
        """Answer `input()`.

        Raises
        ------
        Conflict
            If it does not wait for an answer.
        """
        if self.prompt is None or self._answer is None or self._answer.done():
            raise Conflict(f"execution {self.msg_id} does not wait for input")
        self.prompt = None
        self._settled.clear()
        self._answer.set_result(text)

    async def news(self) -> str:
        """Wait for output, a prompt or the end; return the text that has arrived."""
        await self._changed.wait()
        self._changed.clear()
        text, self._progress = self._progress, ""
        return text

    async def settle(self, timeout: float) -> None:
        """Wait until it has ended or asks for input, at most so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._settled.wait()

    def take(self) -> Transcript:
        """Return the output since the last call."""
        taken = self.transcript
        self.transcript = Transcript(taken.position, HEAD, TAIL, taken.position)
        return taken

    async def _read(self, execution: Execution) -> None:
        try:
            async for output in execution:
                self._add(output)
            self.result = await execution
        except Exception as error:  # noqa: BLE001  # the caller of the tool is told
            self.error = error
        finally:
            self._settled.set()
            self._changed.set()

    def _add(self, output: Output) -> None:
        text = self.transcript.add(output)
        self._progress = (self._progress + text)[-TAIL:]
        self._changed.set()


class Kernels:
    """The sessions on the kernels of a server, and the executions that have not ended.

    Parameters
    ----------
    server : Server
        The server.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._kernels: dict[str, Kernel] = {}
        self._runs: dict[str, Run] = {}

    async def aclose(self) -> None:
        """Close all sessions; kernels and executions go on."""
        for run in list(self._runs.values()):
            await run.aclose()
        for kernel_id in list(self._kernels):
            await self.drop(kernel_id)

    def add(self, kernel: Kernel) -> None:
        """Add the session on a kernel that was started."""
        self._kernels[kernel.kernel_id] = kernel

    async def get(self, kernel_id: str) -> Kernel:
        """Return a session on a kernel, a new one if there is none."""
        kernel = self._kernels.get(kernel_id)
        if kernel is None or kernel.closed:
            kernel = self._kernels[kernel_id] = await self.server.kernel(kernel_id)
        return kernel

    async def drop(self, kernel_id: str) -> None:
        """Close the session on a kernel, if there is one."""
        kernel = self._kernels.pop(kernel_id, None)
        if kernel is not None:
            await kernel.aclose()

    async def execute(self, kernel_id: str, code: str) -> Run:
        """Run code on a kernel."""
        run = Run()
        kernel = await self.get(kernel_id)
        try:
            execution = await kernel.execute(code, input=run.ask)
        except KbridgeError:
            await self.drop(kernel_id)  # its session may be over: the next call opens another
            raise
        self._start(run, execution)
        return run

    async def find(self, kernel_id: str, msg_id: str) -> Run | None:
        """Return an execution that has not ended, whichever client sent it; None if it has ended.

        Raises
        ------
        NotFound
            If the kernel has no execution with this id.
        """
        run = self._runs.get(msg_id)
        if run is not None and not run.ended:
            return run
        kernel = await self.get(kernel_id)
        if (await self.describe(kernel, msg_id)).over:
            return None
        run = Run()
        self._start(run, await kernel.follow(msg_id, input=run.ask))
        return run

    async def describe(self, kernel: Kernel, msg_id: str) -> ExecutionInfo:
        """Return the record that the server has of an execution.

        Raises
        ------
        NotFound
            If the kernel has no execution with this id.
        """
        for info in await kernel.executions():
            if info.id == msg_id:
                return info
        raise NotFound(f"kernel {kernel.kernel_id} has no execution {msg_id}")

    async def read(self, kernel_id: str, msg_id: str, start: int) -> Transcript:
        """Return the output of an execution so far, from a position on."""
        kernel = await self.get(kernel_id)
        transcript = Transcript(start, HEAD + TAIL, 0)
        execution = await kernel.follow(msg_id, wait=False)
        try:
            async with asyncio.timeout(_READ_S):
                with suppress(KbridgeError):  # the kernel has died; its output is there
                    async for output in execution:
                        transcript.add(output)
        except TimeoutError:
            pass  # more output arrives than can be read
        finally:
            await execution.aclose()
        return transcript

    def _start(self, run: Run, execution: Execution) -> None:
        task = run.start(execution)
        self._runs[run.msg_id] = run
        task.add_done_callback(lambda _: self._runs.pop(execution.msg_id, None))
