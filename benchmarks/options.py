"""The command line of the benchmarks, and the servers that it selects."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import baseline
from benchmarks.measure import BenchmarkError
from benchmarks.rows import ROWS
from benchmarks.servers import BASE, NAMES, REFERENCE, Variant
from benchmarks.table import Row

NO_BASELINE = "none"


def parser(description: str | None) -> argparse.ArgumentParser:
    names = ", ".join(ROWS)
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=description)
    made.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {names}")
    made.add_argument("--rows", dest="more_rows", default="", help="the same, with commas between")
    made.add_argument("--only", choices=NAMES, help="measure one server")
    made.add_argument(
        "--option",
        action="append",
        default=[],
        help="an option of the command lines of the extension and the standalone server",
    )
    made.add_argument(
        "--variant",
        action="append",
        default=[],
        type=named_option,
        metavar="NAME=OPTION",
        help="also measure the standalone server with this option (again for more options)",
    )
    made.add_argument(
        "--baseline",
        metavar="TREE",
        help="a directory or a commit to measure in all rows, or `none` (default: commit "
        f"{baseline.BASELINE[:7]} in the rows with targets relative to it; with --only `none`)",
    )
    made.add_argument(
        "--baseline-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of the baseline's command line (without --baseline: of this checkout)",
    )
    made.add_argument("--rounds", type=int, default=3, help="rounds of each row (default 3)")
    made.add_argument("--quick", action="store_true", help="a smoke run: small counts, one round")
    made.add_argument("--count", type=int, help="messages, websockets or cycles of a row")
    made.add_argument("--kernel", help="kernelspec for cycles and restart (stub, python3)")
    made.add_argument(
        "--fill-page-cache",
        action="store_true",
        help="first leave little memory free, as on a server that has run for days (Linux only)",
    )
    made.add_argument("--output", type=Path, help="directory of benchmarks.json and .png")
    made.add_argument(
        "--profile", type=Path, help="run servers under cProfile; directory of the .prof files"
    )
    return made


def named_option(text: str) -> tuple[str, str]:
    """Parse NAME=OPTION.

    Raises
    ------
    argparse.ArgumentTypeError
        If the name or the option is missing, or if the name is that of another server.
    """
    name, _, option = text.partition("=")
    if not name.isidentifier() or not option.startswith("-"):
        raise argparse.ArgumentTypeError("write a name, =, and an option that begins with -")
    if name in {*NAMES, REFERENCE, "floor"}:
        raise argparse.ArgumentTypeError(f"{name} is the name of another server")
    return name, option


def servers(options: argparse.Namespace, rows: Sequence[Row]) -> tuple[dict[str, Variant], str]:
    """Return the servers to measure, and a description of the baseline, empty without one.

    Raises
    ------
    BenchmarkError
        If the baseline is a commit that this clone does not have, or another directory.
    """
    baseline.compile_package()
    found = {name: Variant() for name in ([options.only] if options.only else NAMES)}
    for name in found.keys() - {BASE}:
        found[name] = Variant(options=tuple(options.option))
    reference, told = _reference(options, rows)
    if reference:
        found[REFERENCE] = reference
    for name, option in options.variant:
        found[name] = Variant(options=(*found.get(name, Variant()).options, option))
    return found, told


def is_partial(options: argparse.Namespace, rows: Sequence[Row]) -> bool:
    """Return True if the run does not measure all rows and all servers as `make bench` does."""
    partial = (options.only, options.quick, options.count, options.profile, options.option)
    return len(rows) < len(ROWS) or any(partial)


def _reference(options: argparse.Namespace, rows: Sequence[Row]) -> tuple[Variant | None, str]:
    """Return the variant of the baseline, None without one, and its description."""
    named, more = options.baseline, tuple(options.baseline_option)
    told = "".join(f" {option}" for option in more)
    if named is None and more:
        return Variant(options=more), f"this checkout with{told}"
    if named is None and not options.only and any(row.compared for row in rows):
        return Variant(baseline.checkout(), selected=True), baseline.BASELINE[:7]
    if named in {None, NO_BASELINE}:
        return None, ""
    if (tree := Path(named).resolve()).is_dir():
        if not (tree / "kbridge" / "__init__.py").exists():  # the current one would run
            raise BenchmarkError(f"{tree} does not have the package kbridge")
        baseline.compile_package(tree / "kbridge")
        return Variant(tree, more), f"{tree.name}{told}"
    return Variant(baseline.checkout(named), more), f"{named}{told}"
