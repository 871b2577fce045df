"""What code that runs in a kernel asks about that kernel (seeds 001 and 002; `ipykernel.connect`).

Neither ipykernel nor qtconsole needs to be installed: who runs in no kernel is told so.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

from kbridge.connect.files import read_connection_file, text_of
from kbridge.connect.find import find_connection_file, locate
from kbridge.errors import ConnectionFileNotFound, NotInKernel

__all__ = ["connect_qtconsole", "get_connection_file", "get_connection_info"]


def get_connection_file(app: Any = None) -> str:
    """The path of a kernel's connection file.

    Parameters
    ----------
    app : ipykernel.kernelapp.IPKernelApp, optional
        The kernel; the one that this code runs in if not given.

    Raises
    ------
    NotInKernel
        If no kernel is given, and this code runs in none.
    OSError
        If the kernel's file has gone.
    """
    if app is None:
        app = _this_kernel()
    found = locate(app.connection_file, [".", app.connection_dir])
    if found is None:
        raise ConnectionFileNotFound(
            f"The kernel's connection file {app.connection_file} is not there (any more)"
        )
    return found


def get_connection_info(
    connection_file: str | None = None, unpack: bool = False
) -> str | dict[str, Any]:
    """What a connection file says.

    Parameters
    ----------
    connection_file : str, optional
        As `find_connection_file` takes it; the one of the kernel that this code runs in if not
        given.
    unpack : bool
        Whether to give a dict, with the key as bytes, and not the text.

    Raises
    ------
    NotInKernel
        If no file is given, and this code runs in no kernel.
    OSError
        If the file is not found.
    ValueError
        If it is to be unpacked, and is no connection file.
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
    """Start a Qt console on a kernel, in a session of its own: interrupts do not reach it.

    Parameters
    ----------
    connection_file : str, optional
        As `find_connection_file` takes it; the one of the kernel that this code runs in if not
        given.
    argv : list of str, optional
        More arguments for qtconsole.
    **kwargs
        Options of qtconsole by name: ``style="monokai"`` is ``--style=monokai``, ``no_banner=True``
        is ``--no-banner``; what is None or False is left out.

    Returns
    -------
    subprocess.Popen
        With its output in pipes.

    Raises
    ------
    NotInKernel
        If no file is given, and this code runs in no kernel.
    OSError
        If the file is not found.
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


# -- inside -------------------------------------------------------------------------------------


def _find(connection_file: str | None) -> str:
    return (
        get_connection_file() if connection_file is None else find_connection_file(connection_file)
    )


def _this_kernel() -> Any:
    # Where there is a kernel, its module was imported long ago.
    module = sys.modules.get("ipykernel.kernelapp")
    if module is None or not module.IPKernelApp.initialized():
        raise NotInKernel(
            "This code does not run in an IPython kernel (app not specified, and not in a running"
            " Kernel): name a connection file or an app"
        )
    return module.IPKernelApp.instance()


def _options(named: dict[str, Any]) -> list[str]:
    return [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in named.items()
        if value is not None and value is not False
    ]
