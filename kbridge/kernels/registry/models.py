"""The rows of a registry: sessions, and the data that is needed to find a kernel again.

Plain data; nothing here inspects a process or a file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = [
    "Claim",
    "ClusterKernel",
    "ExecutionRow",
    "KeptRows",
    "KernelRole",
    "KernelRow",
    "Owner",
    "Place",
    "Replica",
    "SessionRow",
    "View",
    "decode",
    "encode",
]

# A busy machine or a slow database costs a replica one lease, and it waits for another one then.
_LEASES_TO_RETURN = 3
_BYTES = "base64:bytes"  # a name that no provisioner uses


class KernelRole(StrEnum):
    """The use of a kernel."""

    STARTING = "starting"  # no client was told its id yet
    POOLED = "pooled"  # the kernel waits in a pool
    USED = "used"


@dataclass(frozen=True, slots=True)
class Owner:
    """A server, as the rows of its kernels and sessions name it.

    Attributes
    ----------
    address : str
        The address in its settings, which the next server at the same place has, too. In a
        cluster, the name of the cluster, which all replicas have.
    hostname : str
        The machine that its processes run on.
    pid : int
        The id of its process.
    start_id : str
        The start of that process; see `kbridge.kernels.lifecycle.processes.start_id`.
    """

    address: str
    hostname: str
    pid: int
    start_id: str


@dataclass(frozen=True, slots=True)
class KernelRow:
    """A kernel.

    Attributes
    ----------
    kernel_id, kernel_name : str
        The id of the kernel, and the name of its kernelspec.
    role : str
        A `KernelRole`.
    pid : int
        The id of its process on this machine; 0 if it has none (yet).
    start_id : str
        The start of that process.
    log_path : str
        The path of its log file.
    details : str
        The rest, as `encode` writes it: connection, provisioner, kernelspec, launch arguments.
    user : str
        The name of the user who started it; empty for the operator.
    """

    kernel_id: str
    kernel_name: str
    role: str
    pid: int
    start_id: str
    log_path: str
    details: str = field(repr=False)  # contains the key
    user: str = ""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session: which document uses which kernel, and the name of the user who created it."""

    session_id: str
    kernel_id: str
    path: str
    name: str | None
    type: str
    user: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The rows of earlier servers that a server finds at its start.

    Attributes
    ----------
    kernels, sessions : list
        The rows that belong to this server from now on.
    elsewhere : dict
        The number of kernels that wait for the start of another server, by its address.
    hidden : int
        The number of kernels of servers on the same address whose process cannot be seen from here.
    """

    kernels: list[KernelRow] = field(default_factory=list)
    sessions: list[SessionRow] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)
    hidden: int = 0


@dataclass(frozen=True, slots=True)
class Replica:
    """A server of a cluster.

    Attributes
    ----------
    replica_id : str
        A random id; a server that is started again has another one.
    cluster : str
        The name of the cluster.
    url : str
        The URL under which the other replicas reach it, with the path in front of every route.
    hostname : str
        The machine that its processes run on.
    pid : int
        The id of its process.
    start_id : str
        The start of that process; see `kbridge.kernels.lifecycle.processes.start_id`.
    version : str
        The version of kbridge.
    lease_until : float
        The end of its lease, in seconds of the database's clock. Each renewal changes it.
    lease_seconds : float
        The duration that it gives its lease; 0 if an earlier version wrote the row.
    lease_left : float
        Seconds until its lease is over, by the clock of the database; negative after that.
    draining : bool
        True if it is about to end, and takes no kernels.
    """

    replica_id: str
    cluster: str
    url: str
    hostname: str
    pid: int
    start_id: str
    version: str
    lease_until: float = 0.0
    lease_seconds: float = 0.0
    lease_left: float = 0.0
    draining: bool = False

    @property
    def alive(self) -> bool:
        """True if its lease was not over when it was read."""
        return self.lease_left > 0

    @property
    def patience(self) -> float:
        """Seconds for which the others hope that it returns, after the end of its lease."""
        return _LEASES_TO_RETURN * self.lease_seconds


@dataclass(frozen=True, slots=True)
class ClusterKernel:
    """A kernel of a cluster.

    Attributes
    ----------
    row : KernelRow
        The kernel, with its connection (see `decode`).
    replica_id : str
        The replica that owns it.
    hostname : str
        The machine of its process.
    changed : int
        The revision of the cluster at the last change of the kernel.
    state : str
        JSON that the owner writes: what other replicas show of the kernel. Empty at first.
    """

    row: KernelRow
    replica_id: str
    hostname: str
    changed: int
    state: str = ""

    @property
    def kernel_id(self) -> str:
        """The id of the kernel."""
        return self.row.kernel_id

    @property
    def is_local(self) -> bool:
        """True if only programs of the kernel's machine can connect to it, or that is not known."""
        try:
            info = decode(self.row.details).get("connection")
        except ValueError:
            return True
        if not isinstance(info, dict):
            return True
        ip = str(info.get("ip", ""))
        return (
            info.get("transport") == "ipc"
            or ip.startswith("127.")
            or ip in ("::1", "localhost", "")
        )


@dataclass(frozen=True, slots=True)
class View:
    """A cluster as the database has it.

    Attributes
    ----------
    revision : int
        The revision of the cluster; the next view is to contain later changes.
    replicas : tuple of Replica
        All replicas, also those whose lease is over.
    kernels : tuple of ClusterKernel
        The kernels that have changed, or all of them (`whole`).
    ended : frozenset of str
        The ids of the kernels that have ended since.
    whole : bool
        True if `kernels` contains all kernels, so that all others have ended.
    """

    revision: int
    replicas: tuple[Replica, ...]
    kernels: tuple[ClusterKernel, ...]
    ended: frozenset[str] = frozenset()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """The last message that a client's session has acknowledged.

    Attributes
    ----------
    kernel_id, session_id : str
        The kernel, and the session of the websocket.
    msg_id : str
        The id of the message, which is the same on all replicas; empty to delete the row.
    """

    kernel_id: str
    session_id: str
    msg_id: str


@dataclass(frozen=True, slots=True)
class KeptRows:
    """The ids of the places and executions of one kernel that stay, when the others are deleted."""

    sessions: Collection[str]
    executions: Collection[str]


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    """An execution, for the replica that takes the kernel over.

    Attributes
    ----------
    kernel_id, msg_id : str
        The kernel, and the id of the request.
    entry : str
        JSON of the entry (see `kbridge.flow.execution.Execution.entry`); empty to delete the row.
    """

    kernel_id: str
    msg_id: str
    entry: str


def encode(details: Mapping[str, Any]) -> str:
    """Return JSON text; `decode` restores bytes (keys) in it.

    Raises
    ------
    TypeError, ValueError
        If `details` contains another value that JSON cannot represent.
    """
    return json.dumps(details, default=_pack)


def decode(text: str) -> dict[str, Any]:
    """Parse the text that `encode` returned.

    Raises
    ------
    ValueError
        If the text is not a JSON object.
    """
    details = json.loads(text, object_hook=_unpack)
    if not isinstance(details, dict):
        raise ValueError("not an object")  # noqa: TRY004 - the text is wrong
    return details


def _pack(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} is not JSON")


def _unpack(value: dict[str, Any]) -> Any:
    packed = value.get(_BYTES)
    return base64.b64decode(packed) if isinstance(packed, str) and len(value) == 1 else value
