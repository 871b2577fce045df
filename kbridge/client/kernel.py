"""A kernel on a server, and the session of this program on it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from kbridge.client.channel import Channel
from kbridge.client.comms import Comm, CommMessage, Comms, now
from kbridge.client.execution import Execution, ExecutionInfo, InputCallback
from kbridge.client.outputs import Result
from kbridge.client.queue import Demand
from kbridge.client.rest import Rest
from kbridge.client.session import (
    CommEvent,
    Event,
    Failed,
    Finished,
    InputRequested,
    KernelSession,
    Produced,
    ReasonChanged,
    Replied,
    ReplyOnly,
)
from kbridge.client.threads import in_thread
from kbridge.errors import BridgeError, KbridgeError, NetworkError
from kbridge.wire.message import Buffer
from kbridge.wire.message import Channel as ChannelName

__all__ = ["ClientOptions", "Kernel"]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Limits of a client; see `kbridge.client.connect`."""

    buffer: int
    patience: float
    ping_interval: float
    idle_timeout: float = 5.0  # from a reply to the question whether its output has ended


class Kernel:
    """A kernel, and a session on it. Made by `Server.start_kernel` and `Server.kernel`.

    As a context manager, it closes the session at the end of the block; the kernel goes on.

    Attributes
    ----------
    kernel_id : str
        The id of the kernel on its server.
    """

    def __init__(
        self, rest: Rest, kernel_id: str, options: ClientOptions, follows: str = ""
    ) -> None:
        self.kernel_id = kernel_id
        self._rest = rest
        self._options = options
        self._session = KernelSession(uuid4().hex, follows)
        self._channel = Channel(
            rest, kernel_id, self._session, options.patience, options.ping_interval
        )
        self._demand = Demand()
        self._comms = Comms(self._channel, self._session, options.buffer, self._demand)
        self._executions: dict[str, Execution] = {}
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._followers: set[Kernel] = set()
        self._reader: asyncio.Task[None] | None = None
        self._closed = False
        self._on_reason: Callable[[str], object] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Open the session."""
        await self._channel.open()
        self._reader = asyncio.create_task(self._read())

    async def aclose(self) -> None:
        """Close the session; the kernel and its executions go on. May be called twice."""
        self._closed = True
        tasks = [*self._tasks, *([self._reader] if self._reader is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._channel.aclose()
        while self._followers:
            await self._followers.pop().aclose()

    @property
    def closed(self) -> bool:
        """True after `aclose`."""
        return self._closed

    @property
    def reason(self) -> str:
        """Why the kernel waits in the queue of a scheduler, or why it is dead; else empty."""
        return self._session.reason

    def observe_reason(self, callback: Callable[[str], object] | None) -> None:
        """Call `callback` with each new `reason`, and now if there is one; None to stop."""
        self._on_reason = callback
        if callback is not None and self.reason:
            callback(self.reason)

    # Running code.

    async def execute(
        self,
        code: str,
        *,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
        allow_stdin: bool | None = None,
        stop_on_error: bool = True,
        cell_id: str | None = None,
        input: InputCallback | None = None,  # noqa: A002  # what the code calls
    ) -> Execution:
        """Send code to the kernel; return as soon as it is sent.

        Parameters
        ----------
        code : str
            The code.
        silent, store_history, user_expressions, stop_on_error
            As in `jupyter_client`.
        allow_stdin : bool, optional
            True if the code may ask for input. By default, if there is a callback.
        cell_id : str, optional
            The cell of a notebook, for clients that come back to it.
        input : callable, optional
            Called with the prompt, and True for a password, when the code asks for input; returns
            the line, or a coroutine for it. Other functions are called in a thread.
        """
        content = {
            "code": code,
            "silent": silent,
            "store_history": store_history and not silent,
            "user_expressions": dict(user_expressions or {}),
            "allow_stdin": input is not None if allow_stdin is None else allow_stdin,
            "stop_on_error": stop_on_error,
        }
        metadata = {} if cell_id is None else {"cellId": cell_id}
        request = self._session.request("execute_request", content, now(), metadata=metadata)
        execution = Execution(request.msg_id, self._options.buffer, input, self._demand)
        self._executions[request.msg_id] = execution
        try:
            await self._channel.send(request)
        except BaseException:
            if self._session.forget(request.msg_id):
                self._executions.pop(request.msg_id, None)
            execution.discard()  # if it was sent, it runs although nobody reads it
            raise
        return execution

    async def follow(
        self,
        msg_id: str,
        *,
        wait: bool = True,
        input: InputCallback | None = None,  # noqa: A002  # what the code calls
    ) -> Execution:
        """Return an execution of any client, with its outputs from the beginning.

        It has a separate websocket, which is closed when the execution has ended and was read, or
        by `Execution.aclose`.

        Parameters
        ----------
        msg_id : str
            `Execution.msg_id`, or `ExecutionInfo.id`.
        wait : bool
            False to end the outputs with those that there are so far. Awaiting the execution then
            raises `Conflict` if it has not ended.
        input : callable, optional
            As for `execute`; it is asked while the client that sent the request is away.

        Raises
        ------
        NotFound
            If the server does not know the execution.
        """
        info = ExecutionInfo.of(await self._rest.execution(self.kernel_id, msg_id))
        reader = Kernel(self._rest, self.kernel_id, self._options, msg_id)
        execution = Execution(msg_id, self._options.buffer, input, reader._demand)
        if info.state == "aborted" and info.started is None:
            execution.finish(Result("aborted"))  # it has no messages
            return execution
        reader._executions[msg_id] = execution
        stack = AsyncExitStack()
        stack.push_async_callback(reader.aclose)
        stack.callback(self._followers.discard, reader)
        self._followers.add(reader)
        execution.close_with(stack)
        await reader.open()
        if not wait:
            reader._start(reader._stop_after_reply(execution))
        return execution

    async def executions(
        self, *, state: str = "", cell_id: str = "", limit: int | None = None
    ) -> list[ExecutionInfo]:
        """Return the executions that the server has noted, newest last.

        Parameters
        ----------
        state : str
            One or more states, with commas between them; by default all.
        cell_id : str
            Only those of this cell.
        limit : int, optional
            Only so many, the newest.
        """
        count = "" if limit is None else str(limit)
        found = await self._rest.executions(
            self.kernel_id, state=state, cell_id=cell_id, limit=count
        )
        return [ExecutionInfo.of(model) for model in found or ()]

    # Other requests. The names and arguments are those of jupyter_client.

    async def kernel_info(self) -> dict[str, Any]:
        """Return what the kernel says about itself."""
        return await self._request("kernel_info_request", {})

    async def complete(self, code: str, cursor_pos: int | None = None) -> dict[str, Any]:
        """Return completions of the code at the cursor, by default at its end."""
        content = {"code": code, "cursor_pos": len(code) if cursor_pos is None else cursor_pos}
        return await self._request("complete_request", content)

    async def inspect(
        self, code: str, cursor_pos: int | None = None, detail_level: int = 0
    ) -> dict[str, Any]:
        """Return information about the name at the cursor, by default at the end."""
        at = len(code) if cursor_pos is None else cursor_pos
        content = {"code": code, "cursor_pos": at, "detail_level": detail_level}
        return await self._request("inspect_request", content)

    async def is_complete(self, code: str) -> dict[str, Any]:
        """Return whether code is complete, as a console asks."""
        return await self._request("is_complete_request", {"code": code})

    async def history(
        self,
        raw: bool = True,
        output: bool = False,
        hist_access_type: str = "range",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return entries of the history; see `jupyter_client`'s `KernelClient.history`."""
        content = {"raw": raw, "output": output, "hist_access_type": hist_access_type, **kwargs}
        if hist_access_type == "range":
            content = {"session": 0, "start": 0, **content}
        return await self._request("history_request", content)

    # Comms.

    async def comm_info(self, target_name: str | None = None) -> dict[str, Any]:
        """Return the comms that are open in the kernel, of all clients: `comms` by id.

        Parameters
        ----------
        target_name : str, optional
            Only those of this target.
        """
        content = {} if target_name is None else {"target_name": target_name}
        return await self._request("comm_info_request", content)

    async def open_comm(
        self,
        target_name: str,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> Comm:
        """Open a comm to a target in the kernel."""
        return await self._comms.open(target_name, data, metadata, buffers)

    def register_target(
        self, target_name: str, callback: Callable[[Comm, CommMessage], object]
    ) -> None:
        """Call `callback` with each comm that the kernel opens under a name, and its message."""
        self._comms.register_target(target_name, callback)

    # The kernel's process.

    async def interrupt(self) -> None:
        """Interrupt the code that runs."""
        await self._rest.interrupt(self.kernel_id)

    async def restart(self) -> None:
        """Restart the kernel. Executions that run fail with `KernelDied`."""
        await self._rest.restart(self.kernel_id)

    async def shutdown(self) -> None:
        """Shut the kernel down, and close the session."""
        await self._rest.shutdown(self.kernel_id)
        await self.aclose()

    async def _stop_after_reply(self, execution: Execution) -> None:
        """End the outputs of an execution after those that precede a reply of the kernel.

        A busy kernel answers on the control channel. The reply comes after all earlier output.
        """
        with suppress(KbridgeError):
            await self._request("kernel_info_request", {}, ChannelName.CONTROL)
            execution.stop()

    async def _prove_end(self, execution: Execution) -> None:
        """Ask the kernel for a sign that an execution with a reply has no more output.

        Kernels drop iopub messages, and with them the end of executions, if they write too fast.
        """
        try:
            async with asyncio.timeout(self._options.idle_timeout):
                await execution.wait_for_end()
        except TimeoutError:
            request = self._session.probe(execution.msg_id, now())
            if request is not None:
                with suppress(KbridgeError):  # the execution has the same error
                    await self._channel.send(request)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _request(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        channel: ChannelName = ChannelName.SHELL,
    ) -> dict[str, Any]:
        request = self._session.request(msg_type, content, now(), channel=channel)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[request.msg_id] = reply
        try:
            await self._channel.send(request)
            with self._demand.wait():
                return await reply
        finally:
            self._session.forget(request.msg_id)
            self._replies.pop(request.msg_id, None)
            if reply.done() and not reply.cancelled():
                reply.exception()  # retrieved, also if `send` has failed

    # Receiving.

    async def _read(self) -> None:
        error: KbridgeError = NetworkError("the session was closed")
        try:
            while True:
                for event in await self._channel.events():
                    await self._handle(event)
        except KbridgeError as final:
            error = final
        except Exception as fault:  # noqa: BLE001  # without a reader, every call would hang
            error = BridgeError(f"the client failed: {fault!r}")
            error.__cause__ = fault
        finally:
            self._channel.fail(error)
            self._comms.end()
            self._session.end(error)
            self._end(error)

    async def _handle(self, event: Event) -> None:
        match event:
            case Produced():
                if (execution := self._executions.get(event.msg_id)) is not None:
                    await execution.put(event.output, event.nbytes)
            case Finished():
                if (execution := self._executions.pop(event.msg_id, None)) is not None:
                    execution.finish(event.result)
            case Replied():
                self._reply(event)
            case ReplyOnly():
                if (execution := self._executions.get(event.msg_id)) is not None:
                    self._start(self._prove_end(execution))
            case Failed():
                self._fail(event)
            case InputRequested():
                self._ask(event)
            case ReasonChanged() if self._on_reason is not None:
                self._on_reason(event.reason)
            case CommEvent():
                await self._comms.receive(event)

    def _reply(self, event: Replied) -> None:
        if (reply := self._replies.get(event.msg_id)) is not None and not reply.done():
            reply.set_result(event.content)

    def _fail(self, event: Failed) -> None:
        if (execution := self._executions.pop(event.msg_id, None)) is not None:
            execution.fail(event.error)
        reply = self._replies.get(event.msg_id)
        if reply is not None and not reply.done():
            reply.set_exception(event.error)

    def _end(self, error: KbridgeError) -> None:
        """Fail everything that waits, whatever the session knows of it."""
        for msg_id in [*self._executions, *self._replies]:
            self._fail(Failed(msg_id, error))

    def _ask(self, event: InputRequested) -> None:
        execution = self._executions.get(event.msg_id)
        if execution is not None and execution.on_input is not None:
            self._start(self._answer(execution, execution.on_input, event))

    async def _answer(
        self, execution: Execution, ask: InputCallback, event: InputRequested
    ) -> None:
        """Ask the callback, and send its answer. Its exception ends the execution."""
        try:
            if inspect.iscoroutinefunction(ask):
                line = await ask(event.prompt, event.password)
            else:
                answer = await in_thread(partial(ask, event.prompt, event.password))
                line = await answer if inspect.isawaitable(answer) else answer
            if not isinstance(line, str):
                kind = type(line).__name__
                raise TypeError(f"the input callback returned {kind} instead of a string")
        except Exception as error:  # noqa: BLE001  # any error of the callback ends the execution
            execution.fail(error)
            with suppress(KbridgeError):
                await self.interrupt()
            return
        reply = self._session.answer(event.msg_id, line, now())
        if reply is not None:
            with suppress(KbridgeError):  # the execution has the same error
                await self._channel.send(reply)
