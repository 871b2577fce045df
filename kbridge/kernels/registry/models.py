"""The rows of a registry: sessions, and the data that is needed to find a kernel again.

Plain data; nothing here inspects a process or a file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Claim", "KernelRole", "KernelRow", "Owner", "SessionRow", "decode", "encode"]

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
        The address in its settings, which the next server at the same place has, too.
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
    """

    kernel_id: str
    kernel_name: str
    role: str
    pid: int
    start_id: str
    log_path: str
    details: str = field(repr=False)  # contains the key


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session: which document uses which kernel."""

    session_id: str
    kernel_id: str
    path: str
    name: str | None
    type: str


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
