"""What the documentation says is there, is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kbridge
from kbridge import errors
from kbridge.server import kg
from kbridge.server.routes import ROUTES
from tests.conftest import ServerFactory
from tests.support.server import TOKEN
from tests.test_layers import FLOORS

ROOT = Path(__file__).parents[1]
PACKAGE = Path(kbridge.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ARCHITECTURE = ROOT / "docs" / "architecture.md"


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def code_blocks(path: Path, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for tag, code in found if tag == language]


def anchors(path: Path) -> set[str]:
    """What GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", h.lower()) for h in headings)
    return {h.strip().replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    text = without_code(page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    if page.name.startswith("peer-suite"):
        return  # speaks of the tests of others
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).is_file(), f"{page.name}: {path}"
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{page.name}: {name}"


def picture() -> dict[str, int]:
    """Paths in the architecture's picture, with the floors that they are drawn on."""
    [block] = [b for b in code_blocks(ARCHITECTURE) if b.startswith("kbridge/\n")]
    found: dict[str, int] = {}
    folder, floor = "", -1
    for line in block.splitlines()[1:]:
        match = re.match(r"( +)(\S+)(?:\s+FLOOR (\d))?", line)
        assert match, line
        indent, name, number = match.groups()
        if len(indent) == 2:
            folder = name if name.endswith("/") else ""
            floor = int(number) if number else -1
            if folder:
                found[folder] = floor
                continue
        found[folder * (len(indent) == 4) + name] = floor
    return found


def test_the_picture_shows_the_tree() -> None:
    modules = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py")}
    drawn = {name for name in picture() if not name.endswith("/")}
    # Packages are drawn as folders; _version.py and the root are no part of the house.
    there = {m for m in modules if not m.endswith("__init__.py") and m != "_version.py"}
    assert drawn == there


def test_the_picture_shows_the_floors() -> None:
    for name, floor in picture().items():
        part = name.split("/", maxsplit=1)[0].removesuffix(".py")
        assert floor == FLOORS[part], name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    text = page.read_text()
    spoken = re.findall(r"`make ([a-z]+)", text)
    written = re.findall(r"^(?:\$ )?make ([a-z]+)", text, flags=re.MULTILINE)
    assert {*spoken, *written} <= targets


def test_every_close_code_is_explained() -> None:
    raised = {
        c.close_code
        for c in vars(errors).values()
        if isinstance(c, type) and issubclass(c, errors.KbridgeError)
    }
    told = re.findall(r"^\| (\d{4}) \|", (ROOT / "docs" / "websocket.md").read_text(), re.MULTILINE)
    assert raised <= {int(code) for code in told}


def test_every_http_status_is_explained() -> None:
    raised = {
        c.http_status
        for c in vars(errors).values()
        if isinstance(c, type)
        and issubclass(c, errors.ClientError | errors.BridgeError | errors.KernelStartError)
    }
    told = re.findall(r"^\| (\d{3}) \|", (ROOT / "docs" / "rest.md").read_text(), re.MULTILINE)
    assert raised <= {int(code) for code in told}


def test_every_api_route_is_documented() -> None:
    text = (ROOT / "docs" / "rest.md").read_text()
    for pattern, _ in ROUTES:
        path = re.sub(r"\(.*?\)", "ID", pattern).removesuffix("/?")
        if path.startswith("/api"):
            documented = path.replace("kernelspecs/ID", "kernelspecs/NAME")
            assert re.search(rf" {re.escape(documented)}[` ]", text), path


def test_every_gateway_variable_is_documented() -> None:
    text = (ROOT / "docs" / "kernel-gateway.md").read_text()
    told = set(re.findall(r"\bKG_\w+", text))
    assert {v.name for v in kg.VARIABLES} == told


def test_what_each_dependency_is_for() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    [block] = re.findall(r"^dependencies = \[\n(.*?)^\]", project, flags=re.DOTALL | re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r'"([a-z_]+)', block):
        assert f"| `{name}` |" in readme, name


@pytest.mark.kernel
def test_the_quick_start_runs(new_server: ServerFactory) -> None:
    [program] = code_blocks(ROOT / "README.md", "python")
    server = new_server()
    env = {**os.environ, "TOKEN": TOKEN, "KBRIDGE_HOST": f"127.0.0.1:{server.port}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{done.stderr}\n{server.tail()}"
    assert done.stdout.split() == ["42"]
