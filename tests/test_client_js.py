"""client-js: its own tests, its types, its package, and the snippets of its documentation."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from kbridge import __version__
from tests.support.frames_for_js import frames_for_js
from tests.support.node_tests import assert_node_tests_pass
from tests.support.require import lack, require

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "client-js"
PACKAGE = json.loads((SOURCE / "package.json").read_text())


def node(*args: str | Path) -> str:
    """Run Node in the directory of the package; it must succeed. Return its output."""
    command = [require("node"), *map(str, args)]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_unit_tests_pass() -> None:
    tests = sorted((SOURCE / "tests").glob("*.test.js"))
    assert_node_tests_pass(*tests, least=81)


@pytest.mark.slow
def test_its_format_and_types_are_right() -> None:
    require("node")
    if not (ROOT / "labextension" / "node_modules").exists():
        lack("labextension/node_modules is missing: run `make labextension`")
    node("tests/check.js")


def test_its_frames_are_those_of_the_server() -> None:
    """Written by `python -m tests.support.frames_for_js > client-js/tests/frames.json`."""
    kept = json.loads((SOURCE / "tests" / "frames.json").read_text())
    assert kept == frames_for_js()


def test_it_is_a_package_without_dependencies() -> None:
    assert PACKAGE["version"] == __version__.replace(".dev", "-dev")
    assert not [key for key in PACKAGE if "ependencies" in key]
    assert all((SOURCE / name).is_file() for name in PACKAGE["files"])
    exported = PACKAGE["exports"]["."]
    assert {SOURCE / path for path in exported.values()} == {
        SOURCE / "kbridge.js",
        SOURCE / "kbridge.d.ts",
    }
    assert (SOURCE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    module = (SOURCE / "kbridge.js").read_text()
    assert not re.search(r"^\s*import\b.*from", module, flags=re.MULTILINE)


def test_npm_packs_what_a_program_needs(tmp_path: Path) -> None:
    npm = require("npm")
    done = subprocess.run(
        [npm, "pack", "--json", "--dry-run", "--cache", str(tmp_path), "--offline"],
        cwd=SOURCE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [packed] = json.loads(done.stdout)
    assert {file["path"] for file in packed["files"]} == {*PACKAGE["files"], "package.json"}
