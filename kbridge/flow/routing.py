"""Route replies to clients.

One DEALER socket serves all clients of a kernel, so replies and stdin requests are routed by the
`msg_id` of their parent. A route stays after its reply, because a request may have several answers
(`input_request`), and a reply may arrive after the kernel is idle. It also stays after its client
has left, so that the reply is not sent to other clients. Routes are bounded in number and in bytes;
the oldest are dropped first.
"""

from __future__ import annotations

__all__ = ["Routing"]


class Routing:
    """The clients of requests, by `msg_id`.

    Parameters
    ----------
    limit : int
        Maximum number of routes.
    limit_bytes : int
        Maximum number of characters of all ids together. Clients choose the ids, so the number of
        routes alone does not bound memory. The newest route is kept even if its id is longer.
    """

    __slots__ = ("_chars", "_limit", "_limit_bytes", "_routes")

    def __init__(self, limit: int = 10_000, limit_bytes: int = 4 << 20) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._limit = limit
        self._limit_bytes = limit_bytes
        self.clear()

    def clear(self) -> None:
        """Forget all routes, for example after a restart of the kernel."""
        self._routes: dict[str, int] = {}
        self._chars = 0

    def note(self, msg_id: str, client: int) -> None:
        """Store the client of a request. A duplicate id belongs to the client that used it last.

        An empty id is not stored, because several clients may send empty ids.
        """
        if not msg_id:
            return
        if msg_id in self._routes:
            self._drop(msg_id)
        self._routes[msg_id] = client
        self._chars += len(msg_id)
        while len(self._routes) > self._limit or (
            self._chars > self._limit_bytes and len(self._routes) > 1
        ):
            self._drop(next(iter(self._routes)))

    def _drop(self, msg_id: str) -> None:
        del self._routes[msg_id]
        self._chars -= len(msg_id)

    def owner(self, parent_id: str) -> int | None:
        """Return the client that sent the request; None if it is unknown or was forgotten."""
        return self._routes.get(parent_id)
