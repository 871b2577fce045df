"""The drawing of the error tree is correct, and no error is defined elsewhere."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from pathlib import Path

import pytest

import kbridge
from kbridge import errors
from kbridge.errors import KbridgeError

ROOT = Path(kbridge.__file__).parent
DOCS = Path(__file__).parents[1] / "docs"
MODULES = sorted(ROOT.rglob("*.py"))
TREE = [getattr(errors, name) for name in errors.__all__]


def drawn() -> list[tuple[str, str, int, int]]:
    """Return (name, parent, HTTP status, close code) for each line of the drawing."""
    found = []
    parents: dict[int, str] = {}
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([| ]*)\+-- (\w+) +(\d{3}) +(\d{4})", line)
        if match:
            depth = len(match[1]) // 4 + 1
            parents[depth] = match[2]
            parent = parents.get(depth - 1, "KbridgeError")
            found.append((match[2], parent, int(match[3]), int(match[4])))
    return found


def test_the_drawing_shows_the_tree_of_errors() -> None:
    tree = [
        (cls.__name__, cls.__bases__[0].__name__, cls.http_status, cls.close_code)
        for cls in TREE
        if cls is not KbridgeError
    ]
    assert sorted(drawn()) == sorted(tree)


def test_the_drawing_names_the_builtin_bases() -> None:
    assert errors.__doc__ is not None
    for cls in TREE:
        also = [base.__name__ for base in cls.__bases__[1:]]
        if also:
            [line] = re.findall(rf"\+-- {cls.__name__} .*", errors.__doc__)
            assert line.endswith(f"({', '.join(also)})")


def test_every_error_of_the_module_is_exported() -> None:
    defined = {
        name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.name != "errors.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_error_is_defined_elsewhere(path: Path) -> None:
    exceptions = {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    exceptions |= set(errors.__all__)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            for base in map(ast.unparse, node.bases):
                name = base.rpartition(".")[2]
                assert name not in exceptions, f"{node.name} belongs to kbridge/errors.py"
                assert not name.endswith(("Error", "Exception")), f"{node.name}: {base}"


def test_errors_with_an_errno_show_it_and_their_reason() -> None:
    private = errors.NotPrivate("others could read it", "/a/file")
    assert str(private) == "[Errno 1] others could read it: '/a/file'"
    assert (private.reason, private.filename) == ("others could read it", "/a/file")
    port = errors.NoFreePort("no free port on 127.0.0.1")
    assert str(port).endswith("] no free port on 127.0.0.1")
    assert port.reason == "no free port on 127.0.0.1"
    assert str(errors.TunnelError("no way")) == errors.TunnelError("no way").reason == "no way"
    assert str(errors.ConnectionFileNotFound("no file")) == "no file"


def errors_page() -> str:
    return (DOCS / "errors.md").read_text()


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_is_documented_with_its_status_and_advice(cls: type[KbridgeError]) -> None:
    row = rf"^\| `{cls.__name__}` \| {cls.http_status} \| {cls.close_code} \| [^|]+ \| [^|]+ \|$"
    assert re.search(row, errors_page(), re.MULTILINE), f"docs/errors.md needs the row {row}"


def test_the_page_has_no_other_errors() -> None:
    found = re.findall(r"^\| `(\w+)` \| \d{3} \|", errors_page(), re.MULTILINE)
    assert sorted(found) == sorted(errors.__all__)


def test_every_close_code_has_a_symptom() -> None:
    websocket = (DOCS / "websocket.md").read_text()
    known = set(re.findall(r"^\| (\d{4}) \|", websocket, re.MULTILINE))
    found = set(re.findall(r"^\| (\d{4}) \|", errors_page(), re.MULTILINE))
    assert found == known >= {str(cls.close_code) for cls in TREE}


def test_every_status_of_errors_has_a_symptom() -> None:
    section = errors_page().partition("## HTTP")[2].partition("## Websockets")[0]
    found = set(re.findall(r"\b[45]\d\d\b", section))
    assert found >= {str(cls.http_status) for cls in TREE} - {"401"}  # of the login form
