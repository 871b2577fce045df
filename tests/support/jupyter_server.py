"""Jupyter Server processes with the extension, in separate directories."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.server import Server

__all__ = ["SWITCH", "jupyter_server"]

SWITCH = (
    Path(__file__).parents[2]
    / "jupyter-config"
    / "jupyter_server_config.d"
    / "kbridge-extension.json"
)
"""The file that enables the extension; the wheel installs it."""

# Other extensions that the environment may have; they take most of the time of a start.
_OTHERS = ("jupyter_lsp", "jupyter_server_terminals", "jupyterlab", "notebook", "notebook_shim")


def jupyter_server(
    home: Path,
    *args: str,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> Server:
    """Create a Jupyter Server with the extension, without starting it.

    Parameters
    ----------
    home : Path
        An empty directory.
    *args : str
        More command line options.
    python : str
        The interpreter of the environment.
    env : mapping, optional
        More environment variables.
    """
    switches = home / "config" / SWITCH.parent.name
    switches.mkdir(parents=True)
    shutil.copy(SWITCH, switches)
    # Not as options, because there the configuration of the environment has precedence.
    off = {"ServerApp": {"jpserver_extensions": dict.fromkeys(_OTHERS, False)}}
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(off))
    (home / "root").mkdir()
    return Server(
        home,
        *("--ip=127.0.0.1", "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={home / 'root'}",
        *args,
        env=env,
        command=[python, "-m", "jupyter_server"],
    )
