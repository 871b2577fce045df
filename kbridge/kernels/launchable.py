"""Whether a program can be started with a command and an environment, told before it is tried.

The operating system takes bytes without NUL, of a limited size. What it does not take would fail
deep in `subprocess`, as a fault of the server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from kbridge.errors import InvalidRequest

__all__ = ["check_launchable", "is_passable"]

# Linux: 32 pages for one string of the command or the environment (MAX_ARG_STRLEN).
_LONGEST = 131_071 if sys.platform == "linux" else sys.maxsize
_POINTER = 8  # each string costs one beside its bytes


def is_passable(text: str) -> bool:
    """Return True if text has a form that the operating system takes: no NUL, no half character."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def check_launchable(kernel_name: str, argv: Iterable[Any], env: Mapping[str, Any]) -> None:
    """Check what a kernel is to be started with.

    Parameters
    ----------
    kernel_name : str
        The kernelspec, for the error.
    argv : iterable
        The command, as the kernelspec has it.
    env : mapping
        The environment, the kernelspec's variables included.

    Raises
    ------
    InvalidRequest
        If an argument or a variable is not a string, cannot be passed to a program, or is too long,
        or all together are.
    """
    total = 0
    for index, argument in enumerate(argv):
        what = f"Argument {index} of the kernelspec {kernel_name!a}"
        total += _size(argument, what)
    for name, value in env.items():
        if not isinstance(value, str):
            raise InvalidRequest(f"The variable {ascii(name)[:80]} is not a string")
        if not name or "=" in name:
            raise InvalidRequest(f"{ascii(name)[:80]} is not the name of a variable")
        total += _size(f"{name}={value}", f"The variable {ascii(name)[:80]}")
    most = os.sysconf("SC_ARG_MAX") if hasattr(os, "sysconf") else -1
    if 0 < most < total:
        raise InvalidRequest(
            f"The command and the environment of the kernel have {total} bytes; the system passes"
            f" {most}"
        )


def _size(value: Any, what: str) -> int:
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} is not a string")
    if not is_passable(value):
        raise InvalidRequest(f"{what} holds a NUL or a lone surrogate")
    size = len(os.fsencode(value))
    if size > _LONGEST:
        raise InvalidRequest(f"{what} has {size} bytes; the system passes {_LONGEST}")
    return size + 1 + _POINTER
