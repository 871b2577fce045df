"""A kernel that another replica of the cluster serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from kbridge.cluster.peers import PeerReply, Peers
from kbridge.cluster.protocol import RESTART_SECONDS, api_path
from kbridge.errors import (
    Busy,
    KernelError,
    KernelNotFound,
    KernelStartError,
    NotSupported,
    ReplicaUnreachable,
)
from kbridge.hub.clock import timestamp
from kbridge.kernels.interface import Kernel
from kbridge.kernels.registry.models import ClusterKernel, Replica

if TYPE_CHECKING:
    from kbridge.hub import Hub

__all__ = ["RemoteKernel", "end_in", "shown_state"]

_UNKNOWN: Final = {"last_activity": timestamp(0), "execution_state": "unknown", "connections": 0}
_END: Final = "end"  # of the journal; only followers read it


def shown_state(model: Mapping[str, Any], end: str | None = None) -> str:
    """Return the text (`ClusterKernel.state`) that the owner of a kernel writes for the others.

    Parameters
    ----------
    model : mapping
        The REST model of the kernel, of which other replicas show a part.
    end : str, optional
        The end of its journal; see `Hub.journal_end`.
    """
    state = {name: model[name] for name in (*_UNKNOWN, "reason") if name in model}
    return json.dumps(state if end is None else {**state, _END: end})


def end_in(state: str) -> str | None:
    """Return the end of the journal in a text that `shown_state` has returned, if it has one."""
    try:
        found = json.loads(state or "{}")
    except ValueError:
        return None
    end = found.get(_END) if isinstance(found, dict) else None
    return end if isinstance(end, str) else None


class RemoteKernel(Kernel):
    """A kernel of another replica.

    Parameters
    ----------
    kernel : ClusterKernel
        The kernel, as the database has it.
    replica : Replica or None
        The replica that serves it; None while it is handed over.
    peers : Peers
        Sends requests to that replica.
    """

    def __init__(self, kernel: ClusterKernel, replica: Replica | None, peers: Peers) -> None:
        self.kernel_id = kernel.kernel_id
        self.kernel_name = kernel.row.kernel_name
        self.manager = self
        self.ended = False
        self.user = kernel.row.user
        self.replica = replica
        self.replica_id = kernel.replica_id
        self.peers = peers
        self._state = kernel.state

    @property
    def hub(self) -> Hub | None:
        """None: the hub is in the other replica."""
        return None

    @property
    def counts_toward_limit(self) -> bool:
        """False: `max_kernels` is about the kernels of this server."""
        return False

    @property
    def outlives_server(self) -> bool:
        """True: it ends with another server, if at all."""
        return True

    @property
    def connections_stay(self) -> bool:
        """True: this server has no connections to the kernel."""
        return True

    @property
    def cull_metadata(self) -> Mapping[str, Any] | None:
        """None: its own replica culls it."""
        return None

    def require_replica(self) -> Replica:
        """Return the replica that serves the kernel.

        Raises
        ------
        ReplicaUnreachable
            If there is none at the moment.
        """
        if self.replica is None:
            raise ReplicaUnreachable(
                f"The kernel {self.kernel_id} is handed over from one replica to another. Try again"
            )
        return self.replica

    def model(self) -> dict[str, Any]:
        """Return the REST model, as the other replica has written it to the database."""
        shown = json.loads(self._state) if self._state else {}
        shown.pop(_END, None)
        user = {"user": self.user} if self.user else {}
        return {"id": self.kernel_id, "name": self.kernel_name, **_UNKNOWN, **shown, **user}

    @property
    def reason(self) -> str:
        """Why the kernel waits, or why it is dead."""
        return str(self.model().get("reason", ""))

    def execution_state(self) -> str:
        """Return the state that the REST model shows."""
        return str(self.model()["execution_state"])

    def update_env(self, env: dict[str, str]) -> None:
        """Do nothing: the other replica has the environment of the kernel's next process."""

    async def restart(self, *, now: bool = False) -> None:  # noqa: ARG002  # no such argument in REST
        """Let the other replica replace the process."""
        await self._ask("POST", "/restart", timeout=RESTART_SECONDS)

    async def interrupt(self) -> None:
        """Let the other replica interrupt the kernel."""
        await self._ask("POST", "/interrupt")

    async def shutdown(self, *, now: bool = False) -> None:  # noqa: ARG002  # as of `restart`
        """Let the other replica end the kernel."""
        await self._ask("DELETE")
        self.ended = True

    async def leave(self) -> None:
        """Do nothing: the kernel does not depend on this server."""

    def abandon(self) -> None:
        """Do nothing, as `leave`."""

    async def _ask(self, method: str, rest: str = "", *, timeout: float = 60.0) -> None:
        path = api_path(self.kernel_id, rest)
        reply = await self.peers.request(self.require_replica(), method, path, timeout=timeout)
        _raise_for(reply, restart=rest == "/restart")


def _raise_for(reply: PeerReply, *, restart: bool) -> None:
    """Raise the error that a reply describes."""
    if reply.status < 400:
        return
    message = reply.message
    if reply.status == 404:
        raise KernelNotFound(message)
    if reply.status == 501:
        raise NotSupported(message)
    if reply.status == 503:
        raise Busy(message)
    raise KernelStartError(message) if restart else KernelError(message)
