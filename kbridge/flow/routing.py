"""Which client a reply belongs to.

One DEALER serves all clients of a kernel, so replies and stdin requests find their way by the
`msg_id` of their parent. A route stays after its reply: a request may be answered more than once
(`input_request`), and a reply may come after the kernel is idle again. It stays when its client
goes, too: the reply is then nobody's, and not everybody's. Routes are bounded in number and in
bytes, and the oldest go first.
"""

from __future__ import annotations

__all__ = ["Routing"]


class Routing:
    """Requests that clients made, by `msg_id`.

    Parameters
    ----------
    limit : int
        Routes to keep.
    limit_bytes : int
        Characters of all their ids together; ids are the clients' choice, so their number alone
        bounds nothing. The newest route is kept however long its id is.
    """

    __slots__ = ("_chars", "_evicted", "_limit", "_limit_bytes", "_routes")

    def __init__(self, limit: int = 10_000, limit_bytes: int = 4 << 20) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._evicted = 0
        self.clear()

    def clear(self) -> None:
        """Forget all routes, as when the kernel was restarted."""
        self._routes: dict[str, int] = {}
        self._chars = 0

    def note(self, msg_id: str, client: int) -> None:
        """Remember who asked. An id that comes twice belongs to who used it last.

        An empty id is nobody's: several clients may leave theirs empty.
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
            self._evicted += 1

    def _drop(self, msg_id: str) -> None:
        del self._routes[msg_id]
        self._chars -= len(msg_id)

    def owner(self, parent_id: str) -> int | None:
        """Who made the request, or None if that is not known (any more)."""
        return self._routes.get(parent_id)

    def statistics(self) -> dict[str, int]:
        """Routes and characters held, routes evicted since the start."""
        return {
            "routes": len(self._routes),
            "id_chars": self._chars,
            "evicted": self._evicted,
        }
