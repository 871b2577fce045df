"""Makes the command and the environment that a kernel gets on a node. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

__all__ = ["kernel_argv", "kernel_env"]

_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_]+)\}")
# Of this machine only: a process id, and the server's choice of an interpreter.
_LOCAL: Final = frozenset({"JPY_PARENT_PID", "PYTHONEXECUTABLE"})


def kernel_argv(argv: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Return the command with its placeholders replaced.

    `{connection_file}` stays: the path is known on the node only. `python` stays, too;
    jupyter_client would replace it by the server's interpreter.
    """
    values = {name: value for name, value in values.items() if name != "connection_file"}
    return [
        _PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), part) for part in argv
    ]


def kernel_env(
    env: Mapping[str, str], server: Mapping[str, str], spec: Collection[str]
) -> dict[str, str]:
    """Return the variables that the kernel gets, beyond those that Slurm sets on the node.

    Parameters
    ----------
    env : mapping
        The environment of the kernel, as for a kernel on this machine.
    server : mapping
        The environment of this server: its paths and settings are of no use on a node.
    spec : collection of str
        The names of the variables in the kernelspec.
    """
    return {
        name: value
        for name, value in env.items()
        if name not in _LOCAL and (name in spec or server.get(name) != value)
    }
