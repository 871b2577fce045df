"""Environments with packages of others, which are installed once and kept."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.require import lack

__all__ = ["environment"]

_INSTALL_SECONDS = 300


def environment(cache: Path, *installations: tuple[str, ...]) -> Path:
    """Return the interpreter of an environment; create the environment if necessary.

    Parameters
    ----------
    cache : Path
        The directory in which environments are kept.
    *installations : tuple of str
        The arguments of each `pip install`: options and requirements.
    """
    text = "\n".join((*sum(installations, ()), sys.version))
    home = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    python = home / "bin" / "python"
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the other worker
        if (home / "installed").exists():
            return python
        shutil.rmtree(home, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
        steps = [(sys.executable, "-m", "venv", "--without-pip", str(home))]
        steps += [(*pip, f"--python={python}", "install", *each) for each in installations]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
            if done.returncode:
                lack(f"{' '.join(step)} failed: {done.stderr[-500:]}")
        (home / "installed").touch()
    return python
