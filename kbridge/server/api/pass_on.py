"""Passes requests and websockets on to the replica that serves their kernel.

Invariants:

- a request is passed on after this server has authorized it, and is then a request of this replica:
  the other one gets the secret of the cluster, not the client's token or cookies;
- a request that another replica has passed on is never passed on again;
- if the owner of the kernel has changed, the request is passed on to the new owner, once;
- a replica that gets such a request reads the row of the kernel before it refuses, so a kernel that
  was given to it is served from then on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from tornado.websocket import WebSocketHandler

from kbridge.cluster.protocol import (
    CLIENT_ADDRESS,
    CLIENT_ADMIN,
    CLIENT_AUTH,
    CLIENT_USER,
    RESTART_SECONDS,
    api_path,
)
from kbridge.errors import Busy, Forbidden, KernelNotFound, Misdirected, RegistryError
from kbridge.kernels.users import User
from kbridge.link import handshake
from kbridge.link.transport import SocketTransport
from kbridge.server.api.access import AccessMixin, ApiHandler
from kbridge.wire.closing import GOING_AWAY

if TYPE_CHECKING:
    from kbridge.cluster.peers import PeerReply, Peers
    from kbridge.cluster.remote_kernel import RemoteKernel
    from kbridge.kernels.registry.models import Replica
    from kbridge.link.relay import Relay

__all__ = ["KernelApiHandler", "find_remote", "pass_websocket"]

_HANDSHAKE: Final = (
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
    "User-Agent",  # tells browsers from other programs
)
_ANSWER: Final = ("Sec-WebSocket-Accept", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions")
_REPLY: Final = ("Content-Type", "Retry-After", "Allow")
_SECONDS: Final = 120.0

_Ask = Callable[["Peers", "Replica"], Awaitable["PeerReply"]]


async def find_remote(handler: AccessMixin, kernel_id: str) -> RemoteKernel | None:
    """Return the kernel if another replica serves it; None if this one does, or nobody.

    Raises
    ------
    KernelNotFound
        If the user may not reach it.
    Misdirected
        If another replica has passed on the request, and this one does not serve the kernel.
    Busy
        If the database has to be asked for the kernel, and cannot be.
    """
    services = handler.services
    if services.cluster is None or kernel_id in services.kernels:
        return None
    with _database():
        # The sender of a request that was passed on may have given the kernel to this replica.
        found = await services.cluster.find(kernel_id, fresh=handler.passed_on)
    if kernel_id in services.kernels:
        return None
    if handler.passed_on:
        raise Misdirected(f"this replica does not serve the kernel {kernel_id}")
    if found is not None and not handler.user.may_reach(found.user):
        raise KernelNotFound(f"There is no kernel {kernel_id}")
    return found


async def _ask_owner(
    handler: AccessMixin, kernel: RemoteKernel, ask: _Ask
) -> tuple[RemoteKernel, PeerReply] | None:
    """Send a request to the owner of a kernel; see `RemoteKernels.ask`."""
    services = handler.services
    assert services.cluster is not None
    with _database():
        return await services.cluster.ask(
            kernel, lambda owner: ask(owner.peers, owner.require_replica()), services.kernels
        )


@contextmanager
def _database() -> Iterator[None]:
    """Answer with 503 if the database cannot be asked for a kernel."""
    try:
        yield
    except RegistryError as error:
        raise Busy(f"The database of the cluster cannot be asked for the kernel: {error}") from None


class KernelApiHandler(ApiHandler):
    """Base of the handlers of one kernel, whose id is the first argument of the path."""

    for_replicas = True

    async def prepare(self) -> None:  # type: ignore[override]
        """Check access, and pass the request on if another replica serves the kernel.

        Raises
        ------
        KernelNotFound
            If the user may not reach it.
        """
        super().prepare()
        if self.request.method == "OPTIONS":
            return
        kernel = await find_remote(self, self.path_args[0])
        if kernel is not None:
            await self._pass_on(kernel)
        if not self._finished:
            self.check_reach(self.path_args[0])

    async def _pass_on(self, kernel: RemoteKernel) -> None:
        request = self.request
        assert request.method is not None
        _, _, rest = request.path.partition(f"{self.services.base_url}api/kernels/")
        _, slash, rest = rest.partition("/")
        path = api_path(kernel.kernel_id, f"{slash}{rest}{_query(request.query_arguments)}")
        headers = _client(self) | {"Content-Type": "application/json"}
        method, body = request.method, request.body
        seconds = RESTART_SECONDS if method == "POST" else _SECONDS
        passed = await _ask_owner(
            self,
            kernel,
            lambda peers, replica: peers.request(
                replica, method, path, headers=headers, body=body, timeout=seconds
            ),
        )
        if passed is not None:
            _answer(self, passed[1])


async def pass_websocket(handler: Any, kernel: RemoteKernel) -> bool:
    """Connect a websocket with the replica that serves its kernel, until it is closed.

    Parameters
    ----------
    handler : AccessMixin and WebSocketHandler
        The handler of a handshake that is authorized and not yet answered.
    kernel : RemoteKernel
        The kernel.

    Returns
    -------
    bool
        False if there is nothing to pass on, because this replica has become the owner.
    """
    request = handler.request
    headers = _client(handler)
    headers |= {name: request.headers[name] for name in _HANDSHAKE if name in request.headers}
    path = api_path(kernel.kernel_id, f"/channels{_query(request.query_arguments)}")
    passed = await _ask_owner(
        handler, kernel, lambda peers, replica: peers.open_websocket(replica, path, headers)
    )
    if passed is None:
        return False
    kernel, reply = passed
    if reply.stream is None:
        _answer(handler, reply)
        return True
    try:
        await _relay(handler, kernel, reply)
    finally:
        reply.stream.close()
    return True


async def _relay(handler: Any, kernel: RemoteKernel, reply: PeerReply) -> None:
    """Answer the handshake as the other replica did, and copy bytes until one side ends."""
    from kbridge.link.relay import Relay

    assert reply.stream is not None
    assert isinstance(handler, AccessMixin)
    assert isinstance(handler, WebSocketHandler)
    services = handler.services
    assert services.cluster is not None
    answer = {name: reply.headers[name] for name in _ANSWER if name in reply.headers}
    client = handshake.switch(handler, answer)
    await handshake.flush(client)
    server = SocketTransport.take_over(reply.stream)
    server.set_keepalive()
    relay = Relay(SocketTransport.take_over(client), server)
    passed = _Passed(relay, kernel.user)
    services.websockets.add(passed)
    handler.keep_checking(passed)
    services.cluster.relays.add(passed, kernel.kernel_id, kernel.replica_id)
    try:
        relay.start()
        await relay.ended
    finally:
        relay.abort()
        handler.stop_checking(passed)
        services.websockets.discard(passed)
        services.cluster.relays.discard(passed, kernel.kernel_id)


class _Passed:
    """A websocket that is passed on, as the end of the server, or of its access, closes it."""

    def __init__(self, relay: Relay, owner: str) -> None:
        self._relay = relay
        self._owner = owner  # of the kernel

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        self._relay.close(code or GOING_AWAY, reason or "")

    def still_allowed(self, user: User) -> bool:
        """Return True if a user may still reach the kernel."""
        return user.may_reach(self._owner)

    def end_access(self, error: Forbidden) -> None:
        """Close the websocket."""
        self._relay.close(error.close_code, error.reason)


def _query(arguments: Mapping[str, list[bytes]]) -> str:
    """Return a query with all arguments but the token."""
    found = [(name, value) for name, values in arguments.items() for value in values]
    query = urlencode([(name, value) for name, value in found if name != "token"])
    return f"?{query}" if query else ""


def _client(handler: AccessMixin) -> dict[str, str]:
    """Return the headers that tell the other replica who the client is, for its logs."""
    return {
        CLIENT_ADDRESS: handler.request.remote_ip or "",
        CLIENT_AUTH: str(handler.auth_method or ""),
        CLIENT_USER: quote(handler.user.name, safe=""),
        CLIENT_ADMIN: "true" if handler.user.admin else "false",
    }


def _answer(handler: AccessMixin, reply: PeerReply) -> None:
    """Give the client the reply of the other replica."""
    handler.set_status(reply.status)
    handler.clear_header("Content-Type")
    for name in _REPLY:
        if name in reply.headers:
            handler.set_header(name, reply.headers[name])
    handler.error_text = reply.message if reply.status >= 400 else ""
    handler.finish(reply.body or None)
