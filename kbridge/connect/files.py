"""Connection files, written: whole, and for their owner's eyes alone.

Laws of this module:

- whoever opens a connection file reads all of it, the old one or the new one, at any moment;
- no other user can read one byte of it, from its first byte on: it holds the key to the kernel;
- a write that fails leaves what was there before, and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import localhost

from kbridge.connect import ipc
from kbridge.connect.find import find_connection_file
from kbridge.connect.ports import LocalPortCache, pick_ports

__all__ = [
    "KernelConnectionInfo",
    "NotPrivate",
    "find_connection_file",
    "parsed",
    "port_names",
    "text_of",
    "write_connection_file",
]

port_names: Final = ["shell_port", "stdin_port", "iopub_port", "hb_port", "control_port"]

# Some file systems (CIFS) give every file its owner's x; that and the sticky bit harm nobody.
_HARMLESS: Final = stat.S_IXUSR | stat.S_ISVTX
_TEMPORARY: Final = ".kbridge-tmp"
# A write takes milliseconds: what is older was left by a process that was killed in the midst.
_LEFTOVER_S: Final = 60.0


class NotPrivate(PermissionError, RuntimeError):
    """A file would be readable by others (jupyter_core says that with a RuntimeError)."""


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
    """Write a connection file, with ports of its own choice where none are given (seed 000).

    Parameters
    ----------
    fname : str, optional
        Its path; without one, a new file in the directory for temporary files.
    shell_port, iopub_port, stdin_port, hb_port, control_port : int
        TCP ports, or the numbers at the end of ipc paths. What is 0 or less is chosen.
    ip : str
        The address that the kernel is to bind, IPv4 or IPv6; for ipc, what paths begin with.
        Without one: this machine's loopback, or a path beside the connection file.
    key : bytes
        What messages are signed with.
    transport : str
        ``tcp`` or ``ipc``.
    signature_scheme : str
        ``hmac-<hash>``.
    kernel_name : str
        The kernelspec's.
    curve_publickey, curve_secretkey : bytes, optional
        A CurveZMQ key pair (Z85).
    **kwargs
        What else is to be in it.

    Returns
    -------
    (str, dict)
        The path, and what was written.

    Raises
    ------
    OSError
        If it cannot be written, the file system cannot hide it from others, or `ip` has no port.
    ValueError
        If a key is no text, or an ipc path is too long.
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
        _write_private(Path(fname), json.dumps(info, indent=2).encode())
        undo.pop_all()
    return fname, cast("KernelConnectionInfo", info)


def parsed(text: str, path: str) -> dict[str, Any]:
    """What is in a connection file.

    Raises
    ------
    ValueError
        If it is none: with its path, and without what is in it.
    """
    try:
        info = json.loads(text)
    except ValueError:
        info = None
    if isinstance(info, dict):
        return info
    raise ValueError(f"{path} is not a connection file: it holds no JSON object")


def text_of(key: bytes | str, name: str) -> str:
    """A key as JSON has it.

    Raises
    ------
    ValueError
        If it is no text: with its name, and without the key.
    """
    try:
        return key if isinstance(key, str) else key.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None


# -- inside -------------------------------------------------------------------------------------


def _chosen(ports: dict[str, int], ip: str, transport: str) -> dict[str, int]:
    """What to put for the ports that are not given, and whether the given ones can be."""
    given = {port for port in ports.values() if port > 0}
    names = [name for name, port in ports.items() if port <= 0]
    if transport == "tcp":
        promised = LocalPortCache.instance().promised() if LocalPortCache.initialized() else set()
        return dict(zip(names, pick_ports(ip, len(names), given | promised), strict=True))
    for port in given:
        ipc.remove_stale(ipc.checked(ip, port))
    numbers = ipc.pick_numbers(ip, len(names), given)
    for number in numbers:
        ipc.checked(ip, number)
    return dict(zip(names, numbers, strict=True))


def _write_private(path: Path, content: bytes) -> None:
    _sweep(path.parent)
    temporary = path.with_name(f".{secrets.token_hex(8)}{_TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:  # names the file that the caller knows
        raise _named(error, path) from error
    with ExitStack() as undo:
        undo.callback(temporary.unlink, missing_ok=True)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _hide(descriptor, path)
                file.write(content)
        except OSError as error:  # that of a full disk names no file
            if error.filename:
                raise
            raise _named(error, path) from error
        temporary.replace(path)
        undo.pop_all()
    _make_sticky(path.parent)


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, error.strerror, str(path))


def _hide(descriptor: int, path: Path) -> None:
    """See to it that only its owner can open a file, before there is anything in it."""
    if sys.platform == "win32":
        return  # the directory's own permissions guard it: there are no modes
    if _mode_of(descriptor) != 0o600:  # the umask took too much
        with suppress(OSError):
            os.fchmod(descriptor, 0o600)
    mode = _mode_of(descriptor)
    if mode & ~_HARMLESS == 0o600:
        return
    if os.environ.get("JUPYTER_ALLOW_INSECURE_WRITES", "").lower() in {"1", "true"}:
        warnings.warn(
            f"{path} can be read by others (JUPYTER_ALLOW_INSECURE_WRITES is set): whoever reads"
            " it can run code as you",
            stacklevel=4,
        )
        return
    raise NotPrivate(
        errno.EPERM,
        f"The file system does not hide files from other users (mode {mode:#o} instead of 0o600),"
        " and this one would let them run code as you: set JUPYTER_RUNTIME_DIR to a directory"
        " on another one, or JUPYTER_ALLOW_INSECURE_WRITES=1 if you trust everybody here",
        str(path),
    )


def _mode_of(descriptor: int) -> int:
    return stat.S_IMODE(os.fstat(descriptor).st_mode)


def _make_sticky(directory: Path) -> None:
    """Let nobody but its owner remove a file from a directory (as jupyter_client does)."""
    with suppress(OSError):  # the directory may be somebody else's
        mode = stat.S_IMODE(directory.stat().st_mode)
        if not mode & stat.S_ISVTX:
            directory.chmod(mode | stat.S_ISVTX)


def _sweep(directory: Path) -> None:
    """Remove what killed writers left: it holds keys."""
    with suppress(OSError):  # others sweep too
        for leftover in directory.glob(f".*{_TEMPORARY}"):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_S:
                leftover.unlink()
