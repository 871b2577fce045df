"""The modules of the live page: their tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.node_tests import assert_node_tests_pass

TESTS = sorted(Path(__file__).with_name("live").glob("*.test.js"))


@pytest.mark.slow
@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name)
def test_their_unit_tests_pass(file: Path) -> None:
    assert_node_tests_pass(file, least=2)
