"""The documentation site has all pages and public names, and loads nothing from other hosts."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

import pytest

from tests.test_api import PACKAGES, documented
from tests.test_docs import PAGES, ROOT

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")

MODULES = {"errors", "sync"}


class _Page(HTMLParser):
    """Collects what a page loads, where its links lead, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and "href" in values:
            self.loads.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, _Page]:
    """Build the site as `make docs` does; return its pages by path."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--fail-on-warning", "-c", "docs/_site", "-d", folder / "doctrees"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", folder / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {}
    for path in (folder / "site").rglob("*.html"):
        pages[path] = _Page()
        pages[path].feed(path.read_text())
    return pages


def root(site: dict[Path, _Page]) -> Path:
    return min((path.parent for path in site), key=lambda folder: len(folder.parts))


def test_every_file_is_a_page(site: dict[Path, _Page]) -> None:
    for page in PAGES:
        assert root(site) / page.relative_to(ROOT).with_suffix(".html") in site


def test_pages_load_nothing_from_other_hosts(site: dict[Path, _Page]) -> None:
    for path, page in site.items():
        assert not [name for name in page.loads if urlsplit(name).netloc], path.name
    for sheet in root(site).rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//", sheet.read_text()), (
            sheet.name
        )


def test_links_lead_to_pages_and_anchors(site: dict[Path, _Page]) -> None:
    for path, page in site.items():
        for link in page.links:
            name, anchor = urldefrag(link)
            if urlsplit(name).scheme:
                continue
            target = (path.parent / name).resolve() if name else path
            assert target.is_file(), f"{path.name}: {link}"
            if anchor and target in site:
                assert anchor in site[target].ids, f"{path.name}: {link}"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_have_docstrings_on_the_site(package: str, site: dict[Path, _Page]) -> None:
    ids = site[root(site) / "docs" / "docstrings.html"].ids
    shown = {name.rpartition(".")[2] for name in ids if name.startswith("kbridge.")}
    assert documented(package) - {"__version__"} - MODULES <= shown
