"""Packages for one test, installed beside those of the environment.

They would change other tests if they were in the environment: Jupyter Server and JupyterLab load
every extension that is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["overlay"]

_LISTS = Path(__file__).parent / "overlays"


def overlay(name: str) -> dict[str, str]:
    """Install the packages of `overlays/NAME.txt` once per content of that file.

    Returns
    -------
    dict
        Environment variables with which a Jupyter server finds these packages.
    """
    requirements = _LISTS / f"{name}.txt"
    content = requirements.read_bytes() + sys.version.encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kbridge-tests"
    home = cache / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not home.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        command = [*pip, "--quiet", "--no-deps", "--target", fresh, "--requirement", requirements]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        try:
            fresh.rename(home)
        except OSError:  # another worker was faster
            shutil.rmtree(fresh)
    return {
        "PYTHONPATH": str(home),
        "JUPYTER_PATH": str(home / "share" / "jupyter"),
        "JUPYTER_CONFIG_PATH": str(home / "etc" / "jupyter"),
    }
