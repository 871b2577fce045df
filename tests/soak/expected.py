"""The requests to the kernels, and the messages that one client has received of them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

__all__ = ["Cell", "Request", "RequestLog"]


@dataclass(slots=True)
class Request:
    """A request and its expected output.

    Attributes
    ----------
    msg_id : str
        The msg_id.
    session : str
        The session of the client.
    lines : int
        The number of lines that it prints.
    size : int
        Bytes per line, including the newline.
    kernel : str
        The kernel.
    """

    msg_id: str
    session: str
    lines: int = 0
    size: int = 0
    kernel: str = ""


class RequestLog:
    """All requests of all clients; old ones are removed."""

    def __init__(self, limit: int = 20_000) -> None:
        self._requests: dict[str, Request] = {}
        self._limit = limit

    def add(self, request: Request) -> Request:
        self._requests[request.msg_id] = request
        if len(self._requests) > self._limit:
            del self._requests[next(iter(self._requests))]
        return request

    def get(self, msg_id: str) -> Request | None:
        return self._requests.get(msg_id)

    def lines_of_others(self, kernel: str, known: Container[str]) -> int:
        """Return the number of lines of all requests to a kernel, except some."""
        asked = self._requests.values()
        return sum(r.lines for r in asked if r.kernel == kernel and r.msg_id not in known)


@dataclass(slots=True)
class Cell:
    """The received messages of one request."""

    request: Request
    next: int = 0
    top: int = 0  # the highest that `next` ever was
    whole: bool = False  # its busy has arrived, so line 0 must arrive
    seen: set[str] = field(default_factory=set)  # busy, execute_input, idle, reply
    status: str = ""  # of the reply
    acked: tuple[int, frozenset[str]] = (0, frozenset())
    rewind: bool = False  # a line may come again
    again: set[str] = field(default_factory=set)  # the part of `seen` that may arrive again
    counted: bool = False

    @property
    def done(self) -> bool:
        return {"idle", "reply"} <= self.seen
