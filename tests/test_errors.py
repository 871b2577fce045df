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
NAMES = (Path(__file__).parent / "configuration_names.txt").read_text().split()
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


# A setting without an underscore, such as `ip`, counts only with its class.
_TRAITS = {name.rpartition(".")[2] for name in NAMES if not name.startswith("--")}
_SETTINGS = "|".join(
    re.escape(name)
    for name in sorted({n for n in _TRAITS if "_" in n} | {n for n in NAMES if n[:2] == "--"})
)
_NAMES_A_SETTING = re.compile(
    rf"(?<![\w-])(?:{_SETTINGS}|JUPYTER_\w+|[A-Z]\w+App\.\w+|[A-Z]\w+Client\.\w+)(?![\w-])"
)
_AT_THE_START = ("SetupError", "TraitError", "ListenError")
_HELP = ("description", "examples", "_EXAMPLES")
_PLACEHOLDER = re.compile(r"%(?:\.\d+)?[sdgr]|\{\}")
NOT_MESSAGES = {
    "kbridge/mcp/tools.py": "texts for models",
    "kbridge/metrics/families.py": "help texts of metrics",
    "kbridge/server/api/openapi.py": "the description of the API",
    "kbridge/server/api/schemas.py": "the description of the API",
    "kbridge/server/cli/command_line.py": "kbridge --help",
    "kbridge/server/reference.py": "docs/settings.md",
}
"""Modules whose strings are documentation."""


def text_of(node: ast.AST) -> str:
    """Return the text of a string expression, with "…" for each value; empty for other nodes."""
    match node:
        case ast.Constant(value=str(value)):
            return _PLACEHOLDER.sub("…", value)
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) or "…" for value in values)
    return ""


def messages(source: str) -> list[str]:
    """Return the messages of a module that name a setting, or say why a server does not start."""
    tree = ast.parse(source)
    found = []
    skipped: set[ast.AST] = set()
    starting: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant()):  # a docstring
                skipped.add(node.value)
            case ast.keyword(arg="help"):
                skipped.update(ast.walk(node.value))
            case ast.Assign(targets=[ast.Name(id=name)]) if name in _HELP:
                skipped.update(ast.walk(node.value))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()) if name in _HELP:
                skipped.update(ast.walk(node.value))
            case ast.Call(func=ast.Name(id=name), args=args) if name in _AT_THE_START:
                starting.update(args)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
        text = " ".join(text_of(node).split())
        prose = " " in text and len(re.findall(r"[A-Za-z]{2,}", text)) > 2
        if prose and (node in starting or _NAMES_A_SETTING.search(text)):
            found.append(text)
    return found


def symptoms() -> list[tuple[str, str]]:
    """Return (part of a message, advice) for each such message on the page."""
    section = errors_page().partition("## Messages that name a setting")[2]
    section = section.partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    return [
        (symptom, cause + advice)
        for first, cause, advice in rows
        for symptom in re.findall(r"`` ?(.+?) ?``|(?<!`)`([^`]+)`(?!`)", first)
        for symptom in [symptom[0] or symptom[1]]
    ]


def all_messages() -> dict[str, list[str]]:
    found = {}
    for path in MODULES:
        name = path.relative_to(ROOT.parent).as_posix()
        if name not in NOT_MESSAGES:
            found[name] = messages(path.read_text())
    return found


def test_every_message_that_names_a_setting_is_documented() -> None:
    known = [symptom for symptom, _ in symptoms()]
    missing = [
        f"{path}: {text}"
        for path, texts in all_messages().items()
        for text in texts
        if not any(symptom in text for symptom in known)
    ]
    assert not missing, "docs/errors.md does not have\n" + "\n".join(missing)


def test_every_message_on_the_page_exists() -> None:
    texts = [text for found in all_messages().values() for text in found]
    stale = [symptom for symptom, _ in symptoms() if not any(symptom in text for text in texts)]
    assert len(texts) > 50
    assert not stale


def test_messages_are_found_in_log_calls_errors_and_helpers() -> None:
    source = """
        'max_kernels in a docstring'
        log.warning("It has %d kernels, see max_kernels", 3)
        raise SetupError(f"the value {x} is not a color")
        lack = f"{it} lasts {s} s (kernel_info_timeout)"
        x = Int(help="The max_kernels of this server")
        name = "max_kernels"
    """
    assert set(messages(inspect.cleandoc(source))) == {
        "It has … kernels, see max_kernels",
        "the value … is not a color",
        "… lasts … s (kernel_info_timeout)",
    }
