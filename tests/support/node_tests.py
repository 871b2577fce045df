"""Runs test files of JavaScript modules with Node's own test runner."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.require import require

__all__ = ["assert_node_tests_pass"]


def assert_node_tests_pass(*files: Path, least: int) -> None:
    """Run test files; fail unless all tests pass, and at least `least` of them ran."""
    command = [require("node"), "--test", "--test-reporter", "tap", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert passed, "no summary of the test runner"
    assert int(passed[1]) >= least
