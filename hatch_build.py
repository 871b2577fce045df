"""Build hook: put the JupyterLab extension and kbridge.js into the distributions.

`labextension/` has the source, `kbridge/labextension/` the bundle that is built from it. A wheel
installs the bundle where JupyterLab finds it. The source distribution has both, so a wheel that is
built from it needs no Node. Without a bundle and without npm, the wheel has no extension. A bundle
that is older than its source, as after `git pull`, is built again.

`client-js/kbridge.js`, which the server serves at `/kbridge.js`, needs no build. A wheel has a
copy in the package; an editable installation uses the file itself.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "@kbridge/jupyterlab"
CLIENT = "kbridge/server/static/kbridge.js"


class LabExtensionHook(BuildHookInterface[Any]):
    """Builds the bundle if it is missing or old; adds it and kbridge.js to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Do so before a wheel (also an editable one) or a source distribution is built."""
        root = Path(self.root)
        client = root / "client-js" / "kbridge.js"
        if self.target_name == "wheel" and version == "standard" and client.exists():
            build_data["force_include"][str(client)] = CLIENT
        bundle, source = root / "kbridge" / "labextension", root / "labextension"
        built = bundle / "package.json"
        if not built.exists():
            reason = self._build(source)
            if reason:
                self.app.display_warning(f"kbridge without its JupyterLab extension: {reason}")
                return
        elif built.stat().st_mtime < _changed(source):
            reason = self._build(source)
            if reason:
                self.app.display_warning(
                    f"kbridge with an older build of its JupyterLab extension: {reason}"
                )
        if self.target_name == "wheel":
            build_data["shared_data"][str(bundle)] = f"share/jupyter/labextensions/{NAME}"

    def _build(self, source: Path) -> str:
        """Return why the bundle could not be built; empty if it was."""
        if not (source / "package.json").exists():
            return "its source is not here"
        npm = shutil.which("npm")
        if npm is None:
            return "npm is missing"
        for command in (["ci"], ["run", "build"]):
            done = subprocess.run(  # noqa: S603
                [npm, *command], cwd=source, capture_output=True, text=True, check=False
            )
            if done.returncode:
                lines = (done.stdout + done.stderr).strip().splitlines()
                return f"`npm {' '.join(command)}` failed: " + " ".join(lines[-5:])
        return ""


def _changed(source: Path) -> float:
    """Return the time of the latest change of the source."""
    files = [path for path in source.glob("*.*") if path.is_file()]
    for part in ("src", "style", "schema"):
        files += (source / part).rglob("*.*")
    return max((path.stat().st_mtime for path in files), default=0.0)
