"""The table of static files, and the content of the pages."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbridge.page.files import POLICY, accepts_html

STATIC = Path(__file__).parents[2] / "kbridge" / "page" / "static"
PAGES = sorted(STATIC.glob("*.html"))
SCRIPTS = [STATIC / "server.js", *sorted(STATIC.glob("live/*.js"))]
CONSOLE = sorted(STATIC.glob("console/*.js"))


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/html,application/xhtml+xml;q=0.9", True),
        ("TEXT/HTML", True),
        ("*/*", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_a_browser_is_told_by_its_accept(accept: str, html: bool) -> None:
    assert accepts_html(accept) is html


def test_the_policy_has_no_exceptions() -> None:
    assert POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in POLICY
    assert "*" not in POLICY


def references(page: Path) -> Iterator[str]:
    for target in re.findall(r'(?:href|src)="([^"]*)"', page.read_text()):
        yield str(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_load_only_files_of_this_server_that_exist(page: Path) -> None:
    loaded = [target for target in references(page) if target.startswith("page/")]
    assert loaded
    assert all((STATIC / target.removeprefix("page/")).is_file() for target in loaded)
    assert not [target for target in references(page) if re.match(r"\w+:|/", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_no_inline_scripts_and_styles(page: Path) -> None:
    """The policy would block them."""
    text = page.read_text()
    assert text.count('data-api=""') == 1, "the path of the API is filled in here"
    assert not re.search(r"<style|\bon\w+=| style=", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)


@pytest.mark.parametrize(
    "script", [*SCRIPTS, *CONSOLE], ids=lambda path: str(path.relative_to(STATIC))
)
def test_scripts_set_text_never_html(script: Path) -> None:
    text = script.read_text()
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert name not in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(STATIC)))
def test_scripts_import_files_that_exist(script: Path) -> None:
    for target in re.findall(r"from '([^']+)'", script.read_text()):
        found = (script.parent / target).resolve()
        assert found.is_file() or found == STATIC.parent / "kbridge.js", target
