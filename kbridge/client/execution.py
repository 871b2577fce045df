"""One execution of code, as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

from kbridge.client.outputs import Output, Result
from kbridge.client.queue import BoundedQueue, Demand
from kbridge.errors import Conflict

__all__ = ["Execution", "ExecutionInfo", "InputCallback"]

InputCallback: TypeAlias = Callable[[str, bool], str | Awaitable[str]]
"""Called with the prompt, and True for a password; returns the line, or a coroutine for it."""


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """The record that a server has of an execution of any client; see docs/rest.md.

    Attributes
    ----------
    id : str
        The id of the request, as `Kernel.follow` takes it.
    state : str
        `waiting`, `running`, `done`, `error` or `aborted`.
    submitted, started, ended : str or None
        Times in ISO 8601.
    execution_count : int or None
        The number of the prompt.
    messages, output_bytes : int
        The amount of output so far.
    cell_id : str or None
        The cell of the notebook.
    """

    id: str
    state: str
    submitted: str | None
    started: str | None
    ended: str | None
    execution_count: int | None
    messages: int
    output_bytes: int
    cell_id: str | None

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> ExecutionInfo:
        """Return the record for the model in a reply of the server."""
        values: dict[str, Any] = {name: model.get(name) for name in cls.__slots__}
        return cls(**values)

    @property
    def over(self) -> bool:
        """True if it has ended."""
        return self.state not in ("waiting", "running")


class Execution:
    """The outputs and the result of one execution. Made by `Kernel.execute` and `Kernel.follow`.

    Iterate over it for the outputs, then await it for the result. Awaiting it discards outputs that
    were not read. An execution that is neither read nor awaited stops all other messages of its
    `Kernel` once its buffer is full; call `discard` if its output is of no interest.

    Attributes
    ----------
    msg_id : str
        The id of the request. Another program may follow the execution with it.
    """

    def __init__(
        self, msg_id: str, limit: int, on_input: InputCallback | None, demand: Demand
    ) -> None:
        self.msg_id = msg_id
        self.on_input = on_input
        self._demand = demand
        self._outputs: BoundedQueue[Output] = BoundedQueue(limit, demand)
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._stopped = False
        self._ended = asyncio.Event()
        self._cleanup: AsyncExitStack | None = None

    def __aiter__(self) -> AsyncIterator[Output]:
        return self

    async def __anext__(self) -> Output:
        output = await self._outputs.get()
        if output is not None:
            return output
        await self._close()
        if self._error is not None and not self._stopped:
            raise self._error
        raise StopAsyncIteration

    def __await__(self) -> Generator[Any, None, Result]:
        return self._wait().__await__()

    async def collect(self) -> list[Output]:
        """Return all outputs that were not read yet, when the execution has ended.

        After an exception, also that of `asyncio.timeout`, they can be read again.
        """
        outputs: list[Output] = []
        try:
            async for output in self:
                outputs.append(output)  # noqa: PERF401  # kept if the next one fails
        except BaseException:
            self._outputs.put_back(outputs)
            raise
        return outputs

    def discard(self) -> None:
        """Drop the outputs that were not read, and those that will arrive."""
        self._outputs.discard()

    @property
    def ended(self) -> bool:
        """True if the result, or an error, has arrived, or `follow` has stopped."""
        return self._ended.is_set()

    async def aclose(self) -> None:
        """Stop following an execution of `Kernel.follow`; the execution itself goes on."""
        self.discard()
        await self._close()

    async def _wait(self) -> Result:
        self.discard()
        with self._demand.wait():
            await self._ended.wait()
        await self._close()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def _close(self) -> None:
        if self._cleanup is not None:
            await self._cleanup.aclose()

    # Called by the kernel.

    async def put(self, output: Output, nbytes: int) -> None:
        """Add an output; waits while the buffer is full."""
        await self._outputs.put(output, nbytes)

    def finish(self, result: Result) -> None:
        """Set the result."""
        if not self.ended:
            self._result = result
            self._end()

    def fail(self, error: BaseException) -> None:
        """Set the error that iterating and awaiting raise."""
        if not self.ended:
            self._error = error
            self._end()

    def stop(self) -> None:
        """End the outputs although the execution goes on."""
        if not self.ended:
            self._error = Conflict("the execution has not ended")
            self._stopped = True
            self._end()

    async def wait_for_end(self) -> None:
        """Wait until the result or an error has arrived; keeps the outputs."""
        await self._ended.wait()

    def close_with(self, cleanup: AsyncExitStack) -> None:
        """Set the cleanup for the end."""
        self._cleanup = cleanup

    def _end(self) -> None:
        self._ended.set()
        self._outputs.end()
