"""Comms: messages between a program and an object in the kernel, such as a widget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import uuid4

from kbridge.client.channel import Channel
from kbridge.client.queue import BoundedQueue, Demand
from kbridge.client.session import CommEvent, KernelSession
from kbridge.wire.message import Buffer

__all__ = ["Comm", "CommMessage", "Comms", "now"]


def now() -> str:
    """Return the current time for the header of a message."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class CommMessage:
    """A message of a comm."""

    data: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    buffers: tuple[Buffer, ...] = ()


class Comm:
    """One comm. Iterate over it for the messages of the kernel, until it closes the comm.

    A comm whose messages are not read stops all other messages of its `Kernel` once its buffer is
    full. A message that is sent in the moment in which the connection breaks may be lost.

    Attributes
    ----------
    comm_id, target_name : str
        The id, and the name of the target that was opened.
    """

    def __init__(
        self, comms: Comms, comm_id: str, target_name: str, messages: BoundedQueue[CommMessage]
    ) -> None:
        self.comm_id = comm_id
        self.target_name = target_name
        self._comms = comms
        self._messages = messages

    def __aiter__(self) -> AsyncIterator[CommMessage]:
        return self

    async def __anext__(self) -> CommMessage:
        message = await self._messages.get()
        if message is None:
            raise StopAsyncIteration
        return message

    async def send(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        """Send a message to the kernel."""
        await self._comms.send("comm_msg", self, data, metadata, buffers)

    async def close(self, data: Mapping[str, Any] | None = None) -> None:
        """Close the comm, and tell the kernel."""
        self._comms.remove(self)
        await self._comms.send("comm_close", self, data)

    async def put(self, message: CommMessage, nbytes: int) -> None:
        """Add a message of the kernel; waits while the buffer is full."""
        await self._messages.put(message, nbytes)

    def end(self) -> None:
        """Note that the kernel, or the connection, has closed the comm."""
        self._messages.end()


Target: TypeAlias = Callable[[Comm, CommMessage], object]


class Comms:
    """The comms of one kernel.

    Parameters
    ----------
    channel : Channel
        Sends the messages.
    session : KernelSession
        Builds them.
    limit : int
        Bytes of unread messages of a comm.
    demand : Demand
        That of the reader of messages.
    """

    def __init__(
        self, channel: Channel, session: KernelSession, limit: int, demand: Demand
    ) -> None:
        self._demand = demand
        self._channel = channel
        self._session = session
        self._limit = limit
        self._open: dict[str, Comm] = {}
        self._targets: dict[str, Target] = {}

    def register_target(self, name: str, target: Target) -> None:
        """Call `target` with each comm that the kernel opens under this name, and its message."""
        self._targets[name] = target

    async def open(
        self,
        target_name: str,
        data: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        buffers: Sequence[Buffer],
    ) -> Comm:
        """Open a comm to a target in the kernel."""
        comm = self._add(uuid4().hex, target_name)
        await self.send("comm_open", comm, data, metadata, buffers)
        return comm

    async def send(
        self,
        msg_type: str,
        comm: Comm,
        data: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
    ) -> None:
        """Send a message of a comm."""
        content: dict[str, Any] = {"comm_id": comm.comm_id, "data": dict(data or {})}
        if msg_type == "comm_open":
            content["target_name"] = comm.target_name
        message = self._session.comm(msg_type, content, now(), metadata=metadata, buffers=buffers)
        await self._channel.send(message)

    def _add(self, comm_id: str, target_name: str) -> Comm:
        comm = Comm(self, comm_id, target_name, BoundedQueue(self._limit, self._demand))
        self._open[comm_id] = comm
        return comm

    def remove(self, comm: Comm) -> None:
        """Forget a comm."""
        self._open.pop(comm.comm_id, None)
        comm.end()

    async def receive(self, event: CommEvent) -> None:
        """Take a message of the kernel; waits while the buffer of the comm is full."""
        message = CommMessage(event.data, event.metadata, event.buffers)
        if event.msg_type == "comm_open":
            if (target := self._targets.get(event.target_name)) is not None:
                comm = self._add(event.comm_id, event.target_name)
                try:
                    target(comm, message)
                except Exception as error:  # noqa: BLE001  # the session goes on without this comm
                    self.remove(comm)
                    text = f"the callback of the comm target {event.target_name!r} failed"
                    report = {"message": text, "exception": error}
                    asyncio.get_running_loop().call_exception_handler(report)
            return
        comm_or_none = self._open.get(event.comm_id)
        if comm_or_none is None:
            return  # another client's
        if event.msg_type == "comm_close":
            self.remove(comm_or_none)
        else:
            await comm_or_none.put(message, event.nbytes)

    def end(self) -> None:
        """Close all comms on this side."""
        for comm in list(self._open.values()):
            self.remove(comm)
