"""Checks of the command and the environment of a kernel, made before it is started.

The operating system accepts bytes without NUL, of a limited size. Other values would fail deep in
`subprocess`, and be reported as an error of the server.
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
_POINTER = 8  # one pointer per string, in addition to its bytes


def is_passable(text: str) -> bool:
    """Return True if the operating system accepts the text: no NUL, no lone surrogate."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def check_launchable(kernel_name: str, argv: Iterable[Any], env: Mapping[str, Any]) -> None:
    """Check the command and the environment of a kernel.

    Parameters
    ----------
    kernel_name : str
        The name of the kernelspec, for the error message.
    argv : iterable
        The command from the kernelspec.
    env : mapping
        The environment, including the variables of the kernelspec.

    Raises
    ------
    InvalidRequest
        If an argument or a variable is not a string, cannot be passed to a program, or is too long,
        or if all of them together are too long.
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
    try:
        data = os.fsencode(value)
    except UnicodeEncodeError:  # a lone surrogate
        data = b"\0"
    if b"\0" in data:
        raise InvalidRequest(f"{what} holds a NUL or a lone surrogate")
    size = len(data)
    if size > _LONGEST:
        raise InvalidRequest(f"{what} has {size} bytes; the system passes {_LONGEST}")
    return size + 1 + _POINTER
