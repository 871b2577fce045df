"""`kbridge run` and `kbridge logs`: run files on a kernel, and show executions later."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from traitlets import Bool, Unicode

from kbridge.client import Execution, Kernel, Result, Server, connect
from kbridge.errors import InvalidRequest, KbridgeError, NotFound, NotSupported
from kbridge.server.cli.commands import _Command
from kbridge.server.cli.line_input import LineInput
from kbridge.server.cli.notebook_file import NotebookFile
from kbridge.server.cli.rendering import Renderer

__all__ = ["ClientCommand", "LogsApp", "RunApp"]

_FAILED, _NOT_RUN, _INTERRUPTED = 1, 2, 130
_POLL_S = 0.05


class ClientCommand(_Command):
    """A command that talks to a server as any client does."""

    server = Unicode(
        "",
        help="""The URL of the server. By default KBRIDGE_URL, or the server of this user that
        runs.""",
    ).tag(config=True)
    token = Unicode(
        "",
        help="""The token of the server. By default KBRIDGE_TOKEN, or the token of the server of
        this user with that URL.""",
    ).tag(config=True)

    def run_client(self, work: Callable[[Server, Renderer], Coroutine[Any, Any, int]]) -> None:
        """Connect, run a coroutine, and exit with the code that it returns."""
        renderer = Renderer()

        async def connected() -> int:
            async with connect(self.server, self.token) as server:
                return await work(server, renderer)

        try:
            code = asyncio.run(connected())
        except KbridgeError as error:
            renderer.note(f"{self.name.replace('-', ' ')}: {error.reason}")
            code = _NOT_RUN
        except OSError as error:
            renderer.note(f"{self.name.replace('-', ' ')}: {error}")
            code = _NOT_RUN
        if code:
            sys.exit(code)


class RunApp(ClientCommand):
    """Runs a file on a kernel."""

    name = "kbridge-run"
    description = """Run a program or a notebook on a kernel of a server, and show its output.

    A kernel is started for the run, and shut down after it, unless --existing names one. Ctrl-C
    interrupts the kernel; a second Ctrl-C leaves. Exits with 0 if everything ran, 1 after an error
    in the code, 2 if it could not be run, and 130 after an interrupt.
    """
    examples = """\
kbridge run train.py                        # on the server of this user that runs
kbridge run analysis.ipynb --output out.ipynb
kbridge run train.py --kernel julia-1.11    # another kernelspec
kbridge run train.py --existing KERNEL_ID   # in a kernel that runs, with its variables
kbridge run train.py --detach               # print an id, and leave; then:
kbridge logs ID -f
kbridge run train.py --server https://host/ --token TOKEN
"""
    aliases = {  # noqa: RUF012  # the interface of traitlets
        **_Command.aliases,
        "server": "RunApp.server",
        "token": "RunApp.token",
        "kernel": "RunApp.kernel",
        "existing": "RunApp.existing",
        "output": "RunApp.output",
    }
    flags = {  # noqa: RUF012
        **_Command.flags,
        "detach": (
            {"RunApp": {"detach": True}},
            "Print the id of the execution, and leave it running.",
        ),
        "allow-errors": (
            {"RunApp": {"allow_errors": True}},
            "Go on after a cell with an error.",
        ),
    }

    kernel = Unicode(
        "", help="The kernelspec. By default that of the notebook, or the server's default."
    ).tag(config=True)
    existing = Unicode("", help="The id of a kernel that runs.").tag(config=True)
    output = Unicode("", help="The notebook to write, while the notebook runs.").tag(config=True)
    detach = Bool(False, help="Print the id of the execution, and leave it running.").tag(
        config=True
    )
    allow_errors = Bool(False, help="Go on after a cell with an error.").tag(config=True)

    def start(self) -> None:
        """Run the file, and exit."""
        super().start()
        if len(self.extra_args) != 1:
            self.fail("usage: kbridge run FILE.py|FILE.ipynb; see kbridge run --help")
        path = Path(self.extra_args[0])
        is_notebook = path.suffix == ".ipynb"
        if self.detach and is_notebook:
            self.fail("--detach is for programs: the cells of a notebook are sent one by one")
        if self.output and not is_notebook:
            self.fail("--output is for notebooks")
        if self.kernel and self.existing:
            self.fail("--kernel starts a kernel, and --existing uses one that runs: give one")
        self.run_client(lambda server, renderer: self._run(server, renderer, path))

    def fail(self, reason: str) -> None:
        """Print an error, and exit."""
        sys.stderr.write(f"{reason}\n")
        sys.exit(_NOT_RUN)

    async def _run(self, server: Server, renderer: Renderer, path: Path) -> int:
        notebook, code = None, ""
        if path.suffix == ".ipynb":
            notebook = NotebookFile(path, Path(self.output) if self.output else None)
        else:
            code = _text_of(path)
        if self.existing:
            kernel = await server.kernel(self.existing)
        else:
            name = self.kernel or (notebook.kernel if notebook is not None else "")
            kernel = await server.start_kernel(name, on_progress=_tell_reason)
        stays = bool(self.existing)
        try:
            if self.detach:
                await self._leave(kernel, code)
                stays = True
                return 0
            runner = _Runner(kernel, renderer)
            return await runner.guard(
                runner.program(code)
                if notebook is None
                else runner.notebook(notebook, allow_errors=self.allow_errors)
            )
        finally:
            if not stays:
                await kernel.shutdown()

    async def _leave(self, kernel: Kernel, code: str) -> None:
        """Send the code, and wait until the server has it."""
        execution = await kernel.execute(code)
        execution.discard()
        while execution.msg_id not in {info.id for info in await kernel.executions()}:
            if execution.ended:
                raise NotSupported("this server does not note executions: --detach needs kbridge")
            await asyncio.sleep(_POLL_S)
        sys.stdout.write(f"{execution.msg_id}\n")
        sys.stderr.write(
            f"It runs on kernel {kernel.kernel_id}."
            f" `kbridge logs {execution.msg_id} -f` follows it.\n"
        )


class LogsApp(ClientCommand):
    """Shows the output of an execution."""

    name = "kbridge-logs"
    description = """Show the output of an execution, from its beginning.

    ID is what `kbridge run --detach` prints, or the id of any other execution of the server. With
    -f, goes on until the execution has ended, and exits with 1 if it had an error.
    """
    examples = """\
kbridge logs ID        # the output so far
kbridge logs ID -f     # the output until the end
"""
    aliases = {  # noqa: RUF012  # the interface of traitlets
        **_Command.aliases,
        "server": "LogsApp.server",
        "token": "LogsApp.token",
    }
    flags = {  # noqa: RUF012
        **_Command.flags,
        "f": ({"LogsApp": {"follow": True}}, "Go on until the execution has ended."),
        "follow": ({"LogsApp": {"follow": True}}, "The same."),
    }

    follow = Bool(False, help="Go on until the execution has ended.").tag(config=True)

    def start(self) -> None:
        """Show the output, and exit."""
        super().start()
        if len(self.extra_args) != 1:
            sys.stderr.write("usage: kbridge logs ID [-f]\n")
            sys.exit(_NOT_RUN)
        msg_id = self.extra_args[0]
        self.run_client(lambda server, renderer: self._show(server, renderer, msg_id))

    async def _show(self, server: Server, renderer: Renderer, msg_id: str) -> int:
        kernel = await _kernel_of(server, msg_id)
        execution = await kernel.follow(msg_id, wait=self.follow)
        async for output in execution:
            renderer.show(output)
        return _code_of(await execution) if self.follow else 0


def _tell_reason(stage: str) -> None:
    """Tell the user why a kernel waits in the queue of a scheduler."""
    if stage.startswith("waiting: "):
        sys.stderr.write(f"kbridge: {stage}\n")


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path} is not UTF-8 text") from None


async def _kernel_of(server: Server, msg_id: str) -> Kernel:
    """Return the kernel that has an execution."""
    for model in await server.kernels():
        kernel = await server.kernel(str(model["id"]))
        if msg_id in {info.id for info in await kernel.executions()}:
            return kernel
        await kernel.aclose()
    raise NotFound(f"no kernel of {server.url} has an execution {msg_id}")


def _code_of(result: Result) -> int:
    return 0 if result.ok else _FAILED


class _Runner:
    """Runs code on a kernel, shows its output, and handles Ctrl-C.

    Parameters
    ----------
    kernel : Kernel
        The kernel.
    renderer : Renderer
        Shows the output.
    """

    def __init__(self, kernel: Kernel, renderer: Renderer) -> None:
        self._kernel = kernel
        self._renderer = renderer
        self._input = LineInput(renderer.prompt)
        self._interrupts = 0
        self._tasks: set[asyncio.Task[object]] = set()

    async def guard(self, work: Coroutine[Any, Any, int]) -> int:
        """Run a coroutine: the first Ctrl-C interrupts the kernel, the second one cancels it."""
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        loop.add_signal_handler(signal.SIGINT, self._on_interrupt, task)
        try:
            code = await task
        except asyncio.CancelledError:
            if self._interrupts < 2:
                raise
            return _INTERRUPTED
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            for each in self._tasks:
                each.cancel()
        return _INTERRUPTED if self._interrupts else code

    def _on_interrupt(self, work: asyncio.Future[int]) -> None:
        self._interrupts += 1
        if self._interrupts == 1:
            self._renderer.note("interrupting the kernel; Ctrl-C again to leave")
            task: asyncio.Task[object] = asyncio.create_task(self._kernel.interrupt())
            self._tasks.add(task)
        else:
            work.cancel()

    async def program(self, code: str) -> int:
        """Run a program."""
        execution = await self._kernel.execute(code, input=self._input.ask)
        async for output in execution:
            self._renderer.show(output)
        return _code_of(await execution)

    async def notebook(self, notebook: NotebookFile, *, allow_errors: bool) -> int:
        """Run the cells of a notebook, in order."""
        code = 0
        try:
            for cell in notebook.cells:
                result = await self._cell(notebook, cell)
                tags = cell.metadata.get("tags", [])
                if not result.ok and "raises-exception" not in tags:
                    code = _FAILED
                    if not allow_errors:
                        break
                if self._interrupts:
                    break
        finally:
            notebook.write()
        return code

    async def _cell(self, notebook: NotebookFile, cell: Any) -> Result:
        execution: Execution = await self._kernel.execute(
            cell.source, cell_id=cell.get("id"), input=self._input.ask
        )
        async for output in execution:
            self._renderer.show(output)
            notebook.add(cell, output)
        result = await execution
        notebook.finish(cell, result)
        return result
