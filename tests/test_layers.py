"""Imports point down: a module imports its own layer and lower ones."""

import ast
from pathlib import Path

import pytest

import kbridge

ROOT = Path(kbridge.__file__).parent
LAYERS = {
    "errors": -1,
    "private": -1,
    "unix_sockets": -1,
    "_lazy": -1,
    "_version": -1,
    "": -1,
    "wire": 0,
    "flow": 1,
    "link": 2,
    "storage": 2,
    "tunnel": 2,
    "hub": 3,
    "connect": 3,
    "kernels": 4,
    "cluster": 4,
    "connection": 4,
    "metrics": 4,
    "page": 4,
    "slurm": 4,
    "tracing": 4,
    "tornado": 4,
    "client": 4,
    "server": 5,
    "jupyter": 5,
    "mcp": 5,
    "__main__": 6,
}
PURE = {"wire", "flow"}
# Pure layers may not import these: callers pass in times, sockets and loops.
IMPURE_IMPORTS = {"asyncio", "socket", "time", "threading", "selectors", "zmq", "tornado"}
MODULES = sorted(ROOT.rglob("*.py"))


def layer_of(path: Path) -> str:
    part = path.relative_to(ROOT).parts[0]
    return "" if part == "__init__.py" else part.removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = LAYERS[layer_of(path)]
    if path == ROOT / "__init__.py":
        return  # imports the public names for type checkers only; see tests/test_api.py
    for name in imports_of(path):
        head, *rest = name.split(".")
        if head != "kbridge" or not rest:
            continue
        target = rest[0] if rest[0] in LAYERS else ""
        assert LAYERS[target] <= here, f"{path.relative_to(ROOT)} imports {name}, which is above it"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "client").glob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_client_uses_messages_and_nothing_else_of_the_bridge(path: Path) -> None:
    allowed = {"client", "wire", "errors", "_lazy", "_version"}
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("kbridge.")}
    assert ours <= allowed


def test_the_session_of_a_client_has_no_io() -> None:
    for name in ("session.py", "outputs.py"):
        heads = {i.split(".")[0] for i in imports_of(ROOT / "client" / name)}
        assert heads.isdisjoint(IMPURE_IMPORTS | {"websockets", "datetime"})


@pytest.mark.parametrize(
    "path", [p for p in MODULES if layer_of(p) in PURE], ids=lambda p: str(p.relative_to(ROOT))
)
def test_wire_and_flow_are_pure(path: Path) -> None:
    import sys

    for name in imports_of(path):
        head = name.split(".")[0]
        assert head == "kbridge" or head in sys.stdlib_module_names, f"{name} is not the stdlib's"
        assert head not in IMPURE_IMPORTS, f"{name} in a pure layer"
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"{path}: async"


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.name != "__main__.py"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_only_link_touches_sockets(path: Path) -> None:
    """Hubs, kernels and servers use `link`; they never open a ZeroMQ or raw socket themselves."""
    exempt = {"link", "tunnel", "connect", "server", "kernels", "unix_sockets", "client", "slurm"}
    if layer_of(path) in exempt:
        return  # these bind ports, listen, connect to servers, or hold jupyter_client's sockets
    for name in imports_of(path):
        assert name.split(".")[0] not in {"zmq", "socket", "select"}, f"{path}: {name}"
