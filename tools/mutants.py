"""Mutation tests: change the code in one place at a time and see whether the tests notice.

`python tools/mutants.py` (or `make mutants`) takes a random sample of the possible changes in
`wire`, `flow` and `hub`, runs the tests of the package against each, and prints the share of
changes that made a test fail ("killed") for each package, with the changes that survived. It exits
with 1 if that share is below the bar for one of the packages.

How it works
------------
- A mutant exists in memory only: a loader gives the changed module to the interpreter. No file is
  written.
- Each mutant runs in its own process, forked from a process that has already imported pytest and
  the libraries. The mirrored test file runs first, then the other tests of the package; the first
  failure ends the run. A run that takes much longer than the unchanged code does counts as killed.
- Tests of other packages do not count: a package's own tests must notice. Tests marked `timing`
  compare CPU times, so they could fail because the machine is busy; they do not run.
- Hypothesis draws the same 50 examples in each run.

What is changed
---------------
Comparisons, arithmetic and Boolean operators, conditions (negated), numbers (+ 1), Booleans, bytes,
return values (None), `min` and `max`, `break` and `continue`; and statements are left out: calls,
raises, assignments to attributes and items. Annotations, docstrings, strings and the numbers in
module-level constants are not changed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wire", "flow", "hub")
BAR = 90.0
COUNT = 100
# Libraries that the tests use; imported once, before any process is forked.
LIBRARIES = (
    *("pytest", "pytest_asyncio.plugin", "pytest_timeout", "_hypothesis_pytestplugin"),
    *("hypothesis", "jupyter_client", "tornado.web", "tornado.websocket", "zmq"),
)
PLUGINS = ("-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin")
PYTEST = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not timing", "--hypothesis-profile=mutants")
# The libraries were imported before pytest could rewrite their assertions.
IGNORED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NAMES = {"min": "max", "max": "min"}


@dataclass(frozen=True)
class Change:
    """One change: at `node`, the value of `field` (and `index`, in a list) becomes `new`."""

    node: ast.AST
    field: str
    index: int | None
    new: ast.AST
    line: int

    def apply(self) -> None:
        """Change the tree that the node belongs to."""
        if self.index is None:
            setattr(self.node, self.field, self.new)
        else:
            getattr(self.node, self.field)[self.index] = self.new


@dataclass(frozen=True)
class Mutant:
    """A change of a module, by the number that it has among all changes of that module."""

    module: str
    number: int
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.before}  ->  {self.after}"


def changes(tree: ast.Module) -> Iterator[Change]:
    """Yield all changes of a module, always in the same order."""
    yield from _within(tree, constants=False)


def _within(node: ast.AST, *, constants: bool) -> Iterator[Change]:
    """Yield the changes below a node; `constants` is False where numbers are left alone."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        constants = True
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if not isinstance(child, ast.AST) or _is_left_alone(node, child):
                continue
            where = index if isinstance(value, list) else None
            line = getattr(child, "lineno", getattr(node, "lineno", 0))
            for new in _replacements(node, name, child, constants=constants):
                yield Change(node, name, where, ast.copy_location(new, child), line)
            yield from _within(child, constants=constants)


def _is_left_alone(parent: ast.AST, child: ast.AST) -> bool:
    if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
        return True  # a docstring
    if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
        return True
    # The message of an error or an assertion.
    return isinstance(parent, ast.Assert) and child is parent.msg


def _replacements(  # noqa: C901 - a table would hide the conditions
    parent: ast.AST, name: str, node: ast.AST, *, constants: bool
) -> Iterator[ast.AST]:
    """Yield the replacements of a node."""
    if isinstance(node, ast.cmpop) and type(node) in _COMPARE:
        yield _COMPARE[type(node)]()
    elif isinstance(node, ast.operator) and type(node) in _BINARY:
        yield _BINARY[type(node)]()
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int) and constants:
            yield ast.Constant(node.value + 1)
        elif isinstance(node.value, bytes) and constants:
            yield ast.Constant(node.value + b"X")
    elif isinstance(node, ast.Name) and name == "func" and node.id in _NAMES:
        yield ast.Name(_NAMES[node.id], ast.Load())
    elif isinstance(node, ast.Return) and node.value is not None:
        if not isinstance(node.value, ast.Constant):
            yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif _can_be_left_out(node):
        yield ast.Pass()
    if name == "test" and isinstance(parent, ast.If | ast.While | ast.IfExp):
        assert isinstance(node, ast.expr)
        if not isinstance(node, ast.UnaryOp | ast.Constant):
            yield ast.UnaryOp(ast.Not(), node)


def _can_be_left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Raise | ast.AugAssign):
        return True
    return isinstance(node, ast.Assign) and all(
        isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets
    )


def mutants_of(path: Path) -> list[Mutant]:
    """Return all mutants of a module."""
    source = path.read_text(encoding="utf-8")
    module = str(path.relative_to(ROOT))
    found = []
    for number, change in enumerate(changes(ast.parse(source))):
        old = getattr(change.node, change.field)
        old = old if change.index is None else old[change.index]
        before, after = _text(change, old), _text(change, change.new)
        found.append(Mutant(module, number, change.line, before, after))
    return found


def _text(change: Change, child: ast.AST) -> str:
    """Return the first line of the expression or statement with that child in it."""
    shown: ast.AST = child
    if not isinstance(child, ast.stmt):
        shown = copy.copy(change.node)
        if change.index is None:
            setattr(shown, change.field, child)
        else:
            items = list(getattr(shown, change.field))
            items[change.index] = child
            setattr(shown, change.field, items)
    return ast.unparse(ast.fix_missing_locations(shown)).splitlines()[0][:100]


def mutated(mutant: Mutant) -> CodeType:
    """Return the code of the mutant's module, changed."""
    path = ROOT / mutant.module
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for number, change in enumerate(changes(tree)):
        if number == mutant.number:
            change.apply()
            break
    return compile(ast.fix_missing_locations(tree), str(path), "exec")


class MutantLoader(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Loads one module from code that is given, and no other.

    Parameters
    ----------
    mutant : Mutant
        The module's file and its change.
    """

    def __init__(self, mutant: Mutant) -> None:
        name = mutant.module.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        super().__init__(name, str(ROOT / mutant.module))
        self._code = mutated(mutant)

    def find_spec(
        self, fullname: str, _path: object = None, _target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for the module; None for others."""
        if fullname != self.name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path)

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        """Return the changed code."""
        return self._code


@dataclass(frozen=True)
class Run:
    """A forked process that runs the tests of a package."""

    pid: int
    mutant: Mutant | None
    begin: float


def start(package: str, mutant: Mutant | None) -> Run:
    """Fork a process that runs the tests of a package against a mutant, or the code as it is."""
    begin = time.monotonic()
    pid = os.fork()
    if pid:
        return Run(pid, mutant, begin)
    code = 3
    try:
        code = _run_pytest(package, mutant)
    except BaseException:  # noqa: BLE001 - nothing may return from the forked process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def finished(run: Run, timeout: float) -> int | None:
    """Return the exit code of a run; None while it goes on; end it after `timeout` seconds."""
    pid, status = os.waitpid(run.pid, os.WNOHANG)
    if pid:
        return os.waitstatus_to_exitcode(status)
    if time.monotonic() < run.begin + timeout:
        return None
    os.killpg(run.pid, signal.SIGKILL)
    os.waitpid(run.pid, 0)
    return -signal.SIGKILL


def survivors(package: str, mutants: Sequence[Mutant], jobs: int, timeout: float) -> list[Mutant]:
    """Run the tests against each mutant, `jobs` at a time; return those that no test noticed."""
    waiting, running, found = list(reversed(mutants)), [], []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(start(package, waiting.pop()))
        for run in list(running):
            code = finished(run, timeout)
            if code is not None:
                running.remove(run)
            if code == 0 and run.mutant is not None:
                print(f"  survived  {run.mutant}", flush=True)
                found.append(run.mutant)
        time.sleep(0.02)
    return found


def _run_pytest(package: str, mutant: Mutant | None) -> int:
    """Run in the forked process; the exit code is pytest's."""
    os.setpgid(0, 0)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as home:
        if mutant is not None:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        tests = ROOT / "tests" / package
        options = [*PLUGINS, *PYTEST, *IGNORED, f"--basetemp={home}/t"]
        import hypothesis
        import pytest

        hypothesis.settings.register_profile(
            "mutants",
            max_examples=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        if mutant is not None:
            sys.meta_path.insert(0, MutantLoader(mutant))
            _, *folders, name = Path(mutant.module).parts
            mirrored = ROOT.joinpath("tests", *folders, f"test_{name}")
            if mirrored.exists() and (code := int(pytest.main([*options, str(mirrored)]))):
                return code
            options.append(f"--ignore={mirrored}")
        return int(pytest.main([*options, str(tests)]))


def prepare() -> None:
    """Import the libraries that every forked process needs."""
    os.chdir(ROOT)
    sys.path[0] = str(ROOT)
    for name in LIBRARIES:
        __import__(name)
    loaded = [name for name in sys.modules if name.split(".")[0] == "kbridge"]
    assert not loaded, f"these modules are loaded already, so they cannot be changed: {loaded}"


def sample(package: str, count: int, seed: str, only: Sequence[str]) -> tuple[list[Mutant], int]:
    """Return a random sample of a package's mutants, in order, and how many there are."""
    found: list[Mutant] = []
    for path in sorted((ROOT / "kbridge" / package).rglob("*.py")):
        if not only or any(str(path).endswith(name) for name in only):
            found += mutants_of(path)
    if 0 < count < len(found):
        chosen = random.Random(f"{seed} {package}").sample(found, count)
        return sorted(chosen, key=lambda m: (m.module, m.number)), len(found)
    return found, len(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES, metavar="PACKAGE")
    parser.add_argument(
        "--count",
        type=int,
        default=COUNT,
        help="mutants per package; 0: all (default: %(default)s)",
    )
    parser.add_argument("--seed", default="1", help="chooses the sample (default: %(default)s)")
    parser.add_argument("--only", action="append", default=[], help="a module, such as journal.py")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    options = parser.parse_args(argv)
    prepare()
    lines, code = [], 0
    for package in options.packages:
        mutants, there = sample(package, options.count, options.seed, options.only)
        unchanged = start(package, None)
        while (result := finished(unchanged, 600.0)) is None:
            time.sleep(0.02)
        if result:
            print(f"the tests of {package} fail without a mutant")
            return 2
        timeout = 10.0 + 5 * (time.monotonic() - unchanged.begin)
        print(f"{package}: {len(mutants)} of {there} mutants", flush=True)
        alive = len(survivors(package, mutants, options.jobs, timeout))
        rate = 100.0 * (len(mutants) - alive) / max(len(mutants), 1)
        code = code if rate >= BAR else 1
        lines.append(
            f"{package:<6} {len(mutants) - alive:>4} of {len(mutants)} killed: {rate:5.1f} %"
        )
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
