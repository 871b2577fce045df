"""A kernel that somebody else started: reached, shown, and never ended."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from traitlets.config import Configurable

from kbridge.errors import InvalidRequest

__all__ = ["AttachedKernel", "kernel_id_for", "parse_connection_file", "read_connection_file"]

_NEEDED: Final = ("shell_port", "iopub_port", "stdin_port", "control_port")
_LIMIT: Final = 1 << 20
_NAMESPACE: Final = uuid.UUID("7d0c5f3e-38a2-4c39-9d8c-6a0b1c0a4b11")  # of ids made from paths


class AttachedKernel(Configurable):
    """What the manager knows of a kernel whose process is none of its business.

    It has the attributes of a `BridgeKernel` that a table of kernels is read by, and like one it
    is the parent of its websockets' connections.

    Parameters
    ----------
    kernel_id : str
        Its id here.
    kernel_name : str
        What it is shown as.
    connection_info : mapping
        As a connection file has it.
    source : str
        Where that came from, for the log.
    release : callable, optional
        Lets go of what it is reached through; called once.
    """

    kernel_spec = None
    metadata: Mapping[str, Any] = {"kbridge": {"cull": False}}
    failed = False

    def __init__(
        self,
        kernel_id: str,
        kernel_name: str,
        connection_info: Mapping[str, Any],
        *,
        source: str,
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self.kernel_id = kernel_id
        self.kernel_name = kernel_name
        self.source = source
        self.lock = asyncio.Lock()
        self.closing = False
        self._info = dict(connection_info)
        self._release = release

    def get_connection_info(self) -> dict[str, Any]:
        """Where it listens, and its key."""
        return dict(self._info)

    def update_env(self, *, env: Mapping[str, str]) -> None:
        """Do nothing: a process that is not ours has the environment that it has."""

    async def release(self) -> None:
        """Let go of what it is reached through; may be called twice."""
        release, self._release = self._release, None
        if release is not None:
            await release()


def read_connection_file(path: Path) -> dict[str, Any]:
    """Read a connection file.

    Raises
    ------
    InvalidRequest
        If it cannot be read, or lacks what a bridge needs. Says nothing of what it holds.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    return parse_connection_file(content, str(path))


def parse_connection_file(content: bytes, name: str) -> dict[str, Any]:
    """Read what a connection file holds; `name` is the file's, for the error.

    Raises
    ------
    InvalidRequest
        As `read_connection_file`.
    """
    if len(content) > _LIMIT:
        raise InvalidRequest(f"{name} is too long for a connection file")
    try:
        info = json.loads(content)
    except ValueError:
        raise InvalidRequest(f"{name} is not JSON, so it is no connection file") from None
    missing = [n for n in _NEEDED if not isinstance(info, dict) or not info.get(n)]
    if missing:
        raise InvalidRequest(f"{name} is no connection file: it has no {missing[0]}")
    return dict(info)


def kernel_id_for(path: Path) -> str:
    """The id of the kernel of a connection file: the same each time.

    Jupyter names its files `kernel-<id>.json`. Where that is no uuid, one is made of the path.
    """
    try:
        return str(uuid.UUID(path.stem.removeprefix("kernel-")))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, str(path.absolute())))
