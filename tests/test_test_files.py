"""Test files mirror modules, and the number of private names in tests does not rise."""

from __future__ import annotations

import ast
from pathlib import Path

import kbridge

ROOT = Path(__file__).parents[1]
PACKAGE = Path(kbridge.__file__).parent
FOLDERS = sorted(p.name for p in PACKAGE.iterdir() if (ROOT / "tests" / p.name).is_dir())
# Files of tests that are about a subject and not about one module.
SUBJECTS = {
    "connect/peer_suites.py",
    "connection/abc_base.py",
    "connection/contract.py",
    "hub/faults.py",
    "jupyter/contract.py",
    "jupyter/hooks.py",
    "jupyter/manager.py",
    "jupyter/peer_suite.py",
    "kernels/ipykernel.py",
    "kernels/lifecycle/faults.py",
    "kernels/lifecycle/ports.py",
    "kernels/lifecycle/starts.py",
    "server/api/close_codes.py",
    "server/api/kernels.py",
    "server/api/kernelspecs.py",
    "server/api/sessions.py",
    "server/api/status.py",
    "server/http/keep_alive.py",
    "tunnel/tunnel_faults.py",
    "wire/dialect_cases.py",
    "wire/fuzz/fuzz.py",
}
# Modules that only an `__init__.py` uses, and the file with their tests.
ELSEWHERE = {"jupyter/supported.py": "integration/test_extension_install.py"}
# Attribute names that begin with an underscore but are documented by Python.
DOCUMENTED = {"_asdict", "_exit", "_fields", "_fields_", "_make", "_replace"}
# Uses of private attributes of other objects in tests. Lower it when the number falls.
PRIVATE_USES = 211


def modules() -> set[str]:
    """Paths of the modules of `FOLDERS`, relative to the package."""
    found = {p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}
    return {str(path) for path in found if path.parts[0] in FOLDERS}


def mirrored() -> set[str]:
    """Module paths that have a test file, such as `wire/v1.py` for tests/wire/test_v1.py."""
    tests = ROOT / "tests"
    found = [p.relative_to(tests) for name in FOLDERS for p in (tests / name).rglob("test_*.py")]
    return {str(path.with_name(path.name.removeprefix("test_"))) for path in found}


def imports(module: str) -> set[str]:
    """Paths of the modules that a module imports by name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # modules that are loaded by name
    parts = {name.removeprefix("kbridge.").replace(".", "/") for name in names}
    return {f"{part}{end}" for part in parts for end in (".py", "/__init__.py")}


def test_folders_were_found() -> None:
    assert {"wire", "flow", "link", "hub", "kernels", "connection", "server"} <= set(FOLDERS)


def test_each_test_file_mirrors_a_module_or_is_about_a_subject() -> None:
    assert mirrored() - modules() <= SUBJECTS


def test_each_other_module_is_used_by_a_module_with_a_test_file() -> None:
    """A module without its own test file is tested through a module that uses it."""
    paths = [str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")]
    graph = {path: imports(path) for path in paths}
    assert all((ROOT / "tests" / path).exists() for path in ELSEWHERE.values())
    for module in modules() - mirrored() - ELSEWHERE.keys():
        reached, new = set(), {module}
        while new:
            reached |= new
            new = {path for path in paths if graph[path] & new} - reached
        assert reached & mirrored() & modules(), f"{module} has no tests"


def private_uses(source: str) -> int:
    """Return how often code uses a private attribute of an object other than `self`."""
    return sum(
        isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in DOCUMENTED
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "os"})
        for node in ast.walk(ast.parse(source))
    )


def test_private_uses_are_counted() -> None:
    assert private_uses("a._b; self._c; d._replace(e=f._g); os._exit(1)") == 2


def test_private_uses_do_not_rise() -> None:
    count = sum(private_uses(path.read_text()) for path in (ROOT / "tests").rglob("*.py"))
    assert count <= PRIVATE_USES, "use public behaviour instead"
