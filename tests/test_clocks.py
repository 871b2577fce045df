"""Code that waits must not read the wall clock, which may be changed at any time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kbridge

ROOT = Path(kbridge.__file__).parent
MODULES = {str(path.relative_to(ROOT)): path for path in ROOT.rglob("*.py")}
# Methods of a Tornado loop that may be used. Its clock and its timers follow the wall clock.
LOOP = {"add_handler", "update_handler", "remove_handler", "add_callback"}
# Modules that read the wall clock, and what for.
WALL = {
    "unix_sockets.py": "the age of a file",
    "private.py": "the age of a file",
    "hub/clock.py": "what people read",
    "kernels/index.py": "what people read",
    "kernels/lifecycle/job_wait.py": "what people read",
    "kernels/lifecycle/culling.py": "what people read; IdleTimes does the counting",
    "kernels/lifecycle/started.py": "what people read",
    "server/api/oauth.py": "the age of a cookie, which another process may have made",
    "server/api/services.py": "what people read",
    "server/user_activity.py": "what JupyterHub reads",
    "storage/recovery.py": "the age of a file",
}
# Jupyter Server compares these times with its own readings of that clock.
THEIRS = {"jupyter/handler.py"}


def _name(node: ast.AST) -> str:
    """The last name of an expression: `loop` of `self.loop`, `current` of `IOLoop.current()`."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_tornado_loop(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "IOLoop.current"


def faults(source: str) -> list[str]:
    """Return the places where a module waits by the wall clock."""
    tree = ast.parse(source)
    loops = {"io_loop"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _is_tornado_loop(node.value):
            loops |= {_name(target) for target in node.targets}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {alias.name for alias in node.names}
            module = getattr(node, "module", None)
            if "PeriodicCallback" in names or (module == "time" and "time" in names):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.AST):
            on_loop = _name(node.value) in loops or _is_tornado_loop(node.value)
            if node.attr == "PeriodicCallback" or (on_loop and node.attr not in LOOP):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("name", sorted(MODULES.keys() - THEIRS))
def test_no_module_waits_by_the_wall_clock(name: str) -> None:
    assert faults(MODULES[name].read_text()) == []


def test_only_these_modules_read_the_wall_clock() -> None:
    reads = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time"
    }
    assert reads == WALL.keys()


@pytest.mark.parametrize(
    "source",
    [
        "from tornado.ioloop import PeriodicCallback",
        "from time import time",
        "import tornado.ioloop\nx = tornado.ioloop.PeriodicCallback(f, 1)",
        "IOLoop.current().time()",
        "IOLoop.current().call_later(1, f)",
        "self._loop = IOLoop.current()\nself._loop.call_later(1, f)",
        "loop = IOLoop.current()\nnow = loop.time()",
        "stream.io_loop.time()",
    ],
)
def test_the_check_finds_waits_by_the_wall_clock(source: str) -> None:
    assert len(faults(source)) == 1
