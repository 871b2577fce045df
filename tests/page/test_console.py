"""The console's modules: their tests, and the libraries that they use."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.node_tests import assert_node_tests_pass

ROOT = Path(__file__).parents[2]
TESTS = sorted(Path(__file__).with_name("console").glob("*.test.js"))
LEAST = {"console.test.js": 36, "rich_thread.test.js": 3, "screen.test.js": 36}
STATIC = ROOT / "kbridge" / "page" / "static"
VENDOR = STATIC / "vendor"


@pytest.mark.slow
@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name)
def test_their_unit_tests_pass(file: Path) -> None:
    assert_node_tests_pass(file, least=LEAST[file.name])


def test_modules_import_only_files_that_exist() -> None:
    """Nothing comes from another server: the page works without a network."""
    for module in (STATIC / "console").glob("*.js"):
        for target in re.findall(r"(?:from |import\()'([^' ]+)'", module.read_text()):
            assert target[:2] in {"./", ".."}, f"{module.name} imports {target}"
            assert (module.parent / target).resolve().is_file(), f"{module.name}: {target}"


def test_each_library_has_its_licence_and_is_pinned() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import vendor
    finally:
        sys.path.remove(str(ROOT / "tools"))
    present = {path.name for path in VENDOR.iterdir()}
    names = [library.name for library in vendor.LIBRARIES]
    assert present == {f"{name}{end}" for name in names for end in (".js", ".LICENSE.txt")}
    for library in vendor.LIBRARIES:
        head = (VENDOR / f"{library.name}.js").read_text().splitlines()[0]
        assert f"{library.name} {library.version}," in head
        assert library.integrity.startswith("sha512-")
