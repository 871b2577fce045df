"""Connection files of kernels that another program started: content and id."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Final

from kbridge.errors import InvalidConnectionInfo, InvalidRequest
from kbridge.wire.connection_info import FILE_LIMIT, ConnectionInfo, parse_connection_file

__all__ = ["check_connection_file", "kernel_id_for", "read_connection_file"]

# The namespace of the ids that are made from paths.
_NAMESPACE: Final = uuid.UUID("7d0c5f3e-38a2-4c39-9d8c-6a0b1c0a4b11")


def read_connection_file(path: Path) -> dict[str, Any]:
    """Return the content of a connection file.

    Raises
    ------
    InvalidRequest
        If it cannot be read, or a bridge cannot use it. The error does not quote the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
    return check_connection_file(content, str(path))


def check_connection_file(content: bytes, name: str) -> dict[str, Any]:
    """Return the content of a connection file as a dict, if a bridge can use it.

    Parameters
    ----------
    content : bytes
        The file's content.
    name : str
        The file's name, for the error.

    Raises
    ------
    InvalidRequest
        As `read_connection_file`.
    """
    try:
        info = parse_connection_file(content, name)
    except InvalidConnectionInfo as error:  # names the file
        raise InvalidRequest(error.reason) from None
    try:
        ConnectionInfo.from_connection_info(info)
    except InvalidConnectionInfo as error:
        raise InvalidRequest(f"{name}: {error.reason}") from None
    return info


def kernel_id_for(path: Path) -> str:
    """Return the id of the kernel of a connection file: the same for the same file.

    Jupyter names its files `kernel-<id>.json`. If the id is not a uuid, the result is a uuid made
    from the path.
    """
    try:
        return str(uuid.UUID(path.stem.removeprefix("kernel-")))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, str(path.absolute())))
