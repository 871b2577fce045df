"""Each answer of the threat model names existing tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "threat-model.md"


def rows() -> list[list[str]]:
    """The rows of every table whose last column is named "shown by"."""
    found: list[list[str]] = []
    shows = False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            shows = False
        elif cells[-1].strip(" |") == "shown by":
            shows = True
        elif shows and set(line) - set("|- "):
            found.append(cells)
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_every_answer_is_shown_by_tests_that_exist(row: list[str]) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", row[-1])
    assert len(row) == 4, row
    assert named, "the row names no test"
    for file, name in named:
        text = (TESTS / file).read_text()
        assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), f"{file}::{name}"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_every_file_that_an_answer_names_exists(row: list[str]) -> None:
    for path in re.findall(r"`([\w/]+(?:\.py|/))`", row[2]):
        assert (TESTS.parent / "kbridge" / path).exists(), path


def test_there_is_no_table_without_rows() -> None:
    assert len(rows()) > 30
