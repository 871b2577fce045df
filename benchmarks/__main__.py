"""`python -m benchmarks [ROW ...]`: measure, print, and plot into docs/.

Without names, all rows run. A partial or quick run writes files only if `--output` says so:
docs/benchmarks.json and docs/benchmarks.png come from full runs of all servers.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import readme
from benchmarks.measure import BenchmarkError
from benchmarks.page_cache import PageCache, write_cost
from benchmarks.plot import draw
from benchmarks.report import as_json, baseline_table, table
from benchmarks.rows import ROWS
from benchmarks.runner import Runner
from benchmarks.servers import NAMES, Baseline
from benchmarks.table import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"


def parser() -> argparse.ArgumentParser:
    names = ", ".join(ROWS)
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {names}")
    made.add_argument("--rows", dest="more_rows", default="", help="the same, with commas between")
    made.add_argument("--only", choices=NAMES, help="measure one server")
    made.add_argument("--baseline", type=Path, metavar="TREE", help="also measure this checkout")
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


def raise_descriptor_limit() -> None:
    """Raise the limit of file descriptors: this process has one end of thousands of websockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns 1 if a row could not be measured. A missed bar is a result, not an error."""
    made = parser()
    options = made.parse_args(argv)
    wanted = [*options.rows, *filter(None, options.more_rows.split(","))]
    if unknown := [name for name in wanted if name not in ROWS]:
        made.error(f"no such row: {', '.join(unknown)} (there are {', '.join(ROWS)})")
    rows = [row for name, row in ROWS.items() if not wanted or name in wanted]
    raise_descriptor_limit()
    begin = time.monotonic()

    def log(text: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s] {text}", file=sys.stderr, flush=True)

    if options.profile:
        options.profile = options.profile.resolve()
        options.profile.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="kbridge-bench-"))
        settings = Settings(
            home=Path(home),
            quick=options.quick,
            rounds=1 if options.quick else options.rounds,
            count=options.count,
            kernel=options.kernel,
        )
        baseline = None
        if options.baseline or options.baseline_option:
            tree = options.baseline.resolve() if options.baseline else None
            baseline = Baseline(tree, tuple(options.baseline_option))
        names = [options.only] if options.only else NAMES
        page_cache = None
        if options.fill_page_cache:
            try:
                page_cache = stack.enter_context(PageCache(settings.home, log))
            except BenchmarkError as error:
                made.error(f"--fill-page-cache: {error}")
        runner = Runner(names, settings, log, options.profile, baseline, page_cache)
        if page_cache:
            page_cache.fill()
        before = write_cost(settings.home)
        outcomes = [runner.run(row) for row in rows]
        after = write_cost(settings.home)
    print(table(outcomes))
    if baseline:
        print(f"\n{baseline_table(outcomes)}")
    print(
        f"\nWriting to a new file: {before:.3g} ms of CPU per MB before the rows, {after:.3g} after"
    )
    partial = wanted or options.only or options.quick or options.count or options.profile
    output = options.output or (None if partial else DOCS)
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "benchmarks.json").write_text(
            as_json(outcomes, quick=options.quick, filled=options.fill_page_cache)
        )
        drawn = draw(outcomes, output / "benchmarks.png")
        if output == DOCS:
            readme.main()
        print(f"\nwritten: {output / 'benchmarks.json'}{' and .png' if drawn else ''}")
    return 1 if any(outcome.failures for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
