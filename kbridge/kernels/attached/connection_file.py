"""Connection files of kernels that another program started: content and id."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, Final

from kbridge.errors import InvalidRequest

__all__ = ["kernel_id_for", "parse_connection_file", "read_connection_file"]

_NEEDED: Final = ("shell_port", "iopub_port", "stdin_port", "control_port")
_LIMIT: Final = 1 << 20
_NAMESPACE: Final = uuid.UUID("7d0c5f3e-38a2-4c39-9d8c-6a0b1c0a4b11")  # of ids made from paths


def read_connection_file(path: Path) -> dict[str, Any]:
    """Read a connection file.

    Raises
    ------
    InvalidRequest
        If it cannot be read, or a port is missing. The error does not quote the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    return parse_connection_file(content, str(path))


def parse_connection_file(content: bytes, name: str) -> dict[str, Any]:
    """Parse the content of a connection file; `name` is the file's name, for the error.

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
    """Return the id of the kernel of a connection file: the same for the same file.

    Jupyter names its files `kernel-<id>.json`. If the id is not a uuid, the result is a uuid made
    from the path.
    """
    try:
        return str(uuid.UUID(path.stem.removeprefix("kernel-")))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, str(path.absolute())))
