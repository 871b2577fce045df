"""The modules of the live page: their tests."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.require import require

TESTS = sorted(Path(__file__).with_name("live").glob("*.test.js"))


@pytest.mark.slow
@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name)
def test_their_unit_tests_pass(file: Path) -> None:
    command = [require("node"), "--test", "--test-reporter", "tap", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert passed, "no summary of the test runner"
    assert int(passed[1]) >= 2
