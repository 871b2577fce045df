"""The client for programs without an event loop: the same names, without `await`.

Each server has an event loop in a thread. Several threads may use the objects, one call of an
object at a time. KeyboardInterrupt ends a call, and loses no output: the next call goes on.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from kbridge.client import comms as _comms
from kbridge.client import execution as _execution
from kbridge.client import kernel as _kernel
from kbridge.client import server as _server
from kbridge.client.comms import CommMessage
from kbridge.client.execution import ExecutionInfo, InputCallback
from kbridge.client.outputs import Output, Result
from kbridge.errors import Conflict, NetworkError
from kbridge.wire.message import Buffer

__all__ = ["Comm", "Execution", "Kernel", "Server", "connect"]

T = TypeVar("T")


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended = False
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="kbridge.client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop. KeyboardInterrupt, or any other exception, cancels it.

        Raises
        ------
        Conflict
            If a callback that runs on the loop calls this; waiting would never end.
        NetworkError
            If the loop has ended.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise Conflict("a callback that runs on the event loop of the client cannot call it")
        if self._ended:
            work.close()
            raise NetworkError("the client was closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:  # by `close` in another thread
            raise NetworkError("the client was closed") from None
        except BaseException:
            future.cancel()
            raise

    def end(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine that closes something; not needed after the end of the loop."""
        if self._ended:
            work.close()
        else:
            self.run(work)

    def close(self) -> None:
        """End the loop and its thread; a second call has no effect."""
        if self._ended:
            return
        self._ended = True
        # On its own thread, because the caller may have a running loop, such as a notebook.
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        """End the calls of other threads, and the threads that look names up."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()


def connect(
    url: str = "",
    token: str = "",
    *,
    tls: ssl.SSLContext | None = None,
    buffer: int = 8 << 20,
    patience: float = 600.0,
    ping_interval: float = 20.0,
) -> Server:
    """Return a client of a server; see `kbridge.client.connect`."""
    loop = _Loop()

    async def make() -> _server.Server:
        return _server.connect(
            url, token, tls=tls, buffer=buffer, patience=patience, ping_interval=ping_interval
        )

    try:
        return Server(loop, loop.run(make()))
    except BaseException:
        loop.close()
        raise


class Server:
    """A server of kernels; see `kbridge.client.Server`."""

    def __init__(self, loop: _Loop, server: _server.Server) -> None:
        self._loop = loop
        self._server = server

    def __enter__(self) -> Self:
        try:
            self._loop.run(self._server.__aenter__())
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all sessions; kernels and executions go on."""
        try:
            self._loop.end(self._server.aclose())
        finally:
            self._loop.close()

    @property
    def url(self) -> str:
        """The URL of the server, without a token."""
        return self._server.url

    def kernelspecs(self) -> dict[str, Any]:
        """Return the kernelspecs by name, and the name of the default one."""
        return self._loop.run(self._server.kernelspecs())

    def kernels(self) -> list[dict[str, Any]]:
        """Return the models of all kernels."""
        return self._loop.run(self._server.kernels())

    def start_kernel(
        self,
        name: str = "",
        *,
        env: Mapping[str, str] | None = None,
        path: str = "",
        on_progress: Callable[[str], object] | None = None,
    ) -> Kernel:
        """Start a kernel, and wait until it answers; see `kbridge.client.Server.start_kernel`."""
        started = self._server.start_kernel(name, env=env, path=path, on_progress=on_progress)
        return Kernel(self._loop, self._loop.run(started))

    def kernel(self, kernel_id: str) -> Kernel:
        """Open a session on a kernel that runs."""
        return Kernel(self._loop, self._loop.run(self._server.kernel(kernel_id)))


class Kernel:
    """A kernel, and a session on it; see `kbridge.client.Kernel`."""

    def __init__(self, loop: _Loop, kernel: _kernel.Kernel) -> None:
        self._loop = loop
        self._kernel = kernel

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def kernel_id(self) -> str:
        """The id of the kernel on its server."""
        return self._kernel.kernel_id

    @property
    def reason(self) -> str:
        """Why the kernel waits in the queue of a scheduler, or why it is dead; else empty."""
        return self._kernel.reason

    def close(self) -> None:
        """Close the session; the kernel and its executions go on."""
        self._loop.end(self._kernel.aclose())

    def execute(
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
        """Send code to the kernel; see `kbridge.client.Kernel.execute`."""
        sent = self._kernel.execute(
            code,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
            allow_stdin=allow_stdin,
            stop_on_error=stop_on_error,
            cell_id=cell_id,
            input=input,
        )
        return Execution(self._loop, self._loop.run(sent))

    def follow(
        self,
        msg_id: str,
        *,
        wait: bool = True,
        input: InputCallback | None = None,  # noqa: A002  # what the code calls
    ) -> Execution:
        """Return an execution of any client; see `kbridge.client.Kernel.follow`."""
        followed = self._kernel.follow(msg_id, wait=wait, input=input)
        return Execution(self._loop, self._loop.run(followed))

    def executions(
        self, *, state: str = "", cell_id: str = "", limit: int | None = None
    ) -> list[ExecutionInfo]:
        """Return the executions that the server has noted, newest last."""
        found = self._kernel.executions(state=state, cell_id=cell_id, limit=limit)
        return self._loop.run(found)

    def kernel_info(self) -> dict[str, Any]:
        """Return what the kernel says about itself."""
        return self._loop.run(self._kernel.kernel_info())

    def complete(self, code: str, cursor_pos: int | None = None) -> dict[str, Any]:
        """Return completions of the code at the cursor, by default at its end."""
        return self._loop.run(self._kernel.complete(code, cursor_pos))

    def inspect(
        self, code: str, cursor_pos: int | None = None, detail_level: int = 0
    ) -> dict[str, Any]:
        """Return information about the name at the cursor, by default at the end."""
        return self._loop.run(self._kernel.inspect(code, cursor_pos, detail_level))

    def is_complete(self, code: str) -> dict[str, Any]:
        """Return whether code is complete, as a console asks."""
        return self._loop.run(self._kernel.is_complete(code))

    def history(
        self,
        raw: bool = True,
        output: bool = False,
        hist_access_type: str = "range",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return entries of the history."""
        return self._loop.run(self._kernel.history(raw, output, hist_access_type, **kwargs))

    def comm_info(self, target_name: str | None = None) -> dict[str, Any]:
        """Return the comms that are open in the kernel."""
        return self._loop.run(self._kernel.comm_info(target_name))

    def open_comm(
        self,
        target_name: str,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> Comm:
        """Open a comm to a target in the kernel."""
        opened = self._kernel.open_comm(target_name, data, metadata=metadata, buffers=buffers)
        return Comm(self._loop, self._loop.run(opened))

    def interrupt(self) -> None:
        """Interrupt the code that runs."""
        self._loop.run(self._kernel.interrupt())

    def restart(self) -> None:
        """Restart the kernel. Executions that run fail with `KernelDied`."""
        self._loop.run(self._kernel.restart())

    def shutdown(self) -> None:
        """Shut the kernel down, and close the session."""
        self._loop.run(self._kernel.shutdown())


class _Unread(Generic[T]):
    """The items of an asynchronous iterator, none of which KeyboardInterrupt loses."""

    def __init__(self, loop: _Loop, items: AsyncIterator[T]) -> None:
        self._loop = loop
        self._items = items
        self._taken: deque[T] = deque()  # by the loop, and not returned yet

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._taken:
            self._loop.run(self._take())
        if not self._taken:
            raise StopIteration
        item = self._taken[0]
        try:
            self._taken.popleft()
            return item  # noqa: TRY300  # an interrupt before the return has to be seen
        except BaseException:  # between the two lines above
            self._taken.appendleft(item)
            raise

    def all(self, collect: Callable[[], Coroutine[Any, Any, list[T]]]) -> list[T]:
        """Return the items that were taken, and those that a coroutine function returns."""

        async def take() -> None:
            self._taken.extend(await collect())

        self._loop.run(take())
        items = list(self._taken)
        try:
            self._taken.clear()
            return items  # noqa: TRY300  # an interrupt before the return has to be seen
        except BaseException:  # between the two lines above
            self._taken.extend(items)
            raise

    def clear(self) -> None:
        """Drop items that were taken."""
        self._taken.clear()

    async def _take(self) -> None:
        # A call that was interrupted may have taken an item in the meantime.
        if not self._taken:
            with suppress(StopAsyncIteration):
                self._taken.append(await anext(self._items))


class Execution:
    """The outputs and the result of one execution; see `kbridge.client.Execution`.

    Iterate over it for the outputs; then `result` returns the result.
    """

    def __init__(self, loop: _Loop, execution: _execution.Execution) -> None:
        self._loop = loop
        self._execution = execution
        self._unread = _Unread(loop, execution)

    @property
    def msg_id(self) -> str:
        """The id of the request."""
        return self._execution.msg_id

    @property
    def ended(self) -> bool:
        """True if the result, or an error, has arrived; outputs may be unread."""
        return self._execution.ended

    def __iter__(self) -> Iterator[Output]:
        return self._unread

    def result(self) -> Result:
        """Wait for the result; discards outputs that were not read."""
        self._unread.clear()

        async def wait() -> Result:
            return await self._execution

        return self._loop.run(wait())

    def collect(self) -> list[Output]:
        """Return all outputs that were not read yet, when the execution has ended."""
        return self._unread.all(self._execution.collect)

    def discard(self) -> None:
        """Drop the outputs that were not read, and those that will arrive."""
        self._unread.clear()

        async def drop() -> None:
            self._execution.discard()

        self._loop.end(drop())

    def close(self) -> None:
        """Stop following an execution of `Kernel.follow`."""
        self._loop.end(self._execution.aclose())


class Comm:
    """One comm; iterate over it for the messages of the kernel; see `kbridge.client.Comm`."""

    def __init__(self, loop: _Loop, comm: _comms.Comm) -> None:
        self._loop = loop
        self._comm = comm
        self._unread = _Unread(loop, comm)

    def __iter__(self) -> Iterator[CommMessage]:
        return self._unread

    def send(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        """Send a message to the kernel."""
        self._loop.run(self._comm.send(data, metadata=metadata, buffers=buffers))

    def close(self, data: Mapping[str, Any] | None = None) -> None:
        """Close the comm, and tell the kernel."""
        self._loop.run(self._comm.close(data))
