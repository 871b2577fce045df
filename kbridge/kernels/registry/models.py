"""What a registry holds: of a kernel what it takes to find it again, of a session all there is.

Plain data; nothing here looks at a process or a file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Claim", "KernelRole", "KernelRow", "Owner", "SessionRow", "decode", "encode"]

_BYTES = "base64:bytes"  # no name that a provisioner would use


class KernelRole(StrEnum):
    """Who knows of a kernel."""

    STARTING = "starting"  # nobody yet: its id has not been given out
    POOLED = "pooled"  # it waits in a pool
    USED = "used"


@dataclass(frozen=True, slots=True)
class Owner:
    """A server, as its rows name it.

    Attributes
    ----------
    address : str
        Where its settings tell it to listen: what the next start will have in common with it.
    hostname : str
        Where its processes can be looked for.
    pid : int
        Its own process.
    birth : str
        When that was started; see `kbridge.kernels.lifecycle.processes.birth`.
    """

    address: str
    hostname: str
    pid: int
    birth: str


@dataclass(frozen=True, slots=True)
class KernelRow:
    """A kernel.

    Attributes
    ----------
    kernel_id, kernel_name : str
        Its id, and the name of its kernelspec.
    standing : KernelRole
        Who knows of it.
    pid : int
        Its process on this machine; 0 where there is none (yet).
    birth : str
        When that was started.
    log_path : str
        What it writes to.
    details : str
        The rest, as `encode` writes it: connection, provisioner, kernelspec, launch arguments.
    """

    kernel_id: str
    kernel_name: str
    standing: str
    pid: int
    birth: str
    log_path: str
    details: str = field(repr=False)  # it holds the key


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
    """What a server that starts finds of the one before it.

    Attributes
    ----------
    kernels, sessions : list
        Its own from now on.
    elsewhere : dict
        How many kernels wait for the start of another server, by its address.
    hidden : int
        How many kernels belong to a server on the same address that cannot be seen from here.
    """

    kernels: list[KernelRow] = field(default_factory=list)
    sessions: list[SessionRow] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)
    hidden: int = 0


def encode(details: Mapping[str, Any]) -> str:
    """Write JSON in which bytes (keys) survive.

    Raises
    ------
    TypeError, ValueError
        If there is something else in it that JSON does not know.
    """
    return json.dumps(details, default=_pack)


def decode(text: str) -> dict[str, Any]:
    """Read what `encode` wrote.

    Raises
    ------
    ValueError
        If it did not write this.
    """
    details = json.loads(text, object_hook=_unpack)
    if not isinstance(details, dict):
        raise ValueError("not an object")  # noqa: TRY004 - what is wrong is the text
    return details


def _pack(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} is not JSON")


def _unpack(value: dict[str, Any]) -> Any:
    packed = value.get(_BYTES)
    return base64.b64decode(packed) if isinstance(packed, str) and len(value) == 1 else value
