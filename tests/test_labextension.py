"""The JupyterLab extension: its own tests, its types, its lock file."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from kbridge import __version__
from tests.support.require import lack, require

SOURCE = Path(__file__).parents[1] / "labextension"
PACKAGE = json.loads((SOURCE / "package.json").read_text())
LOCK = json.loads((SOURCE / "package-lock.json").read_text())


def npm(*args: str) -> str:
    """Run a script of the extension's package.json, which must succeed; return its output."""
    program = require("npm", "node")
    if not (SOURCE / "node_modules").exists():
        lack("labextension/node_modules is missing: run `make labextension`")
    done = subprocess.run(
        [program, "run", "--silent", *args], cwd=SOURCE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_unit_tests_pass() -> None:
    passed = re.search(r"^# pass (\d+)$", npm("test"), flags=re.MULTILINE)
    assert passed, "no summary of the test runner"
    assert int(passed[1]) > 5


@pytest.mark.slow
def test_its_format_and_types_are_right() -> None:
    npm("check")


def test_its_version_is_that_of_kbridge() -> None:
    assert PACKAGE["version"] == LOCK["version"] == __version__.replace(".dev", "-dev")


def test_its_lock_names_no_registry() -> None:
    """A lock file with URLs of one registry fails where another one is used."""
    assert len(LOCK["packages"]) > 50
    assert not [name for name, entry in LOCK["packages"].items() if "resolved" in entry]


def test_its_types_are_those_of_the_oldest_jupyterlab() -> None:
    """An API that came after 4.2 must not compile."""
    entry = LOCK["packages"]["node_modules/@jupyterlab/application"]
    assert entry["version"].startswith("4.2.")
    assert PACKAGE["dependencies"]["@jupyterlab/application"] == "^4.2.0"
