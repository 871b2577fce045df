"""The environment variables and the working directory of a new kernel."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kbridge.errors import InvalidRequest
from kbridge.kernels.lifecycle.launchable import is_passable

__all__ = ["innermost_directory", "kernel_environment", "working_dir"]

# The tokens of this server give access to all of its kernels; the others are secrets, too.
_SECRETS = frozenset(
    {
        "JUPYTER_TOKEN",
        "KBRIDGE_COOKIE_SECRET",
        "KBRIDGE_METRICS_TOKEN",
        "KBRIDGE_REGISTRY_URL",
        "KG_AUTH_TOKEN",
    }
)
# For clients, in kernels too. It may be the token of this server or of another one.
_FOR_CLIENTS = "KBRIDGE_TOKEN"
# PATH_MAX of Linux; the limit of other systems is lower.
_LONGEST_PATH = 4096


def kernel_environment(
    process: Mapping[str, str],
    requested: Mapping[str, Any] | None,
    *,
    allowed: Collection[str] = (),
    inherited: Collection[str] = (),
    secrets: Collection[str] = (),
) -> dict[str, str]:
    """Return the environment of a kernel, by the rules of the kernel gateway.

    Parameters
    ----------
    process : mapping
        The environment of this server.
    requested : mapping or None
        The variables in the request. If None, the kernel inherits the whole environment, except
        for this server's tokens and `secrets`; else only PATH, the locale (LANG, LANGUAGE, LC_*)
        and the `inherited` names.
    allowed : collection of str
        Names that a request may set, besides all that begin with ``KERNEL_``. Other variables in
        the request are ignored, and so are values that an environment cannot contain.
    inherited : collection of str
        Names that a kernel inherits even if its request has an environment.
    secrets : collection of str
        Names of variables from which libraries of this server take passwords and keys. A kernel
        inherits them only if they are in `inherited`: its code may use them for something else.

    Raises
    ------
    InvalidRequest
        If `requested` is not a mapping.
    """
    if requested is None:
        env = {n: v for n, v in process.items() if n not in secrets or n in inherited}
        if env.get(_FOR_CLIENTS) in _tokens(process):
            del env[_FOR_CLIENTS]
    elif not isinstance(requested, Mapping):
        raise InvalidRequest("env is not an object of strings")
    else:
        env = {"PATH": process.get("PATH", os.defpath)}
        env |= {name: value for name, value in process.items() if _is_locale(name)}
        env |= {name: process[name] for name in inherited if name in process}
        env |= {
            name: value
            for name, value in requested.items()
            if (name.startswith("KERNEL_") or name in allowed) and _holds(name, value)
        }
    for name in _SECRETS:
        env.pop(name, None)
    if process.get("JUPYTERHUB_SERVICE_NAME"):
        # This server is a service of JupyterHub, and has its token. In a user's server, the
        # variables are those of the user, and kernels need them.
        env = {name: value for name, value in env.items() if not _is_of_the_service(name)}
    env["KERNEL_GATEWAY"] = "1"
    return env


def _tokens(process: Mapping[str, str]) -> list[str]:
    """Return the tokens of this server that are in its environment."""
    return [process[name] for name in ("JUPYTER_TOKEN", "KG_AUTH_TOKEN") if name in process]


def _is_of_the_service(name: str) -> bool:
    """Return True for the variables that JupyterHub gives its service."""
    return name.startswith("JUPYTERHUB_") or name == "JPY_API_TOKEN"


def _is_locale(name: str) -> bool:
    """Return True for the variables that determine the encoding of text and file names."""
    return name in ("LANG", "LANGUAGE") or name.startswith("LC_")


def _holds(name: str, value: object) -> bool:
    return (
        isinstance(value, str)
        and bool(name)
        and "=" not in name
        and "\0" not in name
        and "\0" not in value
    )


def working_dir(root: Path, path: str | None, env: Mapping[str, Any] | None = None) -> Path:
    """Return the directory a kernel starts in.

    Parameters
    ----------
    root : Path
        The root directory, absolute and without links.
    path : str or None
        The API path of a notebook or a directory; it need not exist.
    env : mapping, optional
        The environment variables in the request. If `path` is not given, an absolute path in
        KERNEL_WORKING_DIR is used, as in Enterprise Gateway: Jupyter Server's gateway client puts
        the notebook's directory there. Values of more than 4,096 characters are ignored.

    Returns
    -------
    Path
        The innermost existing directory on the way to `path`; `root` if there is none, or if
        `path` leads out of `root`.

    Raises
    ------
    InvalidRequest
        If `path` is not a string, or not a possible path of a file.
    """
    if path is None:
        wished = env.get("KERNEL_WORKING_DIR") if isinstance(env, Mapping) else None
        if not isinstance(wished, str) or "\0" in wished or not wished.startswith("/"):
            return root
        if len(wished) > _LONGEST_PATH:
            return root  # resolving links takes time proportional to the square of the length
        try:
            there = os.path.realpath(wished)
        except (OSError, ValueError):
            return root
        return innermost_directory(root, there)
    if not isinstance(path, str):
        raise InvalidRequest("path is not a string")
    if "\0" in path:
        return root
    if not is_passable(path):
        raise InvalidRequest("path holds a lone surrogate")
    return innermost_directory(root, os.path.normpath(f"{root}/{path.lstrip('/')}"))


def innermost_directory(root: Path, path: str) -> Path:
    """Return the deepest existing directory from `root` on the way to `path`.

    The search begins at `root`, so that a long path costs no more than its existing part.

    Returns
    -------
    Path
        `root` if `path`, which is absolute and normalized, leads out of it.
    """
    top = str(root).rstrip("/")
    if path != str(root) and not path.startswith(f"{top}/"):
        return root
    found = top
    for part in path[len(top) :].split("/"):
        if not part:
            continue
        if not os.path.isdir(f"{found}/{part}"):  # noqa: PTH112 - is_dir raises on long names
            break
        found = f"{found}/{part}"
    return Path(found or "/")
