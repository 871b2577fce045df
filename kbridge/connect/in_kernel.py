"""The connection of the kernel that this code runs in (seeds 001 and 002; `ipykernel.connect`).

Neither ipykernel nor qtconsole needs to be installed; outside a kernel, the functions raise
`NotInKernel`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from traitlets.config import MultipleInstanceError

from kbridge.connect.files import read_connection_file, text_of
from kbridge.connect.find import find_connection_file, locate
from kbridge.errors import ConnectionFileNotFound, NotInKernel

__all__ = ["connect_qtconsole", "get_connection_file", "get_connection_info"]


def get_connection_file(app: Any = None) -> str:
    """Return the path of a kernel's connection file.

    Parameters
    ----------
    app : ipykernel.kernelapp.IPKernelApp, optional
        The application of the kernel; if not given, of the kernel that this code runs in.

    Raises
    ------
    NotInKernel
        If no application is given, and this code does not run in a kernel; a RuntimeError.
    ConnectionFileNotFound
        If the file was removed; an OSError.
    """
    if app is None:
        app = _this_kernel()
    found = locate(app.connection_file, [".", app.connection_dir])
    if found is None:
        raise ConnectionFileNotFound(
            f"The kernel's connection file {app.connection_file} does not exist"
        )
    return found


def get_connection_info(
    connection_file: str | None = None, unpack: bool = False
) -> str | dict[str, Any]:
    """Return the content of a connection file.

    Parameters
    ----------
    connection_file : str, optional
        A name for `find_connection_file`; if not given, the file of the kernel that this code runs
        in.
    unpack : bool
        True returns a dict with the key as bytes; False returns the text.

    Raises
    ------
    NotInKernel
        If no file is given, and this code does not run in a kernel.
    ConnectionFileNotFound
        If no file matches; an OSError.
    InvalidConnectionInfo
        If `unpack` is true and it is not a connection file; a ValueError.
    """
    path = _find(connection_file)
    if not unpack:
        return Path(path).read_text(encoding="utf-8")
    info = read_connection_file(path)
    info["key"] = text_of(info.get("key", ""), "key").encode()
    return info


def connect_qtconsole(
    connection_file: str | None = None, argv: list[str] | None = None, **kwargs: Any
) -> subprocess.Popen[bytes]:
    """Start a Qt console for a kernel, in its own session, so that interrupts do not reach it.

    Parameters
    ----------
    connection_file : str, optional
        A name for `find_connection_file`; if not given, the file of the kernel that this code runs
        in.
    argv : list of str, optional
        Additional arguments for qtconsole.
    **kwargs
        Options of qtconsole by name: ``style="monokai"`` is ``--style=monokai``, ``no_banner=True``
        is ``--no-banner``; options with the value None or False are left out.

    Returns
    -------
    subprocess.Popen
        The console; its stdout and stderr are pipes.

    Raises
    ------
    NotInKernel
        If no file is given, and this code does not run in a kernel.
    ConnectionFileNotFound
        If no file matches; an OSError.
    ImportError
        If qtconsole is not installed.
    """
    path = _find(connection_file)
    if importlib.util.find_spec("qtconsole") is None:
        raise ImportError(
            "The Qt console is not installed for this kernel's Python: pip install qtconsole",
            name="qtconsole",
        )
    return subprocess.Popen(  # noqa: S603 - the caller's own arguments, and no shell
        [
            *(sys.executable, "-c", "from qtconsole import qtconsoleapp; qtconsoleapp.main()"),
            *("--existing", path),
            *_options(kwargs),
            *(argv or ()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _find(connection_file: str | None) -> str:
    return (
        get_connection_file() if connection_file is None else find_connection_file(connection_file)
    )


def _this_kernel() -> Any:
    # In a kernel, this module has been imported already.
    module = sys.modules.get("ipykernel.kernelapp")
    # `initialized` is true also if another application runs here, such as Jupyter Server.
    with suppress(MultipleInstanceError):
        if module is not None and module.IPKernelApp.initialized():
            return module.IPKernelApp.instance()
    raise NotInKernel(
        "This code does not run in an IPython kernel (app not specified, and not in a running"
        " Kernel): name a connection file or an app"
    )


def _options(named: dict[str, Any]) -> list[str]:
    return [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in named.items()
        if value is not None and value is not False
    ]
