"""Write and read connection files.

Invariants:

- a reader sees the whole old file or the whole new file, never a part;
- no other user can read any byte of it, because it contains the key of the kernel;
- a write that fails leaves the old file, and no other file.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import localhost

from kbridge.connect import ipc
from kbridge.connect.find import find_connection_file
from kbridge.connect.ports import LocalPortCache, pick_ports
from kbridge.errors import InvalidConnectionInfo
from kbridge.private import write_private
from kbridge.unix_sockets import remove_stale_socket
from kbridge.wire.connection_info import FILE_LIMIT, parse_connection_file

__all__ = [
    "KernelConnectionInfo",
    "find_connection_file",
    "port_names",
    "read_connection_file",
    "text_of",
    "write_connection_file",
]

port_names: Final = ["shell_port", "stdin_port", "iopub_port", "hb_port", "control_port"]


def write_connection_file(
    fname: str | None = None,
    shell_port: int = 0,
    iopub_port: int = 0,
    stdin_port: int = 0,
    hb_port: int = 0,
    control_port: int = 0,
    ip: str = "",
    key: bytes = b"",
    transport: str = "tcp",
    signature_scheme: str = "hmac-sha256",
    kernel_name: str = "",
    curve_publickey: bytes | None = None,
    curve_secretkey: bytes | None = None,
    **kwargs: Any,
) -> tuple[str, KernelConnectionInfo]:
    """Write a connection file, and choose the ports that are not given (seed 000).

    Parameters
    ----------
    fname : str, optional
        The path; if not given, a new file in the directory for temporary files.
    shell_port, iopub_port, stdin_port, hb_port, control_port : int
        TCP ports, or the suffixes of ipc paths. A free one is chosen for each that is 0 or less.
    ip : str
        The address that the kernel will bind, IPv4 or IPv6; for ipc, the prefix of the socket
        paths. If not given: the loopback of this machine, or a path next to the connection file.
    key : bytes
        The key that signs messages.
    transport : str
        ``tcp`` or ``ipc``.
    signature_scheme : str
        ``hmac-<hash>``.
    kernel_name : str
        The name of the kernelspec.
    curve_publickey, curve_secretkey : bytes, optional
        A CurveZMQ key pair (Z85).
    **kwargs
        More members of the file.

    Returns
    -------
    (str, dict)
        The path, and the content that was written.

    Raises
    ------
    OSError
        If the file cannot be written; `NotPrivate` if other users could read it; `NoFreePort` if
        `ip` has no free port.
    InvalidConnectionInfo
        If a key is not UTF-8.
    SocketPathTooLong
        If an ipc path is too long.
    """
    with ExitStack() as undo:
        if not fname:
            handle, fname = tempfile.mkstemp(".json")
            os.close(handle)
            undo.callback(Path(fname).unlink, missing_ok=True)
        if not ip:
            ip = ipc.beside(fname) if transport == "ipc" else localhost()
        info: dict[str, Any] = {
            "shell_port": shell_port,
            "iopub_port": iopub_port,
            "stdin_port": stdin_port,
            "control_port": control_port,
            "hb_port": hb_port,
        }
        info |= _chosen(info, ip, transport)
        info["ip"] = ip
        info["key"] = text_of(key, "key")
        info["transport"] = transport
        info["signature_scheme"] = signature_scheme
        info["kernel_name"] = kernel_name
        if curve_publickey is not None:
            info["curve_publickey"] = text_of(curve_publickey, "curve_publickey")
        if curve_secretkey is not None:
            info["curve_secretkey"] = text_of(curve_secretkey, "curve_secretkey")
        info |= kwargs
        write_private(Path(fname), json.dumps(info, indent=2).encode(), stacklevel=3)
        _make_sticky(Path(fname).parent)
        undo.pop_all()
    return fname, cast("KernelConnectionInfo", info)


def read_connection_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of a connection file, whatever its members are.

    Raises
    ------
    OSError
        If it cannot be read.
    InvalidConnectionInfo
        If it is not a connection file. The message contains its path, and nothing of its content.
    """
    with Path(path).open("rb") as file:
        content = file.read(FILE_LIMIT + 1)
    return parse_connection_file(content, str(path))


def text_of(key: bytes | str, name: str) -> str:
    """Return a key as text, for JSON.

    Raises
    ------
    InvalidConnectionInfo
        If it is not UTF-8. The message contains `name`, and not the key.
    """
    try:
        return key if isinstance(key, str) else key.decode()
    except UnicodeDecodeError:
        raise InvalidConnectionInfo(f"{name} is not UTF-8") from None


def _chosen(ports: dict[str, int], ip: str, transport: str) -> dict[str, int]:
    """Choose the ports that are not given, and check the paths of those that are."""
    given = {port for port in ports.values() if port > 0}
    names = [name for name, port in ports.items() if port <= 0]
    if transport == "tcp":
        promised = LocalPortCache.instance().promised() if LocalPortCache.initialized() else set()
        return dict(zip(names, pick_ports(ip, len(names), given | promised), strict=True))
    for port in given:
        remove_stale_socket(ipc.checked(ip, port))
    numbers = ipc.pick_numbers(ip, len(names), given)
    for number in numbers:
        ipc.checked(ip, number)
    return dict(zip(names, numbers, strict=True))


def _make_sticky(directory: Path) -> None:
    """Let only its owner remove a file from a directory (as jupyter_client does)."""
    with suppress(OSError):  # the directory may belong to another user
        mode = stat.S_IMODE(directory.stat().st_mode)
        if not mode & stat.S_ISVTX:
            directory.chmod(mode | stat.S_ISVTX)
